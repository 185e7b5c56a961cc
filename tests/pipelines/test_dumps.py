"""Dumps of every age and every kind of damage; and the compressed streams under them."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import dumps
from pipelines.compression import BrokenStream, open_stream
from pipelines.dumps import NotADump, Submission, json_submission, read_submissions, submission


def zstd(data: bytes, window_log: int = 21) -> bytes:
    parameters = zstandard.ZstdCompressionParameters(window_log=window_log, write_checksum=1, compression_level=3)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()  # no size in the header
    return compressor.compress(data) + compressor.flush()


def text_of(n: int) -> bytes:
    numbers = random.Random(n)
    return b"".join(b"line %d %d\n" % (i, numbers.getrandbits(40)) for i in range(n))


DATA = text_of(20_000)
HALF = len(DATA) // 2
PACKED = {
    "gz": gzip.compress(DATA[:HALF]) + gzip.compress(DATA[HALF:]) + b"\0" * 300,
    "bz2": bz2.compress(DATA[:HALF], 1) + bz2.compress(DATA[HALF:], 1),
    "xz": lzma.compress(DATA[:HALF], preset=0) + b"\0\0\0\0" + lzma.compress(DATA[HALF:], preset=0),
    "zst": zstd(DATA[:HALF]) + b"\x52\x2a\x4d\x18\x05\0\0\0hello" + zstd(DATA[HALF:]),
    "plain": DATA,
}
KINDS = sorted(PACKED)


def read_all(packed: bytes, size: int) -> tuple[bytes, BrokenStream | None]:
    stream, got = open_stream(io.BytesIO(packed), "dump"), b""
    try:
        while data := stream.read(size):
            assert len(data) <= size
            got += data
    except BrokenStream as error:
        return got, error
    return got, None


@pytest.mark.parametrize("kind", KINDS)
def test_unpacks_by_content_with_several_members(kind: str) -> None:
    for size in (4096, 100_003, 1 << 30):
        assert read_all(PACKED[kind], size) == (DATA, None)
    stream = open_stream(io.BytesIO(PACKED[kind]), "wrong name.zip")
    assert stream.compression == kind
    assert stream.peek()[:4] == b"line"
    assert (stream.read(), stream.read(), stream.tell(), stream.consumed) == (DATA, b"", len(DATA), len(PACKED[kind]))
    lines = list(open_stream(io.BytesIO(PACKED[kind]), "dump"))
    assert lines == DATA.splitlines(keepends=True)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "plain"])
def test_a_truncated_stream_gives_all_it_holds_and_says_so(kind: str) -> None:
    packed = PACKED[kind].rstrip(b"\0") if kind == "gz" else PACKED[kind]
    for cut in (len(packed) - 1, len(packed) * 3 // 4, len(packed) // 4, 30, 12):
        got, error = read_all(packed[:cut], 65_536)
        assert isinstance(error, BrokenStream)
        assert error.reason == "truncated"
        assert (error.name, error.offset) == ("dump", len(got))
        assert DATA.startswith(got)
        assert "dump: truncated after" in str(error)
        with pytest.raises(BrokenStream):
            open_stream(io.BytesIO(packed[:cut]), "dump").read()
    assert len(read_all(packed[:-1], 65_536)[0]) == len(DATA)  # only the check at the end is missing


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "plain"])
def test_a_corrupt_stream_is_an_error_wherever_it_is_hit(kind: str) -> None:
    packed = PACKED[kind]
    for place in (len(packed) // 3, len(packed) * 2 // 3):
        damaged = bytearray(packed)
        damaged[place : place + 8] = bytes(255 - byte for byte in packed[place : place + 8])
        got, error = read_all(bytes(damaged), 65_536)
        assert isinstance(error, BrokenStream)
        assert error.offset == len(got)
    assert isinstance(read_all(packed + b"no member", 65_536)[1], BrokenStream)


def test_a_window_of_two_gigabytes_is_read() -> None:
    packed = zstd(DATA, window_log=31)
    with pytest.raises(zstandard.ZstdError):
        zstandard.ZstdDecompressor().decompressobj().decompress(packed)
    assert read_all(packed, 65_536) == (DATA, None)


def test_a_bomb_is_read_in_bounded_pieces() -> None:
    for packed in (zstd(bytes(50_000_000)), gzip.compress(bytes(50_000_000)), bz2.compress(bytes(50_000_000))):
        stream = open_stream(io.BytesIO(packed), "bomb")
        pieces = 0
        while piece := stream.read1():
            assert len(piece) <= 1 << 18
            pieces += len(piece)
        assert pieces == 50_000_000


@pytest.mark.parametrize("magic", [b"PK\x03\x04", b"7z\xbc\xaf\x27\x1c", b"\x04\x22\x4d\x18"])
def test_archives_that_are_not_read_are_named(magic: bytes) -> None:
    with pytest.raises(BrokenStream, match="not read here"):
        open_stream(io.BytesIO(magic + b"rest"), "a.zip").read()


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([kind for kind in KINDS if kind != "plain"]), st.data())
def test_random_damage_never_escapes_the_typed_error(kind: str, data: st.DataObject) -> None:
    packed = bytearray(PACKED[kind][:2000])
    for _ in range(data.draw(st.integers(0, 4))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    got, error = read_all(bytes(packed), 65_536)
    assert error is None or error.offset == len(got)


# --- dumps


def rows_of(data: bytes) -> list[tuple[int, Submission | str]]:
    return list(read_submissions(open_stream(io.BytesIO(data), "dump")))


def tally(rows: Iterator[tuple[int, Submission | str]]) -> Counter[str]:
    return Counter(row if isinstance(row, str) else "link" for _, row in rows)


LINK = {
    "id": "abc",
    "url": "http://example.com/?a=1&amp;b=2",
    "subreddit": "python",
    "score": 7,
    "created_utc": 1_400_000_000,
    "is_self": False,
    "over_18": False,
    "author": "somebody",
}
WANTED = Submission("abc", "http://example.com/?a=1&b=2", "python", 7, 1_400_000_000, False)


def test_whole_month_of_2005(shared: Path) -> None:
    with open(shared / "data/reddit/RS_v2_2005-06.xz", "rb") as file:
        rows = list(read_submissions(open_stream(file, "RS")))
    links = [row for _, row in rows if isinstance(row, Submission)]
    assert [number for number, _ in rows] == list(range(1, 104))
    assert (len(links), sum(link.score >= 3 for link in links)) == (103, 83)
    assert links[0] == Submission("87", "http://www.downingstreetmemo.com", "reddit.com", 183, 1119552233, False)


def test_wide_schema_of_2024(shared: Path) -> None:
    with open(shared / "data/reddit/RS_2024-02_first31.jsonl.gz", "rb") as file:
        rows = list(read_submissions(open_stream(file, "RS")))
    links = [row for _, row in rows if isinstance(row, Submission)]
    assert Counter(row for _, row in rows if isinstance(row, str)) == {"self_post": 12}
    assert (len(links), sum(link.over_18 for link in links), sum(link.score >= 3 for link in links)) == (19, 4, 5)
    assert {link.created for link in links} & {1409529600, 1706745600}  # text and float
    assert any("&coll=1&thispage" in link.url for link in links)  # was &amp;


def test_csv_of_thirty_subreddits(shared: Path) -> None:
    counts: Counter[str] = Counter()
    spellings: list[set[str]] = []
    over_18 = 0
    for path in sorted((shared / "data/reddit/top-2013").glob("*.csv.gz")):
        spellings.append(set())
        with open(path, "rb") as file:
            for _, row in read_submissions(open_stream(file, path.name)):
                counts["in"] += 1
                if isinstance(row, str):
                    counts[row] += 1
                    continue
                counts["link"] += 1
                over_18 += row.over_18
                assert row.subreddit == path.name.removesuffix(".csv.gz")  # out of the permalink
                assert 1e9 < row.created < 1.4e9
                if row.score >= 3:
                    counts["score"] += 1
                    spellings[-1].add(row.url)
    assert counts == {"in": 29_750, "link": 25_189, "self_post": 4_561, "score": 24_983}
    assert over_18 == 56  # the other 44 of 100 are self posts
    assert sum(map(len, spellings)) == 24_966  # distinct within each subreddit
    assert len(set.union(*spellings)) == 24_599  # distinct over all


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({}, WANTED),
        ({"score": "7", "created_utc": "1400000000", "over_18": None}, WANTED),
        ({"created_utc": 1400000000.0, "over_18": "False"}, WANTED),
        ({"is_self": None, "domain": "example.com"}, WANTED),
        ({"score": 10**400}, WANTED._replace(score=2**31 - 1)),
        ({"created_utc": None}, WANTED._replace(created=0)),
        ({"created_utc": "soon"}, WANTED._replace(created=0)),
        ({"over_18": True}, WANTED._replace(over_18=True)),
        ({"subreddit": "u_somebody"}, WANTED._replace(subreddit="")),
        ({"subreddit": None, "permalink": "/r/news/comments/abc/x/"}, WANTED._replace(subreddit="news")),
        ({"url": "http://e.com/?a=1&copy=2&amp;amp;c"}, WANTED._replace(url="http://e.com/?a=1&copy=2&amp;c")),
        ({"url": "http://e.com/\ud800"}, WANTED._replace(url="http://e.com/\ufffd")),
        ({"id": None}, WANTED._replace(id="")),
        ({"author": "[deleted]", "title": None}, WANTED),
        ({"crosspost_parent_list": [{"is_self": True, "url": "/r/x"}]}, WANTED),
        ({"score": None}, "no_score"),
        ({"score": "many"}, "no_score"),
        ({"score": True}, "no_score"),
        ({"url": None}, "no_url"),
        ({"url": "  "}, "no_url"),
        ({"url": ["x"]}, "no_url"),
        ({"url": "/r/pics/comments/1/x/"}, "relative_url"),
        ({"is_self": True}, "self_post"),
        ({"is_self": "True"}, "self_post"),
        ({"is_self": None, "domain": "self.news"}, "self_post"),
        ({"is_self": None, "url": "http://reddit.com/r/a/1/", "permalink": "/r/a/1/"}, "self_post"),
        ({"promoted": True}, "promoted"),
    ],
)
def test_fields_of_every_age(change: dict, wanted: Submission | str) -> None:
    row = {**LINK, **change}
    assert submission(row) == wanted
    assert json_submission(json.dumps(row).encode()) == wanted
    assert json_submission(json.dumps(row, separators=(",", ":")).encode()) == wanted
    assert "somebody" not in repr(submission(row))


def test_missing_fields_are_met() -> None:
    assert submission({"url": "http://e.com/", "score": 3}) == Submission("", "http://e.com/", "", 3, 0, False)
    assert submission({}) == "no_url"


def test_self_posts_told_without_parsing_are_self_posts() -> None:
    quoting = {**LINK, "title": 'my "is_self": true "is_self":true', "selftext": '{"is_self":true}'}
    nested = {**LINK, "is_self": None, "crosspost_parent_list": [{"is_self": True}]}
    assert json_submission(json.dumps(quoting).encode()) == WANTED
    assert json_submission(json.dumps(nested).encode()) == WANTED
    assert dumps._is_self_line(b'{"is_self": true}')
    assert json_submission(b'{"is_self": true, "title": "cut o') == "malformed"


def test_broken_lines_cost_themselves_only() -> None:
    good = json.dumps(LINK).encode()
    lines = [
        b"\xef\xbb\xbf" + good, b"", b"{", good.replace(b"abc", b"\xff\xfe"), b"[1]", b"null", b"12", b'"x"',
        b"[" * 100_000, good.replace(b"7", b"NaN"), good + b"\r", good,
    ]  # fmt: skip
    rows = rows_of(b"\n".join(lines))  # the last line has no newline
    assert [number for number, _ in rows] == list(range(1, 13))
    assert [row if isinstance(row, str) else "link" for _, row in rows] == [
        "link", "blank", "malformed", "invalid_utf8", "malformed", "malformed", "malformed", "malformed",
        "malformed", "no_score", "link", "link",
    ]  # fmt: skip
    assert rows[-1][1] == WANTED


def test_an_oversize_line_is_dropped_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    good = json.dumps(LINK).encode()
    monkeypatch.setattr(dumps, "BLOCK", 1000)
    monkeypatch.setattr(dumps, "MAX_LINE", 3000)
    for length in (3001, 3999, 9000):
        long = json.dumps({**LINK, "title": "x" * length}).encode()
        rows = rows_of(b"\n".join([good, long, good, good, long]))
        assert [row if isinstance(row, str) else "link" for _, row in rows] == [
            "link", "oversize_line", "link", "link", "oversize_line",
        ]  # fmt: skip


def test_lines_split_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    data = "\n".join(json.dumps({**LINK, "id": f"{i}é"}, ensure_ascii=False) for i in range(40)).encode()
    whole = rows_of(data)
    assert tally(iter(whole)) == {"link": 40}
    for block in (1, 7, 64, 1000):
        monkeypatch.setattr(dumps, "BLOCK", block)
        assert rows_of(data) == whole


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstd])
def test_a_truncated_dump_keeps_what_stands_before_the_break(pack) -> None:
    numbers = random.Random(5)
    data = b"".join(
        json.dumps({**LINK, "id": str(i), "title": str(numbers.getrandbits(400))}).encode() + b"\n"
        for i in range(9000)
    )
    rows = []
    with pytest.raises(BrokenStream) as caught:
        rows.extend(read_submissions(open_stream(io.BytesIO(pack(data)[:-4000]), "RS")))
    # pytest.raises leaves what extend had taken: the list is filled row by row
    whole = data[: caught.value.offset].count(b"\n")
    assert 0 < whole < 9000
    counts = tally(iter(rows))
    assert counts["link"] == whole
    assert counts["cut_off"] == (data[caught.value.offset - 1 : caught.value.offset] != b"\n")


HEADER = "id,score,created_utc,is_self,over_18,permalink,url,title\n"


def test_csv_rows() -> None:
    text = HEADER + (
        'a,5,1335842178.0,False,,/r/news/comments/a/,http://e.com/?a&amp;b,"two\nlines, and ""quotes"""\n'
        "b,2,1335842178.0,True,,/r/news/comments/b/,http://reddit.com/x,t\n"
        "\n"
        "c,3,short\n"
        "d,x,0,False,True,/r/news/comments/d/,http://e.com/,t\n"
        "e,-4,1335842178,False,True,/r/news/comments/e/,http://e.com/é,t"
    )
    rows = rows_of(text.encode("latin-1"))
    assert [number for number, _ in rows] == [2, 4, 5, 6, 7, 8]
    assert rows[0][1] == Submission("a", "http://e.com/?a&b", "news", 5, 1335842178, False)
    assert [row for _, row in rows[1:]] == ["self_post", "blank", "malformed", "no_score", "invalid_utf8"]


