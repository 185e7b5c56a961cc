"""Web archives: WARC and ARC files, whole or broken, as a stream of pages.

Every record gives exactly one item, a `Page` or a `Rejected` with its reason, so that records = pages + rejected by
reason. What could not be read is a `Problem` with its offset, and reading goes on at the next record: bytes that a
damaged record or a wrong length swallowed are looked through again for a record's first lines.

Method: WARC 1.1 (ISO 28500:2017), the Internet Archive's ARC 1 and 2 file format. FastWARC frames records faster
but reads no ARC, takes a cut record for a whole one and ends the file at the first bad header; extracting a page
costs a hundred times more than either. Its LZ4, Brotli and zstd decoders are used.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import BinaryIO

from pipelines.bodies import Refused, decode_body, looks_like_html, parse_content_type, parse_headers
from pipelines.members import MAX_START, RECORD_START, Unpacked
from pipelines.workspace import Problem


@dataclass(frozen=True)
class ArchiveOptions:
    """What is read from an archive.

    max_record_bytes: larger records are passed over without being held. max_payload_bytes: pages that unpack to more
    are rejected. plain_text: whether text/plain responses are pages. keep_truncated: whether a page is kept whose
    record or body was cut (by the crawler's own limit, or because the file ends); it is marked either way.
    """

    max_record_bytes: int = 64 << 20
    max_payload_bytes: int = 16 << 20
    plain_text: bool = False
    keep_truncated: bool = True

    def __post_init__(self) -> None:
        for name, least in (("max_record_bytes", 1 << 16), ("max_payload_bytes", 1 << 10)):
            if getattr(self, name) < least:
                raise ValueError(f"archives.{name} is {getattr(self, name)}: it must be at least {least}")


@dataclass(frozen=True, slots=True)
class Page:
    """One captured page.

    offset: of its record, in the file where the record opens a compressed member or the file is plain, else in the
    unpacked stream. fetched_at: unix seconds, 0 unknown. status: HTTP, 200 for resource and conversion records.
    mime, charset: as the server said, lower case, "" unknown. payload: the body without transfer and content codings;
    payload_sha1: 40 hex digits over it. truncated: the body is known not to be whole.
    """

    url: str
    record: str
    record_id: str
    offset: int
    fetched_at: int
    status: int
    mime: str
    charset: str
    payload: bytes
    payload_sha1: str
    truncated: bool


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that gives no page. reason: the record's type where it holds no response ("request", "warcinfo", …),
    else why not. listed: whether it is a response that may have been a page, which belongs in `pages/rejected`."""

    url: str
    record: str
    offset: int
    reason: str
    detail: str = ""
    listed: bool = True


HTML = frozenset({"text/html", "application/xhtml+xml", "application/vnd.wap.xhtml+xml"})
UNKNOWN_MIME = frozenset({"", "unknown", "unknown/unknown", "no-type", "application/unknown"})
RECORD_TYPES = ("warcinfo", "response", "resource", "request", "metadata", "revisit", "conversion", "continuation")
MAX_HEADER = 1 << 16
MAX_PROBLEMS = 1000


def read_pages(
    stream: BinaryIO, name: str, options: ArchiveOptions | None = None
) -> Iterator[Page | Rejected | Problem]:
    """The pages of one archive, in the order of the file, with what was rejected and what is broken.

    stream: seekable. name: what the archive is called in problems. Memory stays within a few times
    max_record_bytes. Raises OSError where the stream itself cannot be read, nothing else.
    """
    options = options or ArchiveOptions()
    for item in _few_problems(_records(stream, name, options), name):
        yield item if isinstance(item, Problem) else _judge_page(item, options)


def read_conversions(
    stream: BinaryIO, name: str, options: ArchiveOptions | None = None
) -> Iterator[Page | Rejected | Problem]:
    """The texts of a WET file: each conversion record as a page of mime text/plain, the rest as in `read_pages`."""
    options = options or ArchiveOptions()
    for item in _few_problems(_records(stream, name, options), name):
        yield item if isinstance(item, Problem) else _judge_conversion(item, options)


def _few_problems(items: Iterator[_Record | Problem], name: str) -> Iterator[_Record | Problem]:
    """The items with at most MAX_PROBLEMS problems, then one that counts the rest."""
    problems = 0
    for item in items:
        problems += isinstance(item, Problem)
        if not isinstance(item, Problem) or problems <= MAX_PROBLEMS:
            yield item
    if problems > MAX_PROBLEMS:
        yield Problem(name, "more_problems", -1, f"{problems - MAX_PROBLEMS} more are not listed")


@dataclass(slots=True)
class _Record:
    """One record as it lies in the archive.

    body: None where it was passed over, for its size or for want of a length. cut: "" for a whole record, "truncated"
    (the file ends inside it), "overlong" (the next record begins before its declared end), "corrupt" (its compressed
    member is), "bad_length", "too_large". detail: what to say of it as a problem, "" if nothing.
    """

    kind: str
    url: str
    offset: int
    length: int
    record_id: str = ""
    fetched_at: int = 0
    mime: str = ""
    truncated: bool = False
    body: bytes | None = None
    cut: str = ""
    detail: str = ""


# Framing: where records begin and end.


def _records(stream: BinaryIO, name: str, options: ArchiveOptions) -> Iterator[_Record | Problem]:
    unpacked = Unpacked(stream)
    position, found = 0, False
    while True:
        position = _skip_newlines(unpacked, position)
        yield from _breaks(unpacked, name, position)
        if not unpacked.fill(position + 1):
            break
        head_end, record = _record_head(unpacked, position)
        if record is not None:
            found = True
            position = _read_body(unpacked, record, position, head_end, options)
            yield record
            if record.detail:
                yield Problem(name, record.cut, record.offset, record.detail)
        else:
            where, after = unpacked.offset(position), unpacked.find_start(position + 1)
            beyond = unpacked.end if after is None else after
            if not any(b.position <= beyond for b in unpacked.breaks):
                yield Problem(name, "bad_record", where, f"{beyond - position} bytes that begin no record")
            position = beyond
        unpacked.drop(position)
    yield from _breaks(unpacked, name, unpacked.end)
    if not found:
        yield Problem(name, "no_records", 0, "the file holds no WARC or ARC record")


def _breaks(unpacked: Unpacked, name: str, position: int) -> Iterator[Problem]:
    """The breaks up to `position`, once each."""
    while unpacked.breaks and unpacked.breaks[0].position <= position:
        lost = unpacked.breaks.popleft()
        yield Problem(name, lost.reason, lost.offset, lost.detail)


def _skip_newlines(unpacked: Unpacked, position: int) -> int:
    while unpacked.fill(position + 1):
        match = _NEWLINES.match(unpacked.window, position - unpacked.base)
        position = unpacked.base + (match.end() if match else 0)
        if position < unpacked.end:
            break
        unpacked.drop(position)
    return position


_NEWLINES = re.compile(rb"[\r\n]*")
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_ARC_LINE = re.compile(
    rb"(?P<url>[a-zA-Z][a-zA-Z0-9+.-]*:[^\r\n]{0,4096}) (?P<ip>[0-9a-fA-F.:]{3,45}) (?P<date>\d{8,18}|null|-)"
    rb" (?:(?P<mime>\S*) ?[^\r\n]*?) ?(?P<length>\S+)\r?\n"
)


def _record_head(unpacked: Unpacked, position: int) -> tuple[int, _Record | None]:
    """The record whose first lines stand at `position` and where its body begins; None where none stands there."""
    unpacked.fill(position + MAX_START)
    at = position - unpacked.base
    match = RECORD_START.match(unpacked.window, at)
    if match is None:
        return position, None
    if not unpacked.window.startswith(b"WARC/", at):
        line = _ARC_LINE.match(unpacked.window, at)
        if line is None or _broken_before(unpacked, unpacked.base + line.end()):
            return position, None
        return unpacked.base + line.end(), _arc_record(line, unpacked.offset(position))
    look = max(at, unpacked.endless_until - unpacked.base - 4)
    end = _HEAD_END.search(unpacked.window, look, at + MAX_START)
    if end is None:
        unpacked.fill(position + MAX_HEADER)
        end = _HEAD_END.search(unpacked.window, look, at + MAX_HEADER)
    if end is None:
        unpacked.endless_until = min(unpacked.end, position + MAX_HEADER)
    if end is None or _broken_before(unpacked, unpacked.base + end.end()):
        return position, None
    head = unpacked.read(position, unpacked.base + end.end())
    return position + len(head), _warc_record(parse_headers(head), unpacked.offset(position))


def _broken_before(unpacked: Unpacked, position: int) -> bool:
    return bool(unpacked.breaks) and unpacked.breaks[0].position < position


def _warc_record(headers: Mapping[str, str], offset: int) -> _Record:
    kind = headers.get("warc-type", "").lower()
    return _Record(
        kind=kind if kind in RECORD_TYPES else "unknown",
        url=_target(headers.get("warc-target-uri", "")),
        offset=offset,
        length=_length(headers.get("content-length", "")),
        record_id=headers.get("warc-record-id", "").strip("<> "),
        fetched_at=_seconds(headers.get("warc-date", "")),
        mime=headers.get("content-type", ""),
        truncated=headers.get("warc-truncated", "").lower() not in ("", "unspecified-no", "no"),
    )


def _target(field: str) -> str:
    """A target URI without the angle brackets that WARC 1.0 (ISO 28500:2009, §5.13) puts around it."""
    field = field.strip()
    return field[1:-1].strip() if field.startswith("<") and field.endswith(">") else field


def _arc_record(line: re.Match[bytes], offset: int) -> _Record:
    url = line["url"].decode("utf-8", "replace")
    return _Record(
        kind="arc_header" if url.startswith("filedesc:") else "response",
        url=url,
        offset=offset,
        length=_length(line["length"].decode("ascii", "replace")),
        fetched_at=_seconds(line["date"].decode()),
        mime="application/http" if url.lower().startswith(("http:", "https:")) else "",
    )


def _length(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else -1


def _seconds(date: str) -> int:
    """Unix seconds of a WARC or ARC date, which are in UTC and may be short; 0 if it is none."""
    digits = re.sub(r"[^0-9]", "", date[:40])[:14]
    whole = digits + "00000101000000"[len(digits) :]
    month, day, hour, minute, second = (int(whole[i : i + 2]) for i in range(4, 14, 2))
    try:
        return max(0, int(datetime(int(whole[:4]), month, day, hour, minute, second, tzinfo=UTC).timestamp()))
    except ValueError:
        return 0


def _read_body(unpacked: Unpacked, record: _Record, head: int, start: int, options: ArchiveOptions) -> int:
    """Fill in the record's body and what is wrong with it; returns where the next record is looked for.

    A body is believed if the file goes on as it should after it. If not, the record's own bytes are searched for
    the next record, for a length too great would swallow it.
    """
    if record.length < 0:
        record.cut, record.detail = "bad_length", "the record says no length"
        after = unpacked.find_start(start)
        return unpacked.end if after is None else after
    end = start + record.length
    if min(end, unpacked.size or end) - start > options.max_record_bytes:
        if unpacked.size is None or (end <= unpacked.size and _goes_on(unpacked.ahead(end))):
            return _pass_over(unpacked, record, start)
        return _look_inside(unpacked, record, start, options.max_record_bytes)
    unpacked.fill(end + MAX_START)
    stop = min(end, unpacked.end, unpacked.breaks[0].position if unpacked.breaks else end)
    if stop < end or not _ends_well(unpacked, end):
        inner = unpacked.find_start(start, stop)
        if inner is not None:
            record.cut, record.detail = "overlong", f"the next record begins {end - inner} bytes before its end"
            stop = inner
        elif stop < end:
            lost = unpacked.breaks[0] if unpacked.breaks and unpacked.breaks[0].position == stop else None
            record.cut = lost.reason if lost else "truncated"
            record.detail = "" if lost else f"the file ends {end - stop} bytes before the record does"
    if _member_is_corrupt(unpacked, head, stop):
        record.cut, record.detail = "corrupt", ""
    record.body = unpacked.read(start, stop)
    return stop


def _ends_well(unpacked: Unpacked, end: int) -> bool:
    """Whether the file ends, breaks, or begins another record after at most a few line ends."""
    match = _NEWLINES.match(unpacked.window, end - unpacked.base, end - unpacked.base + 8)
    at = match.end() if match else 0
    if unpacked.window.startswith(b"WARC/", at):
        return True
    position = unpacked.base + at
    if position >= unpacked.end or any(end <= b.position <= position for b in unpacked.breaks):
        return True
    return RECORD_START.match(unpacked.window, at) is not None


def _goes_on(after: bytes) -> bool:
    """Whether bytes are what stands after a record: nothing, or another record, after at most a few line ends."""
    match = _NEWLINES.match(after, 0, 8)
    rest = after[match.end() if match else 0 :]
    return not rest or rest.startswith(b"WARC/") or RECORD_START.match(rest) is not None


def _look_inside(unpacked: Unpacked, record: _Record, start: int, limit: int) -> int:
    """The next record after one in a plain file whose length is too large to hold and cannot be true."""
    end = start + record.length
    inner = unpacked.find_start(start, start + limit)
    if inner is not None:
        record.cut, record.body = "overlong", unpacked.read(start, inner)
    else:
        record.cut, inner = "too_large", unpacked.find_start(start)
    record.detail = f"its end, {record.length} bytes on, is not where a record ends"
    if inner is not None and inner < end:
        record.detail = f"the next record begins {end - inner} bytes before its end"
    elif inner is None and unpacked.end < end:
        record.detail = f"the file ends {end - unpacked.end} bytes before the record does"
    return unpacked.end if inner is None else inner


def _member_is_corrupt(unpacked: Unpacked, head: int, stop: int) -> bool:
    """Whether one of the compressed members that a record's bytes came from failed, be it in its last checksum."""
    if not unpacked.breaks:
        return False
    own = {offset for position, offset in unpacked.members if position < stop}
    before = {offset for position, offset in unpacked.members if position <= head}
    own -= before - {max(before, default=-1)}
    return any(b.reason == "corrupt" and b.offset in own for b in unpacked.breaks)


def _pass_over(unpacked: Unpacked, record: _Record, start: int) -> int:
    """Read past a record that is too large to hold, up to its end, a break, or a member that opens a record."""
    record.cut, end, position = "too_large", start + record.length, start
    while position < end:
        step = min(end, position + (1 << 18))
        whole = unpacked.fill(step + MAX_START) or unpacked.end >= step
        if unpacked.breaks and unpacked.breaks[0].position <= step:
            return unpacked.breaks[0].position
        for border, _ in unpacked.members:
            if position < border < step and RECORD_START.match(unpacked.window, border - unpacked.base):
                record.detail = f"the next record begins {end - border} bytes before its end"
                return border
        if not whole:
            record.detail = f"the file ends {end - unpacked.end} bytes before the record does"
            return unpacked.end
        position = step
        unpacked.drop(position)
    return end


# Judging: what a record is to the corpus.


def _judge_page(record: _Record, options: ArchiveOptions) -> Page | Rejected:
    if record.kind not in ("response", "resource"):
        return Rejected(record.url, record.kind, record.offset, record.kind, listed=False)
    mime = ""
    try:
        body = _whole_body(record, options)
        if record.kind == "resource":
            status, payload, whole = 200, body, True
            mime, charset = parse_content_type(record.mime)
        else:
            status, headers, body = _split_http(record, body)
            mime, charset = parse_content_type(headers.get("content-type", ""))
            if status != 200:
                raise Refused("not_200", str(status))
            _check_mime(mime, options)
            payload, whole = decode_body(body, headers, options.max_payload_bytes)
        _check_mime(mime, options)
        if mime in UNKNOWN_MIME and payload.strip() and not looks_like_html(payload):
            raise Refused("not_html", "no mime type")
        if not record.url.lower().startswith(("http://", "https://")):
            raise Refused("not_web", record.url[:80])
        return _page(record, options, status, mime, charset, payload, whole)
    except Refused as error:
        reason, detail = error.args
        listed = reason != "not_http" and (mime in HTML or mime in UNKNOWN_MIME)
        return Rejected(record.url, record.kind, record.offset, reason, detail, listed and reason != "not_html")


def _judge_conversion(record: _Record, options: ArchiveOptions) -> Page | Rejected:
    if record.kind != "conversion":
        return Rejected(record.url, record.kind, record.offset, record.kind, listed=False)
    try:
        return _page(record, options, 200, "text/plain", "utf-8", _whole_body(record, options), True)
    except Refused as error:
        return Rejected(record.url, record.kind, record.offset, *error.args)


def _whole_body(record: _Record, options: ArchiveOptions) -> bytes:
    if record.body is None or record.cut == "corrupt":
        raise Refused(record.cut, record.detail)
    if (record.cut or record.truncated) and not options.keep_truncated:
        raise Refused("truncated", record.detail)
    return record.body


def _page(
    record: _Record, options: ArchiveOptions, status: int, mime: str, charset: str, payload: bytes, whole: bool
) -> Page:
    truncated = record.truncated or bool(record.cut) or not whole
    if not payload.strip():
        raise Refused("empty", "")
    if len(payload) > options.max_payload_bytes:
        raise Refused("too_large", f"{len(payload)} bytes")
    if truncated and not options.keep_truncated:
        raise Refused("truncated", "the body ends early")
    return Page(
        url=record.url,
        record=record.kind,
        record_id=record.record_id,
        offset=record.offset,
        fetched_at=record.fetched_at,
        status=status,
        mime=mime,
        charset=charset,
        payload=payload,
        payload_sha1=hashlib.sha1(payload, usedforsecurity=False).hexdigest(),
        truncated=truncated,
    )


_STATUS_LINE = re.compile(rb"HTTP/\d(?:\.\d)? +(\d{3})(?: [^\r\n]*)?\r?\n", re.IGNORECASE)


def _check_mime(mime: str, options: ArchiveOptions) -> None:
    """Refuse what is not HTML (or plain text, on request); where the server does not say, the body decides."""
    if mime not in HTML and mime not in UNKNOWN_MIME and not (options.plain_text and mime == "text/plain"):
        raise Refused("not_html", mime)


def _split_http(record: _Record, block: bytes) -> tuple[int, dict[str, str], bytes]:
    if not record.mime.lower().startswith("application/http"):
        raise Refused("not_http", record.mime[:80])
    status = _STATUS_LINE.match(block)
    if status is None:
        raise Refused("bad_http", repr(block[:40]))
    end = _HEAD_END.search(block, status.end() - 2, MAX_HEADER)
    if end is None and block[status.end() :].strip():
        raise Refused("bad_http", "the header does not end")
    head_end = end.end() if end else len(block)
    return int(status[1]), parse_headers(block[status.end() : head_end]), block[head_end:]
