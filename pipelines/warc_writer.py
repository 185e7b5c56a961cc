"""A WARC file that is appended to, survives a kill, and is then closed in a fixed order.

While pages are fetched, records are appended as they arrive, each its own gzip member, so that a killed writer leaves
whole members and at most one broken one at the end; opening the file again cuts that one off and tells which captures
are there. Closing copies the captures in the order asked for: two fetches of the same web then give files that differ
in dates only. Method: WARC 1.1 (ISO 28500:2017), annex on gzip members; record ids are derived from the record's own
content (RFC 9562 §5.5), not drawn at random.
"""

from __future__ import annotations

import base64
import hashlib
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import BinaryIO
from uuid import NAMESPACE_URL, uuid5

from pipelines.bodies import parse_headers

LEVEL = 6
SOFTWARE = "webtext"
_DATE = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True)
class Capture:
    """One exchange with a server.

    url: as requested. fetched_at: unix seconds. request, response: the HTTP messages, heads and bodies; the
    response's body without its transfer coding, its content coding kept. truncated: "" or WARC-Truncated's reason.
    """

    url: str
    fetched_at: int
    request: bytes
    response: bytes
    truncated: str = ""


@dataclass(frozen=True)
class Stored:
    """A capture in a WARC: file offset and size of its response and request records together, when it was fetched
    (unix seconds), the bytes of its HTTP response, and the digest of its body."""

    url: str
    offset: int
    size: int
    fetched_at: int
    n_bytes: int
    digest: str


def warcinfo_record(fields: Iterable[tuple[str, str]], fetched_at: int = 0) -> bytes:
    """A warcinfo record, packed; it names the software and what it was told to do, no machine and no user."""
    block = "".join(f"{name}: {_clean(value)}\r\n" for name, value in (("software", SOFTWARE), *fields)).encode()
    return _pack("warcinfo", "", fetched_at, "application/warc-fields", block)


def capture_records(capture: Capture) -> bytes:
    """The response record and, concurrent to it, the request record, each one gzip member."""
    response_id = _record_id("response", capture.url, capture.fetched_at, capture.response)
    response = _pack(
        "response",
        capture.url,
        capture.fetched_at,
        "application/http;msgtype=response",
        capture.response,
        (("WARC-Payload-Digest", _sha1(_body(capture.response))),)
        + ((("WARC-Truncated", capture.truncated),) if capture.truncated else ()),
    )
    request = _pack(
        "request",
        capture.url,
        capture.fetched_at,
        "application/http;msgtype=request",
        capture.request,
        (("WARC-Concurrent-To", response_id),),
    )
    return response + request


class OpenWarc:
    """A WARC that captures are appended to. Opening one that exists keeps its whole captures and cuts off the rest.

    stored: what is there, by URL; the caller asks it what need not be fetched again. Threads may append at once, one
    process only.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        self._lock = Lock()
        self._file.seek(0)
        self.stored: dict[str, Stored] = {}
        whole = 0
        for stored in captures_in(self._file):
            self.stored[stored.url] = stored
            whole = stored.offset + stored.size
        self._file.truncate(whole)

    def __enter__(self) -> OpenWarc:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, capture: Capture) -> Stored:
        """Store one capture; once this returns, it survives the death of the process."""
        digest = _sha1(_body(capture.response))
        return self._write(capture_records(capture), capture.url, capture.fetched_at, len(capture.response), digest)

    def adopt(self, source: BinaryIO) -> None:
        """Copy the captures of another WARC written here, those whose URL is not stored yet."""
        for capture in list(captures_in(source)):
            if capture.url not in self.stored:
                source.seek(capture.offset)
                records = source.read(capture.size)
                self._write(records, capture.url, capture.fetched_at, capture.n_bytes, capture.digest)

    def _write(self, records: bytes, url: str, fetched_at: int, n_bytes: int, digest: str) -> Stored:
        with self._lock:
            offset = self._file.seek(0, os.SEEK_END)
            self._file.write(records)
            self._file.flush()
            stored = Stored(url, offset, len(records), fetched_at, n_bytes, digest)
            self.stored[url] = stored
        return stored

    def read(self, stored: Stored) -> bytes:
        """The packed records of one capture, as `append` wrote them."""
        self._file.seek(stored.offset)
        return self._file.read(stored.size)

    def close_into(self, target: BinaryIO, urls: Iterable[str], info: bytes = b"") -> dict[str, int]:
        """Write a closed WARC: `info`, then the captures of `urls` in that order. Returns each one's offset."""
        at = target.write(info)
        offsets: dict[str, int] = {}
        for url in urls:
            offsets[url] = at
            at += target.write(self.read(self.stored[url]))
        return offsets


