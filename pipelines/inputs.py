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
from collections.abc import Iterable, Sequence
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
        full = spelled if os.path.isabs(spelled) else str(base / spelled)
        files = sorted(_expand(full))
        if not files:
            raise RecipeError(f"{path}[{index}] names no file: {pattern} (looked at {full})")
        for root, file in files:
            name = os.path.relpath(file, root).replace(os.sep, "/")
            entry = InputFile(name, os.path.abspath(file), os.path.getsize(file))
            other = found.setdefault(name, entry)
            if os.path.realpath(other.path) != os.path.realpath(entry.path):
                raise RecipeError(
                    f"{path}[{index}]: {entry.path} and {other.path} would both be named {name}; "
                    "name a common folder above them with a pattern such as folder/**"
                )
    return [found[name] for name in sorted(found)]


def _expand(pattern: str) -> Iterable[tuple[str, str]]:
    """(root, file) for each regular file a pattern stands for."""
    if os.path.isfile(pattern):
        return [(os.path.dirname(pattern), pattern)]
    if os.path.isdir(pattern):
        return [(pattern, str(file)) for file in Path(pattern).rglob("*") if file.is_file()]
    fixed = pattern
    while glob.has_magic(fixed):
        fixed = os.path.dirname(fixed)
    return [(fixed, file) for file in glob.glob(pattern, recursive=True) if os.path.isfile(file)]


def digest_inputs(workspace: Workspace, files: Sequence[InputFile]) -> dict[str, str]:
    """sha256 of each file by its path; hashes only files whose size or time changed since they were hashed last."""
    known: dict[str, list[object]] = json.loads(workspace.read(DIGESTS)) if workspace.exists(DIGESTS) else {}
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
