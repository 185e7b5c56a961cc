"""Compressed inputs as one bounded stream of bytes, whatever they are packed with.

Link dumps, Wikipedia dumps and texts come as .zst, .xz, .bz2, .gz or plain, often under a wrong name; the
first bytes decide here, never the name. Every format may hold several members or frames one after another.
Reddit dumps need a zstd window of 2^31 bytes, which pyarrow's codec and zstandard's defaults refuse.

Formats: RFC 1952 (gzip), RFC 8878 (zstd), the .xz file format 1.2, bzip2.
"""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

if TYPE_CHECKING:
    from zstandard import ZstdDecompressor

CHUNK = 1 << 16
READ = 1 << 18
MAX_WINDOW = 1 << 31
_ZSTD = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIP = b"\x2a\x4d\x18"  # after one byte 0x50..0x5f
_REFUSED = {
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!\x1a\x07": "rar",
    b"\x04\x22\x4d\x18": "lz4",
}


class BrokenStream(Exception):
    """A compressed input that ends early, is corrupt, or is packed with a method not read here.

    `offset` counts the unpacked bytes given before; `source_offset` the packed bytes read.
    """

    def __init__(self, name: str, reason: str, offset: int, source_offset: int) -> None:
        super().__init__(name, reason, offset, source_offset)
        self.name, self.reason, self.offset, self.source_offset = name, reason, offset, source_offset

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.reason} after {self.offset} unpacked bytes "
            f"(near byte {self.source_offset} of the file)"
        )


class _Broken(Exception):
    """Says why inside a decoder; `Stream` adds the name and the offsets."""


class _Source:
    """The packed bytes: read in blocks, with the unused rest of a block given back."""

    def __init__(self, raw: BinaryIO) -> None:
        self.raw, self.block, self.at, self.before = raw, b"", 0, 0

    @property
    def offset(self) -> int:
        return self.before + self.at

    def _next(self, rest: bytes, data: bytes) -> None:
        self.before, self.block, self.at = self.offset, rest + data, 0

    def chunk(self) -> bytes:
        """The rest of the block or the next one, b"" at the end of the file."""
        if self.at == len(self.block):
            self._next(b"", self.raw.read(READ))
        data, self.at = self.block[self.at :], len(self.block)
        return data

    def give_back(self, data: bytes) -> None:
        """Take back the last bytes given, which always lie in the block at hand."""
        self.at -= len(data)

    def take(self, n: int) -> bytes:
        """The next n bytes, fewer only at the end of the file."""
        while len(self.block) - self.at < n:
            data = self.raw.read(max(READ, n))
            if not data:
                break
            self._next(self.block[self.at :], data)
        data = self.block[self.at : self.at + n]
        self.at += len(data)
        return data


