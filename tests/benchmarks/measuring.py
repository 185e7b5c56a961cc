"""What benches share: clocks, a process of its own for each case, its peak memory, and a row of the table."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

QUICK = bool(os.environ.get("WEBTEXT_BENCH_QUICK"))
ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 1 if QUICK else 3
WORKERS = (1,) if QUICK else (1, 2)

Figures = dict[str, float]


def cpu(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Median CPU seconds of the process, over all its threads."""
    return _median(work, time.process_time, rounds)


def wall(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    return _median(work, time.perf_counter, rounds)


def _median(work: Callable[[], object], clock: Callable[[], float], rounds: int) -> float:
    taken = []
    for _ in range(rounds):
        begin = clock()
        work()
        taken.append(clock() - begin)
    return statistics.median(taken)


def peak_mib(process: int | str = "self") -> int:
    """Most memory a process had. Not `ru_maxrss`: a new process inherits its parent's there, up to the fork."""
    status = Path(f"/proc/{process}/status").read_text()
    said = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return int(said["VmHWM"].split()[0]) // 1024


class LargestProcess(threading.Thread):
    """Watches all processes below this one: workers are not waited for, so their usage never reaches their parent."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peaks = [0]

    def run(self) -> None:
        while True:
            family = {os.getpid()}
            for process in sorted(int(path.name) for path in Path("/proc").glob("[0-9]*")):
                with contextlib.suppress(OSError, KeyError):
                    parent = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1]
                    if int(parent) in family:
                        family.add(process)
                        self.peaks.append(peak_mib(process))
            time.sleep(0.1)


def run_case(module: str, case: str, watched: bool, folder: str, *arguments: int | str) -> None:
    """In the case's own process: its figures and its peak memory as JSON."""
    watch = LargestProcess()
    if watched:
        watch.start()
    found = getattr(importlib.import_module(module), case)(Path(folder), *arguments)
    print(json.dumps({"peak_mib": max(peak_mib(), *watch.peaks), **found}))


def measure(work: Callable[..., Figures], folder: str, *arguments: int | str, watched: bool = False) -> Figures:
    """One case, a function of a bench's module, in a process of its own; watched: its workers' memory counts too."""
    call = (work.__module__, work.__name__, watched, folder, *arguments)
    code = f"import tests.benchmarks.measuring as m; m.run_case{call}"
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": path}
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=environment).stdout
    found: Figures = json.loads(said.splitlines()[-1])
    return found


def row(what: str, figure: float, unit: str, limit: str, floor: float, peak: float) -> dict[str, Any]:
    """A row; `limit` has its figure at `{}`."""
    told = f"{floor:,.{1 if floor >= 10 else 3}f} {unit}"
    return {
        "what": what,
        "figure": float(f"{figure:.5g}"),
        "unit": unit,
        "limit": limit.format(told),
        "limit_figure": float(f"{floor:.5g}"),
        "peak_mib": round(peak),
    }
