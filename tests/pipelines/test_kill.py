"""Builds that are killed: at random moments, at the worst moments, in part. The same command gives the same bytes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import main

PATIENCE = 120.0
"""Seconds after which waiting for an event is given up; a machine that is busy needs some."""

ATTEMPTS = """
# Runs one command again and again, each time in a forked child that kills itself at one point; the last runs through.
import json, os, re, signal, sys
from pipelines.runner import quiet_beam
quiet_beam()
import pyarrow.parquet
import apache_beam.runners.portability.fn_api_runner.fn_runner
import pipelines.build, pipelines.dofns, pipelines.harvest
from pipelines import cli, workspace

sys.path.insert(0, sys.argv[1])
import conftest

points, place, command = json.loads(sys.argv[2]), sys.argv[3], sys.argv[4:]


def arm(when, pattern):
    name = "remove" if "remove" in when else "replace"
    owner = workspace.Workspace if name == "remove" else os
    act = getattr(owner, name)

    def armed(first, target):
        hit = re.search(pattern, str(target))
        if hit and when.startswith("before"):
            os.kill(os.getpid(), signal.SIGKILL)
        act(first, target)
        if hit:
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, armed)


for point in [*points, None]:
    child = os.fork()
    if child == 0:
        if point:
            arm(*point)
        os._exit(cli.main(command))
    _, status = os.waitpid(child, 0)
    bad = conftest.disbelieved(conftest.Path(place))
    print(json.dumps([point, os.waitstatus_to_exitcode(status), bad]), flush=True)
"""


def start(recipe: Path, workspace: Path, tools: Any, workers: int = 2) -> subprocess.Popen[str]:
    """Begin a build in a process group of its own."""
    command = [
        "build",
        str(recipe),
        "--workspace",
        str(workspace),
        "--workers",
        str(workers),
        "-q",
        "--until",
        "shards",
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", *command],
        cwd=tools.root,
        env={**os.environ, "PYTHONPATH": str(tools.root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@contextlib.contextmanager
def ended(build: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Nothing of a build outlives its test."""
    try:
        yield build
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(build.pid, signal.SIGKILL)
        build.communicate()


def wait_for(what: Callable[[], Any], why: str) -> Any:
    until = time.monotonic() + PATIENCE
    while not (found := what()):
        assert time.monotonic() < until, why
        time.sleep(0.02)
    return found


def committed(workspace: Path) -> int:
    """How many stages are committed: where a build is, on a machine of any speed."""
    return sum(1 for _ in (workspace / ".state" / "manifests").rglob("*.json"))


def status_of(pid: int) -> tuple[str, int] | None:
    """(state, parent) of a process, None when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], int(fields[1])


def descendants(pid: int) -> list[int]:
    """The living processes below one, nearest first."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    parents = {p: found[1] for p in pids if (found := status_of(p)) and found[0] != "Z"}
    below, found = [pid], []
    for one in below:
        children = [p for p, parent in parents.items() if parent == one]
        below += children
        found += children
    return found


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def workers_of(driver: int) -> list[int]:
    """The worker processes of a build: what its fork server has forked."""
    servers = [p for p in descendants(driver) if "forkserver" in command_of(p) and status_of(p) == ("S", driver)]
    return [p for server in servers for p in descendants(server) if (status_of(p) or ("", 0))[1] == server]


linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes under /proc")


def test_killed_at_random_moments(world: Any, built: Path, tools: Any, tmp_path: Path) -> None:
    """SIGKILL of the whole group, six times, spread over the build; each time the same command goes on."""
    rng = random.Random(20)
    workspace = tmp_path / "ws"
    recipe = world.recipe()
    kills = 0
    for stages in sorted(rng.sample(range(24), 6)):
        with ended(start(recipe, workspace, tools)) as build:
            wait_for(lambda s=stages: committed(workspace) >= s or build.poll() is not None, "the build stands still")
            time.sleep(rng.uniform(0, 0.8))
            kills += build.poll() is None
        if workspace.exists():
            assert tools.disbelieved(workspace) == []
    assert kills >= 4
    tools.build(recipe, workspace, "--until", "shards")
    assert tools.differences(tools.hashes(built), tools.hashes(workspace)) == []
    assert list((workspace / ".state" / "scratch").iterdir()) == []
    assert [path for name in ("runs", "received") for path in (workspace / ".state" / name).rglob("*.*")] == []


