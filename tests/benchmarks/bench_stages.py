"""What the frame costs: parts, stages, exchanges, the command itself, each beside what it costs at least.

Inputs are made of what every machine has: parts hold Python's own sources (31 MB), the exchange regroups 5 million
rows of random numbers. What waits for the disk or for processes is wall time; the rest is CPU seconds of the process
over all its threads. Medians of three, each case in a process of its own. `python -m tests.benchmarks stages`.
"""

from __future__ import annotations

import hashlib
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.measuring import QUICK, ROUNDS, WORKERS, Figures, cpu, measure, row, wall

if TYPE_CHECKING:
    import pyarrow as pa

    from pipelines.stages import Context, Task

SOURCE_BYTES = 1_000_000 if QUICK else 31_000_000
TASKS = 20 if QUICK else 300
NUMBERS = 200_000 if QUICK else 5_000_000
SENDERS = 4
HELP_SECONDS = 0.5  # what is promised of `webtext --help`


def sources() -> pa.Table:
    """Python's own library in documents of at most 3,000 characters: url, text."""
    import sysconfig

    import pyarrow as pa

    urls: list[str] = []
    texts: list[str] = []
    size = 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" not in path.parts and size < SOURCE_BYTES:
            text = path.read_text("utf-8", "ignore")
            for start in range(0, len(text), 3000):
                urls.append(f"http://source.example/{path.name}/{start}")
                texts.append(text[start : start + 3000])
            size += len(text.encode())
    fields = [pa.field(name, pa.string(), nullable=False) for name in ("url", "text")]
    return pa.table([pa.array(urls), pa.array(texts)], schema=pa.schema(fields))


# Parts.


def write_parts(folder: Path) -> Figures:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipelines.workspace import ROW_GROUP, Workspace, write_part

    table, workspace = sources(), Workspace.open(folder / "parts", create=True)
    names = iter(range(99))

    def whole() -> None:
        write_part(workspace, "sources", f"part-{next(names)}", table, table.schema)

    def bare() -> None:
        path = folder / "bare.parquet"
        pq.write_table(table, path, row_group_size=ROW_GROUP, compression="zstd", compression_level=3)

    def packed() -> None:
        codec, text = pa.Codec("zstd", 3), table.column("text").combine_chunks().buffers()[2]
        for start in range(0, text.size, 1 << 20):
            codec.compress(text.slice(start, min(1 << 20, text.size - start)))

    def plain() -> None:
        with (folder / "plain").open("wb") as file:
            file.write(table.column("text").combine_chunks().buffers()[2])
            file.flush()
            os.fsync(file.fileno())

    whole()
    return {
        "bytes": table.nbytes,
        "write": cpu(whole),
        "write_wall": wall(whole),
        "parquet": cpu(bare),
        "zstd": cpu(packed),
        "disk": wall(plain),
    }


def read_parts(folder: Path) -> Figures:
    import pyarrow.parquet as pq

    from pipelines import workspace as frame

    workspace = frame.Workspace.open(folder / "parts", create=True)
    table = sources()
    part = frame.write_part(workspace, "sources", "part-read", table, table.schema)
    path = workspace.local_path(part.path)
    pq.read_table(path)  # the first read of a process starts threads

    def first() -> None:
        frame._verified.clear()
        frame.read_part(workspace, part)

    return {
        "bytes": table.nbytes,
        "packed": part.size,
        "first": cpu(first),
        "again": cpu(lambda: frame.read_part(workspace, part)),
        "parquet": cpu(lambda: pq.read_table(path)),
        "sha256": cpu(lambda: hashlib.sha256(path.read_bytes())),
    }


# Stages.


def nothing(task: Task, context: Context) -> None:
    """The least a task can do."""
    context.count("things", "in")
    context.count("things", "kept")


