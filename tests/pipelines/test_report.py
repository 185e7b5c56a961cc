"""The report over a small workspace made here, with hostile strings wherever the web can put them."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines.report import EDGES, ReportOptions, build_report, hosts_of, write_report
from pipelines.report_page import SCRIPT, render_page
from pipelines.report_results import Curve, around, find_words
from pipelines.report_samples import Draw, place_hashes
from pipelines.report_sections import link, relative
from pipelines.workspace import (
    Json,
    Manifest,
    PartFile,
    Problem,
    Workspace,
    WorkspaceError,
    digest,
    part_id,
    part_key,
    write_manifest,
    write_part,
)

EVIL = "</td></table><script>alert(1)</script>\u202egnp.exe\x07 & \"quoted' שלום"
GRAM = "it was a bright cold day in april and the clocks were striking thirteen"
PARTS = (part_id("a.warc.gz"), part_id("b.warc.gz"))
ROWS = 40


def schema(**fields: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields.items()])


def commit(
    workspace: Workspace,
    stage: str,
    tables: dict[str, list[PartFile]],
    ledgers: dict[str, dict[str, int]] | None = None,
    problems: tuple[Problem, ...] = (),
) -> Manifest:
    manifest = Manifest(
        stage=stage,
        version=1,
        fingerprint=digest([stage, [f.sha256 for files in tables.values() for f in files]]),
        options={},
        libraries={"pyarrow": "25.0.0"},
        tables={name: tuple(files) for name, files in tables.items()},
        ledgers=ledgers or {},
        problems=problems,
    )
    write_manifest(workspace, manifest)
    return manifest


def document(part: int, row: int) -> dict[str, str]:
    n = part * ROWS + row
    text = (
        f"Document {n}. "
        + "word " * (2 + 7 * n)
        + ("— It was a bright, COLD day in April; and the clocks were striking thirteen! — after" if row == 3 else "")
    )
    return {
        "doc_id": digest(n)[:32],
        "url": f"https://www.site{n % 7}.co.uk/page?n={n}&x=<i>" if n != 5 else "javascript:alert(1)//" + EVIL,
        "title": EVIL if n % 5 == 0 else f"Page {n}",
        "text": text,
    }


REASONS = ("", "", "other_language", "near_duplicate", "few_words")


def decide(part: int, row: int) -> tuple[str, str]:
    reason = REASONS[row % 5] if part == 0 else ""
    detail = f"{digest(1)[:32]} 0.9100" if reason == "near_duplicate" else EVIL if reason == "few_words" else ""
    return reason, detail


def make_documents(workspace: Workspace) -> Manifest:
    fields = schema(doc_id=pa.string(), url=pa.string(), title=pa.string(), text=pa.string())
    files = []
    for number, part in enumerate(PARTS):
        rows = [document(number, row) for row in range(ROWS)]
        files.append(write_part(workspace, "documents", part, pa.Table.from_pylist(rows, fields), fields))
    rejected = schema(url=pa.string(), source=pa.string(), offset=pa.int64(), reason=pa.string(), detail=pa.string())
    lost = [
        {"url": f"javascript:alert({i})", "source": "a.warc.gz", "offset": i, "reason": "empty", "detail": EVIL}
        for i in range(20)
    ]
    beside = write_part(workspace, "pages/rejected", PARTS[0], pa.Table.from_pylist(lost, rejected), rejected)
    ledger = {"pages": {"in": 2 * ROWS + 20, "kept": 2 * ROWS, "empty": 20}}
    problems = (Problem("a.warc.gz", "truncated", 1234, EVIL), Problem("a.warc.gz", "truncated", 99, ""))
    return commit(workspace, "documents", {"": files, "rejected": [beside]}, ledger, problems)


def make_links(workspace: Workspace) -> None:
    fields = schema(
        url=pa.string(),
        score=pa.int64(),
        submissions=pa.int32(),
        subreddits=pa.list_(pa.field("item", pa.string(), nullable=False)),
        keep=pa.bool_(),
        reason=pa.string(),
    )
    rows = [
        {
            "url": f"https://link.example/{i}",
            "score": i,
            "submissions": 1,
            "subreddits": ["test"],
            "keep": i >= 3,
            "reason": "" if i >= 3 else "low_score",
        }
        for i in range(9)
    ]
    file = write_part(workspace, "links", "links-0000", pa.Table.from_pylist(rows, fields), fields)
    commit(workspace, "links/submissions", {}, {"submissions": {"in": 12, "kept": 9, "self_post": 2, EVIL: 1}})
    commit(workspace, "links", {"": [file]}, {"links": {"in": 9, "kept": 6, "low_score": 3}})


def make_beside(workspace: Workspace, documents: Manifest) -> None:
    """Annotations and decisions, row by row beside the documents."""
    tables = {
        "annotations/language": (
            schema(language=pa.string()),
            lambda p, r: {"language": "en" if r % 5 != 2 else "de"},
        ),
        "annotations/quality": (schema(n_chars=pa.int32()), lambda p, r: {"n_chars": len(document(p, r)["text"])}),
        "corpus": (
            schema(keep=pa.bool_(), reason=pa.string(), detail=pa.string()),
            lambda p, r: {"keep": not decide(p, r)[0], "reason": decide(p, r)[0], "detail": decide(p, r)[1]},
        ),
    }
    for stage, (fields, row_of) in tables.items():
        files = []
        for number, file in enumerate(documents.parts()):
            table = pa.Table.from_pylist([row_of(number, row) for row in range(ROWS)], fields)
            files.append(write_part(workspace, stage, file.part, table, fields, {"documents.sha256": file.sha256}))
        reasons = Counter(decide(p, r)[0] or "kept" for p in (0, 1) for r in range(ROWS))
        ledger = {"in": 2 * ROWS, **reasons} if stage == "corpus" else {"in": 2 * ROWS, "kept": 2 * ROWS}
        commit(workspace, stage, {"": files}, {"documents": ledger})


def put(workspace: Workspace, path: str, value: Json) -> None:
    workspace.write(path, json.dumps(value).encode())


def make_results(workspace: Workspace) -> None:
    """Result files in the shapes their writers document."""
    place = {"part": PARTS[1], "row": 3}
    match = {"gram": GRAM, "documents": 2, "places": [place]}
    dirty = {"id": EVIL, "record": 7, "found": 3, "grams": 4, "text": f"He read: {GRAM.title()}.", "matches": [match]}
    eight = {
        "total": 900,
        "found": 9,
        "share": 0.01,
        "interval": [0.006, 0.019],
        "rare_share": 0.005,
        "distinct": 880,
    }
    thirteen = {**eight, "found": 1, "share": 1 / 900, "interval": [0.0002, 0.006], "own_train_share": 0.031}
    entry = {"words": 9999, "n": 13, "dirty_share": 0.1, "interval": [0.05, 0.2], "dirty_examples": [dirty]}
    sets = [
        {
            "set": "lambada",
            "examples": 24,
            "short": 4,
            "dirty": 2,
            "clean": 18,
            **entry,
            "ngrams": {"8": {**eight, "own_train_share": None}, "13": thirteen},
        },
        {
            "set": "PTB",
            "examples": 10,
            "short": 0,
            "dirty": 0,
            "clean": 10,
            **entry,
            "dirty_examples": [],
            "ngrams": {"8": {**eight, "share": None, "interval": None, "own_train_share": None}},
        },
    ]
    put(workspace, "corpus/contamination.json", {"format": "webtext-contamination", "version": 1, "sets": sets})
    pair = {
        "similarity": 0.91,
        "reason": "near_duplicate",
        "survivor": {"doc_id": digest(1)[:32], "part": part_key(PARTS[0]), "row": 1},
        "dropped": {"doc_id": "", "part": part_key(PARTS[0]), "row": 3},
    }
    put(
        workspace,
        "corpus/duplicates.json",
        {
            "exact": 3,
            "near": 8,
            "exact_groups": 2,
            "near_edges": 9,
            "chained": 1,
            "largest_component": 4,
            "large_components": 1,
            "sizes": [{"size": "2", "clusters": 5}, {"size": "9-16", "clusters": 1}],
            "components": [{"documents": 4, "kept": 2, "least": 0.81}],
            "examples": [pair],
        },
    )
    size = {"tokens": 1000, "bytes_per_token": 2.5, "unused": 3}
    put(
        workspace,
        "tokenizer/report.json",
        {
            "types": 400,
            "n_bytes": 3200,
            "sizes": [{"vocab_size": 512, **size}, {"vocab_size": 1000, **size, "bytes_per_token": 3.125}],
        },
    )
    shard = {"file": "train-x.arrow", "documents": 60, "tokens": 9000, "n_bytes": 30000}
    held = {**shard, "documents": 3, "tokens": 1000, "n_bytes": 3000}
    put(
        workspace,
        "shards/manifest.json",
        {
            "format": "webtext-shards",
            "version": 1,
            "dtype": "uint16",
            "vocab_size": 1000,
            "fingerprint": "f" * 64,
            "splits": {"validation": [held], "train": [shard, shard]},
        },
    )
    log = [{"event": "start", "step": 0, "versions": {}}]
    log += [{"event": "step", "step": i, "loss": 9 - i / 300, "tokens": i} for i in range(1, 2001)]
    log += [{"event": "evaluation", "step": 2000, "loss": 3.25, "bits_per_byte": 1.1}]
    lines = "".join(json.dumps(line) + "\n" for line in log) + '{"event": "st'
    workspace.write("runs/tiny/log.jsonl", lines.encode())
    scores = {"examples": 20, "acc_last_word": 0.25, "ppl_last_word": 80.5, "tokens": 7}
    lambada = {"task": "lambada", "all": scores, "clean": {**scores, "acc_last_word": 0.2}, "dirty": scores}
    put(
        workspace,
        "runs/tiny/evaluation.json",
        {
            "format": "webtext-evaluation",
            "sets": {"lambada": lambada},
            "validation": {"loss": 3.25, "fingerprint": "f"},
        },
    )
    put(workspace, "runs/tiny/samples.json", [{"prompt": "", "text": EVIL}])
    workspace.write(
        "recipe.yaml",
        b"name: small\ninputs:\n  links: [/home/me/secret/dump.zst]\nfetch: {ca_file: /home/me/ca.pem}\n"
        b"evaluation: [{name: lambada, path: /home/me/l, train: /home/me/t}]\n",
    )
    put(workspace, "inputs.json", {"links": [{"name": "dump.zst", "size": 10, "sha256": "c" * 64}], "texts": []})


def make_workspace(folder: Path) -> Workspace:
    workspace = Workspace.open(folder, create=True)
    make_links(workspace)
    make_beside(workspace, make_documents(workspace))
    make_results(workspace)
    return workspace


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("report") / "ws")


@pytest.fixture(scope="module")
def data(workspace: Workspace) -> Json:
    return build_report(workspace)


class Page(html.parser.HTMLParser):
    """Elements, ids and addresses of a page; fails on tags that do not nest."""

    VOID = frozenset({"meta", "br", "hr", "img", "input", "link"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids.update(value or "" for name, value in attrs if name == "id")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, text: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.texts.append(text)


def test_page_is_well_formed_and_ids_are_unique(data: Json) -> None:
    page = Page(render_page(data))
    assert max(page.ids.values()) == 1
    assert page.tags["h1"] == 1
    assert page.tags["section"] == page.tags["h2"] == 10
    linked = {value[1:] for _, name, value in page.attributes if name == "href" and value.startswith("#")}
    assert linked <= set(page.ids)


def test_nothing_from_the_web_acts(data: Json) -> None:
    text = render_page(data)
    page = Page(text)
    assert page.tags["script"] == 1
    assert "alert(1)" in "".join(page.texts)
    assert "javascript:alert" in "".join(page.texts)
    for character in ("\u202e", "\x07", "\u2066", "\ufeff"):
        assert character not in text
    assert "⟨U+202E⟩" in text
    assert not [a for a in page.attributes if a[1].startswith("on") or a[1] in ("style", "src", "srcset", "action")]


def test_page_loads_nothing_and_links_are_guarded(data: Json) -> None:
    text = render_page(data)
    page = Page(text)
    assert not {"link", "img", "iframe", "object", "embed", "base", "form", "image", "use"} & set(page.tags)
    style = text.split("<style>")[1].split("</style>")[0]
    assert "@import" not in style
    assert re.findall(r"url\((.*?)\)", style) == ["#fade"]
    outside = [value for tag, name, value in page.attributes if name == "href" and not value.startswith("#")]
    assert outside
    assert all(re.match(r"https?://", value) for value in outside)
    assert text.count('<a href="http') == text.count('rel="noreferrer noopener"') == len(outside)
    policy = next(value for _, name, value in page.attributes if name == "content" and "default-src" in value)
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert SCRIPT in text


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "data:text/html,x",
        "https://a/\u202eb",
        "http://a/ b",
        'https://a/"x',
        "https://ſ/",
        "//a",
        "https://a/\n",
        "HTTPſ://a",
    ],
)
def test_only_plain_addresses_become_links(url: str) -> None:
    assert "<a" not in link(url)
    assert 'href="HTTP://a/b?c=1&amp;d=&#x27;"' in link("HTTP://a/b?c=1&d='")


def test_funnel_follows_the_data_and_balances(data: Json) -> None:
    assert [(s["stage"], s["unit"], s["in"], s["kept"]) for s in data["funnel"]] == [
        ("links/submissions", "submissions", 12, 9),
        ("links", "links", 9, 6),
        ("documents", "pages", 100, 80),
        ("corpus", "documents", 80, 56),
    ]
    assert all(row["balanced"] for row in data["balance"])
    assert sum(row["dropped"] for row in data["balance"]) == sum(drop["count"] for drop in data["drops"])


def test_an_unbalanced_ledger_is_said(data: Json) -> None:
    balance = [{**data["balance"][0], "balanced": False}, *data["balance"][1:]]
    assert "1 of 6 ledgers do not balance" in render_page({**data, "balance": balance})
    assert "All 6 ledgers balance" in render_page(data)


def test_figures_on_the_page_are_those_of_the_data(data: Json) -> None:
    text = " ".join(Page(render_page(data)).texts)
    for s in data["funnel"]:
        assert f"{s['kept']} {s['unit']} kept" in text
    for drop in data["drops"]:
        assert str(drop["count"]) in text
    tokens = data["shards"]["tokens"]
    assert tokens == 19000
    assert "19\u202f000" in text
    assert "0.2500" in text


def test_census_counts_every_document(data: Json) -> None:
    documents = data["documents"]
    lengths = [len(document(p, r)["text"]) for p in (0, 1) for r in range(ROWS)]
    kept = [len(document(p, r)["text"]) for p in (0, 1) for r in range(ROWS) if not decide(p, r)[0]]
    edges = documents["lengths"]["edges"]
    assert documents["lengths"]["all"] == np.histogram(lengths, edges)[0].tolist()
    assert documents["lengths"]["kept"] == np.histogram(kept, edges)[0].tolist()
    assert documents["lengths"]["median"] == sorted(lengths)[ROWS - 1]
    assert (documents["total"], documents["kept"]) == (80, 56)
    assert {r["language"]: (r["all"], r["kept"]) for r in documents["languages"]} == {"en": (64, 48), "de": (16, 8)}
    domains = {r["domain"]: r["all"] for r in documents["domains"]}
    assert sum(domains.values()) == 80
    assert domains["site1.co.uk"] == 12
    assert documents["domains_distinct"] == 8


def test_samples_belong_to_their_reason(data: Json) -> None:
    rows = {document(p, r)["url"]: decide(p, r) for p in (0, 1) for r in range(ROWS)}
    drops = {(d["stage"], d["reason"]): d for d in data["drops"]}
    for reason in ("other_language", "near_duplicate", "few_words"):
        drop = drops["corpus", reason]
        assert len(drop["dropped"]) == len(drop["kept"]) == 3
        assert {rows[s["url"]][0] for s in drop["dropped"]} == {reason}
        assert {rows[s["url"]][0] for s in drop["kept"]} == {""}
    assert drops["corpus", "near_duplicate"]["dropped"][0]["survivor"] == document(0, 1)["url"]
    assert drops["corpus", "near_duplicate"]["dropped"][0]["detail"] == "similarity 0.9100"
    assert len(drops["documents", "empty"]["dropped"]) == 3
    assert len(drops["documents", "empty"]["kept"]) == 3
    assert {s["url"] for s in drops["links", "low_score"]["dropped"]} == {
        f"https://link.example/{i}" for i in range(3)
    }
    assert drops["links/submissions", "self_post"]["dropped"] == []
    assert all(len(s["text"]) <= 300 for d in data["drops"] for s in (*d["dropped"], *d["kept"]))


def test_contamination_marks_the_gram_on_both_sides(data: Json) -> None:
    first, second = data["contamination"]
    match = first["matches"][0]
    start, end = match["text_span"]
    assert match["text"][start:end] == GRAM.title()
    start, end = match["span"]
    assert match["excerpt"][start:end] == "It was a bright, COLD day in April; and the clocks were striking thirteen"
    assert match["url"] == document(1, 3)["url"]
    assert [(s["metric"], s["all"], s["clean"]) for s in first["scores"]] == [
        ("acc_last_word", 0.25, 0.2),
        ("ppl_last_word", 80.5, 80.5),
    ]
    assert second["matches"] == []
    page = render_page(data)
    assert page.count("<mark>") == 2
    assert "1.00</span>" in page
    assert "0.88" in page  # PTB's figure in GPT-2's Table 6


def test_runs_take_both_losses_and_say_what_was_torn(data: Json) -> None:
    run = data["runs"][0]
    curves = {c["name"]: c["points"] for c in run["curves"]}
    assert curves["validation loss"] == [[2000.0, 3.25]]
    assert run["thinned"] == 4
    assert len(curves["training loss"]) == 500
    assert curves["training loss"][0] == [2.5, pytest.approx(9 - 2.5 / 300)]
    assert run["unreadable"] == 1
    assert {(s["task"], s["name"]) for s in run["scores"]} == {
        ("validation split", "loss"),
        ("lambada", "examples"),
        ("lambada", "acc_last_word"),
        ("lambada", "ppl_last_word"),
    }


def test_problems_and_versions(data: Json) -> None:
    assert data["problems"]["by_reason"] == [{"stage": "documents", "reason": "truncated", "count": 2}]
    assert data["libraries"] == [["pyarrow", "25.0.0"]]
    assert "- dump.zst" in data["recipe"]
    assert "ca_file: ca.pem" in data["recipe"]
    assert "/home/me" not in render_page(data)
    assert [s["stage"] for s in data["stages"]][:3] == ["links/submissions", "links", "documents"]


def test_report_is_the_same_every_time_and_json_is_plain(workspace: Workspace, tmp_path: Path) -> None:
    other = make_workspace(tmp_path / "elsewhere")
    write_report(workspace)
    write_report(other)
    for name in ("report/report.json", "report/index.html"):
        assert workspace.read(name) == other.read(name)
    raw = workspace.read("report/report.json")
    assert raw.isascii()
    assert json.loads(raw) == build_report(workspace)


def test_an_empty_workspace_has_a_page(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "ws", create=True)
    data = write_report(workspace)
    page = Page(workspace.read("report/index.html").decode())
    assert max(page.ids.values()) == 1
    assert {"documents", "corpus", "shards", "training"} <= set(data["missing"])
    text = " ".join(page.texts)
    for what in ("documents", "duplicates", "tokenizer", "shards", "training"):
        assert f"Not run: {what}" in text


def test_each_step_of_a_build_has_a_page(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "ws", create=True)
    make_links(workspace)
    Page(render_page(build_report(workspace)))
    documents = make_documents(workspace)
    data = build_report(workspace)
    Page(render_page(data))
    assert data["documents"]["decided"] is False
    lengths = [len(document(p, r)["text"]) for p in (0, 1) for r in range(ROWS)]
    assert sum(data["documents"]["lengths"]["all"]) == len(lengths)
    assert data["documents"]["lengths"]["median"] == sorted(lengths)[ROWS - 1]
    make_beside(workspace, documents)
    Page(render_page(build_report(workspace)))


def test_what_stands_beside_other_documents_is_left_out(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "ws")
    file = write_part(
        workspace,
        "documents",
        PARTS[0],
        pa.table({"url": ["https://a.example/"], "title": [""], "text": ["new"], "doc_id": ["0" * 32]}),
        schema(url=pa.string(), title=pa.string(), text=pa.string(), doc_id=pa.string()),
    )
    commit(workspace, "documents", {"": [file]}, {"pages": {"in": 1, "kept": 1}})
    data = build_report(workspace)
    assert data["stale"] == ["annotations/language", "annotations/quality", "corpus"]
    assert "corpus" not in {s["stage"] for s in data["funnel"]}
    assert "Out of date" in render_page(data)


def test_damage_is_named(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "ws")
    workspace.write("tokenizer/report.json", b'{"types": ')
    with pytest.raises(WorkspaceError, match=r"tokenizer/report\.json is damaged"):
        build_report(workspace)
    workspace.remove("tokenizer/report.json")
    path = workspace.list("corpus")
    part = next(p for p in path if p.endswith(".parquet"))
    workspace.write(part, workspace.read(part)[:-9])
    with pytest.raises(WorkspaceError, match="corpus/"):
        build_report(workspace)


def test_other_versions_are_refused(data: Json) -> None:
    with pytest.raises(ValueError, match="version 99"):
        render_page({**data, "version": 99})
    with pytest.raises(ValueError, match="samples"):
        ReportOptions(samples=-1)


def test_draw_is_uniform_and_does_not_depend_on_the_order_of_parts() -> None:
    part = PartFile("p", "t/p.parquet", 4000, 0, "", "")
    other = dataclasses.replace(part, part="q", path="t/q.parquet")
    taken = []
    for order in ((part, other), (other, part)):
        draw = Draw(0, 1000)
        for file in order:
            draw.offer("", file, place_hashes(file.part, file.rows), np.arange(file.rows))
        taken.append(draw.places()[""])
    assert taken[0] == taken[1]
    assert len({p.key for p in taken[0]}) == 1000
    shares = np.histogram([p.row for p in taken[0]], 8, (0, 4000))[0]
    assert shares.min() > 80
    assert shares.max() < 175
    assert 420 < sum(p.part.part == "p" for p in taken[0]) < 580


def test_curve_keeps_the_mean_and_stays_small() -> None:
    curve = Curve()
    for i in range(10_001):
        curve.add(i, i % 10)
    points = curve.all()
    assert len(points) <= 801
    assert points[0][1] == pytest.approx(np.mean([i % 10 for i in range(curve.each)]))
    assert points[-1] == (10_000.0, 0.0)


@pytest.mark.parametrize(
    ("text", "wanted", "found"),
    [
        ("It didn't rain", "didn t rain", "didn't rain"),
        ("undid nothing; did nothing.", "did nothing", "did nothing"),
        ("a_b", "a b", "a_b"),
        ("xa b", "a b", ""),
        ("x", "", ""),
        ("Ünïcode İS", "ünïcode", "Ünïcode"),
    ],
)
def test_find_words(text: str, wanted: str, found: str) -> None:
    start, end = find_words(text, wanted)
    assert text[start:end] == found


def test_around_and_relative() -> None:
    text, (a, b) = around("x" * 50 + "HIT" + "y" * 50, 50, 53, 10)
    assert text[a:b] == "HIT"
    assert len(text) == 25
    assert around("short", 0, 5, 10) == ("short", [0, 5])
    assert relative(54.1, 44.3) == "+20.0\u202f%"  # QuAC in GPT-3's Table C.1
    assert relative(29.5, 36.5) == "\u221221.3\u202f%"  # DROP
    assert relative(None, 1.0) == relative(0.0, 1.0) == "–"


def test_hosts() -> None:
    urls = pa.chunked_array([["https://a.example/x//y", "http://b.example", "", "urn:x", "https://c.example?q=/"]])
    assert hosts_of(urls).to_pylist() == ["a.example", "b.example", "", "urn:x", "c.example?q="]
    assert sorted(set(EDGES)) == EDGES