def attempts(points: list[tuple[str, str]], recipe: Path, workspace: Path, tools: Any) -> list[Any]:
    command = ["build", str(recipe), "--workspace", str(workspace), "--workers", "1", "-q", "--until", "shards"]
    done = subprocess.run(
        [sys.executable, "-c", ATTEMPTS, str(Path(__file__).parent), json.dumps(points), str(workspace), *command],
        cwd=tools.root,
        env={**os.environ, "PYTHONPATH": str(tools.root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


FRESH = [
    r"ws/inputs\.json$",
    r"/documents/[^/]*\.parquet$",
    r"/pages/positions/",
    r"/\.state/stages/documents/",
    r"/\.state/manifests/documents\.json$",
    r"/documents/manifest\.json$",
    r"/\.state/runs/annotations/duplicates/groups/",
    r"/\.state/received/annotations/duplicates/groups/",
    r"/annotations/duplicates/manifest\.json$",
    r"/corpus/[^/]*\.parquet$",
    r"/\.state/manifests/corpus\.json$",
    r"/corpus/manifest\.json$",
    r"/corpus/duplicates\.json$",
    r"/tokenizer/tokenizer\.json$",
    r"/tokenizer/manifest\.json$",
    r"\.arrow$",
    r"/shards/manifest\.json$",
]


def test_killed_beside_every_rename(smaller: tuple[Any, Path], tools: Any, tmp_path: Path) -> None:
    """Right before and right after a file takes its final name: parts, commit records, manifests, runs, shards."""
    part, finished = smaller
    workspace = tmp_path / "ws"
    points = [(when, pattern) for pattern in FRESH for when in ("before", "after")]
    *killed, last = attempts(points, part.recipe(), workspace, tools)
    assert [(tuple(point), code) for point, code, _ in killed] == [(point, -signal.SIGKILL) for point in points]
    assert last[1] == 0
    assert [bad for _, _, bad in [*killed, last] if bad] == []
    assert tools.differences(tools.hashes(finished), tools.hashes(workspace)) == []


GROWN = [
    ("after", r"/documents/[^/]*\.parquet$"),
    ("after", r"/\.state/manifests/documents\.json$"),
    ("after", r"/documents/manifest\.json$"),
    ("after", r"/annotations/links/manifest\.json$"),
    ("before", r"/corpus/survivors/manifest\.json$"),
    ("after", r"/corpus/manifest\.json$"),
    ("before remove", r"^corpus/[^/]*\.parquet$"),
    ("after", r"/corpus/contamination\.json$"),
    ("after", r"/tokenizer/tokenizer\.json$"),
    ("after", r"/tokenizer/manifest\.json$"),
    ("after", r"/shards/written/manifest\.json$"),
    ("before", r"/shards/manifest\.json$"),
]


def test_killed_while_bringing_a_finished_workspace_up_to_date(
    world: Any, built: Path, smaller: tuple[Any, Path], tools: Any, tmp_path: Path
) -> None:
    """Nothing of the old state is left among the new, and no manifest names what is no longer so."""
    workspace = tmp_path / "ws"
    shutil.copytree(smaller[1], workspace)
    *killed, last = attempts(GROWN, world.recipe(), workspace, tools)
    assert {code for _, code, _ in killed} <= {-signal.SIGKILL, 0}
    assert sum(code == -signal.SIGKILL for _, code, _ in killed) >= len(GROWN) - 1
    assert last[1] == 0
    assert [(point, bad) for point, _, bad in [*killed, last] if bad] == []
    assert tools.differences(tools.hashes(built), tools.hashes(workspace)) == []


@linux
def test_killed_in_part(
    world: Any, built: Path, tools: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The driver alone: its workers end by themselves. A worker alone: the build ends and says so."""
    workspace = tmp_path / "ws"
    recipe = world.recipe()
    again = ["build", str(recipe), "--workspace", str(workspace), "--workers", "1", "-q"]

    with ended(start(recipe, workspace, tools)) as build:
        wait_for(lambda: committed(workspace) >= 2 and workers_of(build.pid), "no worker was seen")
        assert main(again) == 1
        refused = capsys.readouterr().err
        assert re.fullmatch(rf"webtext: another build holds .*\(process {build.pid}, since .*\n", refused)
        below = descendants(build.pid)
        build.kill()
        wait_for(lambda: not any(status_of(p) and status_of(p)[0] != "Z" for p in below), "orphans go on")  # type: ignore[index]
    assert tools.disbelieved(workspace) == []

    with ended(start(recipe, workspace, tools)) as build:
        seen = 0

        def kill_a_worker() -> bool:
            nonlocal seen
            for worker in workers_of(build.pid)[:1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
                    seen += 1
            return build.poll() is not None

        wait_for(kill_a_worker, "the build hangs after a worker was killed")
        out, error = build.communicate()
        assert seen
        assert (build.returncode, out) == (1, "")
        assert re.fullmatch(r"webtext: \S+: worker process \d+ died \(signal 9\); the run was ended, .*\n", error), (
            error
        )

    tools.build(recipe, workspace, "--until", "shards")
    assert tools.differences(tools.hashes(built), tools.hashes(workspace)) == []
