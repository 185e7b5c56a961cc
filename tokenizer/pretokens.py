"""GPT-2's pretokens, found in bulk over bytes.

The pattern is the one of GPT-2's `encoder.py`:

    's|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+

Read as a rule about borders, it looks no further than a character back and three ahead:

- a pretoken starts where the class of character (letter, number, other, space) changes, except that a blank (U+0020)
  before a non-space belongs to what follows;
- the last character of a run of white space starts a pretoken when a non-space follows in the same document;
- an apostrophe that starts a pretoken and is followed by s, t, m, d, re, ve or ll ends after these letters;
- a document starts a pretoken.

So a text is cut into windows anywhere and a few arrays per window hold everything; nothing is done per word in
Python.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tokenizer.classes import LETTER, OTHER, SPACE, code_point_classes

WINDOW: Final = 1 << 20  # bytes handled at once: the temporaries stay in the cache
MARGIN: Final = 16  # bytes around a window that can decide what happens inside it (7 back, 6 ahead)
PADDING: Final = 8  # bytes after the text, so that eight bytes can be read at every place in it

Bytes = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]
Texts: TypeAlias = pa.Array | pa.ChunkedArray | Sequence[str]


@dataclass(frozen=True)
class Pretokens:
    """The pretokens of about a megabyte of text, in order; documents may begin and end anywhere in it.

    `text` uint8[b + PADDING]; `borders` int64[p + 1], where each pretoken starts and the last one ends; `ends`
    int64[d], for each document that ends here, the number of pretokens before its end.
    """

    text: Bytes
    borders: Ints
    ends: Ints

    @property
    def count(self) -> int:
        return len(self.borders) - 1


def find_pretokens(texts: Texts, window: int = WINDOW) -> Iterator[Pretokens]:
    """All pretokens of `texts` (strings, no nulls) in order. The memory needed beside the texts is a few times
    `window`, or the longest pretoken. Raises ValueError for another type, a null or bytes that are not UTF-8."""
    for array in _string_arrays(texts):
        text, offsets = _buffers(array)
        yield from _windows(text, offsets, window)


def _string_arrays(texts: Texts) -> list[pa.Array]:
    if not isinstance(texts, pa.Array | pa.ChunkedArray):
        try:
            texts = pa.array(texts, pa.large_string())
        except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError) as error:
            raise ValueError(f"texts must be strings that are valid Unicode: {error}") from error
    if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
        raise ValueError(f"texts must be of type string or large_string, not {texts.type}")
    if texts.null_count:
        row = texts.is_null().index(True).as_py()
        raise ValueError(f"row {row} is null; texts must not be null (an unknown text is an empty one)")
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid as error:
        raise ValueError(f"texts must be valid UTF-8: {error}") from error
    return list(texts.chunks) if isinstance(texts, pa.ChunkedArray) else [texts]


def _buffers(array: pa.Array) -> tuple[Bytes, Ints]:
    """The bytes of a string array and its int64[d + 1] offsets into them; neither is copied where it need not be."""
    wide = pa.types.is_large_string(array.type)
    _, offsets, values = array.buffers()
    if not len(array) or offsets is None:
        return np.empty(0, np.uint8), np.zeros(1, np.int64)
    borders = np.frombuffer(offsets, np.int64 if wide else np.int32)[array.offset : array.offset + len(array) + 1]
    text = np.empty(0, np.uint8) if values is None else np.frombuffer(values, np.uint8)
    return text[: borders[-1]], borders.astype(np.int64)


def _windows(text: Bytes, offsets: Ints, window: int) -> Iterator[Pretokens]:
    """Cuts the documents of one array into batches of whole pretokens."""
    place, end, document = int(offsets[0]), int(offsets[-1]), 1
    while document < len(offsets):
        borders = _next_borders(text, offsets, place, window)
        stop = int(borders[-1])
        last = len(offsets) if stop == end else int(np.searchsorted(offsets, stop, "right"))
        ends = np.searchsorted(borders, offsets[document:last])
        padded = np.zeros(stop - place + PADDING, np.uint8)
        padded[:-PADDING] = text[place:stop]
        yield Pretokens(padded, borders - place, ends)
        place, document = stop, last


def _next_borders(text: Bytes, offsets: Ints, place: int, window: int) -> Ints:
    """The starts of the pretokens from `place` (one starts there) on, as far as a window reaches, and the end of the
    last. A pretoken longer than the window is followed to its end, window by window."""
    end = int(offsets[-1])
    found: list[Ints] = []
    low = place
    while low < end:
        high = min(low + window, end)
        starts = _starts_between(text, offsets, low, high)
        found.append(starts)
        if high < end and starts.size and starts[-1] > place:
            return np.concatenate(found)  # the last start closes this batch and opens the next
        low = high
    return np.concatenate([*found, np.array([end], np.int64)])


def _starts_between(text: Bytes, offsets: Ints, low: int, high: int) -> Ints:
    """The places in [low, high) where a pretoken starts."""
    left, right = max(int(offsets[0]), low - MARGIN), min(int(offsets[-1]), high + MARGIN)
    edges = offsets[np.searchsorted(offsets, left) : np.searchsorted(offsets, right, "right")] - left
    flags = start_flags(text[left:right], edges)
    return np.flatnonzero(flags[low - left : high - left]) + low


def start_flags(text: Bytes, edges: Ints) -> Flags:
    """bool[b]: whether a pretoken starts at each byte of `text`, with documents beginning at `edges` (sorted, within
    0..b). Bytes of one character are all of its class, so the rules on characters are rules on neighbouring bytes."""
    size = len(text)
    kind = _byte_classes(text)
    space = kind == SPACE
    start = np.zeros(size + 4, bool)
    if size:
        np.not_equal(kind[1:], kind[:-1], out=start[1:size])
        start[1:size] &= ~((text[:-1] == 0x20) & ~space[1:])
        _start_last_spaces(text, space[:-1] & ~space[1:], start)
        _start_documents(text, kind, edges, start)
        _end_contractions(text, kind, edges, start)
    return start[:size]


def _byte_classes(text: Bytes) -> Bytes:
    """uint8[b]: for each byte the class of the character it is part of."""
    table = code_point_classes()
    kind = np.frombuffer(text.tobytes().translate(_ascii_table()), np.uint8)
    if text.size and text.max() >= 0x80:
        padded = np.concatenate([text, np.zeros(3, np.uint8)])
        grown = np.concatenate([kind, np.zeros(3, np.uint8)])
        for first, beyond, tail in ((0xC0, 0xE0, 1), (0xE0, 0xF0, 2), (0xF0, 0x100, 3)):
            lead = np.flatnonzero((text >= first) & (text < beyond))
            point = (padded[lead] & (0x3F >> tail)).astype(np.int32)
            for step in range(1, tail + 1):
                point = (point << 6) | (padded[lead + step] & 0x3F)
            found = table[point]
            for step in range(tail + 1):
                grown[lead + step] = found
        kind = grown[: len(text)]
    return kind


def _ascii_table() -> bytes:
    return code_point_classes()[:128].tobytes() + bytes([OTHER]) * 128


def _start_last_spaces(text: Bytes, last: Flags, start: Flags) -> None:
    """`last`: bytes of white space before a non-space; their characters start a pretoken."""
    start[: len(last)] |= last
    wide = np.flatnonzero(last & (text[:-1] >= 0x80))
    start[wide] = False
    start[_first_byte(text, wide)] = True


def _first_byte(text: Bytes, place: Ints) -> Ints:
    """Where the character of white space that ends at `place` begins: it has at most three bytes."""
    back = place - ((text[place] & 0xC0) == 0x80)
    first: Ints = np.maximum(back - ((text[back] & 0xC0) == 0x80), 0)
    return first


def _start_documents(text: Bytes, kind: Bytes, edges: Ints, start: Flags) -> None:
    """White space at the end of a document is one pretoken, whatever the next document begins with."""
    inner = edges[(edges > 0) & (edges < len(text))]
    ended = inner[(kind[inner - 1] == SPACE) & (kind[inner] != SPACE)]
    last = _first_byte(text, ended - 1)
    start[last] = (last > 0) & (kind[last - 1] != SPACE)
    start[inner] = True
    start[0] = True


def _end_contractions(text: Bytes, kind: Bytes, edges: Ints, start: Flags) -> None:
    place = np.flatnonzero(text == 0x27)
    if not place.size:
        return
    edge = np.zeros(len(text) + 4, bool)
    edge[edges] = True
    edge[0] = True
    before = np.maximum(place - 1, 0)
    place = place[edge[place] | ((kind[before] != OTHER) & (text[before] != 0x20))]
    padded = np.concatenate([text, np.zeros(3, np.uint8)])
    one, two = padded[place + 1], padded[place + 2]
    short = (one == ord("s")) | (one == ord("t")) | (one == ord("m")) | (one == ord("d"))
    long = ((one == ord("r")) | (one == ord("v"))) & (two == ord("e")) | (one == ord("l")) & (two == ord("l"))
    short &= ~edge[place + 1]
    long &= ~edge[place + 1] & ~edge[place + 2]
    start[place[short | long] + 1] = False
    start[place[short] + 2] = True
    start[place[long] + 3] = True


_MASKS: Final = np.array([(1 << (8 * size)) - 1 for size in range(9)], np.uint64)
_MIX: Final = np.uint64(0x9E3779B97F4A7C15)
_STEP: Final = np.uint64(0xD6E8FEB86659FD93)
_HALF: Final = np.uint64(32)
_LONG: Final = np.uint64(0xFF << 56)
KEYED: Final = 64  # bytes of a long pretoken that shape its key, besides its last eight and its length


def eight_bytes(text: Bytes) -> Keys:
    """uint64[b + 1]: the eight bytes from each place in a text that `PADDING` bytes follow, as one number."""
    return np.ndarray((len(text) - PADDING + 1,), np.uint64, buffer=text.data, strides=(1,))


def find_keys(pretokens: Pretokens) -> Keys:
    """uint64[p]: one key a pretoken. Up to seven bytes the key is the bytes with their number on top, and exact;
    beyond, it is a mixture whose top byte is 0xFF, and equal keys are equal bytes only if a comparison says so."""
    word = eight_bytes(pretokens.text)
    first = pretokens.borders[:-1]
    size = np.diff(pretokens.borders)
    keys = word[first] & _MASKS[np.minimum(size, 8)]
    keys |= size.astype(np.uint64) << np.uint64(56)
    long = np.flatnonzero(size > 7)
    if long.size:
        keys[long] = _mixed_keys(word, first[long], size[long])
    return keys


def _mixed_keys(word: Keys, first: Ints, size: Ints) -> Keys:
    mixed = (word[first] + size.astype(np.uint64)) * _MIX
    mixed ^= mixed >> _HALF
    mixed = (mixed ^ word[first + size - 8]) * _STEP
    mixed ^= mixed >> _HALF
    active = np.flatnonzero(size > 16)  # up to 16 bytes the first and last eight are all there are
    place = 8
    while active.size and place < KEYED:
        mixed[active] = (mixed[active] ^ word[first[active] + place]) * _STEP
        mixed[active] ^= mixed[active] >> _HALF
        place += 8
        active = active[size[active] > place + 8]
    mixed *= _MIX
    mixed ^= mixed >> _HALF
    keys: Keys = mixed | _LONG
    return keys


def is_word(tokens: Sequence[bytes]) -> Flags:
    """bool[n]: whether each pretoken is a word, that is, made of letters after its blank if it has one."""
    table = code_point_classes()
    stripped = [token[1:] if token[:1] == b" " and len(token) > 1 else token for token in tokens]
    heads = [token.decode("utf-8", "replace")[:1] for token in stripped]
    return np.array([bool(head) and table[ord(head)] == LETTER for head in heads], bool)
