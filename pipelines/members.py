"""A web archive's file as one stream of unpacked bytes that remembers where each compressed member began.

Archives are plain, gzip (a member per record, or one for the whole file), lz4 or zstd. More than speed it matters
here to know where a record lies and what was lost: a stretch that could not be unpacked leaves a `Break`, and
reading goes on at the next member that unpacks to the start of a record. The first bytes decide what a file is,
never its name.

gzip goes through zlib, not FastWARC's reader, which is faster (900 against 550 MB/s unpacked) but gives a cut gzip
member as if it were whole. Formats: RFC 1952 (gzip), RFC 8878 (zstd), the LZ4 frame format 1.6, the IIPC's
"Zstandard compression for WARC files" 1.0.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

CHUNK = 1 << 16
STEP = 1 << 18
"""Most bytes unpacked before they are handed on: a bomb costs only what is read of it."""
TRIAL = 1 << 16
"""What one look at a possible member costs of the budget for looking back."""

GZIP = b"\x1f\x8b\x08"
LZ4 = b"\x04\x22\x4d\x18"
ZSTD = b"\x28\xb5\x2f\xfd"
ZSTD_DICTIONARY = b"\x5d\x2a\x4d\x18"
MAX_ZSTD_WINDOW = 1 << 27
MAX_DICTIONARY = 16 << 20

_WARC_START = rb"WARC/[01]\.\d{1,2}[ \t]*\r?\n[A-Za-z][A-Za-z0-9-]*[ \t]*:"
_ARC_START = rb"[a-zA-Z][a-zA-Z0-9+.-]*:[^\r\n]{0,4096} [0-9a-fA-F.:]{3,45} (?:\d{8,18}|null|-) [^\r\n]{1,512}\r?\n"
RECORD_START = re.compile(_WARC_START + rb"|" + _ARC_START)
"""The first line of a WARC record with the name of its first field, or the header line of an ARC record."""
_WARC_SEARCH = re.compile(_WARC_START)
_ARC_SEARCH = re.compile(rb"\n" + _ARC_START)
MAX_START = 8192


@dataclass(frozen=True)
class Break:
    """Bytes of the file that could not be unpacked, met at `position` of the unpacked stream.

    offset: in the file, of the member that is broken. reason: "truncated" (the file ends inside it) or "corrupt".
    """

    position: int
    offset: int
    reason: str
    detail: str


Piece = bytes | int | Break
"""What an unpacker hands on: unpacked bytes, the file offset of a member that begins here, or a break."""


class Unpacked:
    """A window over the unpacked bytes of a seekable stream. Positions count from the start of the unpacked stream.

    members: (position, file offset) of each compressed member from the window on; breaks: those not yet taken; size:
    of the stream where the file is plain, None where it is packed and only reading it through would tell.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.window = bytearray()
        self.base = 0
        self.members: deque[tuple[int, int]] = deque()
        self.breaks: deque[Break] = deque()
        self.done = False
        self.endless_until = 0
        """No header that begins before ends before this position: it was looked for."""
        self._stream = stream
        self._pieces, self.size = _unpack(stream)

    @property
    def end(self) -> int:
        """Position after the last byte unpacked so far."""
        return self.base + len(self.window)

    def fill(self, position: int) -> bool:
        """Unpack until the window reaches `position`; False when the stream ends before."""
        while self.end < position and not self.done:
            piece = next(self._pieces, None)
            if piece is None:
                self.done = True
            elif isinstance(piece, int):
                self.members.append((self.end, piece))
            elif isinstance(piece, Break):
                self.breaks.append(replace(piece, position=self.end))
            else:
                self.window += piece
        return self.end >= position

    def read(self, start: int, end: int) -> bytes:
        """The unpacked bytes between two positions, as far as the window holds them."""
        with memoryview(self.window) as view:
            return bytes(view[max(0, start - self.base) : max(0, end - self.base)])

    def drop(self, position: int) -> None:
        """Forget what lies before `position`."""
        keep = min(position, self.end) - self.base
        if keep > 1 << 20 and keep * 2 > len(self.window):
            del self.window[:keep]
            self.base += keep
        while len(self.members) > 1 and self.members[1][0] <= position:
            self.members.popleft()

    def ahead(self, position: int) -> bytes:
        """A few bytes at any position of a plain file, without those before it; b"" beyond its end."""
        if self.size is None:
            raise ValueError("a packed file is read in order alone")
        at = self._stream.tell()
        self._stream.seek(min(position, self.size))
        found = self._stream.read(MAX_START)
        self._stream.seek(at)
        return found

    def offset(self, position: int) -> int:
        """Where a record that starts at `position` is found again: the file offset of its member if it opens one,
        else its position in the unpacked stream, which for a plain file is its offset."""
        for start, offset in self.members:
            if start == position:
                return offset
        return position

    def find_start(self, position: int, end: int | None = None) -> int | None:
        """Position of the first record header that starts in [position, end), or None; forgets what it passed
        when `end` is not given."""
        if end is not None:
            self.fill(end + MAX_START)
            return self._search(position, end)
        while True:
            self.fill(max(self.end, position) + 1)
            found = self._search(position, self.end)
            if found is not None or self.done:
                return found
            position = max(position, self.end - MAX_START)
            self.drop(position)

    def _search(self, position: int, end: int) -> int | None:
        found = find_record_start(self.window, max(0, position - self.base), end - self.base)
        return None if found is None else self.base + found


