"""Reddit link dumps of any age as a stream of link submissions, every other row under a named reason.

Pushshift's monthly dumps are JSON lines whose schema changed many times; other collections are CSV with a header of
the same field names. What differs between them is met here and nowhere else: numbers as text, fields that are null or
missing, `&amp;` in URLs, URLs of Reddit itself written relative, self posts known only by their domain, invalid
UTF-8, endless lines. User names are dropped at once: neither `author` nor a user's own subreddit (`u_name`) leaves.

One row is one submission; reasons: blank, malformed, invalid_utf8, oversize_line, cut_off (the input ends inside it),
promoted (advertisement), self_post, no_url, relative_url (a Reddit page), no_score.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from pipelines.compression import BrokenStream, Stream

BLOCK = 1 << 20
MAX_LINE = 1 << 22
"""Bytes of a line; the longest submissions (40,000 characters of text, galleries) stay far below."""

Line = bytes | None  # None stands for a line longer than MAX_LINE


class Submission(NamedTuple):
    """A link somebody posted."""

    id: str
    url: str  # as posted, &amp; &lt; &gt; undone; not yet checked
    subreddit: str  # "" if unknown or a user's own
    score: int
    created: int  # Unix seconds, 0 if unknown
    over_18: bool


class NotADump(ValueError):
    """An input that is neither JSON lines nor CSV with the columns `url` and `score`."""


def lines(stream: Stream) -> Iterator[list[Line]]:
    """The lines of each block of about a megabyte, without their ends; a last line needs no newline.

    Where the stream breaks, what stands before the break is given and the rest of a line raised as `CutOff`.
    """
    rest, skipping = b"", False
    try:
        while data := stream.read(BLOCK):
            block: list[Line] = [*data.split(b"\n")]
            if skipping and len(block) == 1:
                continue
            block[0] = None if skipping else rest + (block[0] or b"")
            if block[0] is not None and len(block[0]) > MAX_LINE:
                block[0] = None
            last = block.pop()
            skipping = last is None
            rest = last or b""
            yield block
    except BrokenStream as error:
        raise CutOff(bool(rest or skipping), error) from error
    if rest or skipping:
        yield [None if skipping else rest]


class CutOff(Exception):
    """The stream broke off; `inside` says whether that was inside a line."""

    def __init__(self, inside: bool, error: BrokenStream) -> None:
        super().__init__(inside, error)
        self.inside, self.error = inside, error


def read_submissions(stream: Stream) -> Iterator[tuple[int, Submission | str]]:
    """(line number from 1, submission or reason) for every row of a dump, in order.

    Raises NotADump before the first row, and BrokenStream after the last row that could be read.
    """
    head = stream.peek().removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    return _json_rows(stream) if head in (b"{", b"") else _csv_rows(stream)


_IS_SELF = b'"is_self":'
_decode = json.JSONDecoder().decode


def _is_self_line(line: bytes) -> bool:
    """Whether a line is certainly a self post, told without parsing it: self posts are the longest and most of them.

    In a JSON text an inner quote is escaped, so these bytes are a key; nested submissions would hold a second one.
    """
    at = line.find(_IS_SELF) + len(_IS_SELF)
    return (
        at >= len(_IS_SELF)
        and line.startswith((b"true", b" true"), at)
        and line.find(_IS_SELF, at) < 0
        and b'"crosspost_parent' not in line
        and line.rstrip()[-1:] == b"}"
    )


def _json_rows(stream: Stream) -> Iterator[tuple[int, Submission | str]]:
    number = 0
    try:
        for block in lines(stream):
            for line in block:
                number += 1
                yield number, "oversize_line" if line is None else json_submission(line, number == 1)
    except CutOff as cut:
        if cut.inside:
            yield number + 1, "cut_off"
        raise cut.error from None


def json_submission(line: bytes, first: bool = False) -> Submission | str:
    """The submission of one line of JSON, or the reason why there is none."""
    if _is_self_line(line):
        return "self_post"
    if first:
        line = line.removeprefix(b"\xef\xbb\xbf")
    try:
        row = _decode(line.decode())
    except UnicodeDecodeError:
        return "invalid_utf8"
    except (ValueError, RecursionError):
        return "malformed" if line.strip() else "blank"
    return submission(row) if isinstance(row, dict) else "malformed"


def _csv_rows(stream: Stream) -> Iterator[tuple[int, Submission | str]]:
    oversize: list[int] = []
    seen = 0

    def text() -> Iterator[str]:
        nonlocal seen
        for block in lines(stream):
            for line in block:
                seen += 1
                if line is None:
                    oversize.append(seen)
                else:
                    yield line.decode("utf-8", "surrogateescape") + "\n"

    reader = csv.reader(text(), strict=True)
    whole = 0
    try:
        header = [name.strip().removeprefix("\ufeff") for name in next(reader, [])]
        if not {"url", "score"} <= set(header):
            raise NotADump("neither JSON lines nor CSV with the columns url and score")
        whole = seen
        while True:
            try:
                row = next(reader)
                result = csv_submission(header, row)
            except StopIteration:
                break
            except csv.Error:
                result = "malformed"
            yield from ((number, "oversize_line") for number in oversize)
            oversize.clear()
            yield whole + 1, result
            whole = seen
    except csv.Error as error:
        raise NotADump(f"no CSV header: {error}") from error
    except CutOff as cut:
        if cut.inside or seen > whole:
            yield seen + cut.inside, "cut_off"
        raise cut.error from None
    yield from ((number, "oversize_line") for number in oversize)


def csv_submission(header: list[str], row: list[str]) -> Submission | str:
    """The submission of one CSV row, or the reason why there is none."""
    if not row:
        return "blank"
    if len(row) != len(header):
        return "malformed"
    if any(not value.isascii() and re.search("[\udc80-\udcff]", value) for value in row):
        return "invalid_utf8"
    return submission(dict(zip(header, row, strict=True)))


def submission(row: Mapping[str, object]) -> Submission | str:
    """A link submission out of the fields of any schema, or the reason why the row is none."""
    if _truth(row.get("promoted")):
        return "promoted"
    if _is_self(row):
        return "self_post"
    url = row.get("url")
    if not isinstance(url, str) or not (url := url.strip()):
        return "no_url"
    if url.startswith("/") and not url.startswith("//"):
        return "relative_url"
    score = _integer(row.get("score"))
    if score is None:
        return "no_score"
    identifier = row.get("id")
    created = _integer(row.get("created_utc")) or _integer(row.get("created")) or 0
    return Submission(
        _clean(identifier)[:16] if isinstance(identifier, str) else "",
        _clean(unescape(url)),
        _subreddit(row),
        max(-(2**31), min(2**31 - 1, score)),
        created if 0 < created < 2**40 else 0,
        _truth(row.get("over_18")),
    )


def unescape(url: str) -> str:
    """Undo what Reddit's interface escapes (&, <, >) and no more: `html.unescape` would turn `&copy=1` into `©=1`."""
    return url.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") if "&" in url else url


