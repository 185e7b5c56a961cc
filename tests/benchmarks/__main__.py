"""One table of speed and memory: `python -m tests.benchmarks [NAME…] [--json] [--quick]`.

Runs every `bench_<NAME>.py` beside this file, each in a process of its own, one after another. Such a file has one
function, `rows() -> list[dict]`; a row says

    what          what was measured
    figure, unit  how fast: a rate, or a time where the unit is one of `TIMES`
    limit         what it is measured against, in words with the limit's own figures, taken on the same machine
    limit_figure  optional: the limit's figure in the row's unit; the ratio follows from it
    peak_mib      largest memory of the process that did this row's work, None where a row has none of its own

An empty list says that its inputs (`../shared/data`, or `$WEBTEXT_SHARED`) are absent. A bench that raises, dies,
says anything else or outlasts `LIMIT_SECONDS` is shown as failed, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib
import importlib.metadata
import json
import math
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
QUICK = "WEBTEXT_BENCH_QUICK"
"""Environment variable, "1" in a quick run: small inputs, few repeats; figures that are no good for comparing."""

LIMIT_SECONDS = 1800.0
TIMES = ("s", "core-s", "ms", "µs")
"""Units of which less is better; their ratio is limit / figure, so that 1.00 is always the limit itself."""

LIBRARIES = (
    *("webtext", "apache-beam", "pyarrow", "numpy", "torch", "tokenizers", "trafilatura", "fastwarc"),
    *("zstandard", "datasketch", "lxml"),
)


@dataclass(frozen=True)
class Row:
    """One figure beside its limit."""

    what: str
    figure: float
    unit: str
    limit: str
    peak_mib: float | None
    limit_figure: float | None = None
    ratio: float | None = None


@dataclass(frozen=True)
class Bench:
    """One bench file's outcome. `peak_mib` is the largest process it had, itself included and all it waited for."""

    name: str
    status: str  # "done", "failed", or "skipped" where its inputs are absent
    seconds: float
    cpu_seconds: float
    peak_mib: float
    rows: tuple[Row, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Table:
    """The whole result: where and when, and every bench."""

    date: str
    command: str
    quick: bool
    shared_data: bool
    machine: dict[str, Any]
    versions: dict[str, str]
    benches: list[Bench] = field(default_factory=list)


def names() -> list[str]:
    return sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))


def row_of(said: Any) -> Row:
    """A bench's row, checked, with its ratio. Raises ValueError naming what is wrong."""
    if not isinstance(said, dict) or not {"what", "figure", "unit", "limit", "peak_mib"} <= said.keys():
        raise ValueError(f"a row needs what, figure, unit, limit and peak_mib: {said!r}")
    for name, kinds in (("figure", (int, float)), ("what", str), ("unit", str), ("limit", str)):
        if not isinstance(said[name], kinds):
            raise ValueError(f"{name} of {said['what']!r} is {said[name]!r}")
    figure, limit, peak = (
        None if value is None else float(value)
        for value in (said["figure"], said.get("limit_figure"), said["peak_mib"])
    )
    assert figure is not None
    if not (math.isfinite(figure) and figure > 0 and (limit is None or (math.isfinite(limit) and limit > 0))):
        raise ValueError(f"{said['what']!r} measured {figure} beside {limit}")
    ratio = None if limit is None else limit / figure if said["unit"] in TIMES else figure / limit
    return Row(said["what"], figure, said["unit"], said["limit"], peak, limit, ratio)