def stages(folder: Path, workers: int) -> Figures:
    """Wall seconds: of the first stage of a process, of a stage with one task, of a further task, of a stage that is
    current."""
    from pipelines.progress import set_verbosity
    from pipelines.runner import RunnerOptions
    from pipelines.stages import Stage, Task, run_stage
    from pipelines.workspace import Workspace

    set_verbosity(-1)
    workspace, names = Workspace.open(folder / f"stages-{workers}", create=True), iter(range(99))

    def run(count: int, name: str = "") -> None:
        tasks = [Task(f"task-{i:05d}", {"i": i}) for i in range(count)]
        name = name or f"stage{next(names)}"
        run_stage(workspace, Stage(name, 1, nothing), None, tasks, RunnerOptions(workers=workers))

    first = wall(lambda: run(1), 1)
    one = wall(lambda: run(1))
    many = wall(lambda: run(TASKS))
    run(TASKS, "again")
    return {
        "first": first,
        "one": one,
        "task": max(many - one, 1e-6) / (TASKS - 1),
        "current": wall(lambda: run(TASKS, "again"), 1),
    }


def plain_calls(folder: Path) -> Figures:
    """The same without Beam: wall seconds of a task, of a stage's commit, of one small file on the disk."""
    from pipelines.stages import Stage, Task, assemble, commit, perform, read_record
    from pipelines.workspace import Workspace

    workspace, names = Workspace.open(folder / "plain-calls", create=True), iter(range(99))

    def tasks(count: int) -> None:
        stage, records = Stage(f"plain{next(names)}", 1, nothing), {}
        paths = []
        for task in [Task(f"task-{i:05d}", {"i": i}) for i in range(count)]:
            path = perform(stage, None, workspace.url, task, lambda context, task=task: nothing(task, context))
            records[task.key] = read_record(workspace, path) or {}
            paths.append(path)
        commit(workspace, stage, assemble(workspace, stage, None, "fingerprint", records), paths)

    def file() -> None:
        workspace.write("small", os.urandom(200))

    one, many = wall(lambda: tasks(1)), wall(lambda: tasks(TASKS))
    return {"one": one, "task": max(many - one, 1e-6) / (TASKS - 1), "file": wall(file, TASKS)}


def import_beam(folder: Path) -> Figures:
    return {"seconds": wall(lambda: __import__("apache_beam"), 1)}


# The exchange.


def numbers(seed: int, count: int) -> dict[str, Any]:
    import numpy as np

    rng = np.random.default_rng(seed)
    key = rng.integers(0, 1 << 63, count, np.uint64)
    return {"key": key, "part": key >> np.uint64(40), "row": np.arange(count, dtype=np.uint64)}


