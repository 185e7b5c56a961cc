"""Own texts: every format, every broken row named, and nothing held beyond a row."""

from __future__ import annotations

import bz2
import datetime
import gzip
import io
import json
import lzma
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pipelines.archives import Rejected
from pipelines.texts import CHUNK, Item, Text, TextOptions, _elements, read_texts, text_format
from pipelines.workspace import Problem


def read(raw: bytes, name: str, **options: object) -> list[Item]:
    return list(read_texts(io.BytesIO(raw), name, TextOptions(**options)))  # type: ignore[arg-type]


def texts(items: list[Item]) -> list[str]:
    return [item.text for item in items if isinstance(item, Text)]


def reasons(items: list[Item]) -> list[str]:
    return [item.reason for item in items if not isinstance(item, Text)]


ROWS = [
    {"text": "Plain words.\r\n\x0bKept as they stand. ", "url": "https://WWW.Example.org/a?utm_source=x", "id": 7},
    {"text": "No address", "title": " A  title\n", "date": "2014-05-06T12:00:00Z", "language": "de-AT"},
    {"text": "Not the web", "url": "ftp://example.org/x", "id": "row/9 a"},
    {"text": "\ud800 half a pair"},
]


def jsonl(rows: list[dict[str, object]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def test_json_lines() -> None:
    found = read(jsonl(ROWS), "sub/mine.jsonl")
    assert texts(found) == [ROWS[0]["text"], "No address", "Not the web", "\ufffd half a pair"]
    rows = [item for item in found if isinstance(item, Text)]
    assert [row.url for row in rows] == [
        "http://example.org/a",
        "text:sub/mine.jsonl#1",
        "text:sub/mine.jsonl#row/9 a",
        "text:sub/mine.jsonl#3",
    ]
    assert [row.unnamed for row in rows] == [False, True, False, True]
    assert (rows[1].title, rows[1].date, rows[1].language) == ("A title", "2014-05-06", "de")
    assert [row.row for row in rows] == [0, 1, 2, 3]
    assert [row.offset for row in rows] == [0, *(len(jsonl(ROWS[:n])) for n in (1, 2, 3))]


def test_broken_rows_are_named_and_rows_keep_their_numbers() -> None:
    raw = b"\n".join(
        [
            b'\xef\xbb\xbf{"text": "first, after a mark"}',
            b'{"text": "cut off',
            b'["no", "object"]',
            b'{"text": "bad \xff byte"}',
            b"",
            b'{"body": "elsewhere"}',
            b'{"text": null}',
            b'{"text": 5}',
            b'{"text": "  "}',
            b"[" * 100_000,
            b'{"text": ' + b'"long' + b"g" * 3000 + b'"}',
            b'{"text": "last, without a line end"}',
        ]
    )
    found = read(raw, "x.jsonl", max_bytes=2000)
    expected = [
        "bad_json",
        "not_object",
        "bad_utf8",
        "blank",
        "no_text",
        "no_text",
        "no_text",
        "no_text",
        "too_large",
        "too_large",
    ]
    assert reasons(found) == expected
    assert texts(found) == ["first, after a mark", "last, without a line end"]
    assert [item.row for item in found if isinstance(item, Text)] == [0, 11]
    assert found[1] == Rejected("text:x.jsonl#1", "text", found[1].offset, "bad_json", found[1].detail)  # type: ignore[union-attr]


def test_other_fields() -> None:
    raw = jsonl([{"content": "words", "link": "http://example.org/", "key": 3}])
    found = read(raw, "x", format="jsonl", text="content", url="link")
    assert [(t.text, t.url) for t in found if isinstance(t, Text)] == [("words", "http://example.org/")]


@pytest.mark.parametrize(
    "pack", [bytes, gzip.compress, bz2.compress, lzma.compress, zstandard.compress], ids=lambda pack: pack.__module__
)
def test_packed_files(pack: object) -> None:
    assert texts(read(pack(jsonl(ROWS)), "x.jsonl")) == texts(read(jsonl(ROWS), "x.jsonl"))  # type: ignore[operator]


def test_a_packed_file_that_breaks_off_gives_what_is_whole() -> None:
    rows = [{"text": f"row number {i} {'x' * (i % 97)}"} for i in range(20_000)]
    raw = gzip.compress(jsonl(rows))
    found = read(raw[: len(raw) // 2], "x.jsonl.gz")
    assert isinstance(found[-1], Problem)
    assert found[-1].reason == "broken_stream"
    kept = texts(found)
    assert 1000 < len(kept) < 20_000
    assert kept == [row["text"] for row in rows[: len(kept)]]


def test_parquet(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": pa.array(["one", None, " ", "four"]).dictionary_encode(),
            "url": ["http://example.org/1", "", "", None],
            "date": [datetime.date(2011, 2, 3), None, None, datetime.date(2012, 1, 1)],
            "unused": [b"\xff"] * 4,
        }
    )
    pq.write_table(table, tmp_path / "x.parquet")
    raw = (tmp_path / "x.parquet").read_bytes()
    found = read(raw, "anything")
    assert texts(found) == ["one", "four"]
    assert reasons(found) == ["no_text", "no_text"]
    assert [(t.url, t.date) for t in found if isinstance(t, Text)] == [
        ("http://example.org/1", "2011-02-03"),
        ("text:anything#3", "2012-01-01"),
    ]
    assert reasons(read(raw, "x", text="body")) == ["no_column"]
    assert reasons(read(raw[:-20], "x.parquet")) == ["bad_parquet"]
    assert reasons(read(b"PAR1" + b"\0" * 200, "x.parquet")) == ["bad_parquet"]
    assert reasons(read(b"no parquet at all", "x.parquet")) == ["bad_parquet"]


def test_an_odd_parquet_value_costs_itself_alone(tmp_path: Path) -> None:
    odd = {
        "us": pa.array([2**60, 0, -(2**60), None], pa.timestamp("us")),
        "ns": pa.array([1_300_000_000_123_456_789, 0, 1, -(10**9)], pa.timestamp("ns")),
        "zone": pa.array([0, 1, 2, 3], pa.timestamp("us", "Nowhere/At_All")),
        "days": pa.array([2**31 - 1, 0, -(2**31), None], pa.int32()).cast(pa.date32()),
        "duration": pa.array([2**62, 0, 1, None], pa.duration("s")),
        "list": [["2020-01-01"], [], None, None],
        "bytes": [b"\xff", b"1970-01-01", b"", None],
    }
    days = {"us": 1, "days": 1, "bytes": 1}
    for name, column in odd.items():
        pq.write_table(pa.table({"text": list("abcd"), "date": column, "id": column}), tmp_path / "x.parquet")
        found = read((tmp_path / "x.parquet").read_bytes(), "x.parquet")
        assert texts(found) == list("abcd"), name
        dates = [item.date for item in found if isinstance(item, Text)]
        if name == "ns":
            assert dates == ["2011-03-13", "1970-01-01", "1970-01-01", "1969-12-31"]
        else:
            assert dates == ["", "1970-01-01" if name in days else "", "", ""], name


def test_parquet_text_of_unmarked_bytes(tmp_path: Path) -> None:
    columns = {"text": ["für".encode(), b"bad \xff", b"last"], "url": [b"http://example.org/1", b"\xff", None]}
    for kind in (pa.binary(), pa.large_binary()):
        table = pa.table({name: pa.array(column, kind) for name, column in columns.items()})
        pq.write_table(table, tmp_path / "x.parquet")
        found = read((tmp_path / "x.parquet").read_bytes(), "x.parquet")
        assert texts(found) == ["für", "last"]
        assert reasons(found) == ["bad_utf8"]
        assert [t.url for t in found if isinstance(t, Text)] == ["http://example.org/1", "text:x.parquet#2"]


@pytest.mark.parametrize(
    ("given", "day"),
    [
        ("2020-02-29T10:00", "2020-02-29"),
        ("2020-02-31", ""),
        ("2021-02-29", ""),
        ("0000-01-01", ""),
        ("2020-1-1", ""),
        ("٢٠٢٠-٠١-٠١", ""),
        ("2020-01-011", ""),
    ],
)
def test_a_date_is_a_day_that_was(given: str, day: str) -> None:
    (found,) = read(jsonl([{"text": "words", "date": given}]), "x.jsonl")
    assert isinstance(found, Text)
    assert found.date == day


@pytest.mark.parametrize("corrupt", range(60, 460, 40))
def test_a_corrupt_parquet_file_is_a_problem_not_a_crash(tmp_path: Path, corrupt: int) -> None:
    pq.write_table(pa.table({"text": [f"row {i} of some words" for i in range(3000)]}), tmp_path / "x.parquet")
    raw = bytearray((tmp_path / "x.parquet").read_bytes())
    raw[corrupt : corrupt + 8] = b"\xff" * 8
    found = read(bytes(raw), "x.parquet")
    assert all(reason == "bad_parquet" for reason in reasons(found))
    assert len(texts(found)) == 3000 or reasons(found)


PLAIN = "First line\nsecond line\n \t\n\nSecond text\r\nstill\n\n\n\nThird\n"


def test_plain_text() -> None:
    raw = PLAIN.encode()
    assert texts(read(raw, "x.txt")) == [PLAIN]
    assert texts(read(raw, "x.txt", split="blank_line")) == [
        "First line\nsecond line",
        "Second text\r\nstill",
        "Third",
    ]
    marked = b"One.\nTwo.<|endoftext|>Three<|endoftext|>\n<|endoftext|>Four <|endoftext"
    assert texts(read(marked, "x.txt", split="end_of_text")) == ["One.\nTwo.", "Three", "Four <|endoftext"]
    assert texts(read("Привет, как дела сегодня у вас?".encode("cp1251"), "x.txt")) == [
        "Привет, как дела сегодня у вас?"
    ]
    assert reasons(read(b"", "x.txt")) == ["no_text"]
    assert reasons(read(raw, "x.txt", max_bytes=20)) == ["too_large"]
    assert texts(read(raw, "x.txt", split="blank_line", max_bytes=12)) == ["Third"]
    assert reasons(read(raw, "x.txt", split="blank_line", max_bytes=12)) == ["too_large", "too_large"]
    assert reasons(read(gzip.compress(raw * 2000)[:-9], "x.txt.gz")) == ["broken_stream"]


@given(st.lists(st.text(alphabet="ab<|endoftx>\n é", max_size=30), max_size=6), st.integers(1, 40))
def test_splitting_loses_nothing(parts: list[str], limit: int) -> None:
    joined = "<|endoftext|>".join(parts)
    expected = [p for p in joined.split("<|endoftext|>") if p.strip()]
    found = read(joined.encode(), "x.txt", split="end_of_text", max_bytes=limit)
    fits = [p for p in expected if len(p.encode()) <= limit]
    assert texts(found) == fits
    long = [p for p in joined.split("<|endoftext|>") if len(p.encode()) > limit]
    assert reasons(found) == ["too_large"] * len(long)


def test_memory_stays_bounded_over_an_endless_line() -> None:
    class Endless(io.RawIOBase):
        def __init__(self) -> None:
            self.left = 400 << 20

        def readable(self) -> bool:
            return True

        def seek(self, *_: int) -> int:
            return 0

        def read(self, n: int = -1) -> bytes:  # type: ignore[override]
            n = min(1 << 18 if n < 0 else n, self.left)
            self.left -= n
            return b"x" * n

    import tracemalloc

    tracemalloc.start()
    found = list(read_texts(Endless(), "x.jsonl", TextOptions(max_bytes=1 << 20)))  # type: ignore[arg-type]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reasons(found) == ["too_large"]
    assert peak < 8 << 20


def test_formats_by_name_and_first_bytes() -> None:
    assert text_format("a.jsonl.zst", b"") == text_format("a", b' {"text": ""}\n{') == "jsonl"
    assert text_format("a.PARQUET", b"") == text_format("a", b"PAR1..") == "parquet"
    assert text_format("CC.warc.wet.gz", b"") == text_format("a", b"WARC/1.0\r\n") == "wet"
    assert text_format("a", b'{"text": "' + b"long " * CHUNK) == "jsonl"
    assert {text_format(f"a{end}", b'{"text": ""}\n') for end in (".txt", ".TEXT.gz", ".md", ".html", ".htm")} == {
        "plain"
    }
    assert {text_format("a", brace) for brace in (b"{{Infobox}} is", b"{1}\n", b"{" * 9, b'{"a": ' * 9999)} == {
        "plain"
    }
    assert text_format("a", b"{ " * CHUNK) == "plain"
    assert text_format("a.txt", b"hello") == text_format("a", b"hello") == "plain"


def test_text_that_begins_with_a_brace_is_text() -> None:
    wiki = "{{Infobox}}\nis plain\n"
    assert texts(read(wiki.encode(), "brace.txt")) == texts(read(wiki.encode(), "brace")) == [wiki]
    assert texts(read(gzip.compress(jsonl(ROWS)), "rows")) == texts(read(jsonl(ROWS), "x.jsonl"))


def test_the_rows_of_a_json_array(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[object] = [
        {"text": "one ]}, \\"},
        {"text": 'two "[{', "k": [1, {"a": []}]},
        "three",
        4,
        [5],
        {"text": "6"},
    ]
    expected = ["one ]}, \\", 'two "[{', "6"]
    for chunk in (9, 14, CHUNK):
        monkeypatch.setattr("pipelines.texts.CHUNK", chunk)
        for indent in (None, 2):
            raw = b"\xef\xbb\xbf" + json.dumps(rows, indent=indent).encode() + b"\n"
            found = read(raw, "x.json.gz" if indent else "x.json")
            assert texts(found) == expected
            assert reasons(found) == ["not_object"] * 3
            for item in found:
                if isinstance(item, Text):
                    assert json.JSONDecoder().raw_decode(raw[item.offset :].decode())[0]["text"] == item.text
    assert texts(read(jsonl([{"text": "a line"}]).replace(b"{", b"[{").replace(b"}", b"}]"), "x.jsonl")) == ["a line"]
    assert texts(read(b'[{"text": "a"}]\n{"text": "b", "c": 1}\n', "x.jsonl")) == ["a", "b"]
    assert reasons(read(b'["a", "line"]\n["another"]\n', "x.jsonl")) == ["not_object"] * 2


def test_a_broken_json_array_is_read_around_its_damage() -> None:
    found = read(b'[{"text": "a"}, {"text" "b"}, , {"text": "c"}, {"text": "d', "x.json")
    assert texts(found) == ["a", "c"]
    assert reasons(found) == ["bad_json", "blank", "bad_json", "cut_off"]
    assert reasons(read(b"[" * 100_000, "x.json")) == ["bad_json", "cut_off"]
    assert read(b"[]", "x.json") == []
    long = b'[{"text": "a"}, {"text": "' + b"x" * 3_000_000 + b'"}, {"text": "b"}]'
    assert [*map(type, read(long, "x.json", max_bytes=1000))] == [Text, Rejected, Text]
    assert reasons(read(long, "x.json", max_bytes=1000)) == ["too_large"]
    assert texts(read(gzip.compress(long * 9)[:-30], "x.json.gz"))[:2] == ["a", "x" * 3_000_000]


VALUES = st.recursive(
    st.none() | st.integers() | st.text(alphabet='ab"\\[]{},é', max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(alphabet='"\\]', max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.lists(VALUES, max_size=6), st.sampled_from([None, 1]), st.booleans())
def test_every_element_of_any_array_is_a_row(rows: list[object], indent: int | None, ascii_only: bool) -> None:
    raw = json.dumps(rows, indent=indent, ensure_ascii=ascii_only).encode()
    stretches = _elements(io.BytesIO(raw), "x", 1 << 20)  # type: ignore[arg-type]
    found = [stretch for stretch in stretches if not isinstance(stretch, Problem)]
    assert [json.loads(element) for _, element in found if element is not None] == rows
    assert all(raw[at:].startswith(element or b"?") for at, element in found)


def test_wet(shared: Path) -> None:
    path = shared / "data" / "warc" / "whirlwind" / "whirlwind.warc.wet.gz"
    found = read(path.read_bytes(), "whirlwind.warc.wet.gz")
    (item,) = (item for item in found if isinstance(item, Text))
    assert item.url.startswith("http://")
    assert item.fetched_at > 1_500_000_000
    assert len(item.text) > 500
    assert Counter(reasons(found)) == {"warcinfo": 1}


def test_c4(shared: Path) -> None:
    path = shared / "data" / "c4-sample" / "c4.jsonl.gz"
    found = read(path.read_bytes(), "c4.jsonl.gz", date="timestamp")
    rows = [item for item in found if isinstance(item, Text)]
    assert len(rows) == len(found) == 1000
    original = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    assert [row.text for row in rows] == [line["text"] for line in original]
    assert all(row.url.startswith("http://") and len(row.date) == 10 for row in rows)


@pytest.mark.parametrize("fields", [{"format": "xml"}, {"split": "page"}, {"text": ""}, {"max_bytes": 0}])
def test_options_are_checked(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"texts.{next(iter(fields))}"):
        TextOptions(**fields)  # type: ignore[arg-type]


def test_a_picture_among_texts_is_rejected_as_binary() -> None:
    picture = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(range(256)) * 20
    items = list(read_texts(io.BytesIO(picture), "image.png"))
    assert [(item.reason, item.listed) for item in items if isinstance(item, Rejected)] == [("binary", True)]
    assert len(items) == 1
    marked = list(read_texts(io.BytesIO("naïve text".encode("utf-16")), "old.txt"))
    assert [item.text for item in marked if isinstance(item, Text)] == ["naïve text"]
