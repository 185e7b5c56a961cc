"""Bodies of HTTP responses as they were captured: header fields read, chunks joined, content codings undone.

Everything here is untrusted and bounded: by the captured bytes, and by a limit on what they unpack to. Crawlers
often store the decoded body under the original header, so that a body which does not have the form its header
announces is taken as it is. Method: RFC 9112 §7.1 (chunks), RFC 9110 §8.4 (content codings).
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator, Mapping

MAX_CODINGS = 4


class Refused(Exception):
    """A response gives no page: `args` are the reason and the detail."""


_CONTENT_TYPE = re.compile(r"^([^;,\s]{1,100})")
_CHARSET = re.compile(r";\s*charset\s*=\s*[\"']?([A-Za-z0-9_.:+-]{1,40})", re.IGNORECASE)
_MARKUP = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype\s+html|html|head|body|\?xml[^>]{0,200}\?>\s*<(?:!doctype\s+html|html))",
    re.IGNORECASE,
)


def parse_headers(head: bytes) -> dict[str, str]:
    """Header fields by lower-case name: the first of equal names, folded lines joined, undecodable bytes replaced."""
    fields: dict[str, str] = {}
    name = ""
    for line in head.decode("utf-8", "replace").split("\n"):
        if line[:1] in (" ", "\t") and name:
            fields[name] = f"{fields[name]} {line.strip()}"
            continue
        name, colon, value = line.partition(":")
        name = name.strip().lower() if colon else ""
        if name in fields:
            name = ""
        elif name:
            fields[name] = value.strip()
    return fields


def parse_content_type(value: str) -> tuple[str, str]:
    """(mime, charset) of a Content-Type field, lower case, "" where not said."""
    mime, charset = _CONTENT_TYPE.match(value.strip()), _CHARSET.search(value[:1000])
    return mime[1].lower() if mime else "", charset[1].lower() if charset else ""


def looks_like_html(payload: bytes) -> bool:
    """Whether bytes of an unknown kind begin as an HTML page does."""
    return _MARKUP.match(payload) is not None


def decode_body(body: bytes, headers: Mapping[str, str], limit: int) -> tuple[bytes, bool]:
    """(payload, whole) of an HTTP body: chunks joined and content codings undone, as far as they go.

    whole is False where a coding ends early or breaks after some bytes. Raises Refused with "too_large" beyond
    `limit` bytes, and with "bad_encoding" where nothing could be unpacked or the coding is not known.
    """
    whole = True
    if "chunked" in headers.get("transfer-encoding", "").lower():
        body, whole = _join_chunks(body)
    codings = [c.strip().lower() for c in headers.get("content-encoding", "").split(",") if c.strip()]
    if len(codings) > MAX_CODINGS:
        raise Refused("bad_encoding", f"{len(codings)} content codings")
    for coding in reversed(codings):
        if coding != "identity" and body:
            body, complete = _undo(coding, body, limit)
            whole = whole and complete
    return body, whole


_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,8})[ \t]*(?:;[^\r\n]*)?\r?\n")


def _join_chunks(body: bytes) -> tuple[bytes, bool]:
    size = _CHUNK_SIZE.match(body)
    if size is None:
        return body, True
    at = 0
    chunks: list[bytes] = []
    while size := _CHUNK_SIZE.match(body, at):
        length = int(size[1], 16)
        if length == 0:
            return b"".join(chunks), True
        at = size.end() + length
        chunks.append(body[size.end() : at])
        if at > len(body):
            break
        at += 2 if body.startswith(b"\r\n", at) else 1
    return b"".join(chunks), False


def _undo(coding: str, body: bytes, limit: int) -> tuple[bytes, bool]:
    pieces = _decoder(coding, body)
    payload, whole = bytearray(), False
    try:
        for piece in pieces:
            payload += piece
            if len(payload) > limit:
                raise Refused("too_large", f"more than {limit} bytes once unpacked")
        whole = True
    except (zlib.error, OSError, EOFError) as error:
        if not payload and not _MARKUP.match(body):
            raise Refused("bad_encoding", f"{coding}: {error}"[:120]) from None
    if not payload and _MARKUP.match(body):
        return body, True
    return bytes(payload), whole


def _decoder(coding: str, body: bytes) -> Iterator[bytes]:
    if coding in ("gzip", "x-gzip"):
        return _inflate(body, 31) if body.startswith(b"\x1f\x8b") else iter((body,))
    if coding == "deflate":
        wrapped = len(body) > 1 and body[0] & 15 == 8 and (body[0] << 8 | body[1]) % 31 == 0
        return _inflate(body, 15 if wrapped else -15)
    if coding in ("br", "zstd"):
        return _read_by(coding, body)
    if _MARKUP.match(body):
        return iter((body,))
    raise Refused("bad_encoding", f"content coding {coding[:40]!r}")


def _inflate(body: bytes, bits: int) -> Iterator[bytes]:
    """Unpacked pieces of one or more members; what follows the last one is ignored, as browsers do."""
    inflater, fed = zlib.decompressobj(bits), False
    for at in range(0, len(body), 4096):
        block = body[at : at + 4096]
        while block:
            yield inflater.decompress(block, 1 << 18)
            block = inflater.unconsumed_tail
            fed = True
            if inflater.eof:
                block = inflater.unused_data or body[at + 4096 : at + 4098]
                if not (bits == 31 and block.startswith(b"\x1f\x8b"[: len(block)]) and block):
                    return
                block = inflater.unused_data
                inflater, fed = zlib.decompressobj(bits), False
    if fed and not inflater.eof:
        raise EOFError("it ends early")


def _read_by(coding: str, body: bytes) -> Iterator[bytes]:
    """Small pieces: the decoders keep back what they had unpacked of the piece in which they fail."""
    from fastwarc.stream_io import BrotliReader, ZstdReader

    reader = (BrotliReader if coding == "br" else ZstdReader)(io.BytesIO(body))
    while piece := reader.read(1024):
        yield piece
