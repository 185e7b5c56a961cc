"""Whole builds: the same input gives the same bytes, whatever else is different, and only what changed is touched."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipelines.build import STEPS
from pipelines.workspace import Workspace, read_manifest, read_part

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


def test_nothing_but_the_inputs_shapes_a_byte(world: Any, built: Path, tools: Any, tmp_path: Path) -> None:
    """Two workers for one, inputs in another order and place, another hash seed, day, time zone and language."""
    clock = tmp_path / "clock"
    clock.mkdir()
    (clock / "sitecustomize.py").write_text(ANOTHER_DAY)
    moved = tools.copied(world, tmp_path / "a folder of another name" / "in")
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
    before = tools.stamps(workspace), tools.hashes(workspace)
    tools.build(world.recipe(), workspace, "--until", "shards")
    assert (tools.stamps(workspace), tools.hashes(workspace)) == before


def test_added_and_removed_inputs_touch_only_what_changed(
    world: Any, built: Path, smaller: tuple[Any, Path], tools: Any, tmp_path: Path
) -> None:
    _, finished = smaller
    part = tools.copied(smaller[0], tmp_path / "inputs")
    workspace = tmp_path / "ws"
    shutil.copytree(finished, workspace)
    fewer, before = tools.hashes(workspace), tools.stamps(workspace)

    for name in tools.later:
        shutil.copyfile(world.folder / name, part.folder / name)
    tools.build(part.recipe(), workspace, "--until", "shards")
    assert tools.differences(tools.hashes(built), tools.hashes(workspace)) == []
    after = tools.stamps(workspace)
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

    for name in tools.later:
        (part.folder / name).unlink()
    tools.build(part.recipe(), workspace, "--until", "shards")
    assert tools.differences(fewer, tools.hashes(workspace)) == []
    back = tools.stamps(workspace)
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
    before = {p: s for p, s in tools.stamps(workspace).items() if not p.startswith(("corpus", "tokenizer", "shards"))}
    manifests = tools.hashes(workspace, ("documents", "annotations", "links", "evaluation", "wikipedia", "pages"))
    rules = ["linked", "language", "quality", "wikipedia", "duplicates", "contamination"]
    strict = {"quality": {"min_words": 150}, "duplicates": {"similarity": 1.0}}
    recipe = part.recipe("strict.yaml", corpus={"rules": rules, "contamination": "report", **strict})
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
    after = tools.stamps(workspace)
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
        "texts.yaml",
        inputs={"texts": ["texts/*.jsonl"]},
        evaluation=None,
        corpus=None,
        tokenizer={"bpe": {"vocab_size": 300}},
    )
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
        "steps.yaml",
        inputs={"texts": ["texts/a.jsonl"]},
        evaluation=None,
        corpus=None,
        tokenizer={"bpe": {"vocab_size": 300}},
    )
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


def test_manifests_name_every_part_and_no_other(built: Path, tools: Any) -> None:
    workspace = Workspace.open(built)
    named: set[str] = set()
    for path in workspace.list(".state/manifests"):
        manifest = read_manifest(workspace, path.removeprefix(".state/manifests/").removesuffix(".json"))
        assert manifest is not None, path
        named |= {file.path for files in manifest.tables.values() for file in files}
    assert tools.disbelieved(built) == []
    assert set(tools.stamps(built)) <= named
    assert {path for path in named if path.endswith((".parquet", ".arrow"))} == set(tools.stamps(built))