def run_bench(name: str, quick: bool) -> Bench:
    """Run one bench in a process group of its own, which is ended with it."""
    environment = {**os.environ, QUICK: "1" if quick else "", "PYTHONPATH": path_with(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        said, heard = Path(folder) / "rows.json", Path(folder) / "output.txt"
        command = [sys.executable, "-m", "tests.benchmarks", "--bench", name, "--out", str(said)]
        begin = time.monotonic()
        with heard.open("wb") as output:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=ROOT, env=environment,
                start_new_session=True,
            )  # fmt: skip
            try:
                code, used = wait(child, begin + LIMIT_SECONDS)
            finally:
                end_group(child.pid)
        done = {
            "name": name,
            "seconds": round(time.monotonic() - begin, 1),
            "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
            "peak_mib": round(used.ru_maxrss / 1024, 1),
        }
        if code:
            how = f"ran past {LIMIT_SECONDS:.0f} s, or was killed" if code == -signal.SIGKILL else f"status {code}"
            return Bench(status="failed", error=f"{how}: {last_words(heard)}", **done)
        try:
            told = json.loads(said.read_text("utf-8"))
            rows = tuple(row_of(row) for row in told["rows"])
            done["peak_mib"] = float(told["peak_mib"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            return Bench(status="failed", error=f"{type(error).__name__}: {error}", **done)
    return Bench(status="done" if rows else "skipped", rows=rows, **done)


def path_with(root: Path) -> str:
    return os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")]))


def wait(child: subprocess.Popen[bytes], deadline: float) -> tuple[int, Any]:
    """Wait for the child: (exit code, negative for a signal; what it and all it waited for used)."""
    while True:
        pid, status, used = os.wait4(child.pid, os.WNOHANG)
        if pid:
            child.returncode = os.waitstatus_to_exitcode(status)
            return child.returncode, used
        if time.monotonic() > deadline:
            end_group(child.pid)
        time.sleep(0.02)


def end_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def last_words(output: Path) -> str:
    """The last lines a failed bench said; a child's own error stands in its parent's traceback as `stderr`."""
    lines = output.read_text("utf-8", "replace").strip().splitlines()
    return " | ".join(line.strip() for line in lines[-3:] if line.strip())[-500:] or "it said nothing"


def child(name: str, out: Path) -> int:
    """In the bench's own process: its rows as JSON."""
    try:
        rows = importlib.import_module(f"tests.benchmarks.bench_{name}").rows()
    except subprocess.CalledProcessError as error:
        sys.stderr.write(str((error.stderr or b"").decode() if isinstance(error.stderr, bytes) else error.stderr))
        raise
    out.write_text(json.dumps({"rows": rows, "peak_mib": largest_process()}), encoding="utf-8")
    return 0


def largest_process() -> float:
    """MiB at most held by this process, or by one it waited for. Not this one's `ru_maxrss`: a new process inherits
    its parent's there, up to the fork."""
    own = int(first_value("/proc/self/status", "VmHWM").split()[0]) / 1024
    waited_for = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return round(max(own, waited_for), 1)


def machine() -> dict[str, Any]:
    """Cores this process may use, CPU, memory, and how busy the machine was as the run began."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": first_value("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "load_1_5_15": [round(load, 1) for load in os.getloadavg()],
    }


def first_value(path: str, key: str) -> str:
    with contextlib.suppress(OSError):
        for line in Path(path).read_text("utf-8", "replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return ""


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[library] = importlib.metadata.version(library)
    return found


def shared_data() -> bool:
    return (Path(os.environ.get("WEBTEXT_SHARED", ROOT.parent / "shared")) / "data").is_dir()


def number(value: float) -> str:
    """Three digits that matter, and no exponent.

    >>> number(1234.5), number(12.345), number(0.01234)
    ('1,234', '12.3', '0.0123')
    """
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def heading(table: Table) -> Iterator[str]:
    at = table.machine
    load = " ".join(map(str, at["load_1_5_15"]))
    yield f"{table.date}   {table.command}"
    yield f"{at['cores']} cores, {at['cpu']}, {at['memory_gib']} GiB, {at['system']}, load {load} at the start"
    yield ", ".join(f"{name} {version}" for name, version in table.versions.items())
    yield "inputs: Python's own library" + (
        " and ../shared/data" if table.shared_data else "; no ../shared/data here"
    )
    if table.quick:
        yield "QUICK: small inputs; these figures are no good for comparing"


def lines(table: Table) -> Iterator[str]:
    """The table for a terminal."""
    yield from heading(table)
    rows = [row for bench in table.benches for row in bench.rows]
    width = max([len(row.what) for row in rows], default=10)
    units = max([len(row.unit) for row in rows], default=4)
    for bench in table.benches:
        yield ""
        spent = f"{bench.seconds:.0f} s, {bench.cpu_seconds:.0f} core-s, largest process {bench.peak_mib:.0f} MiB"
        yield f"{bench.name}: {bench.status}, {spent}"
        if bench.error:
            yield f"  {printable(bench.error)}"
        if bench.rows:
            yield f"  {'':{width}} {'figure':>10} {'':{units}} {'ratio':>6} {'MiB':>6}  limit"
        for row in bench.rows:
            ratio = "" if row.ratio is None else f"{row.ratio:.2f}" if row.ratio >= 0.095 else f"{row.ratio:.3f}"
            peak = "" if row.peak_mib is None else f"{row.peak_mib:,.0f}"
            measured = f"{row.what:{width}} {number(row.figure):>10} {row.unit:{units}}"
            yield f"  {measured} {ratio:>6} {peak:>6}  {row.limit}"


def printable(text: str) -> str:
    return "".join(c if c.isprintable() else "�" for c in text)


def parser() -> argparse.ArgumentParser:
    known = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Speed and memory of every stage.")
    known.add_argument("names", nargs="*", metavar="NAME", help=f"which benches, of: {', '.join(names())}")
    known.add_argument("--json", action="store_true", help="print the table as JSON")
    known.add_argument("--quick", action="store_true", help="small inputs: does it run, not how fast")
    known.add_argument("--bench", help=argparse.SUPPRESS)
    known.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    return known


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    parsed = parser().parse_args(given)
    if parsed.bench:
        return child(parsed.bench, parsed.out)
    wanted = parsed.names or names()
    if unknown := sorted(set(wanted) - set(names())):
        parser().error(f"no bench named {', '.join(unknown)}; there are {', '.join(names())}")
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    command = " ".join(["python -m tests.benchmarks", *given])
    table = Table(now, command, parsed.quick, shared_data(), machine(), versions())
    for name in wanted:
        print(f"running {name} …", file=sys.stderr, flush=True)
        table.benches.append(run_bench(name, parsed.quick))
    print(json.dumps(asdict(table), ensure_ascii=False, indent=1) if parsed.json else "\n".join(lines(table)))
    return 1 if any(bench.status == "failed" for bench in table.benches) else 0


if __name__ == "__main__":
    sys.exit(main())
