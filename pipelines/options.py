"""Options from YAML: a mapping becomes a frozen dataclass, or one clear message with the path in the recipe.

Supported field types: bool, int, float, str, `Literal`, `tuple[T, ...]`, nested dataclasses and `T | None`. The
dataclasses check ranges themselves, in `__post_init__`.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

T = TypeVar("T")


class RecipeError(ValueError):
    """A recipe cannot be run as it stands; the message gives the path in the recipe and what is allowed."""


def build_options(kind: type[T], value: Any, path: str) -> T:
    """A dataclass from a parsed YAML mapping. Raises RecipeError naming the path of what is wrong.

    >>> import dataclasses
    >>> @dataclasses.dataclass(frozen=True)
    ... class Point:
    ...     x: int
    ...     y: int = 0
    >>> build_options(Point, {"x": 1}, "point")
    Point(x=1, y=0)
    >>> build_options(Point, {"x": 1, "yy": 2}, "point")
    Traceback (most recent call last):
    pipelines.options.RecipeError: point.yy is not an option; did you mean y? Options here: x, y
    """
    if value is None:
        value = {}
    if not isinstance(value, Mapping):
        raise RecipeError(f"{path} must be a mapping of options, not {_shown(value)}")
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]  # T is a dataclass
    for key in value:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, 1)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise RecipeError(f"{path}.{key} is not an option{hint} Options here: {', '.join(names)}")
    fields = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]  # T is a dataclass
        if field.name in value:
            fields[field.name] = convert(hints[field.name], value[field.name], f"{path}.{field.name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise RecipeError(f"{path}.{field.name} is required")
    try:
        return kind(**fields)
    except RecipeError:
        raise
    except (ValueError, TypeError) as error:
        raise RecipeError(f"{path}: {error}") from error


def convert(kind: Any, value: Any, path: str) -> Any:
    """One YAML value as the type a field declares. Raises RecipeError when it is of another type."""
    origin = get_origin(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return build_options(kind, value, path)
    if origin in (Union, types.UnionType):
        return _convert_union(get_args(kind), value, path)
    if origin is Literal:
        if value not in get_args(kind):
            raise RecipeError(f"{path} must be one of {', '.join(map(str, get_args(kind)))}, not {_shown(value)}")
        return value
    if origin is tuple:
        if isinstance(value, str) and get_args(kind)[0] is str:
            value = [value]
        if not isinstance(value, list | tuple):
            raise RecipeError(f"{path} must be a list, not {_shown(value)}")
        return tuple(convert(get_args(kind)[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is str and hasattr(value, "isoformat"):
        return value.isoformat()  # YAML reads 2017-12-31 as a date
    if kind in (bool, int, float, str) and type(value) is kind:
        return value
    raise RecipeError(f"{path} must be {_named(kind)}, not {_shown(value)}")


def _convert_union(kinds: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    rest = [kind for kind in kinds if kind is not type(None)]
    for kind in rest[:-1]:
        try:
            return convert(kind, value, path)
        except RecipeError:
            continue
    return convert(rest[-1], value, path)


def _named(kind: Any) -> str:
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}.get(kind, str(kind))


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:60]!r}" if value is not None else "nothing"


def describe_options(kind: type[Any], path: str = "") -> list[str]:
    """Every option of a dataclass, a line each, `path: type = default`; a section begins with its docstring."""
    lines: list[str] = []
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        name = f"{path}.{field.name}" if path else field.name
        inner = _dataclass_in(hints[field.name])
        if inner is None:
            lines.append(f"{name}: {_type_name(hints[field.name])} = {_default(field)}")
            continue
        many = get_origin(hints[field.name]) is tuple
        lines += ["", f"{name}{'[]' if many else ''}:"]
        lines += [f"    # {line.strip()}" for line in (inner.__doc__ or "").strip().splitlines()]
        lines += describe_options(inner, f"{name}[]" if many else name)
    return lines


def _dataclass_in(kind: Any) -> type[Any] | None:
    """The dataclass that a field's type is, or may be, or is a tuple of."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return kind
    return next((found for part in get_args(kind) if (found := _dataclass_in(part)) is not None), None)


def _type_name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " | ".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        return f"list of {_type_name(get_args(kind)[0])}"
    return {bool: "true or false", int: "whole number", float: "number", str: "text"}.get(kind, str(kind))


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
        return "(required)"
    value = field.default if field.default is not dataclasses.MISSING else None
    if value is None and field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if isinstance(value, tuple):
        more = f", … {len(value)} in all" if len(value) > 12 else ""
        return f"[{', '.join(map(str, value[:12]))}{more}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return "(none)" if value in ("", None) else str(value)