def find_record_start(data: bytes | bytearray, start: int, end: int) -> int | None:
    """Where the first record header begins in data[start:end]; its line may go on beyond. An ARC header begins a
    line. In steps, so that the cost is in proportion to the way to what is found."""
    for at in range(start, end, CHUNK):
        stop = min(at + CHUNK, end)
        warc = _WARC_SEARCH.search(data, at, stop + MAX_START)
        arc = _ARC_SEARCH.search(data, max(0, at - 1), warc.start() if warc else stop + MAX_START)
        starts = [warc.start()] if warc else []
        starts += [arc.start() + 1] if arc else []
        if starts and min(starts) < stop:
            return min(starts)
    return None


def _unpack(stream: BinaryIO) -> tuple[Iterator[Piece], int | None]:
    """The pieces of a file, and its size if it is plain."""
    source = _Packed(stream)
    head = source.peek(MAX_START)
    if head.startswith(GZIP[:2]):
        return _walk(source, GZIP, _gzip_member), None
    if head.startswith(LZ4):
        return _walk(source, LZ4, _lz4_frame), None
    if head.startswith((ZSTD, ZSTD_DICTIONARY)):
        return _walk(source, ZSTD, _zstd_unpacker(source)), None
    known = find_record_start(b"\n" + head, 0, len(head) + 1) is not None
    return _plain(source) if known else _plain_or_damaged(source)


def _plain(source: _Packed) -> tuple[Iterator[Piece], int]:
    return iter(source.take, b""), source.size


def _plain_or_damaged(source: _Packed) -> tuple[Iterator[Piece], int | None]:
    """A file that begins as nothing known: packed, if one of its first places that look like a member is one."""
    for magic, unpack in ((GZIP, _gzip_member), (LZ4, _lz4_frame), (ZSTD, _zstd_unpacker(source))):
        at = 0
        for _ in range(8):
            found = _find(source, magic, at)
            if found is None:
                break
            if _opens_record(source, found, unpack):
                source.seek(0)
                return _walk(source, magic, unpack), None
            at = found + 1
    source.seek(0)
    return _plain(source)


class _Broken(Exception):
    """A member cannot be unpacked: reason, detail."""