def test_broken_csv() -> None:
    with pytest.raises(NotADump, match="columns url and score"):
        rows_of(b"just,some,text\n1,2,3\n")
    with pytest.raises(NotADump):
        rows_of(b"\x00\x01\x02\x03")
    unclosed = HEADER + 'a,5,0,False,,/r/x/,http://e.com/,t\nb,5,0,False,,/r/x/,http://e.com/,"never closed\nx\n'
    assert [row if isinstance(row, str) else "link" for _, row in rows_of(unclosed.encode())] == ["link", "malformed"]
    body = "".join(f"a{i},5,0,False,,/r/x/,http://e.com/{i},{random.Random(i).random()}\n" for i in range(2000))
    rows = []
    with pytest.raises(BrokenStream):
        rows.extend(read_submissions(open_stream(io.BytesIO(gzip.compress((HEADER + body).encode())[:-9000]), "x")))
    assert tally(iter(rows)) == {"link": len(rows) - 1, "cut_off": 1}


def test_nothing_gives_nothing() -> None:
    assert rows_of(b"") == []
    assert rows_of(gzip.compress(b"")) == []


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=8))
def test_every_line_of_any_bytes_is_counted(lines: list[bytes]) -> None:
    data = b"{}\n" + b"\n".join(lines)
    rows = rows_of(data)
    assert len(rows) == len(data.removesuffix(b"\n").split(b"\n"))
    assert all(isinstance(row, str) for _, row in rows)