_SURROGATES = re.compile("[\ud800-\udfff]")


def _clean(text: str) -> str:
    """Lone surrogates, which JSON can say and UTF-8 cannot, become U+FFFD: a "?" would begin a query."""
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)


_PERMALINK = re.compile(r"/r/([^/]{1,64})/")


def _is_self(row: Mapping[str, object]) -> bool:
    value = row.get("is_self")
    if value is not None and value != "":
        return _truth(value)
    domain, url, permalink = row.get("domain"), row.get("url"), row.get("permalink")
    if isinstance(domain, str) and domain.startswith("self."):
        return True
    return isinstance(url, str) and isinstance(permalink, str) and len(permalink) > 1 and url.endswith(permalink)


def _subreddit(row: Mapping[str, object]) -> str:
    name, permalink = row.get("subreddit"), row.get("permalink")
    if not isinstance(name, str) or not name:
        match = _PERMALINK.search(permalink) if isinstance(permalink, str) else None
        name = match[1] if match else ""
    return "" if name.lower().startswith("u_") or len(name) > 64 else _clean(name)


def _truth(value: object) -> bool:
    return value is True or (isinstance(value, str) and value.lower() in ("true", "1", "t")) or value == 1


def _integer(value: object) -> int | None:
    if type(value) is int:
        return value
    if isinstance(value, str) and len(value) <= 32:
        try:
            value = float(value)
        except ValueError:
            return None
    return int(value) if isinstance(value, float) and math.isfinite(value) else None