class _Packed:
    """The packed file read in blocks, with what a member did not use given back."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.size = stream.seek(0, io.SEEK_END)
        self.seek(0)

    def seek(self, offset: int) -> None:
        self.stream.seek(offset)
        self.at, self.pending = offset, b""

    def take(self, n: int = CHUNK) -> bytes:
        """The next block of at most `n` bytes; empty at the end of the file."""
        block = self.pending or self.stream.read(CHUNK)
        block, self.pending = block[:n], block[n:]
        self.at += len(block)
        return block

    def give_back(self, rest: bytes) -> None:
        self.pending = rest + self.pending
        self.at -= len(rest)

    def peek(self, n: int) -> bytes:
        while len(self.pending) < n and (more := self.stream.read(CHUNK)):
            self.pending += more
        return self.pending[:n]


def _walk(source: _Packed, magic: bytes, unpack: Callable[[_Packed], Iterator[bytes]]) -> Iterator[Piece]:
    """Members one after another; after a broken one, the next place that unpacks to the start of a record.

    A broken member may have run over the start of the next one, so the search begins inside it. Looking back is
    paid from a budget of twice the file: no file, however made, takes more than linear time.
    """
    budget = 2 * source.size + 256 * TRIAL
    while head := source.peek(len(magic)):
        start = source.at
        try:
            if head != magic and _only_zeros(source):
                return
            if head != magic:
                raise _Broken("corrupt", f"no compressed member at byte {start}")
            yield start
            yield from unpack(source)
        except _Broken as error:
            reason, detail = error.args
            yield Break(-1, start, reason, detail)
            budget -= source.at - start
            at = start + 1 if budget > 0 else source.at
            while True:
                found = _find(source, magic, at)
                if found is None:
                    return
                opens = _opens_record(source, found, unpack)
                budget -= TRIAL + max(0, source.at - found)
                if budget < -256 * TRIAL:
                    yield Break(-1, found, "corrupt", "too many places that look like a member: the rest is not read")
                    return
                if opens:
                    break
                at = found + 1
            source.seek(found)


def _only_zeros(source: _Packed) -> bool:
    """Whether the file ends in zero bytes from here on, the padding that block writers leave; stays here if not."""
    at = source.at
    while block := source.take():
        if block.strip(b"\0"):
            source.seek(at)
            return False
    return True


def _find(source: _Packed, magic: bytes, at: int) -> int | None:
    while True:
        source.stream.seek(at)
        block = source.stream.read(CHUNK)
        found = block.find(magic)
        if found >= 0:
            return at + found
        if len(block) < len(magic):
            return None
        at += len(block) - len(magic) + 1


def _opens_record(source: _Packed, offset: int, unpack: Callable[[_Packed], Iterator[bytes]]) -> bool:
    source.seek(offset)
    head = b""
    try:
        for piece in unpack(source):
            head += piece
            if len(head) > MAX_START:
                break
    except _Broken:
        pass  # what it gave before it broke decides
    return RECORD_START.match(head) is not None


def _gzip_member(source: _Packed) -> Iterator[bytes]:
    start, given, block = source.at, 0, b""
    inflater = zlib.decompressobj(31)
    while not inflater.eof:
        block = block or source.take()
        if not block:
            raise _Broken("truncated", f"the file ends inside the gzip member at byte {start}")
        try:
            data = inflater.decompress(block, STEP)
        except zlib.error as error:
            at = source.at
            yield _salvage(source, start, at - len(block), at, given)
            source.seek(at)
            raise _Broken("corrupt", f"gzip member at byte {start}: {error}") from None
        given += len(data)
        yield data
        block = inflater.unconsumed_tail
    source.give_back(inflater.unused_data)


def _salvage(source: _Packed, start: int, failed: int, end: int, given: int) -> bytes:
    """The last good bytes of a broken member. zlib loses the output of the call that fails, so that the block which
    failed, [failed, end) of the file, is fed again byte by byte; the first `given` bytes are known already."""
    source.seek(start)
    inflater = zlib.decompressobj(31)
    made, fresh = 0, bytearray()
    try:
        while source.at < end and len(fresh) < STEP:
            before = source.at < failed
            packed = source.take(failed - source.at if before else end - source.at)
            for block in (packed,) if before else (packed[i : i + 1] for i in range(len(packed))):
                while block and not inflater.eof:
                    data = inflater.decompress(block, STEP)
                    fresh += data[max(0, given - made) :]
                    made += len(data)
                    block = inflater.unconsumed_tail
    except zlib.error:
        pass  # the byte that breaks it: the caller reports the break
    return bytes(fresh)


class _Span(io.RawIOBase):
    """The bytes of a file between two offsets, as a file of its own."""

    def __init__(self, stream: BinaryIO, start: int, end: int) -> None:
        self.stream, self.start, self.at, self.stop = stream, start, start, end

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = (self.start, self.at, self.stop)[whence]
        self.at = min(max(origin + offset, self.start), self.stop)
        return self.at - self.start

    def tell(self) -> int:
        return self.at - self.start

    def read(self, size: int = -1) -> bytes:
        self.stream.seek(self.at)
        data = self.stream.read(self.stop - self.at if size < 0 else min(size, self.stop - self.at))
        self.at += len(data)
        return data


def _lz4_frame(source: _Packed) -> Iterator[bytes]:
    """One LZ4 frame: its extent from its block sizes, its content from FastWARC's reader."""
    from fastwarc.stream_io import Lz4Reader

    start = source.at
    end, whole = _lz4_frame_end(source.stream, start)
    source.seek(end)
    reader = Lz4Reader(_Span(source.stream, start, end))
    try:
        while data := reader.read(CHUNK):
            yield data
    except OSError as error:
        if whole:
            raise _Broken("corrupt", f"lz4 frame at byte {start}: {error}") from None
    finally:
        source.seek(end)
    if not whole:
        raise _Broken("truncated", f"the file ends inside the lz4 frame at byte {start}")


