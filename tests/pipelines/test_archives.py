"""Web archives: real ones against an independent reader's counts, damaged ones, and what the WARC writer leaves."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
import zlib
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.archives import ArchiveOptions, Page, Rejected, read_conversions, read_pages
from pipelines.bodies import Refused, decode_body
from pipelines.warc_writer import Capture, OpenWarc, capture_records, captures_in, warcinfo_record
from pipelines.workspace import Problem

HTML = b"<!doctype html><title>%d</title><p>" + b"some words of a page " * 40


def read(data: bytes, options: ArchiveOptions | None = None) -> list[Page | Rejected | Problem]:
    return list(read_pages(io.BytesIO(data), "test", options))


def pages(items: list[Page | Rejected | Problem]) -> list[Page]:
    return [item for item in items if isinstance(item, Page)]


def reasons(items: list[Page | Rejected | Problem]) -> Counter[str]:
    return Counter(item.reason for item in items if isinstance(item, Rejected))


def problems(items: list[Page | Rejected | Problem]) -> list[str]:
    return [item.reason for item in items if isinstance(item, Problem)]


def response(body: bytes, *fields: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", *(fields or ("Content-Type: text/html; charset=utf-8",))]
    return "\r\n".join([*lines, "", ""]).encode() + body


def record(
    block: bytes, url: str = "http://a.test/", kind: str = "response", length: int | None = None, extra: str = ""
) -> bytes:
    mime = "application/http; msgtype=response" if kind == "response" else "text/html"
    return (
        (
            f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:x:1>\r\nWARC-Date: 2020-01-02T03:04:05Z\r\n"
            f"WARC-Target-URI: {url}\r\nContent-Type: {mime}\r\n{extra}"
            f"Content-Length: {len(block) if length is None else length}\r\n\r\n"
        ).encode()
        + block
        + b"\r\n\r\n"
    )


def archive(n: int = 6) -> list[bytes]:
    return [record(response(HTML % i), f"http://a.test/{i}") for i in range(n)]


def numbers(items: list[Page | Rejected | Problem]) -> list[int]:
    return [int(page.url.rpartition("/")[2]) for page in pages(items)]


# Real archives.

MORE_THAN_THE_OTHER_READER = {
    # It stops at the first of these; here reading goes on.
    "archives-unleashed/badexample.arc.gz": {"arc_header": 1, "response": 5},
    "ia-web-commons/IAH-20080430204825-00000-blackbook-truncated.arc": {"arc_header": 1, "response": 8},
    # Several records in one gzip member.
    "warcio/example-bad-non-chunked.warc.gz": {"warcinfo": 2, "response": 1, "request": 2, "revisit": 1},
    "warcio/example-bad.warc.gz.bad": {"warcinfo": 1, "response": 2, "request": 2, "revisit": 1},
    # One record over two gzip members.
    "warcio/example-wrong-chunks.warc.gz": {"response": 1, "request": 1},
    # Formats it does not open.
    "resiliparse/warcfile.warc.lz4": {"warcinfo": 1, "request": 17, "response": 16, "metadata": 16},
    "resiliparse/block-sized-records.warc.lz4": {"unknown": 3},
    "cc_net/sample.warc.txt": {"warcinfo": 1, "conversion": 3},
}
NO_ARCHIVE = {"abcd.gz", "double-single-inflate-error.gz", "empty.gz", "hi-2.gz", "hi.gz"}
WITH_PROBLEMS = {
    "archives-unleashed/badexample.arc.gz": ["overlong", "overlong", "truncated"],
    "cc_net/sample.warc.txt": ["overlong", "bad_record", "bad_record", "bad_record"],
    "resiliparse/clipped.warc.gz": ["truncated"],
    "warcio/bad.arc": ["bad_length", "bad_length", "bad_length"],
    "warcio/example-space-in-url.arc": ["truncated"],
    "warcio/example-trunc.warc": ["bad_record"],
}


def test_real_archives_give_the_records_that_an_independent_reader_counted(shared: Path) -> None:
    folder = shared / "data" / "warc"
    counts = json.loads((folder / "COUNTS.json").read_text())
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in ("COUNTS.json", "SOURCE.txt"))
    assert len(files) == 48
    html = 0
    for path in files:
        name = path.relative_to(folder).as_posix()
        with path.open("rb") as stream:
            items = list(read_pages(stream, name))
        records = Counter(item.record for item in items if not isinstance(item, Problem))
        expected = MORE_THAN_THE_OTHER_READER.get(name) or counts.get(name, {}).get("records", {})
        assert records == expected, name
        if path.name in NO_ARCHIVE:
            assert "no_records" in problems(items)
        else:
            assert problems(items) == WITH_PROBLEMS.get(name, []), name
        html += len(pages(items))
        if name in counts and not counts[name]["reader_error"]:
            found = sum(page.record == "response" for page in pages(items))
            assert found <= counts[name]["html_responses"], name
            listed = sum(item.listed for item in items if isinstance(item, Rejected))
            assert found + listed >= counts[name]["html_responses"], name
        assert all(page.url.startswith(("http://", "https://")) and page.payload for page in pages(items))
    assert html == 282


def test_the_same_crawl_as_arc_and_as_warc_gives_the_same_pages(shared: Path) -> None:
    folder = shared / "data" / "warc" / "archives-unleashed"
    arc, warc = (
        {
            (page.url, page.payload_sha1, page.fetched_at, page.mime)
            for page in pages(read((folder / name).read_bytes()))
        }
        for name in ("example.arc.gz", "example.warc.gz")
    )
    assert len(warc) == 94
    assert arc == warc


def test_a_page_of_common_crawl_carries_what_its_record_says(shared: Path) -> None:
    (page,) = pages(read((shared / "data/warc/whirlwind/whirlwind.warc.gz").read_bytes()))
    assert page.url == "https://an.wikipedia.org/wiki/Escopete"
    assert (page.offset, page.status, page.mime, page.charset) == (1023, 200, "text/html", "utf-8")
    assert page.fetched_at == 1715997490
    assert page.record_id.startswith("urn:uuid:")
    assert b"Escopete" in page.payload


def test_conversions_of_a_wet_file_are_texts(shared: Path) -> None:
    with (shared / "data/warc/whirlwind/whirlwind.warc.wet.gz").open("rb") as stream:
        items = list(read_conversions(stream, "wet"))
    (text,) = pages(items)
    assert (text.mime, text.charset, text.record) == ("text/plain", "utf-8", "conversion")
    assert "Escopete" in text.payload.decode()
    assert reasons(items) == {"warcinfo": 1}


# Packing.


def pack_lz4(records: list[bytes]) -> bytes:
    from fastwarc.stream_io import Lz4Writer

    out = io.BytesIO()
    for data in records:
        writer = Lz4Writer(out)
        writer.write(data)
        writer.finish()
        writer.flush()
    return out.getvalue()


def pack_zstd(records: list[bytes]) -> bytes:
    import zstandard

    return b"".join(zstandard.compress(data) for data in records)


def pack_zstd_dictionary(records: list[bytes]) -> bytes:
    import zstandard

    dictionary = zstandard.ZstdCompressionDict(records[0] * 2, zstandard.DICT_TYPE_RAWCONTENT)
    compressor = zstandard.ZstdCompressor(dict_data=dictionary)
    data = dictionary.as_bytes()
    return b"\x5d\x2a\x4d\x18" + len(data).to_bytes(4, "little") + data + b"".join(map(compressor.compress, records))


PACKINGS = {
    "plain": b"".join,
    "gzip per record": lambda records: b"".join(gzip.compress(data, mtime=0) for data in records),
    "whole-file gzip": lambda records: gzip.compress(b"".join(records), mtime=0),
    "lz4": pack_lz4,
    "zstd": pack_zstd,
    "whole-file zstd": lambda records: pack_zstd([b"".join(records)]),
    "zstd with dictionary": pack_zstd_dictionary,
}


@pytest.mark.parametrize("packing", PACKINGS)
def test_every_packing_gives_the_same_pages_and_offsets_find_them_again(packing: str) -> None:
    records = archive()
    data = PACKINGS[packing](records)
    items = read(data)
    assert numbers(items) == [0, 1, 2, 3, 4, 5]
    assert problems(items) == []
    if packing in ("plain", "gzip per record", "lz4", "zstd"):
        for page in pages(items):
            assert read(data[page.offset :])[0].url == page.url  # type: ignore[union-attr]


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_file_that_ends_early_gives_what_was_whole_and_says_so(packing: str) -> None:
    data = PACKINGS[packing](archive())
    items = read(data[: len(data) * 3 // 5], ArchiveOptions(keep_truncated=False))
    assert numbers(items) == list(range(len(pages(items))))
    assert len(pages(items)) < 6
    assert {"truncated", "no_records"} & set(problems(items))


@pytest.mark.parametrize(
    ("field", "url"),
    [
        ("<http://a.test/b>", "http://a.test/b"),
        ("http://a.test/'><script>x</script>", "http://a.test/'><script>x</script>"),
        ("<http://a.test/<b>>", "http://a.test/<b>"),
        ("http://a.test/>", "http://a.test/>"),
    ],
)
def test_angle_brackets_are_taken_off_in_pairs(field: str, url: str) -> None:
    (page,) = pages(read(record(response(HTML % 0), field)))
    assert page.url == url


def test_zero_padding_after_the_last_member_is_no_problem() -> None:
    assert problems(read(gzip.compress(archive()[0]) + bytes(5000))) == []


# Damage.


@pytest.mark.parametrize("packing", ["plain", "gzip per record", "zstd"])
def test_bytes_between_records_cost_no_record(packing: str) -> None:
    pack = PACKINGS[packing]
    data = pack(archive(3)) + b"junk that is no record\n" * 9 + pack(archive(3))
    items = read(data)
    assert numbers(items) == [0, 1, 2, 0, 1, 2]
    assert len(problems(items)) == 1


def test_a_damaged_gzip_member_costs_its_own_page_only() -> None:
    members = [gzip.compress(data) for data in archive()]
    broken = bytearray(members[2])
    broken[len(broken) // 2] ^= 0x55
    items = read(b"".join([*members[:2], bytes(broken), *members[3:]]))
    assert numbers(items) == [0, 1, 3, 4, 5]
    offset = len(members[0]) + len(members[1])
    assert [(p.reason, p.offset) for p in items if isinstance(p, Problem)] == [("corrupt", offset)]


def test_a_wrong_checksum_costs_the_page_though_it_unpacks() -> None:
    members = [gzip.compress(data) for data in archive(3)]
    members[1] = members[1][:-8] + bytes(8)
    items = read(b"".join(members))
    assert numbers(items) == [0, 2]
    assert reasons(items) == {"corrupt": 1}


def test_damage_inside_a_whole_file_gzip_leaves_the_pages_before_it() -> None:
    noise = random.Random(3)  # the same every time: which byte a flip changes, and when zlib sees it, is chance
    rows = [
        record(response(HTML % i + noise.randbytes(3000).hex().encode()), f"http://a.test/{i}") for i in range(40)
    ]
    data = bytearray(gzip.compress(b"".join(rows), mtime=0))
    data[len(data) // 2] ^= 0xFF
    data[len(data) // 2 + 1] ^= 0xFF
    items = read(bytes(data))
    assert [page.payload for page in pages(items)[:19]] == [
        row.partition(b"utf-8\r\n\r\n")[2][:-4] for row in rows[:19]
    ]
    assert len(pages(items)) < 40
    assert "corrupt" in problems(items)


@pytest.mark.parametrize("packing", ["plain", "gzip per record"])
def test_a_length_too_great_does_not_swallow_the_next_record(packing: str) -> None:
    rows = archive(4)
    rows[1] = record(response(HTML % 1), "http://a.test/1", length=5000)
    items = read(PACKINGS[packing](rows))
    assert numbers(items) == [0, 1, 2, 3]
    assert [page.truncated for page in pages(items)] == [False, True, False, False]
    assert problems(items) == ["overlong"]


def test_a_length_too_small_loses_no_other_record() -> None:
    rows = archive(4)
    rows[1] = record(response(HTML % 1), "http://a.test/1", length=300)
    items = read(b"".join(rows))
    assert numbers(items) == [0, 1, 2, 3]
    assert problems(items) == ["bad_record"]


def test_a_record_without_length_is_counted_and_passed() -> None:
    rows = archive(3)
    rows[1] = rows[1].replace(b"Content-Length: ", b"Content-Length: x", 1)
    items = read(b"".join(rows))
    assert numbers(items) == [0, 2]
    assert (reasons(items), problems(items)) == ({"bad_length": 1}, ["bad_length"])


@pytest.mark.parametrize("packing", ["plain", "gzip per record"])
def test_a_record_too_large_to_hold_is_passed_over(packing: str) -> None:
    rows = archive(3)
    rows[1] = record(response(b"x" * (3 << 20)), "http://a.test/1")
    items = read(PACKINGS[packing](rows), ArchiveOptions(max_record_bytes=1 << 20))
    assert numbers(items) == [0, 2]
    assert reasons(items) == {"too_large": 1}
    assert problems(items) == []


@pytest.mark.parametrize("length", [10**5, 10**14, 9_999_999_999])
@pytest.mark.parametrize("packing", ["plain", "gzip per record"])
def test_an_absurd_length_costs_no_other_record(packing: str, length: int) -> None:
    rows = archive(6)
    rows[0] = record(response(HTML % 0), "http://a.test/0", length=length)
    rows[3] = record(response(HTML % 3), "http://a.test/3", length=length)
    for most in (1 << 16, 64 << 20):
        items = read(PACKINGS[packing](rows), ArchiveOptions(max_record_bytes=most))
        assert set(numbers(items)) >= {1, 2, 4, 5}
        assert len(problems(items)) == 2
        if packing == "plain":
            assert numbers(items) == [0, 1, 2, 3, 4, 5]
            assert [page.truncated for page in pages(items)] == [True, False, False] * 2
            assert problems(items) == ["overlong"] * 2


@pytest.mark.parametrize("length", [5 << 20, (3 << 20) + 90_000, 10**15])
def test_a_wrong_length_of_a_large_record_in_a_plain_file(length: int) -> None:
    rows = archive(200)
    rows[1] = record(response(b"x" * (3 << 20)), "http://a.test/1", length=length)
    items = read(b"".join(rows), ArchiveOptions(max_record_bytes=1 << 20))
    assert numbers(items) == [0, *range(2, 200)]
    assert reasons(items) == {"too_large": 1}
    assert problems(items) == ["too_large"]
    last = rows[0] + rows[1]
    items = read(last, ArchiveOptions(max_record_bytes=1 << 20))
    assert (numbers(items), reasons(items), problems(items)) == ([0], {"too_large": 1}, ["too_large"])


def test_problems_without_number_are_counted_not_listed() -> None:
    items = read(b"WARC/1.0\r\nA: b\r\n\r\n" * 1200)
    assert reasons(items) == {"unknown": 1200}
    assert (len(problems(items)), problems(items)[-1]) == (1001, "more_problems")


def test_bombs_and_endless_headers_take_linear_time_and_no_page() -> None:
    assert pages(read(gzip.compress(bytes(30 << 20)))) == []
    assert pages(read(b"WARC/1.0\r\nA:" * 20_000)) == []
    assert pages(read(b"\x1f\x8b\x08" * 100_000)) == []


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_damage_raises_or_loses_the_balance(data: st.DataObject) -> None:
    packing = data.draw(st.sampled_from(sorted(PACKINGS)))
    damaged = bytearray(PACKINGS[packing](archive()))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, max(0, len(damaged) - 1)))
        match data.draw(st.sampled_from(["flip", "cut", "drop", "insert"])):
            case "flip" if damaged:
                damaged[at] ^= data.draw(st.integers(1, 255))
            case "cut":
                del damaged[at:]
            case "drop":
                del damaged[at : at + data.draw(st.integers(1, 300))]
            case "insert":
                damaged[at:at] = data.draw(st.binary(max_size=60))
    items = read(bytes(damaged))
    assert all(isinstance(item, Page | Rejected | Problem) for item in items)
    if not (len(pages(items)) == 6 and all(page.payload == HTML % i for i, page in enumerate(pages(items)))):
        changed = bytes(damaged) != PACKINGS[packing](archive())
        assert changed
    assert items == read(bytes(damaged))


@settings(max_examples=60, deadline=None)
@given(victim=st.integers(0, 5), at=st.integers(0, 10**6), flip=st.integers(1, 255))
def test_one_changed_byte_in_one_gzip_member_costs_at_most_that_page(victim: int, at: int, flip: int) -> None:
    members = [gzip.compress(data, mtime=0) for data in archive()]
    broken = bytearray(members[victim])
    broken[at % len(broken)] ^= flip
    members[victim] = bytes(broken)
    items = read(b"".join(members))
    assert set(numbers(items)) >= set(range(6)) - {victim}
    whole = {i: HTML % i for i in range(6) if i != victim}
    assert all(
        whole.get(i, page.payload) == page.payload for i, page in zip(numbers(items), pages(items), strict=True)
    )
    if len(pages(items)) < 6:
        assert problems(items)


# Judging and decoding.


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (response(b"<p>", status="404 Not Found"), "not_200"),
        (response(b"<p>", status="302 Found"), "not_200"),
        (response(b"%PDF", "Content-Type: application/pdf"), "not_html"),
        (response(b"plain words", "Content-Type: text/plain"), "not_html"),
        (response(b"\x89PNG", "Server: x"), "not_html"),
        (response(b" \n"), "empty"),
        (b"no http at all", "bad_http"),
        (response(b"\x1f\x8b\x08broken", "Content-Type: text/html", "Content-Encoding: gzip"), "bad_encoding"),
        (response(b"x", "Content-Type: text/html", "Content-Encoding: secret"), "bad_encoding"),
        (response(b"<p>" + b"x" * 3000), "too_large"),
    ],
)
def test_a_response_that_is_no_page_says_why(block: bytes, reason: str) -> None:
    items = read(record(block), ArchiveOptions(max_payload_bytes=2048))
    assert reasons(items) == {reason: 1}
    assert problems(items) == []


def test_types_that_hold_no_response_are_counted_but_not_listed() -> None:
    items = read(b"".join(record(b"x", kind=kind) for kind in ("request", "revisit", "metadata", "strange")))
    assert reasons(items) == {"request": 1, "revisit": 1, "metadata": 1, "unknown": 1}
    assert not any(item.listed for item in items if isinstance(item, Rejected))


def test_resources_of_html_and_untyped_markup_are_pages() -> None:
    items = read(record(HTML % 1, kind="resource") + record(response(HTML % 2, "Server: x")))
    assert [page.payload for page in pages(items)] == [HTML % 1, HTML % 2]


def test_a_record_cut_by_its_crawler_is_marked_or_refused() -> None:
    data = record(response(HTML % 1), extra="WARC-Truncated: length\r\n")
    assert [page.truncated for page in pages(read(data))] == [True]
    assert reasons(read(data, ArchiveOptions(keep_truncated=False))) == {"truncated": 1}


def encode(coding: str, body: bytes) -> bytes:
    if coding == "gzip":
        return gzip.compress(body)
    if coding == "deflate":
        return zlib.compress(body)
    if coding == "br":
        from fastwarc.stream_io import BrotliWriter

        with tempfile.NamedTemporaryFile() as file:
            with BrotliWriter(file.name) as writer:
                writer.write(body)
            return Path(file.name).read_bytes()
    import zstandard

    return zstandard.compress(body)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_content_codings_are_undone_bounded_and_tolerated(coding: str) -> None:
    body = HTML % 7
    packed, fields = encode(coding, body), {"content-encoding": coding}
    assert decode_body(packed, fields, 1 << 20) == (body, True)
    assert decode_body(body, fields, 1 << 20) == (body, True)  # the crawler undid it and kept the field
    partial, whole = decode_body(encode(coding, os.urandom(300_000).hex().encode())[:200_000], fields, 1 << 20)
    assert not whole
    assert partial
    with pytest.raises(Refused, match="too_large"):
        decode_body(encode(coding, bytes(50 << 20)), fields, 1 << 20)


def test_raw_deflate_and_codings_on_top_of_each_other() -> None:
    body = HTML % 7
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    raw = deflater.compress(body) + deflater.flush()
    assert decode_body(raw, {"content-encoding": "deflate"}, 1 << 20) == (body, True)
    twice = gzip.compress(encode("br", body))
    assert decode_body(twice, {"content-encoding": "br, gzip"}, 1 << 20) == (body, True)


def test_chunks_are_joined_also_when_they_end_early() -> None:
    fields = {"transfer-encoding": "chunked"}
    assert decode_body(b"5;x=y\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", fields, 99) == (b"hello world", True)
    assert decode_body(b"5\r\nhello\r\n6\r\n wo", fields, 99) == (b"hello wo", False)
    assert decode_body(b"<html>not chunked</html>", fields, 99) == (b"<html>not chunked</html>", True)


@settings(max_examples=200, deadline=None)
@given(
    body=st.binary(max_size=400),
    coding=st.sampled_from(["gzip", "deflate", "br", "zstd", "gzip, br", ""]),
    chunked=st.booleans(),
)
def test_any_body_decodes_within_its_limit_or_is_refused(body: bytes, coding: str, chunked: bool) -> None:
    fields = {"content-encoding": coding, "transfer-encoding": "chunked" if chunked else ""}
    refused = ""
    try:
        payload, _ = decode_body(body, fields, 4096)
    except Refused as error:
        refused, payload = error.args[0], b""
    assert refused in ("", "bad_encoding", "too_large")
    assert len(payload) <= 4096


def test_options_name_the_field_and_what_it_may_be() -> None:
    with pytest.raises(ValueError, match=r"max_payload_bytes .* at least"):
        ArchiveOptions(max_payload_bytes=1)


# Writing.


def capture(i: int, body: bytes | None = None) -> Capture:
    return Capture(
        url=f"http://a.test/{i}",
        fetched_at=1_600_000_000 + i,
        request=b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n",
        response=response(HTML % i if body is None else body),
    )


def test_what_is_written_reads_back_here_and_with_other_readers(tmp_path: Path) -> None:
    from fastwarc.warc import ArchiveIterator
    from warcio.archiveiterator import ArchiveIterator as Warcio

    bodies = [b"<html>\x00\xff\r\n\r\nWARC/1.0\r\nno: record", HTML % 1, b""]
    path = tmp_path / "written.warc.gz"
    with OpenWarc(tmp_path / "open.warc.gz") as warc, path.open("wb") as target:
        for i, body in enumerate(bodies):
            warc.append(capture(i, body))
        offsets = warc.close_into(target, [f"http://a.test/{i}" for i in (2, 0, 1)], warcinfo_record((), 5))
    with path.open("rb") as stream:
        ours = {item.url: item for item in read_pages(stream, "x") if isinstance(item, Page)}
    assert {url: page.payload for url, page in ours.items()} == {f"http://a.test/{i}": bodies[i] for i in (0, 1)}
    assert all(offsets[url] == page.offset and page.fetched_at >= 1_600_000_000 for url, page in ours.items())
    with path.open("rb") as stream:
        theirs = []
        for item in Warcio(stream, check_digests="raise"):
            body = item.content_stream().read()
            theirs.append((item.rec_type, item.rec_headers.get_header("WARC-Target-URI"), body))
    assert [kind for kind, _, _ in theirs] == ["warcinfo"] + ["response", "request"] * 3
    assert [body for kind, _, body in theirs if kind == "response"] == [bodies[2], bodies[0], bodies[1]]
    with path.open("rb") as stream:
        assert all(item.verify_block_digest() for item in ArchiveIterator(stream, parse_http=False))


@settings(max_examples=60, deadline=None)
@given(cut=st.floats(0, 1), junk=st.binary(max_size=30))
def test_an_open_warc_recovers_from_any_cut(
    tmp_path_factory: pytest.TempPathFactory, cut: float, junk: bytes
) -> None:
    path = tmp_path_factory.mktemp("open") / "x.warc.gz"
    whole = [capture_records(capture(i)) for i in range(4)]
    data = b"".join(whole)
    end = int(len(data) * cut)
    path.write_bytes(data[:end] + junk)
    survivors = max(n for n in range(5) if sum(map(len, whole[:n])) <= end)
    with OpenWarc(path) as warc:
        assert list(warc.stored) == [f"http://a.test/{i}" for i in range(survivors)]
        assert path.stat().st_size == sum(map(len, whole[:survivors]))
        for i in range(survivors, 4):
            warc.append(capture(i))
    assert path.read_bytes() == data


def test_a_writer_that_is_killed_leaves_all_it_said_it_stored(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from pipelines.warc_writer import Capture, OpenWarc
        with OpenWarc(Path(sys.argv[1])) as warc:
            for i in range(10**6):
                body = b"HTTP/1.1 200 OK\\r\\n\\r\\n" + str(i).encode() * 50000
                warc.append(Capture(f"http://a.test/{i}", i, b"GET / HTTP/1.1\\r\\n\\r\\n", body))
                print(i, flush=True)
        """
    )
    path = tmp_path / "x.warc.gz"
    process = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = [int(process.stdout.readline()) for _ in range(20)]
    process.send_signal(signal.SIGKILL)
    said += [int(line) for line in process.stdout.read().split()]
    process.wait()
    with OpenWarc(path) as warc:
        assert {f"http://a.test/{i}" for i in said} <= set(warc.stored)
        assert len(warc.stored) <= len(said) + 1
    with path.open("rb") as stream:
        assert len(list(captures_in(stream))) == len(warc.stored)
    assert problems(read(path.read_bytes())) == []
