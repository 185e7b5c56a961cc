"""A stage: tasks in, immutable parts out, one manifest last.

A task is one file's worth of work, done start to end in one process by a plain function of the task's inputs and the
stage's options. Its parts are written first, then its commit record; the manifest is assembled from the commit
records when all are there. So a stage is committed or absent; a killed build resumes with the tasks that have no
record; and an input that was added costs one task.

Commit records live under `.state/`, named by the task's fingerprint: the digest of the stage's version, options, the
libraries that shape its bytes, and the task's inputs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import itertools
import json
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipelines.progress import Progress, human_seconds, say
from pipelines.runner import RunError, RunnerOptions, run_pipeline
from pipelines.workspace import (
    MANIFEST,
    STATE,
    Json,
    Manifest,
    OtherDocuments,
    PartFile,
    Problem,
    Workspace,
    WorkspaceError,
    digest,
    read_manifest,
    write_manifest,
    write_part,
)


class StageError(Exception):
    """A stage failed; the message names the stage, the task and the cause."""


class NotCurrent(Exception):
    """Raised instead of running by a runner that only plans; `stage` is the first that a build would run."""

    def __init__(self, stage: str) -> None:
        super().__init__(stage)
        self.stage = stage


@dataclass(frozen=True)
class Task:
    """One unit of work.

    `inputs` is exactly what the output depends on and is fingerprinted. `where` says where those inputs lie (absolute
    paths, ports) and is not. `weight` is bytes, for scheduling and progress.
    """

    key: str
    inputs: Mapping[str, Json] = field(default_factory=dict)
    where: Mapping[str, Json] = field(default_factory=dict)
    weight: int = 1


class Context:
    """What a work function gets: the workspace, the options, and the only ways to leave something behind."""

    def __init__(self, workspace: Workspace, stage: Stage, options: Any) -> None:
        self.workspace = workspace
        self.options = options
        self._stage = stage
        self._tables: dict[str, list[PartFile]] = defaultdict(list)
        self._ledgers: dict[str, Counter[str]] = defaultdict(Counter)
        self._problems: list[Problem] = []
        self._figures: dict[str, Json] = {}
        self._told = time.monotonic()

    def write(
        self,
        table: str,
        part: str,
        data: pa.Table | Iterable[pa.RecordBatch],
        schema: pa.Schema,
        metadata: Mapping[str, str] | None = None,
    ) -> PartFile:
        """Write one part of a table ("" is the stage's main one)."""
        directory = self._stage.tables[table] if table else self._stage.name
        stored = {"webtext.table": directory, "webtext.version": str(self._stage.version), **(metadata or {})}
        file = write_part(self.workspace, directory, part, data, schema, stored)
        self._tables[table].append(file)
        return file

    def keep(self, table: str, file: PartFile) -> None:
        """Name a file that the work function published itself (a WARC, a shard) as a part of a table."""
        self._tables[table].append(file)

    def count(self, unit: str, reason: str, n: int = 1) -> None:
        """Add to a ledger. "in" must end equal to "kept" plus every other reason."""
        self._ledgers[unit][reason] += int(n)

    def problem(self, input: str, reason: str, offset: int = -1, detail: str = "") -> None:
        """Note broken input, by file and reason; it stands in the manifest and the report."""
        self._problems.append(Problem(input, reason, int(offset), detail[:500]))

    def figure(self, name: str, value: Json) -> None:
        """Note a number about this task; the manifest lists them by task key."""
        self._figures[name] = value

    def progress(self, key: str, done: int) -> None:
        """Say how many bytes of a task's weight are done; shown while a long task runs, and nothing else."""
        now = time.monotonic()
        if now - self._told < 1.0 or not self.workspace.is_local:
            return
        self._told = now
        path = self.workspace.local_path(f"{STATE}/progress/{self._stage.name}/{key}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(int(done)))

    def record(self) -> dict[str, Json]:
        return {
            "tables": {t: [dataclasses.asdict(f) for f in files] for t, files in self._tables.items()},
            "ledgers": {unit: dict(ledger) for unit, ledger in self._ledgers.items()},
            "problems": [dataclasses.asdict(p) for p in self._problems],
            "figures": self._figures,
        }


@dataclass(frozen=True)
class Stage:
    """A stage's name (its directory), its own version, bumped by hand when its output changes, and its work."""

    name: str
    version: int
    work: Callable[[Task, Context], None]
    libraries: tuple[str, ...] = ()
    tables: Mapping[str, str] = field(default_factory=dict)

    def library_versions(self) -> dict[str, str]:
        return {name: _version(name) for name in sorted({"pyarrow", *self.libraries})}


# A look-up reads the distribution's metadata from disk, about 0.3 ms, for every task's fingerprint.
_version = functools.cache(importlib.metadata.version)


def plain_options(options: Any) -> Json:
    """An options dataclass as JSON, so that it can be fingerprinted and kept."""
    if dataclasses.is_dataclass(options) and not isinstance(options, type):
        return {f.name: plain_options(getattr(options, f.name)) for f in dataclasses.fields(options)}
    if isinstance(options, tuple | list):
        return [plain_options(item) for item in options]
    if isinstance(options, Mapping):
        return {str(k): plain_options(v) for k, v in options.items()}
    return options


def shaping_options(options: Any) -> Json:
    """The options that shape bytes: all but the fields marked `metadata={"shapes_bytes": False}`."""
    if dataclasses.is_dataclass(options) and not isinstance(options, type):
        return {
            f.name: shaping_options(getattr(options, f.name))
            for f in dataclasses.fields(options)
            if f.metadata.get("shapes_bytes", True)
        }
    if isinstance(options, tuple | list):
        return [shaping_options(item) for item in options]
    return plain_options(options)


def task_fingerprint(stage: Stage, options: Any, task: Task) -> str:
    return digest(
        {
            "stage": stage.name,
            "version": stage.version,
            "options": shaping_options(options),
            "libraries": stage.library_versions(),
            "key": task.key,
            "inputs": plain_options(task.inputs),
        }
    )


def record_path(stage: Stage, task: Task, fingerprint: str) -> str:
    return f"{STATE}/stages/{stage.name}/{task.key}.{fingerprint[:16]}.json"


def read_record(workspace: Workspace, path: str) -> dict[str, Json] | None:
    """A task's commit record, or None when it is absent or names a file that is absent or of another size."""
    if not workspace.exists(path):
        return None
    try:
        record: dict[str, Json] = json.loads(workspace.read(path))
        files = [PartFile.of(f) for table in record["tables"].values() for f in table]
    except (ValueError, KeyError, TypeError) as error:
        raise WorkspaceError(f"{workspace.url}/{path} is damaged ({error}); remove it and build again") from error
    return record if all(is_there(workspace, file) for file in files) else None


def is_there(workspace: Workspace, file: PartFile) -> bool:
    """Whether a file has the size its record says; and the digest, where its name does not carry it: such a file is
    written over when its stage is done again, and a kill may fall between."""
    if workspace.size(file.path) != file.size:
        return False
    if file.sha256[:16] in file.path:
        return True
    return hashlib.sha256(workspace.read(file.path)).hexdigest() == file.sha256


def check_ledgers(ledgers: Mapping[str, Mapping[str, int]], where: str) -> None:
    """Raise StageError when a ledger does not balance: rows in = rows kept + rows dropped by each reason."""
    for unit, ledger in ledgers.items():
        out = sum(n for reason, n in ledger.items() if reason != "in")
        if ledger.get("in", 0) != out:
            raise StageError(
                f"{where}: the {unit} do not balance: {ledger.get('in', 0)} in, {out} accounted for: {ledger}"
            )


def perform(stage: Stage, options: Any, url: str, task: Task, work: Callable[[Context], None]) -> str:
    """Do one task in this process unless it is done, write its commit record, return the record's path.

    A failure is written beside the commit records, because engines bring back little of an exception.
    """
    workspace = Workspace(url)
    path = record_path(stage, task, task_fingerprint(stage, options, task))
    if read_record(workspace, path) is not None:
        return path
    context = Context(workspace, stage, options)
    try:
        work(context)
        record = context.record()
        check_ledgers(record["ledgers"], f"{stage.name}, {task.key}")
    except Exception as error:
        note = {"task": task.key, "error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
        with contextlib.suppress(OSError):  # where the disk is full, the note is what can be spared
            workspace.write(f"{STATE}/failures/{stage.name}.json", json.dumps(note).encode())
        raise
    workspace.write(path, json.dumps(record, sort_keys=True).encode())
    return path


def _unique(tasks: Sequence[Task], stage: Stage) -> list[Task]:
    ordered = sorted(tasks, key=lambda task: task.key)
    for one, other in itertools.pairwise(ordered):
        if one.key == other.key:
            raise StageError(f"{stage.name}: two inputs have the name {one.key}; give one of them another `name`")
    return ordered


def assemble(
    workspace: Workspace, stage: Stage, options: Any, fingerprint: str, records: Mapping[str, Mapping[str, Json]]
) -> Manifest:
    """Sum the commit records of all tasks into a manifest. Raises StageError when a ledger does not balance."""
    tables: dict[str, list[PartFile]] = defaultdict(list)
    ledgers: dict[str, Counter[str]] = defaultdict(Counter)
    problems: list[Problem] = []
    figures: dict[str, Json] = {}
    for key, record in sorted(records.items()):
        for table, files in record["tables"].items():
            tables[table] += [PartFile.of(f) for f in files]
        for unit, ledger in record["ledgers"].items():
            ledgers[unit].update(ledger)
        problems += [Problem(**p) for p in record["problems"]]
        if record["figures"]:
            figures[key] = record["figures"]
    check_ledgers(ledgers, stage.name)
    return Manifest(
        stage=stage.name,
        version=stage.version,
        fingerprint=fingerprint,
        options=plain_options(shaping_options(options)),
        libraries=stage.library_versions(),
        tables={t: tuple(sorted(fs, key=lambda f: f.part)) for t, fs in sorted(tables.items())},
        ledgers={unit: dict(sorted(ledger.items())) for unit, ledger in sorted(ledgers.items())},
        problems=tuple(problems),
        figures=figures,
    )


def commit(workspace: Workspace, stage: Stage, manifest: Manifest, live_records: Iterable[str]) -> None:
    """Write the manifest last, then drop the files of this stage that no manifest names any more."""
    write_manifest(workspace, manifest)
    sweep(workspace, stage, manifest, live_records)


def sweep(workspace: Workspace, stage: Stage, manifest: Manifest, live_records: Iterable[str]) -> None:
    """Drop parts and commit records that no manifest names; done again on a current stage, for a kill may fall
    between a manifest and this."""
    named = {file.path for files in manifest.tables.values() for file in files}
    for table, directory in {"": stage.name, **stage.tables}.items():
        suffixes = {file.path.rpartition(".")[2] for file in manifest.parts(table)} | {"parquet"}
        for path in workspace.list(directory):
            folder, _, name = path.rpartition("/")
            owned = folder == directory and name != MANIFEST and name.rpartition(".")[2] in suffixes
            if owned and path not in named:
                workspace.remove(path)
    live = set(live_records)
    for path in workspace.list(f"{STATE}/stages/{stage.name}"):
        if path.rpartition("/")[0] == f"{STATE}/stages/{stage.name}" and path not in live:
            workspace.remove(path)


def current_manifest(workspace: Workspace, stage: Stage, fingerprint: str) -> Manifest | None:
    """The stage's manifest when it was made by exactly these tasks and its files are there at their sizes."""
    manifest = read_manifest(workspace, stage.name)
    if manifest is None or manifest.fingerprint != fingerprint:
        return None
    files = (file for table in manifest.tables.values() for file in table)
    return manifest if all(is_there(workspace, file) for file in files) else None


def withdraw(workspace: Workspace, stage: Stage) -> None:
    """Take back a manifest that names files the stage is about to write over."""
    manifest = read_manifest(workspace, stage.name)
    files = (file for table in manifest.tables.values() for file in table) if manifest else ()
    if any(file.sha256[:16] not in file.path for file in files):
        workspace.remove(f"{stage.name}/{MANIFEST}")


def clear_failure(workspace: Workspace, stage: Stage) -> None:
    workspace.remove(f"{STATE}/failures/{stage.name}.json")


def explain_failure(workspace: Workspace, stage: Stage, error: Exception) -> StageError:
    """The error to show: the failing task's own words where it left any, the engine's otherwise."""
    path = f"{STATE}/failures/{stage.name}.json"
    if "[Errno 28]" in str(error):
        return StageError(
            f"{stage.name}: the disk of {workspace.url} is full; free some space and run the same command again"
        )
    if workspace.exists(path) and not isinstance(error, RunError):
        note = json.loads(workspace.read(path))
        say(note["trace"], level=1)
        return StageError(f"{stage.name}, task {note['task']}: {note['error']}")
    return StageError(f"{stage.name}: {error}")


def by_weight(tasks: Sequence[Task]) -> list[Task]:
    """Largest first: the embedded engine deals work out round-robin, once, so equal hands need sorted cards."""
    return sorted(tasks, key=lambda task: (-task.weight, task.key))


def run_stage(
    workspace: Workspace, stage: Stage, options: Any, tasks: Sequence[Task], runner: RunnerOptions
) -> Manifest:
    """Bring a stage up to date and return its manifest: skip what is current, do what has no commit record.

    Raises StageError when a task fails, a ledger does not balance or two tasks share a key.
    """
    started = time.monotonic()
    ordered = _unique(tasks, stage)
    fingerprints = {task.key: task_fingerprint(stage, options, task) for task in ordered}
    fingerprint = digest([stage.name, stage.version, *fingerprints.items()])
    paths = {task.key: record_path(stage, task, fingerprints[task.key]) for task in ordered}
    manifest = current_manifest(workspace, stage, fingerprint)
    if manifest is not None:
        if not runner.plan:
            sweep(workspace, stage, manifest, paths.values())
        say(f"{stage.name}: current", level=1)
        return manifest
    if runner.plan:
        raise NotCurrent(stage.name)
    todo = [task for task in ordered if read_record(workspace, paths[task.key]) is None]
    for task in todo:
        workspace.remove(paths[task.key])
    if todo:
        withdraw(workspace, stage)
        _run_tasks(workspace, stage, options, todo, paths, runner)
    records = {}
    for task in ordered:
        record = read_record(workspace, paths[task.key])
        if record is None:
            raise StageError(f"{stage.name}: task {task.key} left no commit record; build again")
        records[task.key] = record
    manifest = assemble(workspace, stage, options, fingerprint, records)
    commit(workspace, stage, manifest, paths.values())
    say(f"{stage.name}: {len(todo)} of {len(ordered)} tasks done in {human_seconds(time.monotonic() - started)}")
    return manifest


def _run_tasks(
    workspace: Workspace,
    stage: Stage,
    options: Any,
    todo: Sequence[Task],
    paths: Mapping[str, str],
    runner: RunnerOptions,
) -> None:
    def construct(pipeline: Any) -> None:
        import apache_beam as beam

        from pipelines.dofns import PerformTask

        _ = (
            pipeline
            | "tasks" >> beam.Create(by_weight(todo), reshuffle=False)
            | "spread" >> beam.Reshuffle()
            | stage.name >> beam.ParDo(PerformTask(stage, options, workspace.url))
        )

    clear_failure(workspace, stage)
    weights = {task.key: task.weight for task in todo}

    def done() -> int:
        return sum(
            weight if workspace.exists(paths[key]) else min(weight, _told(workspace, stage, key))
            for key, weight in weights.items()
        )

    try:
        with Progress(stage.name, sum(weights.values()), done):
            run_pipeline(construct, runner, stage.name.replace("/", "-"))
        workspace.remove_directory(f"{STATE}/progress/{stage.name}")
    except Exception as error:
        raise explain_failure(workspace, stage, error) from error


def _told(workspace: Workspace, stage: Stage, key: str) -> int:
    """What an unfinished task last said of its progress, 0 when nothing (or half a number) is there."""
    if not workspace.is_local:
        return 0
    try:
        return int(workspace.local_path(f"{STATE}/progress/{stage.name}/{key}").read_text())
    except (OSError, ValueError):
        return 0


def annotation_tasks(
    documents: Manifest, extra: Mapping[str, Json] | None = None, where: Mapping[str, Json] | None = None
) -> list[Task]:
    """One task per document part; `extra` joins its inputs."""
    return [
        Task(
            key=file.part,
            inputs={"documents": dataclasses.asdict(file), **(extra or {})},
            where=where or {},
            weight=file.size,
        )
        for file in documents.parts()
    ]


def document_part(task: Task) -> PartFile:
    """The document part an annotation task judges."""
    return PartFile.of(task.inputs["documents"])


def _counted(batches: Iterable[pa.RecordBatch], seen: list[int]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        seen[0] += batch.num_rows
        yield batch


def write_annotation(task: Task, context: Context, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> None:
    """Write a document part's annotation: the same rows in the same order, and whose they are.

    Raises StageError when the row counts differ.
    """
    documents = document_part(task)
    seen = [0]
    metadata = {"documents.sha256": documents.sha256, "documents.rows": str(documents.rows)}
    context.write("", documents.part, _counted(batches, seen), schema, metadata)
    if seen[0] != documents.rows:
        raise StageError(f"annotation of {documents.part} has {seen[0]} rows for {documents.rows} documents")
    context.count("documents", "in", documents.rows)
    context.count("documents", "kept", documents.rows)


def read_annotation(
    workspace: Workspace, annotations: Manifest, documents: PartFile, columns: list[str] | None = None
) -> pa.Table:
    """The annotation part that belongs to a document part.

    Raises WorkspaceError when there is none or when it was made for other documents (digest or row count differ).
    """
    from pipelines.workspace import part_metadata, read_part

    for file in annotations.parts():
        if file.part == documents.part:
            belongs = part_metadata(workspace, file)
            if belongs.get("documents.sha256") != documents.sha256 or file.rows != documents.rows:
                raise OtherDocuments(f"{workspace.url}/{file.path} judges other documents than {documents.path}")
            return read_part(workspace, file, columns)
    raise WorkspaceError(f"{workspace.url}/{annotations.stage} has no part {documents.part}; build that stage again")