def captures_in(file: BinaryIO) -> Iterator[Stored]:
    """The whole captures of a WARC written here, in order, until a record is broken or of another kind."""
    response: tuple[int, int, dict[str, str]] | None = None
    for offset, size, headers in _members(file):
        kind = headers.get("warc-type", "")
        if kind == "response":
            response = offset, size, headers
        elif kind == "request" and response is not None:
            start, _, head = response
            yield Stored(
                url=head.get("warc-target-uri", ""),
                offset=start,
                size=offset + size - start,
                fetched_at=_unix_seconds(head.get("warc-date", "")),
                n_bytes=int(head["content-length"]),
                digest=head.get("warc-payload-digest", ""),
            )
            response = None
        elif kind != "warcinfo":
            return


def _members(file: BinaryIO) -> Iterator[tuple[int, int, dict[str, str]]]:
    """(offset, size, WARC header) of each whole record, a gzip member each, until one is broken or the file ends."""
    offset, pending = 0, b""
    file.seek(0)
    while True:
        inflater = zlib.decompressobj(31)
        size, length, head, tail = 0, 0, b"", b""
        while not inflater.eof:
            block = pending or file.read(1 << 16)
            pending = b""
            if not block:
                return
            try:
                while block and not inflater.eof:
                    data = inflater.decompress(block, 1 << 18)
                    size += len(block) - len(inflater.unconsumed_tail) - len(inflater.unused_data)
                    block = inflater.unconsumed_tail
                    head += data if b"\r\n\r\n" not in head else b""
                    length += len(data)
                    tail = (tail + data)[-4:]
            except zlib.error:
                return
        pending = inflater.unused_data
        head = head.partition(b"\r\n\r\n")[0]
        headers = parse_headers(head + b"\r\n")
        if tail != b"\r\n\r\n" or headers.get("content-length") != str(length - len(head) - 8):
            return
        yield offset, size, headers
        offset += size


def _pack(
    kind: str,
    url: str,
    fetched_at: int,
    content_type: str,
    block: bytes,
    more: tuple[tuple[str, str], ...] = (),
) -> bytes:
    """One record as one gzip member, whose header says no time and no name."""
    fields = [
        ("WARC-Type", kind),
        ("WARC-Record-ID", _record_id(kind, url, fetched_at, block)),
        *((("WARC-Target-URI", _clean(url)),) if url else ()),
        ("WARC-Date", datetime.fromtimestamp(fetched_at, UTC).strftime(_DATE)),
        *more,
        ("WARC-Block-Digest", _sha1(block)),
        ("Content-Type", content_type),
        ("Content-Length", str(len(block))),
    ]
    head = "WARC/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields) + "\r\n"
    data = head.encode() + block + b"\r\n\r\n"
    deflater = zlib.compressobj(LEVEL, zlib.DEFLATED, -15)
    packed = deflater.compress(data) + deflater.flush()
    header = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
    return header + packed + struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)


def _record_id(kind: str, url: str, fetched_at: int, block: bytes) -> str:
    digest = hashlib.sha256(block).hexdigest()
    return f"<urn:uuid:{uuid5(NAMESPACE_URL, f'{kind} {fetched_at} {digest} {url}')}>"


def _body(message: bytes) -> bytes:
    return message.partition(b"\r\n\r\n")[2]


def _unix_seconds(date: str) -> int:
    try:
        return int(datetime.strptime(date, _DATE).replace(tzinfo=UTC).timestamp())
    except ValueError:
        return 0


def _sha1(data: bytes) -> str:
    return "sha1:" + base64.b32encode(hashlib.sha1(data, usedforsecurity=False).digest()).decode()


def _clean(value: str) -> str:
    """A header value on one line: control characters would end the field, or the header."""
    return "".join(c if c.isprintable() else "%%%02X" % (ord(c) & 0xFF) for c in value)
