"""A run's folder: immutable parts, manifests written last, one lease.

All reading and writing of a workspace goes through this module, over `pyarrow.fs`, so that an object store can
stand where a folder stands. Three promises hold for every reader:

* a file is whole or absent: it is written to a temporary name (or local scratch) and then renamed;
* a part is immutable and carries its content's digest in its name: `<part>.<sha256[:16]>.parquet`;
* only manifests are believed: a part that no manifest names does not exist for a reader.

Parquet is written canonically: equal rows give equal bytes, however the writer's batches were cut. Arrow tables that
are equal but chunked differently encode differently, so batches are re-cut at fixed row counts before encoding, and
no path, time or library-specific metadata enters the file.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

Json = Any  # str | int | float | bool | None | list[Json] | dict[str, Json]

ROW_GROUP = 4096
"""Rows of a Parquet row group: about 16 MB of web text, the unit a reader holds in memory."""

MANIFEST = "manifest.json"
STATE = ".state"
"""Folder of commit records and leases: what a build needs to resume, nothing a reader of results needs."""
SCRATCH = f"{STATE}/scratch"


class WorkspaceError(Exception):
    """Something in a workspace cannot be believed or done; the message names the file and what to do."""


class OtherDocuments(WorkspaceError):
    """A part is sound, and judges other documents than those that are there now."""


@dataclass(frozen=True)
class PartFile:
    """One immutable file of a stage, as its manifest names it."""

    part: str
    path: str
    rows: int
    size: int
    sha256: str
    logical: str
    """sha256 over the rows themselves, equal across library versions and encodings."""

    @classmethod
    def of(cls, fields: Mapping[str, Json]) -> PartFile:
        return cls(
            part=str(fields["part"]),
            path=str(fields["path"]),
            rows=int(fields["rows"]),
            size=int(fields["size"]),
            sha256=str(fields["sha256"]),
            logical=str(fields["logical"]),
        )


@dataclass(frozen=True)
class Problem:
    """Broken input: which file, why, where, and what the reader said."""

    input: str
    reason: str
    offset: int = -1
    detail: str = ""


@dataclass(frozen=True)
class Manifest:
    """What a stage made. Readers believe this and nothing else."""

    stage: str
    version: int
    fingerprint: str
    options: Mapping[str, Json]
    libraries: Mapping[str, str]
    tables: Mapping[str, tuple[PartFile, ...]]
    ledgers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    figures: Mapping[str, Json] = field(default_factory=dict)

    def parts(self, table: str = "") -> tuple[PartFile, ...]:
        """The part files of one table, sorted by part id."""
        return self.tables.get(table, ())

    def public(self) -> bytes:
        """`<stage>/manifest.json`: what was made, from the made bytes alone: equal results are equal files."""
        body = {name: value for name, value in asdict(self).items() if name not in ("fingerprint", "tables")}
        own = {name: files for name, files in self.tables.items() if not self._beside(files)}
        body["tables"] = {name: [asdict(file) for file in files] for name, files in own.items()}
        return canonical_json({"format": "webtext-manifest", **body}) + b"\n"

    def private(self) -> bytes:
        """What a build needs besides: the inputs' fingerprint, and side tables that hold places and times."""
        beside = {name: files for name, files in self.tables.items() if self._beside(files)}
        body = {
            "fingerprint": self.fingerprint,
            "public": hashlib.sha256(self.public()).hexdigest(),
            "tables": {name: [asdict(file) for file in files] for name, files in beside.items()},
        }
        return canonical_json(body) + b"\n"

    def _beside(self, files: tuple[PartFile, ...]) -> bool:
        return not all(file.path.startswith(f"{self.stage}/") for file in files)

    @classmethod
    def parse(cls, public: bytes, private: bytes | None, name: str) -> Manifest | None:
        """The manifest of the two files, None when they are of different commits (a build was cut off between)."""
        try:
            body = json.loads(public)
            more: dict[str, Json] = {"fingerprint": "", "tables": {}} if private is None else json.loads(private)
            if body["format"] != "webtext-manifest":
                raise ValueError(f"format is {body['format']!r}")
            if private is not None and more["public"] != hashlib.sha256(public).hexdigest():
                return None
            tables = {**body["tables"], **more["tables"]}
            return cls(
                stage=body["stage"],
                version=int(body["version"]),
                fingerprint=more["fingerprint"],
                options=body["options"],
                libraries=body["libraries"],
                tables={t: tuple(PartFile.of(p) for p in ps) for t, ps in sorted(tables.items())},
                ledgers=body["ledgers"],
                problems=tuple(Problem(**p) for p in body["problems"]),
                figures=body["figures"],
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WorkspaceError(f"{name} is not a manifest ({error}); remove it and build again") from error


def canonical_json(value: Json) -> bytes:
    """JSON with sorted keys and no spare spaces: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(value: Json) -> str:
    """sha256, in hex, of a JSON value's canonical bytes."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def part_id(relative_name: str, slice: int = 0) -> str:
    """The id of an input's slice; depends on nothing but the input's name relative to its root.

    >>> part_id("2013/a b.warc.gz", 3)
    '2013_a_b.warc.gz-a526c0f7-0003'
    """
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", relative_name)[-60:].lstrip(".-")
    return f"{readable}-{hashlib.sha256(relative_name.encode()).hexdigest()[:8]}-{slice:04d}"


def part_key(part: str) -> int:
    """A part's 64-bit key: the first 8 bytes of its id's sha256, big-endian. Columns refer to parts by it."""
    return int.from_bytes(hashlib.sha256(part.encode()).digest()[:8], "big")


class Workspace:
    """A run's folder or bucket prefix. Holds only its URL, so it travels to workers as it is."""

    def __init__(self, url: str) -> None:
        self.url = url

    @classmethod
    def open(cls, url: str | Path, create: bool = False) -> Workspace:
        """Open a workspace; a plain path is made absolute. Raises WorkspaceError when it does not exist."""
        text = str(url)
        workspace = cls(text if "://" in text else str(Path(text).absolute()))
        filesystem, root = workspace._root()
        if create:
            filesystem.create_dir(root, recursive=True)
        elif filesystem.get_file_info(root).type != pafs.FileType.Directory:
            raise WorkspaceError(f"no workspace at {text}: `webtext build RECIPE --workspace {text}` makes one")
        return workspace

    def _root(self) -> tuple[pafs.FileSystem, str]:
        if "://" in self.url:
            filesystem, root = pafs.FileSystem.from_uri(self.url)
            return filesystem, root
        return pafs.LocalFileSystem(), self.url

    @property
    def is_local(self) -> bool:
        return isinstance(self._root()[0], pafs.LocalFileSystem)

    def local_path(self, path: str) -> Path:
        """The path of a file of a local workspace. Raises WorkspaceError on an object store."""
        filesystem, root = self._root()
        if not isinstance(filesystem, pafs.LocalFileSystem):
            raise WorkspaceError(f"{self.url} is not a local folder, and {path} is needed as a local file")
        return Path(root) / path

    def open_input(self, path: str) -> pa.NativeFile:
        """A seekable stream over one file. Raises WorkspaceError when it is absent."""
        filesystem, root = self._root()
        try:
            return filesystem.open_input_file(f"{root}/{path}")
        except FileNotFoundError as error:
            raise WorkspaceError(f"{self.url}/{path} is missing; build again to make it") from error

    def read(self, path: str) -> bytes:
        with self.open_input(path) as stream:
            data: bytes = stream.read()
        return data

    def write(self, path: str, data: bytes) -> None:
        """Write one file atomically: a reader sees the old bytes or the new, never a part of them."""
        with tempfile.NamedTemporaryFile(dir=self.scratch(), delete=False) as temporary:
            temporary.write(data)
            temporary.flush()
            os.fsync(temporary.fileno())
        self.publish(Path(temporary.name), path)

    def publish(self, local: Path, path: str) -> None:
        """Move a finished local file to its final name: a rename here, one whole upload elsewhere."""
        filesystem, root = self._root()
        target = f"{root}/{path}"
        filesystem.create_dir(target.rpartition("/")[0], recursive=True)
        if isinstance(filesystem, pafs.LocalFileSystem):
            os.chmod(local, 0o644)
            os.replace(local, target)
            return
        with local.open("rb") as source, filesystem.open_output_stream(target) as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
        local.unlink()

    def size(self, path: str) -> int | None:
        """Bytes of a file, or None when it is absent."""
        filesystem, root = self._root()
        info = filesystem.get_file_info(f"{root}/{path}")
        return int(info.size) if info.type == pafs.FileType.File else None

    def exists(self, path: str) -> bool:
        return self.size(path) is not None

    def list(self, directory: str) -> list[str]:
        """Files below a directory, as sorted paths relative to the workspace; empty when there is none."""
        filesystem, root = self._root()
        selector = pafs.FileSelector(f"{root}/{directory}", recursive=True, allow_not_found=True)
        prefix = len(root) + 1
        return sorted(i.path[prefix:] for i in filesystem.get_file_info(selector) if i.type == pafs.FileType.File)

    def remove(self, path: str) -> None:
        filesystem, root = self._root()
        with contextlib.suppress(FileNotFoundError):
            filesystem.delete_file(f"{root}/{path}")

    def remove_directory(self, directory: str) -> None:
        filesystem, root = self._root()
        with contextlib.suppress(FileNotFoundError):
            filesystem.delete_dir(f"{root}/{directory}")

    def scratch(self) -> Path:
        """A local folder for unfinished files, on the workspace's own disk when that is local (so rename works)."""
        filesystem, root = self._root()
        if isinstance(filesystem, pafs.LocalFileSystem):
            folder = Path(root) / SCRATCH
        else:
            folder = Path(tempfile.gettempdir()) / "webtext-scratch"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextlib.contextmanager
    def lease(self) -> Iterator[None]:
        """Hold the workspace for one build. Raises WorkspaceError while another build holds it.

        An `flock`: the kernel gives it back when the holder dies, however it dies, so no stale lease can remain,
        and workers do not inherit it (descriptors close on exec).
        """
        path = self.local_path(f"{STATE}/lease")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                handle.seek(0)
                raise WorkspaceError(
                    f"another build holds {self.url} ({handle.read().strip()}); wait for it or end it"
                ) from error
            handle.seek(0)
            handle.truncate()
            handle.write(f"process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
            handle.flush()
            yield


def read_manifest(workspace: Workspace, stage: str) -> Manifest | None:
    """The manifest of a stage, or None when the stage has not been committed."""
    public, private = f"{stage}/{MANIFEST}", private_path(stage)
    if not workspace.exists(public):
        return None
    # A workspace handed on without its state still shows its results; side tables and fingerprints are not there.
    more = workspace.read(private) if workspace.exists(private) else None
    return Manifest.parse(workspace.read(public), more, f"{workspace.url}/{public}")


def private_path(stage: str) -> str:
    return f"{STATE}/manifests/{stage}.json"


def write_manifest(workspace: Workspace, manifest: Manifest) -> None:
    """Commit a stage: the public file is written last, and makes the private one valid."""
    workspace.write(private_path(manifest.stage), manifest.private())
    workspace.write(f"{manifest.stage}/{MANIFEST}", manifest.public())


def need_manifest(workspace: Workspace, stage: str) -> Manifest:
    """The manifest of a stage. Raises WorkspaceError when the stage has not been committed."""
    manifest = read_manifest(workspace, stage)
    if manifest is None:
        raise WorkspaceError(f"{workspace.url} has no {stage}: build that stage first")
    return manifest


_verified: set[tuple[str, str, str]] = set()
"""Parts this process has hashed already: a part is immutable, so once is enough."""


def _open_part(workspace: Workspace, part: PartFile) -> pq.ParquetFile:
    name = f"{workspace.url}/{part.path}"
    size = workspace.size(part.path)
    if size is None:
        raise WorkspaceError(f"{name} is missing though its manifest names it; build again")
    if size != part.size:
        raise WorkspaceError(f"{name} has {size:,} bytes, its manifest says {part.size:,}: remove it, build again")
    seen = (workspace.url, part.path, part.sha256)
    if seen not in _verified:
        with workspace.open_input(part.path) as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != part.sha256:
            raise WorkspaceError(
                f"{name} was altered: its sha256 is {found[:16]}…, its manifest says {part.sha256[:16]}…; "
                "remove it and build again"
            )
        _verified.add(seen)
    try:
        file = pq.ParquetFile(workspace.open_input(part.path))
    except (pa.ArrowInvalid, OSError) as error:
        raise WorkspaceError(f"{name} is damaged ({error}); remove it and build again") from error
    if file.metadata.num_rows != part.rows:
        raise WorkspaceError(f"{name} has {file.metadata.num_rows} rows, its manifest says {part.rows}")
    return file


def read_part(workspace: Workspace, part: PartFile, columns: list[str] | None = None) -> pa.Table:
    """One part as a table. Raises WorkspaceError when its size, digest or rows are not what its manifest says."""
    with _open_part(workspace, part) as file:
        try:
            return file.read(columns=columns)
        except (pa.ArrowInvalid, OSError) as error:
            raise WorkspaceError(
                f"{workspace.url}/{part.path} is damaged ({error}); remove it, build again"
            ) from error


def iter_part(workspace: Workspace, part: PartFile, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """One part's row groups in order, each as one batch; memory stays at one row group."""
    with _open_part(workspace, part) as file:
        for group in range(file.num_row_groups):
            try:
                table = file.read_row_group(group, columns=columns)
            except (pa.ArrowInvalid, OSError) as error:
                raise WorkspaceError(
                    f"{workspace.url}/{part.path}, row group {group}, is damaged ({error}); remove it, build again"
                ) from error
            yield from table.combine_chunks().to_batches()


def part_metadata(workspace: Workspace, part: PartFile) -> dict[str, str]:
    """The strings a writer stored beside a part's schema."""
    with _open_part(workspace, part) as file:
        return {k.decode(): v.decode() for k, v in (file.schema_arrow.metadata or {}).items()}


def _recut(batches: Iterable[pa.RecordBatch], schema: pa.Schema, rows: int) -> Iterator[pa.Table]:
    """Batches of any size re-cut at exactly `rows` rows, each a table of one chunk per column."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        if batch.schema.remove_metadata() != schema.remove_metadata():
            batch = batch.cast(schema.remove_metadata())
        while count + batch.num_rows >= rows:
            head = batch.slice(0, rows - count)
            yield pa.Table.from_batches([*held, head], schema.remove_metadata()).combine_chunks()
            batch = batch.slice(rows - count)
            held, count = [], 0
        if batch.num_rows:
            held.append(batch)
            count += batch.num_rows
    if held:
        yield pa.Table.from_batches(held, schema.remove_metadata()).combine_chunks()


def _logical_update(hasher: Any, column: pa.Array) -> None:
    """Feed a column's values, not its layout, to a hash: lengths and bytes for strings, little-endian for numbers."""
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        offsets = np.frombuffer(column.buffers()[1], np.int32, len(column) + 1, column.offset * 4)
        hasher.update(np.diff(offsets).astype("<i8").tobytes())
        if column.buffers()[2] is not None:
            hasher.update(memoryview(column.buffers()[2])[int(offsets[0]) : int(offsets[-1])])
    elif pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = column.value_lengths().to_numpy(zero_copy_only=False)
        hasher.update(lengths.astype("<i8").tobytes())
        _logical_update(hasher, column.flatten())
    elif pa.types.is_struct(kind):
        for child in column.flatten():
            _logical_update(hasher, child)
    elif pa.types.is_boolean(kind):
        hasher.update(np.packbits(column.to_numpy(zero_copy_only=False)).tobytes())
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        values = column.to_numpy(zero_copy_only=False)
        hasher.update(values.astype(values.dtype.newbyteorder("<")).tobytes())
    else:
        raise TypeError(f"parts hold strings, bytes, numbers, booleans, lists and structs of them, not {kind}")


def check_no_nulls(table: pa.Table) -> None:
    """Raise ValueError naming a column that holds nulls: parts say "" or -1 or 0 for unknown, never null."""
    for name in table.column_names:
        if table.column(name).null_count:
            raise ValueError(f"column {name!r} holds nulls; fill them before writing")


def write_part(
    workspace: Workspace,
    directory: str,
    part: str,
    data: pa.Table | Iterable[pa.RecordBatch],
    schema: pa.Schema,
    metadata: Mapping[str, str] | None = None,
) -> PartFile:
    """Write one canonical Parquet part under its content's name, and say what it is.

    Equal rows and metadata give equal bytes. Memory stays at one row group. A part that is already there under the
    same name (the same bytes) is left alone.
    """
    batches = data.to_batches() if isinstance(data, pa.Table) else data
    stored = schema.with_metadata(dict(sorted((metadata or {}).items())))
    hashers = [hashlib.sha256() for _ in schema]
    rows = 0
    with tempfile.NamedTemporaryFile(dir=workspace.scratch(), suffix=".parquet", delete=False) as temporary:
        local = Path(temporary.name)
    try:
        with pq.ParquetWriter(
            local, stored, compression="zstd", compression_level=3, version="2.6", store_schema=True
        ) as writer:
            for table in _recut(batches, schema, ROW_GROUP):
                check_no_nulls(table)
                for hasher, column in zip(hashers, table.columns, strict=True):
                    _logical_update(hasher, column.combine_chunks() if column.num_chunks != 1 else column.chunk(0))
                writer.write_table(table.replace_schema_metadata(stored.metadata), row_group_size=ROW_GROUP)
                rows += table.num_rows
        with local.open("rb+") as handle:
            sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
            os.fsync(handle.fileno())
        size = local.stat().st_size
        logical = digest(
            [str(rows), *(f"{f.name}:{f.type}:{h.hexdigest()}" for f, h in zip(schema, hashers, strict=True))]
        )
        path = f"{directory}/{part}.{sha256[:16]}.parquet"
        if workspace.size(path) != size:
            workspace.publish(local, path)
        return PartFile(part, path, rows, size, sha256, logical)
    finally:
        local.unlink(missing_ok=True)
