"""The benchmarks run, keep to their contract, and say so where one fails. How fast anything is, no test asserts."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def runner() -> Iterator[Any]:
    sys.path.insert(0, str(ROOT))
    yield importlib.import_module("tests.benchmarks.__main__")
    sys.path.remove(str(ROOT))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def fake(runner: Any, monkeypatch: pytest.MonkeyPatch, folder: Path, body: str) -> Any:
    """The outcome of a bench with this body, in a checkout of its own that holds the runner and nothing else."""
    benches = folder / "tests" / "benchmarks"
    benches.mkdir(parents=True, exist_ok=True)
    (benches / "__main__.py").write_text(Path(runner.__file__).read_text("utf-8"), encoding="utf-8")
    (benches / "bench_fake.py").write_text(body, encoding="utf-8")
    monkeypatch.setattr(runner, "ROOT", folder)
    monkeypatch.setattr(runner, "HERE", benches)
    return runner.run_bench("fake", quick=True)


def test_a_quick_run_prints_a_whole_table_as_json() -> None:
    done = run("stages", "tokenizer", "--quick", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    table = json.loads(done.stdout)
    assert table["quick"] is True
    assert table["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert table["versions"]["python"].startswith("3.")
    assert {"pyarrow", "numpy"} <= table["versions"].keys()
    assert [bench["name"] for bench in table["benches"]] == ["stages", "tokenizer"]
    for bench in table["benches"]:
        assert bench["status"] == "done", bench["error"]
        assert bench["peak_mib"] > 10
        assert bench["cpu_seconds"] > 0
        assert len({row["what"] for row in bench["rows"]}) == len(bench["rows"]) >= 5
        for row in bench["rows"]:
            assert row["figure"] > 0
            assert row["peak_mib"] > 1
            assert row["limit_figure"] > 0, row["what"]
            assert row["limit"]
            less_is_better = row["unit"] in ("s", "core-s", "ms")
            one, other = (
                (row["limit_figure"], row["figure"]) if less_is_better else (row["figure"], row["limit_figure"])
            )
            assert row["ratio"] == pytest.approx(one / other)


def test_every_bench_file_is_known_and_has_rows(runner: Any) -> None:
    known = runner.names()
    assert {"build", "documents", "duplicates", "links", "model", "ngrams", "pages", "stages", "tokenizer"} <= {
        *known
    }
    for name in known:
        assert callable(importlib.import_module(f"tests.benchmarks.bench_{name}").rows), name


def test_an_unknown_name_is_refused_and_the_known_ones_are_named() -> None:
    done = run("no-such-bench")
    assert done.returncode == 2
    assert "no-such-bench" in done.stderr
    assert "tokenizer" in done.stderr


GOOD = {"what": "a", "figure": 2.0, "unit": "MB/s", "limit": "b", "peak_mib": 1}


def test_a_bench_that_raises_has_failed_and_says_why(
    runner: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bench = fake(runner, monkeypatch, tmp_path, "def rows():\n    raise ValueError('the disk is full of eels')\n")
    assert bench.status == "failed"
    assert "full of eels" in bench.error


def test_what_a_child_of_a_bench_said_is_told(runner: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    body = (
        "import subprocess, sys\ndef rows():\n"
        "    command = [sys.executable, '-c', 'raise SystemExit(\"deep eels\")']\n"
        "    subprocess.run(command, check=True, capture_output=True)\n"
    )
    assert "deep eels" in fake(runner, monkeypatch, tmp_path, body).error


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ([{"what": "a"}], "needs what, figure"),
        ([{**GOOD, "figure": float("nan")}], "measured nan"),
        ([{**GOOD, "figure": 0}], "measured 0"),
        ([{**GOOD, "unit": 3}], "unit"),
        ([3], "needs what, figure"),
    ],
)
def test_a_row_that_says_too_little_is_a_failure(
    runner: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: Any, named: str
) -> None:
    bench = fake(runner, monkeypatch, tmp_path, f"nan = float('nan')\ndef rows():\n    return {said!r}\n")
    assert bench.status == "failed"
    assert named in bench.error


def test_a_bench_without_its_inputs_is_skipped(runner: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bench = fake(runner, monkeypatch, tmp_path, "def rows():\n    return []\n")
    assert (bench.status, bench.rows) == ("skipped", ())


def test_a_bench_that_never_ends_is_ended_with_its_children(
    runner: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    body = (
        "import pathlib, subprocess, time\ndef rows():\n    child = subprocess.Popen(['sleep', '1000'])\n"
        f"    pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(child.pid))\n    time.sleep(1000)\n"
    )
    monkeypatch.setattr(runner, "LIMIT_SECONDS", 2.0)
    bench = fake(runner, monkeypatch, tmp_path, body)
    assert bench.status == "failed"
    assert "ran past 2 s" in bench.error
    orphan = Path("/proc") / (tmp_path / "pid").read_text()
    assert not orphan.exists() or "sleep" not in (orphan / "cmdline").read_text()


def test_memory_is_the_benchs_own(runner: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    body = f"def rows():\n    data = bytearray(b'1' * (200 << 20))\n    return [{GOOD!r}]\n"
    large = fake(runner, monkeypatch, tmp_path / "large", body)
    small = fake(runner, monkeypatch, tmp_path / "small", f"def rows():\n    return [{GOOD!r}]\n")
    assert large.peak_mib > small.peak_mib + 190
    assert large.rows[0].ratio is None


def test_failure_makes_the_exit_status_one_and_the_table_shows_it(
    runner: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = runner.Bench("stages", "done", 1.0, 1.0, 10.0, (runner.row_of({**GOOD, "limit_figure": 8.0}),))
    broken = runner.Bench("model", "failed", 1.0, 1.0, 10.0, (), "no \x1b[31mtorch")
    monkeypatch.setattr(runner, "run_bench", lambda name, quick: broken if name == "model" else done)
    assert runner.main(["stages"]) == 0
    assert runner.main(["model", "stages"]) == 1
    shown = capsys.readouterr().out
    assert "model: failed" in shown
    assert "\x1b" not in shown
    assert "0.25" in shown


def test_less_is_better_for_times(runner: Any) -> None:
    slow = {**GOOD, "unit": "ms", "figure": 8.0, "limit_figure": 2.0}
    assert runner.row_of(slow).ratio == 0.25
    assert runner.row_of({**slow, "unit": "MB/s"}).ratio == 4.0


def test_a_killed_bench_is_a_failure(runner: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    body = f"import os\ndef rows():\n    os.kill(os.getpid(), {int(signal.SIGTERM)})\n"
    bench = fake(runner, monkeypatch, tmp_path, body)
    assert bench.status == "failed"
    assert "status -15" in bench.error
