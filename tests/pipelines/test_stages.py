"""Stages and exchanges: committed or absent, resumed, balanced, the same whatever ran them."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines.exchange import Exchange, partition_count, run_exchange
from pipelines.runner import RunnerOptions
from pipelines.stages import (
    Context,
    NotCurrent,
    Stage,
    StageError,
    Task,
    annotation_tasks,
    document_part,
    read_annotation,
    run_stage,
    write_annotation,
)
from pipelines.workspace import Manifest, PartFile, Workspace, WorkspaceError, part_key, read_manifest, read_part

ONE = RunnerOptions(workers=1)
TWO = RunnerOptions(workers=2)
ROWS = pa.schema([pa.field("key", pa.uint64(), nullable=False), pa.field("value", pa.string(), nullable=False)])


@dataclasses.dataclass(frozen=True)
class Options:
    rows: int = 300
    marker: str = ""
    hidden: str = dataclasses.field(default="", metadata={"shapes_bytes": False})


def note(options: Options, line: str) -> None:
    """Append to the marker file, so that a test sees which tasks were really done."""
    if options.hidden:
        with open(options.hidden, "a") as stream:
            stream.write(line + "\n")


def make_rows(task: Task, context: Context) -> None:
    options: Options = context.options
    note(options, task.key)
    rng = np.random.default_rng(int(task.inputs["seed"]))
    keys = rng.integers(0, 1 << 63, options.rows).astype(np.uint64)
    values = [f"{task.key}:{i}" for i in range(options.rows)]
    context.count("rows", "in", options.rows)
    context.count("rows", "kept", options.rows)
    context.write("", task.key, pa.table({"key": keys, "value": values}, ROWS), ROWS)


def unbalanced(task: Task, context: Context) -> None:
    context.count("rows", "in", 2)
    context.count("rows", "kept", 1)


def fails(task: Task, context: Context) -> None:
    if task.inputs["seed"] == 1:
        raise ValueError("record 17 is upside down")
    make_rows(task, context)


def dies(task: Task, context: Context) -> None:
    if task.inputs["seed"] == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    make_rows(task, context)


def fills_the_disk(task: Task, context: Context) -> None:
    raise OSError(28, "No space left on device")


def judge_lengths(task: Task, context: Context) -> None:
    schema = pa.schema([pa.field("length", pa.int32(), nullable=False)])
    table = read_part(context.workspace, document_part(task), ["value"])
    lengths = pa.table({"length": [len(v) for v in table.column("value").to_pylist()]}, schema)
    wanted = lengths.slice(1) if context.options == "short" else lengths
    write_annotation(task, context, wanted.to_batches(), schema)


def send(task: Task, context: Context) -> pa.Table:
    return read_part(context.workspace, PartFile.of(task.inputs["part"]))


def receive(task: Task, table: pa.Table, context: Context) -> None:
    context.count("rows", "in", table.num_rows)
    context.count("rows", "kept", table.num_rows)
    context.write("", task.key, table, ROWS)


ROWS_STAGE = Stage("rows", 1, make_rows)
GROUPED = Stage("grouped", 1, make_rows)
EXCHANGE = Exchange(ROWS, "key", ("key", "value"), send, receive)


def tasks(seeds: range) -> list[Task]:
    return [Task(f"t{seed}", {"seed": seed}, {"lies": f"/anywhere/{seed}"}, seed + 1) for seed in seeds]


def senders(manifest: Manifest) -> list[Task]:
    return [Task(file.part, {"part": dataclasses.asdict(file)}) for file in manifest.parts()]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "run", create=True)


def test_workers_and_order_change_nothing(tmp_path: Path) -> None:
    results = []
    for name, runner, order in (("a", ONE, range(5)), ("b", TWO, range(4, -1, -1))):
        workspace = Workspace.open(tmp_path / name, create=True)
        rows = run_stage(workspace, ROWS_STAGE, Options(), tasks(order), runner)  # type: ignore[arg-type]
        grouped = run_exchange(workspace, GROUPED, None, EXCHANGE, senders(rows), runner, total_bytes=200 << 20)
        results.append((rows, grouped, workspace.read("rows/manifest.json"), workspace.read("grouped/manifest.json")))
    assert results[0] == results[1]
    assert len(results[0][1].parts()) == 4


def test_an_exchange_loses_and_invents_nothing_and_sorts(workspace: Workspace) -> None:
    rows = run_stage(workspace, ROWS_STAGE, Options(), tasks(range(3)), ONE)
    grouped = run_exchange(workspace, GROUPED, None, EXCHANGE, senders(rows), ONE, total_bytes=200 << 20)
    given = pa.concat_tables(read_part(workspace, file) for file in rows.parts())
    got = [read_part(workspace, file) for file in grouped.parts()]
    assert sorted(pa.concat_tables(got).column("value").to_pylist()) == sorted(given.column("value").to_pylist())
    for table in got:
        keys = table.column("key").to_numpy()
        assert (np.diff(keys.astype(np.float64)) >= 0).all()
    assert workspace.list(".state/runs") == []


def test_an_exchange_routes_to_targets_and_every_target_runs(workspace: Workspace) -> None:
    targets = [Task("here"), Task("there"), Task("nobody")]
    schema = EXCHANGE.schema
    rows = pa.table({"key": np.array([part_key("there"), part_key("here")], np.uint64), "value": ["b", "a"]}, schema)

    file = PartFile("x", "", 0, 0, "", "")
    stage = Stage("sent", 1, make_rows)
    context = Context(workspace, stage, None)
    file = context.write("", "x", rows, schema)
    manifest = run_exchange(
        workspace, GROUPED, None, EXCHANGE, [Task("x", {"part": dataclasses.asdict(file)})], ONE, targets=targets
    )
    found = {f.part: read_part(workspace, f).column("value").to_pylist() for f in manifest.parts()}
    assert found == {"here": ["a"], "there": ["b"], "nobody": []}
    with pytest.raises(StageError, match="names a part"):
        run_exchange(
            workspace, GROUPED, None, EXCHANGE, [Task("x", {"part": dataclasses.asdict(file)})], ONE,
            targets=[Task("here")],
        )  # fmt: skip


def test_current_stages_run_nothing_and_added_inputs_run_alone(workspace: Workspace, tmp_path: Path) -> None:
    log = tmp_path / "log"
    options = Options(hidden=str(log))
    first = run_stage(workspace, ROWS_STAGE, options, tasks(range(3)), ONE)
    assert log.read_text().split() == ["t2", "t1", "t0"]
    assert run_stage(workspace, ROWS_STAGE, options, tasks(range(3)), RunnerOptions(plan=True)) == first
    moved = [dataclasses.replace(task, where={"lies": "/elsewhere"}) for task in tasks(range(3))]
    assert run_stage(workspace, ROWS_STAGE, dataclasses.replace(options, hidden=""), moved, ONE) == first
    log.write_text("")
    more = run_stage(workspace, ROWS_STAGE, options, tasks(range(4)), ONE)
    assert log.read_text().split() == ["t3"]
    fresh = Workspace.open(tmp_path / "fresh", create=True)
    assert run_stage(fresh, ROWS_STAGE, options, tasks(range(4)), ONE) == more
    with pytest.raises(NotCurrent):
        run_stage(workspace, ROWS_STAGE, Options(rows=7), tasks(range(4)), RunnerOptions(plan=True))


def test_a_lost_or_cut_part_is_made_again(workspace: Workspace) -> None:
    manifest = run_stage(workspace, ROWS_STAGE, Options(), tasks(range(2)), ONE)
    path = workspace.local_path(manifest.parts()[0].path)
    whole = path.read_bytes()
    for damage in (lambda: path.unlink(), lambda: path.write_bytes(whole[:99])):
        damage()
        assert run_stage(workspace, ROWS_STAGE, Options(), tasks(range(2)), ONE) == manifest
        assert path.read_bytes() == whole


def test_parts_no_manifest_names_are_removed(workspace: Workspace) -> None:
    run_stage(workspace, ROWS_STAGE, Options(), tasks(range(3)), ONE)
    manifest = run_stage(workspace, ROWS_STAGE, Options(), tasks(range(2)), ONE)
    assert workspace.list("rows") == sorted(["rows/manifest.json", *(file.path for file in manifest.parts())])


def test_a_ledger_that_does_not_balance_fails_the_stage(workspace: Workspace) -> None:
    with pytest.raises(StageError, match="do not balance: 2 in, 1 accounted for"):
        run_stage(workspace, Stage("bad", 1, unbalanced), None, [Task("x")], ONE)
    assert read_manifest(workspace, "bad") is None


@pytest.mark.parametrize("runner", [ONE, TWO], ids=["one", "two"])
def test_a_failing_task_is_named_and_the_others_are_kept(
    workspace: Workspace, runner: RunnerOptions, tmp_path: Path
) -> None:
    with pytest.raises(StageError, match=r"rows, task t1: ValueError: record 17 is upside down"):
        run_stage(workspace, Stage("rows", 1, fails), Options(), tasks(range(3)), runner)
    assert read_manifest(workspace, "rows") is None
    manifest = run_stage(workspace, ROWS_STAGE, Options(), tasks(range(3)), ONE)
    fresh = run_stage(Workspace.open(tmp_path / "fresh", create=True), ROWS_STAGE, Options(), tasks(range(3)), ONE)
    assert manifest == fresh


def test_a_killed_worker_ends_the_run_with_a_clear_error(workspace: Workspace) -> None:
    with pytest.raises(StageError, match=r"worker process \d+ died \(signal 9\)"):
        run_stage(workspace, Stage("rows", 1, dies), Options(), tasks(range(3)), TWO)
    assert read_manifest(workspace, "rows") is None
    assert run_stage(workspace, ROWS_STAGE, Options(), tasks(range(3)), TWO).ledgers["rows"]["in"] == 900


def test_two_tasks_of_one_name_are_refused(workspace: Workspace) -> None:
    with pytest.raises(StageError, match="two inputs have the name t0"):
        run_stage(workspace, ROWS_STAGE, Options(), [*tasks(range(2)), *tasks(range(1))], ONE)


def test_an_annotation_belongs_to_its_documents(workspace: Workspace) -> None:
    documents = run_stage(workspace, ROWS_STAGE, Options(), tasks(range(2)), ONE)
    stage = Stage("annotations/length", 1, judge_lengths)
    annotations = run_stage(workspace, stage, None, annotation_tasks(documents), ONE)
    part = documents.parts()[0]
    assert read_annotation(workspace, annotations, part).num_rows == part.rows
    other = run_stage(workspace, ROWS_STAGE, Options(rows=299), tasks(range(2)), ONE).parts()[0]
    with pytest.raises(WorkspaceError, match="judges other documents"):
        read_annotation(workspace, annotations, other)
    with pytest.raises(StageError, match="has 298 rows for 299 documents"):
        run_stage(workspace, stage, "short", annotation_tasks(read_manifest(workspace, "rows")), ONE)  # type: ignore[arg-type]


def test_runners_that_lose_data_are_refused() -> None:
    for name in ("DirectRunner", "DaskRunner"):
        with pytest.raises(ValueError, match="FnApiRunner"):
            RunnerOptions(name)
    with pytest.raises(ValueError, match="loses data"):
        RunnerOptions(passthrough=("--direct_running_mode=multi_threading",))
    with pytest.raises(ValueError, match="workers"):
        RunnerOptions(workers=-1)


def test_partitions_follow_bytes() -> None:
    assert [partition_count(n << 20) for n in (0, 1, 64, 65, 129, 1 << 20)] == [1, 1, 1, 2, 4, 1 << 14]
    with pytest.raises(ValueError, match="uint64"):
        Exchange(pa.schema([("key", pa.string())]), "key", ("key",), send, receive)


def test_another_beam_runner_gives_the_same_bytes(tmp_path: Path) -> None:
    """Beam's portable job service over gRPC instead of the embedded runner; options pass through."""
    portable = RunnerOptions("PortableRunner", passthrough=("--job_endpoint=embed", "--environment_type=LOOPBACK"))
    results = []
    for name, runner in (("embedded", ONE), ("portable", portable)):
        workspace = Workspace.open(tmp_path / name, create=True)
        rows = run_stage(workspace, ROWS_STAGE, Options(), tasks(range(3)), runner)
        grouped = run_exchange(workspace, GROUPED, None, EXCHANGE, senders(rows), runner, total_bytes=200 << 20)
        results.append((rows, grouped))
    assert results[0] == results[1]


def test_a_long_task_tells_how_far_it_is(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.5, 2.0, 2.5, 4.0])
    monkeypatch.setattr("pipelines.stages.time.monotonic", lambda: next(clock))
    context = Context(workspace, ROWS_STAGE, None)
    told = workspace.local_path(".state/progress/rows/t0")
    context.progress("t0", 10)
    assert not told.exists()
    context.progress("t0", 20)
    context.progress("t0", 30)
    assert told.read_text() == "20"
    context.progress("t0", 40)
    assert told.read_text() == "40"


def test_a_full_disk_is_said_with_what_to_do(workspace: Workspace) -> None:
    with pytest.raises(StageError, match="is full; free some space and run the same command again"):
        run_stage(workspace, Stage("rows", 1, fills_the_disk), None, [Task("t0")], ONE)
