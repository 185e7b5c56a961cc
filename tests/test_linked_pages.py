"""Harvest and fetch meet on real pages: articles under their own URLs, named by a dump, fetched, kept if linked."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.loopback import LoopbackWeb, Reply
from pipelines.status import funnel
from pipelines.urls import canonical
from pipelines.why import life_of
from pipelines.workspace import Workspace, need_manifest, read_part

RECIPE = """\
name: linked-pages
inputs:
  links: [links.jsonl]
  archives: [data/warc/dolma/sample-0000.warc.gz]
fetch:
  contact: tests@webtext.example
  proxy: {proxy}
  ca_file: {ca_file}
  delay_seconds: 0.0
  timeout_seconds: 20.0
corpus:
  rules: [linked, duplicates]
tokenizer: {{bpe: {{vocab_size: 1024}}}}
"""


@pytest.fixture(scope="module")
def articles(shared: Path) -> dict[str, tuple[bytes, str]]:
    """url (without fragment) → (page, the article's text as people marked it)."""
    folder = shared / "data/html/scrapinghub"
    truth = json.loads((folder / "ground-truth.json").read_text(encoding="utf-8"))

    def page(name: str) -> bytes:
        return gzip.decompress((folder / "html" / f"{name}.html.gz").read_bytes())

    return {e["url"].partition("#")[0]: (page(name), e["articleBody"]) for name, e in truth.items()}


@pytest.fixture(scope="module")
def run(shared: Path, articles: dict[str, tuple[bytes, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("linked")
    (folder / "data").symlink_to(shared / "data")
    rows = [
        {"id": str(i), "url": url, "score": 2 + i % 3, "is_self": False} for i, url in enumerate(sorted(articles))
    ]
    (folder / "links.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    site = {url: Reply(body=page, content_type="text/html") for url, (page, _) in articles.items()}
    with LoopbackWeb(site) as web:
        recipe = folder / "recipe.yaml"
        authority = folder / "ca.pem"
        authority.write_bytes(Path(web.ca_file).read_bytes())
        recipe.write_text(RECIPE.format(proxy=web.proxy, ca_file=authority), encoding="utf-8")
        command = ["build", str(recipe), "--workspace", str(folder / "run"), "-q"]
        assert main(command) == 0
        requested = web.urls()
        assert main(command) == 0
        assert web.urls() == requested, "a second build asked the web again"
    assert len(requested) == len(set(requested)), "something was requested twice"
    return folder / "run"


def test_only_what_three_people_liked_is_fetched_and_all_of_it(
    run: Path, articles: dict[str, tuple[bytes, str]]
) -> None:
    rows = {(row["stage"], row["unit"]): row for row in funnel(Workspace.open(run))}
    assert all(row["balances"] for row in rows.values())
    links = rows["links", "links"]
    assert links["in"] == len(articles) == 181
    liked = sum(i % 3 > 0 for i in range(181))
    assert links["kept"] + links["dropped"].get("blocked_domain", 0) >= liked - 2
    fetched = rows["pages", "links"]
    assert fetched["in"] == fetched["kept"] == links["kept"]


def test_pages_that_nobody_linked_are_dropped_for_that(run: Path) -> None:
    workspace = Workspace.open(run)
    corpus = need_manifest(workspace, "corpus")
    for documents, decisions in zip(need_manifest(workspace, "documents").parts(), corpus.parts(), strict=True):
        kept = read_part(workspace, decisions, ["keep", "reason"]).to_pylist()
        if documents.part.startswith("sample-0000"):
            assert {row["reason"] for row in kept} == {"not_linked"}
        else:
            assert sum(row["keep"] for row in kept) > 0.95 * len(kept)


def test_the_kept_text_is_the_article(run: Path, articles: dict[str, tuple[bytes, str]]) -> None:
    workspace = Workspace.open(run)
    texts = {}
    for file in need_manifest(workspace, "documents").parts():
        table = read_part(workspace, file, ["url", "text"])
        texts |= dict(zip(table.column("url").to_pylist(), table.column("text").to_pylist(), strict=True))
    shares = []
    for url, (_, body) in articles.items():
        text = texts.get(canonical(url) or "")
        if text is not None and body:
            words = set(text.split())
            wanted = set(body.split())
            shares.append(len(words & wanted) / len(wanted))
    assert len(shares) > 100
    assert sorted(shares)[len(shares) // 10] > 0.8, "one article in ten lost a fifth of its words"


def test_why_tells_the_life_of_a_link(run: Path, articles: dict[str, tuple[bytes, str]]) -> None:
    workspace = Workspace.open(run)
    ordered = sorted(articles)
    low = life_of(workspace, ordered[0])
    assert low["verdict"] == "not in the corpus: the link was dropped, low_score"
    told = [life_of(workspace, url) for url in ordered[1:40:6]]
    assert any(life["verdict"] == "in the corpus" for life in told)
    for life in told:
        for document in life["documents"]:
            assert document["position"]["source"].startswith("fetched/")
            assert document["evidence"]["links"]["linked"]
