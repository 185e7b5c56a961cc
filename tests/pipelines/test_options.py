"""Recipes are refused at once, with the path of what is wrong and what is allowed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from pipelines.inputs import digest_inputs, find_inputs
from pipelines.options import RecipeError, build_options, describe_options
from pipelines.workspace import Workspace


@dataclass(frozen=True)
class Inner:
    size: int = 3
    share: float = 0.5

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1, not {self.size}")


@dataclass(frozen=True)
class Outer:
    name: str
    mode: Literal["fast", "slow"] = "fast"
    files: tuple[str, ...] = ()
    inner: Inner = field(default_factory=Inner)
    several: tuple[Inner, ...] = ()
    maybe: Inner | None = None
    flag: bool = False


def test_a_whole_mapping_becomes_options() -> None:
    value = {
        "name": "x",
        "mode": "slow",
        "files": "one",
        "inner": {"size": 4, "share": 1},
        "several": [{"size": 1}],
        "maybe": None,
    }
    built = build_options(Outer, value, "recipe")
    assert built == Outer("x", "slow", ("one",), Inner(4, 1.0), (Inner(1),))
    assert isinstance(built.inner.share, float)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, r"recipe\.name is required"),
        ({"name": "x", "mod": "fast"}, r"recipe\.mod is not an option; did you mean mode\? Options here: name, mode"),
        ({"name": "x", "mode": "quick"}, r"recipe\.mode must be one of fast, slow, not str 'quick'"),
        ({"name": 3}, r"recipe\.name must be text, not int '3'"),
        ({"name": "x", "inner": {"size": "4"}}, r"recipe\.inner\.size must be a whole number"),
        ({"name": "x", "inner": {"size": True}}, r"recipe\.inner\.size must be a whole number, not bool"),
        ({"name": "x", "inner": {"size": 0}}, r"recipe\.inner: size must be at least 1, not 0"),
        ({"name": "x", "several": [{}, {"size": 0}]}, r"recipe\.several\[1\]: size must be at least 1"),
        ({"name": "x", "files": {"a": 1}}, r"recipe\.files must be a list"),
        ({"name": "x", "flag": "yes"}, r"recipe\.flag must be true or false"),
        ([], r"recipe must be a mapping of options, not list"),
    ],
)
def test_what_is_wrong_is_named_with_its_path(value: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build_options(Outer, value, "recipe")


def test_inputs_are_named_relative_to_their_root(tmp_path: Path) -> None:
    for name in ("a/one.txt", "a/b/two.txt", "c/one.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert [f.name for f in find_inputs(["a"], tmp_path, "inputs.texts")] == ["b/two.txt", "one.txt"]
    assert [f.name for f in find_inputs(["**/*.txt"], tmp_path, "x")] == ["a/b/two.txt", "a/one.txt", "c/one.txt"]
    assert [f.name for f in find_inputs([str(tmp_path / "a/one.txt")], Path("/"), "x")] == ["one.txt"]
    assert [f.name for f in find_inputs(["a", "a/one.txt"], tmp_path, "x")] == ["b/two.txt", "one.txt"]
    with pytest.raises(RecipeError, match=r"x\[1\]: .* would both be named one\.txt"):
        find_inputs(["a", "c"], tmp_path, "x")
    with pytest.raises(RecipeError, match=r"inputs\.texts\[0\] names no file: nothing\*"):
        find_inputs(["nothing*"], tmp_path, "inputs.texts")


def test_digests_follow_content_not_place(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "run", create=True)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.txt").write_text("same")
    files = [*find_inputs(["a"], tmp_path, "x"), *find_inputs(["b"], tmp_path, "x")]
    digests = digest_inputs(workspace, files)
    assert len(set(digests.values())) == 1
    Path(files[0].path).write_text("other")
    assert len(set(digest_inputs(workspace, files).values())) == 2


def test_every_option_is_described_with_its_type_and_default() -> None:
    lines = describe_options(Outer)
    assert {
        "name: text = (required)",
        "mode: fast | slow = fast",
        "files: list of text = []",
        "inner.size: whole number = 3",
        "several[].share: number = 0.5",
        "flag: true or false = false",
    } <= set(lines)


def test_every_option_of_a_recipe_can_be_written_down_and_read_back() -> None:
    from pipelines.recipe import parse_recipe, recipe_yaml

    recipe = parse_recipe("inputs: {texts: [a.jsonl]}\nfetch:\n", "recipe.yaml")
    assert parse_recipe(recipe_yaml(recipe), "again") == recipe
