"""The whole way on real input: dumps of links, archives, texts, Wikipedia, evaluation sets; to a scored model."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import main
from pipelines.status import funnel
from pipelines.workspace import Workspace, need_manifest, read_part

RECIPES = Path(__file__).parent / "recipes"


def model(*arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "model", *arguments, "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def run(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace built from tests/recipes/real_input.yaml."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "data").symlink_to(shared / "data")
    recipe = folder / "real_input.yaml"
    recipe.write_text((RECIPES / "real_input.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    assert main(["build", str(recipe), "--workspace", str(folder / "run"), "-q"]) == 0
    return folder / "run"


def ledgers(run: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["stage"], row["unit"]): row for row in funnel(Workspace.open(run))}


def test_the_funnel_balances_and_counts_what_independent_readers_count(run: Path) -> None:
    rows = ledgers(run)
    assert all(row["balances"] for row in rows.values())
    submissions = rows["links/submissions", "submissions"]
    assert submissions["in"] == 103 + 31 + 29_750
    assert submissions["dropped"]["self_post"] == 12 + 4_561
    archives = need_manifest(Workspace.open(run), "documents")
    # The two largest archives hold 299 responses each, 140 of them HTML (COUNTS.json); they are one crawl, twice.
    corpus = rows["corpus", "documents"]
    assert corpus["in"] == sum(file.rows for file in archives.parts()) > 1_200
    assert corpus["dropped"]["exact_duplicate"] > 0
    assert corpus["kept"] > 800


def test_links_and_archives_share_no_url_and_the_funnel_says_so(run: Path) -> None:
    rows = ledgers(run)
    links = rows["annotations/links/matches", "links that were kept"]
    pages = rows["annotations/links/matches", "pages"]
    assert links["in"] > 18_000
    assert links["kept"] == pages["kept"] == 0
    assert pages["dropped"] == {"not_linked": pages["in"]}


def test_broken_archives_are_named_by_file_and_reason(run: Path) -> None:
    problems = need_manifest(Workspace.open(run), "documents").problems
    named = {problem.input.rpartition("/")[2] for problem in problems}
    assert {
        "badexample.arc.gz",
        "clipped.warc.gz",
        "bad.arc",
        "example-trunc.warc",
        "double-single-inflate-error.gz",
    } <= named
    assert all(problem.reason for problem in problems)


def test_the_contamination_table_has_every_set(run: Path) -> None:
    table = {entry["set"]: entry for entry in json.loads((run / "corpus/contamination.json").read_text())["sets"]}
    assert {name: entry["examples"] for name, entry in table.items()} == {
        "ptb": 3_761,
        "wikitext-2": table["wikitext-2"]["examples"],
        "lambada": 5_153,
    }
    for entry in table.values():
        assert entry["short"] + entry["dirty"] + entry["clean"] == entry["examples"]
        for figures in entry["ngrams"].values():
            assert 0 <= figures["found"] <= figures["total"]


def test_the_crawl_that_is_there_twice_is_kept_once(run: Path) -> None:
    workspace = Workspace.open(run)
    documents, corpus = need_manifest(workspace, "documents"), need_manifest(workspace, "corpus")
    kept: dict[str, int] = {}
    for file, decided in zip(documents.parts(), corpus.parts(), strict=True):
        if not file.part.startswith("archives-unleashed"):
            continue
        ids = read_part(workspace, file, ["doc_id", "url"]).column("url").to_pylist()
        for url, keep in zip(ids, read_part(workspace, decided, ["keep"]).column("keep").to_pylist(), strict=True):
            kept[url] = kept.get(url, 0) + keep
    assert kept
    assert max(kept.values()) == 1


def test_the_report_stands_alone(run: Path) -> None:
    page = (run / "report/index.html").read_text(encoding="utf-8")
    assert "Contamination" in page
    assert '<script src="' not in page
    assert "<link" not in page
    data = json.loads((run / "report/report.json").read_text(encoding="utf-8"))
    assert data


def test_a_tiny_model_is_trained_and_evaluated(run: Path, shared: Path) -> None:
    shards, out = str(run / "shards"), str(run / "runs" / "tiny")
    trained = model("train", shards, out, "--preset", "tiny", "--steps", "60", "--threads", "2")
    assert trained
    scores = model(
        "evaluate", out, "--shards", shards, "--limit", "60", "--threads", "2",
        "--text", f"ptb={shared / 'data/ptb/ptb.test.txt.gz'}",
        "--text", f"wikitext-2={shared / 'data/wikitext-2/test.txt.gz'}",
        "--lambada", f"lambada={shared / 'data/lambada/lambada_test.jsonl.gz'}",
    )  # fmt: skip
    assert {"ptb", "wikitext-2", "lambada"} <= set(scores["sets"])
    vocabulary = json.loads((run / "shards/manifest.json").read_text())["vocab_size"]
    assert scores["validation"]["loss"] < math.log(vocabulary / 2)
    samples = model("generate", out, "--tokens", "20", "--threads", "2")
    assert samples[0]["text"]


def test_building_again_does_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.parquet")}
    assert main(["status", str(run), "--json"]) == 0
    states = {row["stage"]: row["state"] for row in json.loads(capsys.readouterr().out)}
    assert set(states.values()) == {"done"}
    assert "shards/written" in states
    assert "pages" not in states, "this recipe fetches nothing"
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*.parquet")} == before
