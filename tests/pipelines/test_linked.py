"""Links and pages meet by URL, and both misses are counted."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.fetch import SCHEMA as FETCHED
from pipelines.linked import annotate_links, url_keys
from pipelines.links import SCHEMA as LINKS
from pipelines.runner import RunnerOptions
from pipelines.stages import Context, Stage, read_annotation
from pipelines.workspace import Manifest, Workspace, write_part

DOCUMENTS = pa.schema([pa.field("url", pa.string(), nullable=False)])


def link(url: str, score: int, keep: bool = True) -> dict[str, object]:
    reason = "" if keep else "low_score"
    row = {"url": url, "fetch_url": url, "score": score, "submissions": 1, "subreddits": [], "first_seen": 0}
    return {**row, "keep": keep, "reason": reason}


def fetched(url: str, final_url: str, score: int, reason: str = "") -> dict[str, object]:
    row = {name: "" if pa.types.is_string(FETCHED.field(name).type) else 0 for name in FETCHED.names}
    return {**row, "url": url, "final_url": final_url, "score": score, "reason": reason}


def manifest_of(
    workspace: Workspace, stage: str, schema: pa.Schema, parts: dict[str, list], table: str = ""
) -> Manifest:  # type: ignore[type-arg]
    files = tuple(
        write_part(workspace, stage, part, pa.Table.from_pylist(rows, schema), schema) for part, rows in parts.items()
    )
    return Manifest(stage, 1, "", {}, {}, {table: files})


@pytest.mark.parametrize("swap", [False, True])
def test_links_meet_pages_across_parts_and_redirects(tmp_path: Path, swap: bool) -> None:
    workspace = Workspace.open(tmp_path, create=True)
    pages = {
        "one": [{"url": "http://a/"}, {"url": "http://nobody/"}, {"url": "http://b/"}],
        "two": [{"url": "http://target/"}, {"url": "http://a/"}, {"url": "http://low/"}],
    }
    links = {
        "x": [link("http://a/", 5), link("http://gone/", 7), link("http://low/", 1, keep=False)],
        "y": [link("http://b/", 3), link("http://short/", 9), link("http://failed/", 4)],
    }
    if swap:
        pages, links = (dict(reversed(p.items())) for p in (pages, links))
    ledger = [fetched("http://short/", "http://target/", 9), fetched("http://failed/", "http://a/", 4, "timeout")]
    documents = manifest_of(workspace, "documents", DOCUMENTS, pages)
    documents = dataclasses.replace(documents, tables={"": tuple(sorted(documents.parts(), key=lambda f: f.part))})
    made = annotate_links(
        workspace,
        manifest_of(workspace, "links", LINKS, links),
        manifest_of(workspace, "pages/fetched", FETCHED, {"f": ledger}, "fetched"),
        documents,
        RunnerOptions(workers=1),
    )
    found = {file.part: read_annotation(workspace, made, file).to_pylist() for file in documents.parts()}
    assert found["one"] == [
        {"linked": True, "score": 5, "link": "http://a/"},
        {"linked": False, "score": 0, "link": ""},
        {"linked": True, "score": 3, "link": "http://b/"},
    ]
    assert found["two"] == [
        {"linked": True, "score": 9, "link": "http://short/"},
        {"linked": True, "score": 5, "link": "http://a/"},
        {"linked": False, "score": 0, "link": ""},
    ]
    from pipelines.workspace import read_manifest

    met = read_manifest(workspace, "annotations/links/matches")
    assert met is not None
    assert met.ledgers["pages"] == {"in": 6, "kept": 4, "not_linked": 2}
    assert met.ledgers["links that were kept"] == {"in": 5, "kept": 2, "no_page_at_this_url": 3}


def test_without_links_nothing_is_linked(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path, create=True)
    documents = manifest_of(workspace, "documents", DOCUMENTS, {"one": [{"url": "http://a/"}]})
    made = annotate_links(workspace, None, None, documents, RunnerOptions(workers=1))
    assert read_annotation(workspace, made, documents.parts()[0]).to_pylist() == [
        {"linked": False, "score": 0, "link": ""}
    ]
    assert Context(workspace, Stage("x", 1, lambda task, context: None), None).record()["ledgers"] == {}


def test_url_keys_are_stable() -> None:
    assert (
        url_keys(pa.array(["http://a/", "http://b/"])).tolist()
        == url_keys(pa.chunked_array([["http://a/"], ["http://b/"]])).tolist()
    )