def send_numbers(task: Task, context: Context) -> pa.Table:
    import pyarrow as pa

    return pa.table(numbers(task.inputs["seed"], NUMBERS // SENDERS))


def take_numbers(task: Task, table: pa.Table, context: Context) -> None:
    from pipelines.workspace import STATE

    context.count("rows", "in", table.num_rows)
    context.count("rows", "kept", table.num_rows)
    runs = context.workspace.list(f"{STATE}/runs/exchange/send")
    context.figure("run_bytes", sum(context.workspace.size(path) or 0 for path in runs))


def exchange(folder: Path, workers: int) -> Figures:
    import pyarrow as pa

    from pipelines.exchange import Exchange, run_exchange
    from pipelines.progress import set_verbosity
    from pipelines.runner import RunnerOptions, quiet_beam
    from pipelines.stages import Stage, Task
    from pipelines.workspace import Workspace

    set_verbosity(-1)
    quiet_beam()
    order = ("key", "part", "row")
    schema = pa.schema([pa.field(name, pa.uint64(), nullable=False) for name in order])
    senders = [Task(f"sender-{i}", {"seed": i}) for i in range(SENDERS)]
    regroup, stage = Exchange(schema, "key", order, send_numbers, take_numbers), Stage("exchange", 1, nothing)
    taken, run_bytes = [], 0
    for i in range(ROUNDS):
        workspace = Workspace.open(folder / f"exchange-{workers}-{i}", create=True)
        begin = time.perf_counter()
        runner = RunnerOptions(workers=workers)
        made = run_exchange(workspace, stage, None, regroup, senders, runner, total_bytes=24 * NUMBERS)
        taken.append(time.perf_counter() - begin)
        assert made.ledgers["rows"]["kept"] == NUMBERS
        run_bytes = max(figure["run_bytes"] for figure in made.figures.values())
    return {"seconds": statistics.median(taken), "run_bytes": run_bytes}


def sort_in_memory(folder: Path) -> Figures:
    """The same rows made and sorted by key in one process' memory, with NumPy."""
    import numpy as np

    def work() -> None:
        pieces = [numbers(i, NUMBERS // SENDERS) for i in range(SENDERS)]
        columns = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
        order = np.argsort(columns["key"])
        _ = {name: column[order] for name, column in columns.items()}

    return {"seconds": wall(work)}


def help_text(folder: Path) -> Figures:
    """Median wall seconds of seven runs."""
    script = Path(sys.executable).with_name("webtext")
    webtext = [str(script)] if script.exists() else [sys.executable, "-m", "pipelines.cli"]

    def run(command: list[str]) -> float:
        return wall(lambda: subprocess.run(command, check=True, capture_output=True), 7)

    floor, seconds = run([sys.executable, "-c", "pass"]), run([*webtext, "--help"])
    return {
        "floor": floor,
        "seconds": seconds,
        "peak_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
    }


def part_rows(folder: str) -> Iterator[dict[str, Any]]:
    w, r = measure(write_parts, folder), measure(read_parts, folder)
    size, peak = w["bytes"] / 1e6, w["peak_mib"]
    raw = f"zstd level 3 alone {size / w['zstd']:.0f}"
    yield row(
        "write_part", size / w["write"], "MB/core-s", f"bare Parquet writer {{}}; {raw}", size / w["parquet"], peak
    )
    on_disk = "write and flush, not packed {}"
    yield row("write_part, wall time", size / w["write_wall"], "MB/s", on_disk, size / w["disk"], peak)
    size, peak = r["bytes"] / 1e6, r["peak_mib"]
    hashed = f"sha256 of its file {size / r['sha256']:.0f}"
    yield row("read_part, first", size / r["first"], "MB/core-s", f"bare {{}}; {hashed}", size / r["parquet"], peak)
    yield row("read_part, again", size / r["again"], "MB/core-s", "bare {}", size / r["parquet"], peak)


def stage_rows(folder: str) -> Iterator[dict[str, Any]]:
    plain, beam = measure(plain_calls, folder), measure(import_beam, folder)
    peak = plain["peak_mib"]
    yield row(
        "a task without Beam", 1e3 * plain["task"], "ms", "one small file, flushed {}", 1e3 * plain["file"], peak
    )
    for workers in WORKERS:
        s = measure(stages, folder, workers, watched=True)
        peak, with_workers = s["peak_mib"], f", {workers} worker{'s'[: workers - 1]}"
        yield row(f"first stage of a process{with_workers}", s["first"], "s", "import Beam {}", beam["seconds"], peak)
        yield row(f"stage of one task{with_workers}", s["one"], "s", "without Beam {}", plain["one"], peak)
        yield row(
            f"a further task{with_workers}", 1e3 * s["task"], "ms", "without Beam {}", 1e3 * plain["task"], peak
        )
        if workers == 1:
            current = f"stage of {TASKS} tasks that is current"
            yield row(current, 1e3 * s["current"], "ms", "one small file, flushed {}", 1e3 * plain["file"], peak)


def exchange_rows(folder: str) -> Iterator[dict[str, Any]]:
    floor = measure(sort_in_memory, folder)
    rate = NUMBERS / floor["seconds"] / 1e6
    for workers in WORKERS:
        x = measure(exchange, folder, workers, watched=True)
        shuffled = f"{x['run_bytes'] / 1e6:.0f} MB through files"
        what = f"exchange, {workers} worker{'s'[: workers - 1]}, {shuffled}"
        limit = f"made and sorted in memory {{}}, {floor['peak_mib']:.0f} MiB"
        yield row(what, NUMBERS / x["seconds"] / 1e6, "M rows/s", limit, rate, x["peak_mib"])


def help_rows(folder: str) -> Iterator[dict[str, Any]]:
    h = measure(help_text, folder)
    promised = f"python -c pass {{}}; promised under {HELP_SECONDS} s"
    yield row("webtext --help", h["seconds"], "s", promised, h["floor"], h["peak_mib"])


def rows() -> list[dict[str, Any]]:
    """{"what", "figure", "unit", "limit", "limit_figure", "peak_mib"} per measurement."""
    with tempfile.TemporaryDirectory() as folder:
        return [row for some in (part_rows, stage_rows, exchange_rows, help_rows) for row in some(folder)]