class _Decoder(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _Inflate:
    """zlib with the interface that bz2 and lzma share."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)
        self._full = False

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not (self._inner.unconsumed_tail or self._full)

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        out = self._inner.decompress(self._inner.unconsumed_tail + data, max_length)
        self._full = len(out) == max_length
        return out


def _unxz() -> _Decoder:
    # An .xz may ask for a dictionary as large as the zstd window; the rest is the decoder's own state.
    return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=MAX_WINDOW + (1 << 24))


def _members(source: _Source, magic: bytes, start: Callable[[], _Decoder]) -> Iterator[bytes]:
    """Unpack members that stand one after another, with zero bytes as padding allowed between and after."""
    while True:
        decoder = start()
        while not decoder.eof:
            data = source.chunk() if decoder.needs_input else b""
            starved = decoder.needs_input and not data
            out = decoder.decompress(data, CHUNK)
            if out:
                yield out
            elif starved and not decoder.eof:
                raise _Broken("truncated")
        source.give_back(decoder.unused_data)
        while (data := source.chunk()) and not data.strip(b"\0"):
            pass
        if not data:
            return
        source.give_back(data.lstrip(b"\0"))
        head = source.take(len(magic))
        source.give_back(head)
        if head != magic:
            raise _Broken("truncated" if magic.startswith(head) else "trailing bytes")


def _zstd(source: _Source) -> Iterator[bytes]:
    """Unpack frames block by block (RFC 8878 §3.1.1).

    zstandard's stream reader does not tell a truncated frame from a whole one, its decompressobj unpacks
    without a bound on the output: walking the blocks (each at most 128 KiB unpacked) gives both.
    """
    from zstandard import ZstdDecompressor, ZstdError

    context = ZstdDecompressor(max_window_size=MAX_WINDOW)
    while head := source.take(4):
        if head[1:] == _ZSTD_SKIP and head[0] & 0xF0 == 0x50:
            _skip(source, int.from_bytes(_whole(source, 4), "little"))
            continue
        if head != _ZSTD:
            raise _Broken("truncated" if _ZSTD.startswith(head) else "trailing bytes")
        try:
            yield from _frame(source, head, context)
        except ZstdError as error:
            raise _Broken(f"corrupt ({error})") from error


def _frame(source: _Source, magic: bytes, context: ZstdDecompressor) -> Iterator[bytes]:
    decoder = context.decompressobj(write_size=2 * CHUNK)
    descriptor = _whole(source, 1)
    flags = descriptor[0]
    single = flags >> 5 & 1
    n_header = (1 - single) + (0, 1, 2, 4)[flags & 3] + (single, 2, 4, 8)[flags >> 6]
    decoder.decompress(magic + descriptor + _whole(source, n_header))
    last = False
    while not last:
        header = _whole(source, 3)
        block = int.from_bytes(header, "little")
        last, kind, size = bool(block & 1), block >> 1 & 3, block >> 3
        n_body = 1 if kind == 1 else size
        body = source.take(n_body)
        if out := decoder.decompress(header + body):
            yield out
        if len(body) < n_body:
            raise _Broken("truncated")
    if flags & 4 and (out := decoder.decompress(_whole(source, 4))):
        yield out
    if not decoder.eof:
        raise _Broken("corrupt: the last block is not the end of its frame")


def _whole(source: _Source, n: int) -> bytes:
    data = source.take(n)
    if len(data) < n:
        raise _Broken("truncated")
    return data


def _skip(source: _Source, n: int) -> None:
    while n:
        n -= len(_whole(source, min(n, READ)))


def _plain(source: _Source) -> Iterator[bytes]:
    while data := source.chunk():
        yield data


def _refuse(reason: str) -> Iterator[bytes]:
    raise _Broken(reason)
    yield b""


def _open(source: _Source) -> tuple[str, Iterator[bytes]]:
    head = source.take(10)
    source.give_back(head)
    if head.startswith(b"\x1f\x8b"):
        return "gz", _members(source, b"\x1f\x8b", _Inflate)
    if head.startswith(b"BZh") and head[4:10] in (b"1AY&SY", b"\x17rE8P\x90"):
        return "bz2", _members(source, b"BZh", bz2.BZ2Decompressor)
    if head.startswith(b"\xfd7zXZ\0"):
        return "xz", _members(source, b"\xfd7zXZ\0", _unxz)
    if head.startswith(_ZSTD) or (head[1:4] == _ZSTD_SKIP and head[0] & 0xF0 == 0x50):
        return "zst", _zstd(source)
    for magic, kind in _REFUSED.items():
        if head.startswith(magic):
            return kind, _refuse(f"packed with {kind}, which is not read here: unpack it first,")
    return "plain", _plain(source)


class Stream(io.BufferedIOBase):
    """Unpacked bytes, forwards only; `compression` is zst, xz, bz2, gz or plain."""

    def __init__(self, raw: BinaryIO, name: str) -> None:
        self._raw, self._label, self._source = raw, name, _Source(raw)
        self.compression, self._chunks = _open(self._source)
        self._chunk, self._at, self._given = b"", 0, 0
        self._error: BrokenStream | None = None
        self._ended = False

    @property
    def consumed(self) -> int:
        """Packed bytes read so far."""
        return self._source.offset

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._given

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()

    def _fill(self) -> bool:
        """Have at least one unread byte; False at the end and at an error (kept in `_error`)."""
        while self._at == len(self._chunk) and not self._ended:
            try:
                self._chunk, self._at = next(self._chunks, b""), 0
                self._ended = not self._chunk
            except (_Broken, lzma.LZMAError, zlib.error, ValueError, OSError, EOFError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise  # the disk's or the network's fault, not the input's (bz2 raises a bare OSError)
                self._chunk, self._at, self._ended = b"", 0, True
                reason = str(error) if isinstance(error, _Broken) else f"corrupt ({error})"
                self._error = BrokenStream(self._label, reason, self._given, self.consumed)
        return self._at < len(self._chunk)

    def _take(self, n: int) -> bytes:
        data = self._chunk[self._at : self._at + n]
        self._at += len(data)
        self._given += len(data)
        return data

    def read1(self, size: int = -1, /) -> bytes:
        """What is at hand, at most size bytes; b"" at the end; raises BrokenStream where it breaks off."""
        if size == 0:
            return b""
        if not self._fill() and self._error is not None:
            raise self._error
        return self._take(len(self._chunk) if size < 0 else size)

    def read(self, size: int | None = -1, /) -> bytes:
        """Size bytes, fewer at the end or before a broken place; the next call then raises BrokenStream.

        Without a size everything is read, and a broken stream raises at once.
        """
        everything = size is None or size < 0
        wanted = -1 if size is None else size
        parts: list[bytes] = []
        while everything or wanted > 0:
            if parts and not everything and not self._fill():
                break
            part = self.read1(wanted)
            if not part:
                break
            parts.append(part)
            wanted -= 0 if everything else len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def readinto1(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read1(len(view))
        view[: len(data)] = data
        return len(data)

    def peek(self, size: int = 0, /) -> bytes:
        """Bytes at hand without taking them (at least one, unless at the end or at a broken place)."""
        return self._chunk[self._at :] if self._fill() else b""


def open_stream(raw: BinaryIO, name: str) -> Stream:
    """Unpack `raw` by its first bytes: .zst (window up to 2^31), .xz, .bz2, .gz, in many members, or plain.

    raw needs only `read(n)`; closing the stream closes it. About 0.5 MiB is held beside the decoder's own
    window. A truncated stream gives every byte that can be unpacked, a corrupt one all but at most the last
    128 KiB; then reading raises BrokenStream, which names `name` (the input's relative name) and the offsets.
    """
    return Stream(raw, name)
