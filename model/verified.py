"""Is a shard still the file its manifest describes? Hashed once, then believed until its size or time changes.

A flipped byte makes tokens that look like any others, so only the sha256 in the manifest tells. Hashing runs at about
1 to 2 GB/s of a core or at the speed of the disk, whichever is less: some ten seconds for the 18 GB of a corpus like
WebText. A run therefore remembers what it has hashed:

    {"format": "webtext-verified", "version": 1, "files": {absolute path: {"size", "mtime_ns", "sha256"}}}

The file is a cache: where it is absent, damaged or cannot be written, the shards are hashed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

FORMAT = "webtext-verified"
VERSION = 1
VERIFIED = "verified.json"
MAX_BYTES = 1 << 28


@dataclass(frozen=True)
class Hashed:
    """A file of `size` bytes, last written at `mtime_ns`, had this digest."""

    size: int
    mtime_ns: int
    sha256: str


Known: TypeAlias = dict[str, Hashed]


def digest_of(path: Path, expected: str, known: Known) -> str:
    """The sha256 hex of a file: computed, unless it is known to be `expected` and its size and time are as then.

    An expected digest is known from now on.
    """
    status = path.stat()
    name = str(path.resolve())
    whole = Hashed(status.st_size, status.st_mtime_ns, expected)
    if known.get(name) == whole:
        return expected
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found == expected:
        known[name] = whole
    return found


def read_known(path: Path) -> Known:
    """What `write_known` left there; {} if that is absent or not to be understood."""
    try:
        if path.stat().st_size > MAX_BYTES:
            return {}
        read = json.loads(path.read_bytes())
        if (read["format"], read["version"]) != (FORMAT, VERSION):
            return {}
        return {name: Hashed(**entry) for name, entry in read["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def write_known(path: Path, known: Known) -> None:
    """Write beside, then rename. A folder that cannot be written costs the next reader its time, nothing else."""
    files = {name: asdict(hashed) for name, hashed in sorted(known.items())}
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with contextlib.suppress(OSError):
        partial.write_text(json.dumps({"format": FORMAT, "version": VERSION, "files": files}, indent=1) + "\n")
        partial.replace(path)
