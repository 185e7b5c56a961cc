"""Whole builds: the same input gives the same bytes, whatever else is different, and only what changed is touched."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipelines.build import STEPS
from pipelines.workspace import PartFile, Workspace, read_manifest, read_part

NAMED_BY_CONTENT = re.compile(r"\.[0-9a-f]{16}\.\w+$")

ANOTHER_DAY = '''
"""Moves every clock that Python shows by 400 days; loaded by each process of the run."""
import ctypes
import datetime
import gc
import sys
import time

AHEAD = 400 * 86400
WAITING = ("grpc", "apache_beam")  # they hand deadlines by Python's clock to waits by the kernel's
_now, _now_ns, _local, _gm, _format = time.time, time.time_ns, time.localtime, time.gmtime, time.strftime


def seconds():
    caller = sys._getframe(1).f_globals.get("__name__", "")
    return _now() if caller.startswith(WAITING) else _now() + AHEAD


time.time = seconds
time.time_ns = lambda: _now_ns() + AHEAD * 10**9
time.localtime = lambda seconds=None: _local(time.time() if seconds is None else seconds)
time.gmtime = lambda seconds=None: _gm(time.time() if seconds is None else seconds)
time.strftime = lambda form, when=None: _format(form, time.localtime() if when is None else when)


def put(kind, **methods):
    # The types themselves are changed: compiled modules hold them, and refuse a class in their place.
    for name, method in methods.items():
        gc.get_referents(kind.__dict__)[0][name] = classmethod(method)
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(kind))


put(datetime.date, today=lambda cls: cls.fromtimestamp(time.time()))
put(
    datetime.datetime,
    now=lambda cls, tz=None: cls.fromtimestamp(time.time(), tz),
    today=lambda cls: cls.fromtimestamp(time.time()),
    utcnow=lambda cls: cls.fromtimestamp(time.time(), datetime.timezone.utc).replace(tzinfo=None),
)
'''


def stamps(workspace: Path) -> dict[str, tuple[int, int]]:
    """(inode, mtime) of every file whose name tells its content: what is not rewritten keeps both."""
    return {
        str(path.relative_to(workspace)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in workspace.rglob("*")
        if NAMED_BY_CONTENT.search(path.name) and ".state" not in path.parts
    }


def copied(world: Any, folder: Path, without: tuple[str, ...] = ()) -> Any:
    """The world's inputs again, in another folder, with other file times."""
    for path in sorted(world.folder.rglob("*"), reverse=True):
        name = str(path.relative_to(world.folder))
        if path.is_file() and name not in without and not name.endswith(".yaml"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / name)
    return type(world)(folder)