def _lz4_frame_end(stream: BinaryIO, start: int) -> tuple[int, bool]:
    """File offset after the LZ4 frame at `start`, and whether the frame is whole."""
    stream.seek(start)
    head = stream.read(6)
    flags = head[4] if len(head) > 4 else 0
    at = start + 7 + (8 if flags & 0x08 else 0) + (4 if flags & 0x01 else 0)
    while True:
        stream.seek(at)
        size = stream.read(4)
        if len(size) < 4:
            return stream.seek(0, io.SEEK_END), False
        length = struct.unpack("<I", size)[0] & 0x7FFFFFFF
        at += 4
        if length == 0:
            at += 4 if flags & 0x04 else 0
            total = stream.seek(0, io.SEEK_END)
            return min(at, total), at <= total
        at += length + (4 if flags & 0x10 else 0)


def _zstd_unpacker(source: _Packed) -> Callable[[_Packed], Iterator[bytes]]:
    """How this file's frames are unpacked: a leading skippable frame holds their dictionary, if they need one."""
    import zstandard

    dictionary = _zstd_dictionary(source) if source.peek(4) == ZSTD_DICTIONARY else b""
    decompressor = zstandard.ZstdDecompressor(
        zstandard.ZstdCompressionDict(dictionary) if dictionary else None, max_window_size=MAX_ZSTD_WINDOW
    )

    def frame(source: _Packed) -> Iterator[bytes]:
        start = source.at
        unpacker = decompressor.decompressobj()
        while not unpacker.eof:
            block = source.take(1024)  # a kilobyte unpacks to at most some 30 MB
            if not block:
                raise _Broken("truncated", f"the file ends inside the zstd frame at byte {start}")
            try:
                yield unpacker.decompress(block)
            except zstandard.ZstdError as error:
                raise _Broken("corrupt", f"zstd frame at byte {start}: {error}") from None
        source.give_back(unpacker.unused_data)

    return frame


def _zstd_dictionary(source: _Packed) -> bytes:
    """The dictionary in the leading skippable frame, itself perhaps compressed; empty if it cannot be read, and
    then every frame that needs it breaks and says so."""
    import zstandard

    size = int.from_bytes(source.peek(8)[4:8], "little")
    source.take(8)
    if size > MAX_DICTIONARY:
        return b""
    data = source.peek(size)[:size]
    source.seek(min(source.at + size, source.size))
    if not data.startswith(ZSTD):
        return data
    try:
        unpacker = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW)
        unpacked: bytes = unpacker.decompress(data, MAX_DICTIONARY)
    except zstandard.ZstdError:
        return b""
    return unpacked
