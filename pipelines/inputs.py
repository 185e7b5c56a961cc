"""The inputs of a recipe: which files, under which names, with which digests.

An input's name is its path relative to its root (the folder, or the part of a pattern before the first wildcard), so
it is the same wherever the folder lies. Its sha256 is its identity; digests are kept in the workspace's state with
the file's size and time, so a file is hashed once.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pipelines.options import RecipeError
from pipelines.progress import Progress
from pipelines.workspace import STATE, Workspace

DIGESTS = f"{STATE}/inputs.json"


@dataclass(frozen=True)
class InputFile:
    """One input file: its name relative to its root, where it lies, its bytes."""

    name: str
    path: str
    size: int


def find_inputs(patterns: Sequence[str], base: Path, path: str) -> list[InputFile]:
    """The files that patterns name, sorted by name. A pattern is a file, a folder (all below it) or a glob.

    Raises RecipeError, naming the place in the recipe, when a pattern names nothing or two files share a name.
    """
    found: dict[str, InputFile] = {}
    for index, pattern in enumerate(patterns):
        spelled = os.path.expanduser(pattern)
        full = spelled if os.path.isabs(spelled) else os.path.join(glob.escape(str(base)), spelled)
        try:
            files = sorted(_expand(full))
        except OSError as error:
            raise RecipeError(f"{path}[{index}]: {pattern}: {error}") from error
        if not files:
            raise RecipeError(f"{path}[{index}] names no file: {pattern} (looked at {full})")
        for root, file in files:
            entry = _entry(root, file, f"{path}[{index}]")
            other = found.setdefault(entry.name, entry)
            if os.path.realpath(other.path) != os.path.realpath(entry.path):
                raise RecipeError(
                    f"{path}[{index}]: {entry.path} and {other.path} would both be named {entry.name}; "
                    "name a common folder above them with a pattern such as folder/**"
                )
    return [found[name] for name in sorted(found)]


def _entry(root: str, file: str, where: str) -> InputFile:
    name = os.path.relpath(file, root).replace(os.sep, "/")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise RecipeError(f"{where}: the name of {os.fsencode(file)!r} is not UTF-8; rename the file") from error
    if not os.path.exists(file):
        raise RecipeError(f"{where}: {file} is a link to a file that is not there")
    return InputFile(name, os.path.abspath(file), os.path.getsize(file))


def _expand(pattern: str) -> Iterator[tuple[str, str]]:
    """(root, file) for each file a pattern stands for; below a folder all but hidden ones (a dot first)."""
    root, wild = _literal_part(pattern)
    if not wild and not os.path.isdir(root):
        if os.path.isfile(root):
            yield os.path.dirname(root), root
        return
    places = glob.glob(pattern, recursive=True) if wild else [root]
    for place in places:
        if wild and not os.path.isdir(place):
            yield root, place
        elif not wild:
            yield from ((root, file) for file in _below(place))


def _below(folder: str) -> Iterator[str]:
    """Every file below a folder, through links to folders too, each folder once."""
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        if os.path.realpath(place) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(place))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(place, name) for name in files if not name.startswith("."))


def _literal_part(pattern: str) -> tuple[str, bool]:
    """The folder before a pattern's first wildcard, unescaped, and whether there is a wildcard at all.

    >>> _literal_part("/data/[[]1]/RS_*.zst"), _literal_part("/data/one.txt")
    (('/data/[1]', True), ('/data/one.txt', False))
    """
    parts = pattern.split(os.sep)
    for i, part in enumerate(parts):
        plain = re.sub(r"\[([*?[])\]", r"\1", part)
        if glob.has_magic(part) and glob.escape(plain) != part:
            return os.sep.join(parts[:i]) or os.sep, True
        parts[i] = plain
    return os.sep.join(parts), False


def digest_inputs(workspace: Workspace, files: Sequence[InputFile]) -> dict[str, str]:
    """sha256 of each file by its path; hashes only files whose size or time changed since they were hashed last."""
    known = _known_digests(workspace)
    stamps: dict[str, list[object]] = {}
    for file in files:
        status = os.stat(file.path)
        stamps[file.path] = [status.st_size, status.st_mtime_ns]
    todo = [file for file in files if known.get(file.path, [None])[:2] != stamps[file.path]]
    finished = [0]

    def sha256(file: InputFile) -> str:
        with open(file.path, "rb") as stream:
            value = hashlib.file_digest(stream, "sha256").hexdigest()
        finished[0] += file.size
        return value

    with (
        Progress("hashing inputs", sum(f.size for f in todo), lambda: finished[0]),
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        for file, value in zip(todo, pool.map(sha256, todo), strict=True):
            known[file.path] = [*stamps[file.path], value]
    if todo:
        workspace.write(DIGESTS, json.dumps(known, sort_keys=True).encode())
    return {file.path: str(known[file.path][2]) for file in files}


def _known_digests(workspace: Workspace) -> dict[str, list[object]]:
    """What is remembered, {} where nothing sound is: it only saves hashing again."""
    try:
        known = json.loads(workspace.read(DIGESTS)) if workspace.exists(DIGESTS) else {}
    except ValueError:
        return {}
    sound = isinstance(known, dict) and all(isinstance(v, list) and len(v) == 3 for v in known.values())
    return known if sound else {}