def test_nothing_but_the_inputs_shapes_a_byte(world: Any, built: Path, tools: Any, tmp_path: Path) -> None:
    """Two workers for one, inputs named in another order and lying elsewhere, another hash seed, day, zone, tongue."""
    clock = tmp_path / "clock"
    clock.mkdir()
    (clock / "sitecustomize.py").write_text(ANOTHER_DAY)
    moved = copied(world, tmp_path / "a folder of another name" / "in")
    recipe = moved.recipe(
        inputs={
            "texts": ["texts/d.jsonl", "texts/b.jsonl", "texts/c.jsonl", "texts/a.jsonl"],
            "archives": ["archives/two.warc.gz", str(moved.folder / "archives/one.warc.gz"), "archives/cut.warc.gz"],
            "wikipedia": ["wiki.*"],
            "links": ["dumps/RS_2017-02", "dumps/RS_2017-01"],
        }
    )
    environment = {
        "PYTHONPATH": f"{clock}{os.pathsep}{tools.root}",
        "PYTHONHASHSEED": "77",
        "TZ": "Pacific/Kiritimati",
        "LANG": "tr_TR.UTF-8",
        "LC_ALL": "tr_TR.UTF-8",
        "COLUMNS": "40",
    }
    workspace = tmp_path / "elsewhere" / "ws"
    done = tools.webtext("build", recipe, "--workspace", workspace, "--workers", "2", "-q", environment=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert tools.differences(tools.hashes(built), tools.hashes(workspace)) == []

    def day(folder: Path) -> str:
        return (folder / ".state" / "lease").read_text().split(", since ")[1][:10]

    assert day(workspace) > day(built), "the clock of the other build was not moved"


def test_every_planted_document_comes_to_its_end(built: Path, tools: Any) -> None:
    workspace = Workspace.open(built)
    documents, corpus = read_manifest(workspace, "documents"), read_manifest(workspace, "corpus")
    assert documents is not None
    assert corpus is not None
    fate = {}
    for file, decisions in zip(documents.parts(), corpus.parts(), strict=True):
        rows = zip(
            read_part(workspace, file, ["url"]).column("url").to_pylist(),
            read_part(workspace, decisions).to_pylist(),
            strict=True,
        )
        fate.update({url: row for url, row in rows if url in tools.plants})
    assert {url: row["reason"] for url, row in fate.items()} == tools.plants
    assert len(fate["http://quoting.example/essay"]["cuts"]) == 1
    ledger = corpus.ledgers["documents"]
    assert ledger["in"] == sum(n for reason, n in ledger.items() if reason != "in") == 267


def test_a_second_build_does_nothing(world: Any, built: Path, tools: Any, tmp_path: Path) -> None:
    workspace = tmp_path / "ws"
    shutil.copytree(built, workspace)
    before = stamps(workspace), tools.hashes(workspace)
    tools.build(world.recipe(), workspace, "--until", "shards")
    assert (stamps(workspace), tools.hashes(workspace)) == before


LATER = ("texts/d.jsonl", "archives/two.warc.gz", "dumps/RS_2017-02")


@pytest.fixture(scope="module")
def smaller(world: Any, tools: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The world without some of its inputs, and its finished workspace; tests may change both copies."""
    folder = tmp_path_factory.mktemp("smaller")
    part = copied(world, folder / "inputs", without=LATER)
    tools.build(part.recipe(), folder / "ws", "--until", "shards")
    return part, folder / "ws"


def test_added_and_removed_inputs_touch_only_what_changed(
    world: Any, built: Path, smaller: tuple[Any, Path], tools: Any, tmp_path: Path
) -> None:
    _, finished = smaller
    part = copied(smaller[0], tmp_path / "inputs")
    workspace = tmp_path / "ws"
    shutil.copytree(finished, workspace)
    fewer, before = tools.hashes(workspace), stamps(workspace)

    for name in LATER:
        shutil.copyfile(world.folder / name, part.folder / name)
    tools.build(part.recipe(), workspace, "--until", "shards")
    assert tools.differences(tools.hashes(built), tools.hashes(workspace)) == []
    after = stamps(workspace)
    rewritten = [path for path, stamp in before.items() if path in after and after[path] != stamp]
    assert rewritten == []
    for kept in (
        "documents",
        "pages/positions",
        "annotations/language",
        "annotations/quality",
        "annotations/wikipedia",
    ):
        stood = {path for path in before if path.startswith(f"{kept}/")}
        assert stood, kept
        assert stood <= after.keys(), kept

    for name in LATER:
        (part.folder / name).unlink()
    tools.build(part.recipe(), workspace, "--until", "shards")
    assert tools.differences(fewer, tools.hashes(workspace)) == []
    back = stamps(workspace)
    assert [p for p, stamp in after.items() if p in back and back[p] != stamp] == []


def test_sections_taken_out_of_the_recipe_leave_nothing(
    smaller: tuple[Any, Path], tools: Any, tmp_path: Path
) -> None:
    """A workspace built with links, a dump, a set and archives, then from texts alone, equals texts alone at once."""
    part, finished = smaller
    workspace = tmp_path / "ws"
    shutil.copytree(finished, workspace)
    texts = part.recipe(
        "texts.yaml",
        inputs={"texts": ["texts/*.jsonl"]},
        evaluation=None,
        corpus={"rules": ["language", "quality", "wikipedia"]},
    )
    tools.build(texts, workspace, "--until", "shards")
    fresh = tmp_path / "fresh"
    tools.build(texts, fresh, "--until", "shards")
    assert tools.differences(tools.hashes(fresh), tools.hashes(workspace)) == []
    assert main_export(workspace, tmp_path / "out") == 0


def main_export(workspace: Path, out: Path) -> int:
    from pipelines.cli import main

    return main(["export", str(workspace), "--out", str(out), "-q"])


def test_a_changed_threshold_opens_no_document(
    smaller: tuple[Any, Path], tools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, finished = smaller
    workspace = tmp_path / "ws"
    shutil.copytree(finished, workspace)
    before = {p: s for p, s in stamps(workspace).items() if not p.startswith(("corpus", "tokenizer", "shards"))}
    manifests = tools.hashes(workspace, ("documents", "annotations", "links", "evaluation", "wikipedia", "pages"))
    rules = ["linked", "language", "quality", "wikipedia", "duplicates", "contamination"]
    recipe = part.recipe(
        "strict.yaml",
        corpus={"rules": rules, "contamination": "report", "quality": {"min_words": 150}, "duplicates": {"similarity": 1.0}},
    )  # fmt: skip
    opened: list[str] = []
    open_input = Workspace.open_input

    def spy(self: Workspace, path: str) -> Any:
        opened.append(path)
        return open_input(self, path)

    monkeypatch.setattr(Workspace, "open_input", spy)
    monkeypatch.setattr("pipelines.workspace._verified", set())
    tools.build(recipe, workspace, "--until", "corpus")
    parts = [path for path in opened if path.endswith(".parquet")]
    assert any(path.startswith("annotations/quality/") for path in parts), "the spy saw nothing"
    assert [path for path in parts if path.startswith("documents/")] == []
    after = stamps(workspace)
    assert {path: after.get(path) for path in before} == before
    assert manifests == tools.hashes(
        workspace, ("documents", "annotations", "links", "evaluation", "wikipedia", "pages")
    )
    corpus = read_manifest(Workspace.open(workspace), "corpus")
    assert corpus is not None
    assert corpus.ledgers["documents"]["few_words"] > 20
    assert "near_duplicate" not in corpus.ledgers["documents"]


def test_a_limit_reads_the_beginning_of_each_input(smaller: tuple[Any, Path], tools: Any, tmp_path: Path) -> None:
    part, _ = smaller
    recipe = part.recipe(
        "texts.yaml", inputs={"texts": ["texts/*.jsonl"]}, evaluation=None, corpus=None, tokenizer={"bpe": {"vocab_size": 300}}
    )  # fmt: skip
    workspace = tmp_path / "ws"
    tools.build(recipe, workspace, "--limit", "5", "--until", "documents")
    documents = read_manifest(Workspace.open(workspace), "documents")
    assert documents is not None
    assert [file.rows for file in documents.parts()] == [5, 5, 5]
    tools.build(recipe, workspace, "--until", "documents")
    fresh = tmp_path / "fresh"
    tools.build(recipe, fresh, "--until", "documents")
    assert tools.differences(tools.hashes(fresh), tools.hashes(workspace)) == []


def test_until_stops_after_each_step_and_subcommands_are_the_same(
    smaller: tuple[Any, Path], tools: Any, tmp_path: Path
) -> None:
    from pipelines.cli import main

    part, _ = smaller
    recipe = part.recipe(
        "steps.yaml", inputs={"texts": ["texts/a.jsonl"]}, evaluation=None, corpus=None, tokenizer={"bpe": {"vocab_size": 300}}
    )  # fmt: skip
    first = {
        "documents": "documents", "annotations": "annotations/quality", "corpus": "corpus",
        "tokenizer": "tokenizer", "shards": "shards/written",
    }  # fmt: skip
    workspace = tmp_path / "ws"
    for step in STEPS[:-1]:
        assert main([step, str(recipe), "--workspace", str(workspace), "--workers", "1", "-q"]) == 0
        made = [stage for name, stage in first.items() if (workspace / stage / "manifest.json").exists()]
        reached = [stage for name, stage in first.items() if STEPS.index(name) <= STEPS.index(step)]
        assert made == reached, step
    assert not (workspace / "report" / "index.html").exists()
    tools.build(recipe, workspace)
    assert (workspace / "report" / "index.html").exists()


def test_parts_are_what_their_manifests_say(built: Path, tools: Any) -> None:
    import hashlib

    workspace = Workspace.open(built)
    named: list[PartFile] = []
    for path in workspace.list(".state/manifests"):
        manifest = read_manifest(workspace, path.removeprefix(".state/manifests/").removesuffix(".json"))
        assert manifest is not None, path
        named += [file for files in manifest.tables.values() for file in files]
    for file in named:
        data = workspace.read(file.path)
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.size, file.sha256)
    public = {p for p in tools.hashes(built) if NAMED_BY_CONTENT.search(p)}
    assert public == {file.path for file in named if NAMED_BY_CONTENT.search(file.path)}
