"""Documents from real and made archives and own texts: every record accounted for, the same bytes every time."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.archives import ArchiveOptions
from pipelines.documents import (
    POSITIONS_SCHEMA,
    REJECTED_SCHEMA,
    SCHEMA,
    STAGE,
    DocumentOptions,
    build_documents,
    doc_id,
    document_tasks,
    make_documents,
)
from pipelines.extract import ExtractOptions, ExtractorError
from pipelines.runner import RunnerOptions
from pipelines.stages import Context, Task, check_ledgers
from pipelines.texts import TextOptions
from pipelines.why import life_of
from pipelines.workspace import Manifest, PartFile, Workspace, part_id, read_part


def input_task(path: Path, name: str = "", **inputs: Any) -> Task:
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return Task("", {"name": name or path.name, "sha256": sha256, **inputs}, {"path": str(path)}, path.stat().st_size)


class Made:
    """One task done in this process: its tables, ledgers and problems."""

    def __init__(self, folder: Path, task: Task, options: DocumentOptions | None = None) -> None:
        self.workspace = Workspace.open(folder, create=True)
        context = Context(self.workspace, STAGE, options or DocumentOptions())
        make_documents(task, context)
        record = context.record()
        check_ledgers(record["ledgers"], "a test")
        self.ledgers: dict[str, dict[str, int]] = record["ledgers"]
        self.problems: list[dict[str, Any]] = record["problems"]
        self.files = {table: [PartFile.of(f) for f in files] for table, files in record["tables"].items()}

    def rows(self, table: str = "") -> list[dict[str, Any]]:
        return [row for file in self.files.get(table, []) for row in read_part(self.workspace, file).to_pylist()]


def archive(path: Path, folder: Path, options: DocumentOptions | None = None, **inputs: Any) -> Made:
    (task,) = document_tasks([input_task(path, **inputs)], None, [], TextOptions())
    return Made(folder, task, options)


def texts(path: Path, folder: Path, options: TextOptions | None = None, **inputs: Any) -> Made:
    (task,) = document_tasks([], None, [input_task(path, **inputs)], options or TextOptions())
    return Made(folder, task)


def html(words: str, title: str = "A page", times: int = 12) -> bytes:
    body = "".join(
        f"<p>Paragraph {i}: {words}, and a few more words to make a sentence of it.</p>" for i in range(times)
    )
    return f"<html><head><title>{title}</title></head><body><article>{body}</article></body></html>".encode()


def warc(path: Path, pages: Sequence[tuple[str, bytes]], mime: str = "text/html; charset=utf-8") -> Path:
    """A gzip-per-record WARC of responses."""
    with path.open("wb") as stream:
        for number, (url, payload) in enumerate(pages):
            block = f"HTTP/1.1 200 OK\r\nContent-Type: {mime}\r\n\r\n".encode() + payload
            head = (
                f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2019-05-06T07:08:09Z\r\n"
                f"WARC-Record-ID: <urn:uuid:{number:032x}>\r\nContent-Type: application/http; msgtype=response\r\n"
                f"Content-Length: {len(block)}\r\n\r\n"
            )
            stream.write(gzip.compress(head.encode() + block + b"\r\n\r\n", mtime=0))
    return path


# Real archives.

WHOLE = [
    "warcio/example.arc.gz",
    "dolma/sample-0000.warc.gz",
    "resiliparse/warcfile.warc.gz",
    "ia-web-commons/IAH-urls-wget.warc",
    "whirlwind/whirlwind.warc",
]
BROKEN = ["resiliparse/clipped.warc.gz", "warcio/example-trunc.warc"]


@pytest.mark.parametrize("name", WHOLE + BROKEN)
def test_every_record_of_a_real_archive_is_accounted_for(shared: Path, tmp_path: Path, name: str) -> None:
    folder = shared / "data" / "warc"
    made = archive(folder / name, tmp_path / "w", name=name)
    counts = json.loads((folder / "COUNTS.json").read_text())[name]
    documents, positions = made.rows(), made.rows("positions")
    pages, records = made.ledgers.get("pages", {}), made.ledgers.get("records", {})
    assert pages.get("kept", 0) == len(documents) == len(positions)
    assert records.get("kept", 0) == pages.get("in", 0)
    if name in WHOLE:
        assert records["in"] == sum(counts["records"].values())
        assert pages["in"] <= counts["html_responses"] + counts["records"].get("resource", 0)
        assert len(documents) >= 0.5 * pages["in"] > 0
    assert bool(made.problems) == (name in BROKEN)
    assert all(problem["input"] == name for problem in made.problems)
    for document, position in zip(documents, positions, strict=True):
        assert document["doc_id"] == position["doc_id"]
        assert document["text"].strip()
        assert document["url"].startswith("http://")
        assert position["source"] == name
        assert len(position["payload_sha1"]) == 40
        assert position["extractor"].split("+")[0] in ("fast", "standard")
        assert document["date"] == "" or position["fetched_at"] == 0 or document["date"] < "2030"
    assert len({d["doc_id"] for d in documents}) == len(documents)
    assert documents == sorted(documents, key=lambda d: (d["url"], d["doc_id"]))
    lost = sum(n for reason, n in pages.items() if reason not in ("in", "kept"))
    assert len(made.rows("rejected")) >= lost
    assert {row["source"] for row in made.rows("rejected")} <= {name}


def test_positions_lead_back_to_the_record(shared: Path, tmp_path: Path) -> None:
    path = shared / "data" / "warc" / "whirlwind" / "whirlwind.warc"
    made = archive(path, tmp_path)
    (position,) = made.rows("positions")
    record = path.read_bytes()[position["offset"] :]
    assert record.startswith(b"WARC/1.0\r\nWARC-Type: response")
    assert position["record_id"].encode() in record[:1000]
    assert position["status"] == 200
    assert position["mime"] == "text/html"
    assert position["charset"] == "utf-8"


# The same bytes.


def test_bytes_depend_on_the_input_and_its_name_alone(shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / "warc" / "resiliparse" / "warcfile.warc.gz"
    (tmp_path / "elsewhere").mkdir()
    moved = Path(shutil.copy(source, tmp_path / "elsewhere" / "other.warc.gz"))
    one = archive(source, tmp_path / "one", name="a.warc.gz")
    other = archive(moved, tmp_path / "two", name="a.warc.gz")
    assert one.files == other.files
    assert one.ledgers == other.ledgers
    renamed = archive(moved, tmp_path / "three", name="b.warc.gz")
    assert [f.logical for f in renamed.files[""]] == [f.logical for f in one.files[""]]
    assert [f.part for f in renamed.files[""]] == [part_id("b.warc.gz")]


def test_two_workers_give_what_one_process_gives(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "warc"
    paths = ["dolma/sample-0000.warc.gz", "whirlwind/whirlwind.warc.gz", "warcio/example-trunc.warc"]
    own = tmp_path / "own.jsonl"
    own.write_text('{"text": "My own words."}\n{"text": \n')
    archives = [input_task(folder / p, p) for p in paths]
    manifest = build_documents(
        Workspace.open(tmp_path / "run", create=True),
        archives,
        None,
        [input_task(own)],
        DocumentOptions(),
        TextOptions(),
        RunnerOptions(workers=2),
    )
    tasks = document_tasks(archives, None, [input_task(own)], TextOptions())
    made = [Made(tmp_path / f"alone-{i}", task) for i, task in enumerate(tasks)]
    for table in ("", "positions", "rejected"):
        alone = sorted((f for m in made for f in m.files.get(table, [])), key=lambda f: f.part)
        assert list(manifest.parts(table)) == alone
    total: Counter[str] = Counter()
    for m in made:
        total.update(m.ledgers.get("pages", {}))
    assert manifest.ledgers["pages"] == total
    assert manifest.ledgers["rows"] == {"in": 2, "kept": 1, "bad_json": 1}
    assert len(manifest.problems) == sum(len(m.problems) for m in made) >= 1


# Made archives.


def test_equal_pages_get_ids_of_their_own(tmp_path: Path) -> None:
    page = html("the very same words")
    pages = [("http://example.org/a", page), ("http://www.example.org/a", page), ("http://example.org/b", page)]
    found = archive(warc(tmp_path / "x.warc.gz", [*pages, ("http://example.org/a", html("others"))]), tmp_path / "w")
    rows = found.rows()
    sha1 = hashlib.sha1(page).hexdigest()
    assert {row["doc_id"] for row in rows if row["url"] == "http://example.org/a"} == {
        doc_id("http://example.org/a", sha1, 0),
        doc_id("http://example.org/a", sha1, 1),
        doc_id("http://example.org/a", hashlib.sha1(html("others")).hexdigest(), 0),
    }
    assert doc_id("http://example.org/b", sha1, 0) in {row["doc_id"] for row in rows}
    assert len({row["doc_id"] for row in rows}) == 4
    assert all(len(row["doc_id"]) == 32 for row in rows)


def test_parts_are_closed_when_they_are_full(tmp_path: Path) -> None:
    pages = [(f"http://example.org/{9 - i}", html(f"number {i} " * 20, times=800)) for i in range(10)]
    options = DocumentOptions(slice_mib=1)
    made = archive(warc(tmp_path / "x.warc.gz", pages), tmp_path / "w", options)
    assert [f.part for f in made.files[""]] == [part_id("x.warc.gz", n) for n in range(len(made.files[""]))]
    assert len(made.files[""]) >= 2
    for file, positions in zip(made.files[""], made.files["positions"], strict=True):
        table = read_part(made.workspace, file)
        assert table.schema.remove_metadata() == SCHEMA
        assert read_part(made.workspace, positions).schema.remove_metadata() == POSITIONS_SCHEMA
        assert sum(len(t) for t in table["text"].to_pylist()[:-1]) < 1 << 20
        assert table["url"].to_pylist() == sorted(table["url"].to_pylist())
        assert table["doc_id"] == read_part(made.workspace, positions)["doc_id"]
    whole = archive(tmp_path / "x.warc.gz", tmp_path / "whole")
    assert sorted(made.rows(), key=lambda r: r["url"]) == whole.rows()


def test_pages_without_text_are_listed_with_their_reason(tmp_path: Path) -> None:
    pages = [
        ("http://example.org/good", html("fine words")),
        ("http://example.org/empty", b"<html><body></body></html>"),
        ("http://example.org/large", b"<html>" + b"x" * 3000),
        ("http://example.org/deep", b"<html><body>" + b"<b>" * 2900),
        ("http://[bad/", html("no address")),
    ]
    options = DocumentOptions(extract=ExtractOptions(max_bytes=2999))
    made = archive(warc(tmp_path / "x.warc.gz", pages[:1] + pages[1:3] + pages[4:]), tmp_path / "w", options)
    assert made.ledgers["pages"] == {"in": 4, "kept": 1, "no_text": 1, "too_large": 1, "bad_url": 1}
    assert [(r["url"], r["reason"]) for r in made.rows("rejected")] == [
        ("http://example.org/empty", "no_text"),
        ("http://example.org/large", "too_large"),
        ("http://[bad/", "bad_url"),
    ]
    deep = archive(warc(tmp_path / "y.warc.gz", pages[3:4]), tmp_path / "v")
    assert deep.ledgers["pages"] == {"in": 1, "too_deep": 1}
    assert deep.rows() == []
    file = read_part(deep.workspace, deep.files["rejected"][0])
    assert file.schema.remove_metadata() == REJECTED_SCHEMA


def test_why_finds_a_rejected_page_in_any_spelling(tmp_path: Path) -> None:
    empty, spelt = b"<html><body></body></html>", "https://WWW.Example.org/Gone/?b=1&a=2"
    path = warc(tmp_path / "x.warc.gz", [(spelt, empty), ("https://[bad/", html("no address"))])
    gone = warc(tmp_path / "y.warc.gz", [("https://s404.com/", b"%PDF")], "text/html\r\nContent-Encoding: what")
    path.write_bytes(path.read_bytes() + gone.read_bytes())
    workspace = Workspace.open(tmp_path / "w", create=True)
    options = (DocumentOptions(), TextOptions(), RunnerOptions(workers=1))
    manifest = build_documents(workspace, [input_task(path)], None, [], *options)
    rows = [row for part in manifest.parts("rejected") for row in read_part(workspace, part).to_pylist()]
    assert [row["url"] for row in rows] == ["http://example.org/Gone?a=2&b=1", "https://[bad/", "http://s404.com/"]
    for url in (spelt, "http://example.org/Gone?a=2&b=1", "https://s404.com/"):
        life = life_of(workspace, url)
        assert life["found"], url
        assert "its page gave no document" in life["verdict"]


def test_charsets_from_the_header_and_capture_dates(tmp_path: Path) -> None:
    words = "Правительство объявило о новых правилах"
    dated = html(words).decode().replace("<title>", '<meta name="date" content="2019-04-03"><title>').encode("cp1251")
    late = html(words).decode().replace("<title>", '<meta name="date" content="2025-04-03"><title>').encode("cp1251")
    path = warc(
        tmp_path / "x.warc.gz",
        [("http://example.org/1", dated), ("http://example.org/2", late)],
        "text/html; charset=windows-1251",
    )
    made = archive(path, tmp_path / "w")
    assert all(words in row["text"] for row in made.rows())
    assert [row["date"] for row in made.rows()] == ["2019-04-03", ""]
    assert {row["charset"] for row in made.rows("positions")} == {"cp1251"}
    assert {row["fetched_at"] for row in made.rows("positions")} == {1557126489}


def test_plain_text_pages_on_request(tmp_path: Path) -> None:
    path = warc(tmp_path / "x.warc.gz", [("http://example.org/t", b"Plain \r\nwords.\n")], "text/plain")
    assert archive(path, tmp_path / "no").ledgers["records"] == {"in": 1, "not_html": 1}
    options = DocumentOptions(archives=ArchiveOptions(plain_text=True))
    (row,) = archive(path, tmp_path / "yes", options).rows()
    assert row["text"] == "Plain\nwords."


def test_a_first_look_reads_no_further(tmp_path: Path) -> None:
    path = warc(tmp_path / "x.warc.gz", [(f"http://example.org/{i}", html(f"words {i}")) for i in range(9)])
    made = archive(path, tmp_path / "w", limit=2)
    assert made.ledgers == {"records": {"in": 2, "kept": 2}, "pages": {"in": 2, "kept": 2}}


def test_an_extractor_that_cannot_start_ends_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = warc(tmp_path / "x.warc.gz", [("http://example.org/", html("words"))])
    monkeypatch.setattr(sys, "executable", "/bin/false")
    options = DocumentOptions(extract=ExtractOptions(recycle_pages=77))  # a child of its own
    with pytest.raises(ExtractorError, match="No page was judged"):
        archive(path, tmp_path / "w", options)


# Own texts and fetched pages.


def test_own_texts(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_bytes(
        b'{"text": "Same words."}\n{"text": "Same words."}\nnot json\n'
        b'{"text": "Same words.", "id": "k"}\n{"text": "Same words.", "id": "k"}\n'
        b'{"text": "Linked.", "url": "HTTP://Example.ORG:80/x#y", "title": "T", '
        b'"date": "2001-02-03", "language": "en"}\n'
    )
    made = texts(path, tmp_path / "w")
    assert made.ledgers == {"rows": {"in": 6, "kept": 5, "bad_json": 1}}
    rows = made.rows()
    urls = ["http://example.org/x", "text:own.jsonl#0", "text:own.jsonl#1", *["text:own.jsonl#k"] * 2]
    assert [row["url"] for row in rows] == urls
    assert len({row["doc_id"] for row in rows}) == 5
    assert {k: rows[0][k] for k in ("title", "date", "language", "text")} == {
        "title": "T",
        "date": "2001-02-03",
        "language": "en",
        "text": "Linked.",
    }
    (rejected,) = made.rows("rejected")
    assert (rejected["url"], rejected["reason"]) == ("text:own.jsonl#2", "bad_json")
    raw = path.read_bytes()
    for row, position in zip(rows, made.rows("positions"), strict=True):
        assert json.loads(raw[position["offset"] :].partition(b"\n")[0])["text"] == row["text"]


def test_text_options_reach_texts_alone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One.\n\nTwo.\n")
    made = texts(tmp_path / "a.txt", tmp_path / "w", TextOptions(split="blank_line"))
    assert [row["text"] for row in made.rows()] == ["One.", "Two."]
    path = warc(tmp_path / "x.warc.gz", [])
    before, after = (
        document_tasks([input_task(path)], None, [], TextOptions(split=split)) for split in ("file", "blank_line")
    )
    assert before == after


def test_fetched_archives_are_read_from_the_workspace(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "w", create=True)
    path = warc(tmp_path / "x.warc.gz", [("http://example.org/", html("fetched words"))])
    workspace.write("pages/warc/b-00.warc.gz", path.read_bytes())
    file = PartFile("b-00", "pages/warc/b-00.warc.gz", 1, path.stat().st_size, "ab" * 32, "")
    pages = Manifest("pages", 1, "", {}, {}, {"warc": (file,), "fetched": ()})
    (task,) = document_tasks([], pages, [], TextOptions())
    made = Made(tmp_path / "w", task)
    assert [row["url"] for row in made.rows()] == ["http://example.org/"]
    assert made.rows("positions")[0]["source"] == "fetched/b-00"


def test_schemas_hold_no_nulls(tmp_path: Path) -> None:
    for schema in (SCHEMA, POSITIONS_SCHEMA, REJECTED_SCHEMA):
        assert not any(field.nullable for field in schema)
        assert pa.schema(schema).names == schema.names


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="slice_mib"):
        DocumentOptions(slice_mib=0)
