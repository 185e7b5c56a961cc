"""Words and word n-grams of any Unicode text, a megabyte at a time, one 64-bit key for each.

Near duplicates, contamination and Wikipedia overlap all ask the same question (which runs of n words do two
texts share?), so they share one answer. No Python object is made per word: a few passes over the UTF-8 bytes find
the words, a few gathers make their keys, prefix sums make the n-grams.

The normalisation (GPT-3's observable one: an apostrophe separates, "didn't" is "didn t"):

* A word begins at a letter or number (Unicode categories L*, N*) and goes on over letters, numbers and marks (M*).
  Every other character separates: white space, punctuation, symbols, "_", soft hyphens, zero-width joiners.
  "1,000" is two words. A mark that follows no letter or number belongs to no word.
* Each code point is folded on its own by Unicode's simple case folding (CaseFolding.txt, status C and S), so casing
  that would change the number of characters does not: "ß" stays and "ẞ" becomes "ß", neither becomes "ss"; "ς"
  becomes "σ", the Kelvin sign "k"; "İ", which simple folding leaves alone, becomes its lower case "i"; "ı" stays.
* Nothing is composed or decomposed: "é" and "e" + U+0301 are different words. Digits of different scripts differ.
* A word ends after LONGEST_WORD bytes of UTF-8 at the latest, on a character border, and the next may begin there,
  so a text without a space is bounded too. Scripts without spaces give one word per run between punctuation.

Keys. A word of up to 8 folded bytes is its own key (mixed by a bijection), so such words never collide; longer ones
are hashed. An n-gram's key is the polynomial of its word keys in an odd constant modulo 2^64, mixed: two given
n-grams that differ collide with probability about 2^-64 (at worst 2^-55 for alternating permutations of the same
two words, because differences of powers of an odd number are even). Among g distinct n-grams expect g^2 / 2^65
collisions: 0.03 for 10^9. Whatever is reported to a user is therefore verified by comparing words (`gram_text`).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Texts: TypeAlias = pa.Array | pa.ChunkedArray | Sequence[str]
U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

UNICODE_VERSION = unicodedata.unidata_version
"""Unicode version of the character table. Stages that use n-grams put it into their fingerprint."""

LONGEST_WORD = 256
LONGEST_GRAM = 64
PIECE = 1 << 20

_OTHER, _WORD, _MARK = 0, 1, 2
_GRAM_BASE = 0xD1342543DE82EF95
_MIX = np.uint64(0xD6E8FEB86659FD93)
_MIX_GRAM = np.uint64(0xFF51AFD7ED558CCD)
_THIRTY_TWO = np.uint64(32)


@dataclass(frozen=True)
class Words:
    """The words of a batch of documents.

    keys: uint64[w]; start, end: int64[w], byte offsets in `text`; documents: int64[d+1], word index borders, so that
    document i has words documents[i]:documents[i+1]; text: uint8[b], the UTF-8 bytes of all documents one after the
    other; text_offsets: int64[d+1], their borders.
    """

    keys: U64
    start: I64
    end: I64
    documents: I64
    text: U8
    text_offsets: I64


@dataclass(frozen=True)
class Grams:
    """The n-grams of a batch; none crosses documents. keys: uint64[g]; first: int64[g], index of its first word in
    `Words`; documents: int64[d+1], gram index borders."""

    keys: U64
    first: I64
    documents: I64


@dataclass(frozen=True)
class Piece:
    """Some whole documents, or a part of one long document.

    `row` is the first document's number among the texts, `offset` how many of its bytes came before this piece.
    N-grams whose first word is at or after `own` are also in the next piece and counted there. `text_offsets` of
    `words` are relative to this piece.
    """

    row: int
    offset: int
    own: int
    words: Words


def find_words(texts: Texts) -> Words:
    """All words of `texts` (a string array or a sequence of str; null counts as empty), in order.

    Fastest for about a megabyte at a time. Longer batches are worked through in pieces of a megabyte, so beside the
    result (24 bytes a word) memory stays bounded.
    """
    text, offsets = text_buffer(texts)
    return _words(text, offsets)


def find_grams(words: Words, n: int) -> Grams:
    """All n-grams of `words` by document; documents of fewer than n words have none. 1 <= n <= 64."""
    if not 1 <= n <= LONGEST_GRAM:
        raise ValueError(f"n must be in 1..{LONGEST_GRAM}, not {n}")
    size = np.diff(words.documents)
    per_document = np.maximum(size - (n - 1), 0)
    borders = np.zeros(len(size) + 1, np.int64)
    np.cumsum(per_document, out=borders[1:])
    if borders[-1] == 0:
        return Grams(np.empty(0, np.uint64), np.empty(0, np.int64), borders)
    keys = _gram_keys(words.keys, n)
    first = np.arange(len(keys), dtype=np.int64)
    if len(size) > 1:
        whole = np.repeat(words.documents[1:] - n, size)[: len(keys)] >= first
        keys, first = keys[whole], first[whole]
    return Grams(keys, first, borders)


def pieces(texts: Texts, n: int, size: int = PIECE) -> Iterator[Piece]:
    """Walks `texts` in bounded memory: whole documents up to `size` bytes together, a longer document alone in
    overlapping pieces, such that every n-gram of up to `n` words begins before `own` in exactly one piece."""
    text, offsets = text_buffer(texts)
    row, count = 0, len(offsets) - 1
    while row < count:
        last = int(np.searchsorted(offsets, offsets[row] + size, side="right")) - 1
        if last > row:
            words = _words(text[offsets[row] : offsets[last]], offsets[row : last + 1] - offsets[row])
            yield Piece(row, 0, len(words.keys), words)
            row = last
        else:
            yield from _pieces_of_one(text[offsets[row] : offsets[row + 1]], row, n, size)
            row += 1


def gram_text(words: Words, first: int, n: int) -> str:
    """The n words from word `first`, normalised, one blank between them: what equality of n-grams means."""
    start, end = int(words.start[first]), int(words.end[first + n - 1])
    raw = words.text[start:end].tobytes()
    borders = zip(words.start[first : first + n].tolist(), words.end[first : first + n].tolist(), strict=True)
    return _fold_bytes(b" ".join([raw[i - start : j - start] for i, j in borders]))


def gram_texts(words: Words, first: I64, n: int) -> list[str]:
    """`gram_text` of many n-grams at once."""
    if not len(first):
        return []
    begin, end = int(first.min()), int(first.max()) + n
    if end - begin > 8 * n * len(first):
        return [gram_text(words, index, n) for index in first.tolist()]
    length = words.end[begin:end] - words.start[begin:end]
    blank = np.cumsum(length + 1) - 1
    place = np.repeat(words.start[begin:end] - (blank - length), length + 1) + np.arange(int(blank[-1]) + 1)
    joined = np.take(words.text, place, mode="clip")
    joined[blank] = 32
    folded = _fold_bytes(joined[:-1].tobytes()).split(" ")
    return [" ".join(folded[index : index + n]) for index in (first - begin).tolist()]


def fold(text: str) -> str:
    """`text` with every code point folded as in the module's rule."""
    return text.translate(_fold_dict())


def _fold_bytes(raw: bytes) -> str:
    return raw.lower().decode("ascii") if raw.isascii() else fold(raw.decode("utf-8", "replace"))


class Index:
    """Finds keys among a fixed set in bulk: a bitmap turns nearly all away, an open-addressing table does the rest.

    `keys` is uint64[k], in any order; of equal keys the first counts. Takes 26 to 52 bytes a key.
    """

    def __init__(self, keys: U64) -> None:
        keys = np.ascontiguousarray(keys, np.uint64)
        bits = max(4, int(max(1, len(keys)) * 1.6).bit_length())
        self._slot_shift = np.uint64(64 - bits)
        self._last = np.int64((1 << bits) - 1)
        self._keys = np.zeros(1 << bits, np.uint64)
        self._positions: I64 = np.full(1 << bits, -1, np.int64)
        bitmap_bits = min(bits + 4, 33)
        self._bit_shift = np.uint64(64 - bitmap_bits)
        self._bitmap = np.zeros(1 << (bitmap_bits - 3), np.uint8)
        self._insert(keys)

    def find(self, keys: U64) -> I64:
        """Position in the index's keys for each of `keys` (uint64[g]), -1 where absent: int64[g]."""
        found = np.full(len(keys), -1, np.int64)
        bit = keys >> self._bit_shift
        byte = np.take(self._bitmap, (bit >> np.uint64(3)).view(np.int64))
        maybe = np.flatnonzero((byte >> (bit.astype(np.uint8) & np.uint8(7))) & np.uint8(1))
        if len(maybe):
            wanted = keys[maybe]
            slot = (wanted >> self._slot_shift).astype(np.int64)
            while len(maybe):
                position = self._positions[slot]
                same = (self._keys[slot] == wanted) & (position >= 0)
                found[maybe[same]] = position[same]
                on = np.flatnonzero(~same & (position >= 0))
                maybe, wanted, slot = maybe[on], wanted[on], (slot[on] + 1) & self._last
        return found

    def _insert(self, keys: U64) -> None:
        bit = keys >> self._bit_shift
        np.bitwise_or.at(
            self._bitmap, (bit >> np.uint64(3)).astype(np.int64), np.uint8(1) << (bit.astype(np.uint8) & np.uint8(7))
        )
        todo = np.arange(len(keys), dtype=np.int64)
        slot = (keys >> self._slot_shift).astype(np.int64)
        while len(todo):
            # Of several that want one free slot the first wins: assigned in reverse order, the first is written last.
            free = self._positions[slot] < 0
            self._positions[slot[free][::-1]] = todo[free][::-1]
            won = self._positions[slot] == todo
            self._keys[slot[won]] = keys[todo[won]]
            rest = ~won & (self._keys[slot] != keys[todo])
            todo, slot = todo[rest], (slot[rest] + 1) & self._last


def text_buffer(texts: Texts) -> tuple[U8, I64]:
    """The UTF-8 bytes of all texts in one array (no copy where Arrow allows) and their int64 borders."""
    array = _string_array(texts)
    if len(array) == 0:
        return np.empty(0, np.uint8), np.zeros(1, np.int64)
    _, offset_buffer, data = array.buffers()
    wide = pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
    stored = np.frombuffer(offset_buffer, np.int64 if wide else np.int32)
    offsets = stored[array.offset : array.offset + len(array) + 1].astype(np.int64)
    if data is None:
        return np.empty(0, np.uint8), offsets - offsets[0]
    return np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]], offsets - offsets[0]


def _string_array(texts: Texts) -> pa.Array:
    if isinstance(texts, pa.ChunkedArray):
        chunks = [_string_array(chunk).cast(pa.large_string()) for chunk in texts.chunks]
        return pa.concat_arrays(chunks) if chunks else pa.array([], pa.large_string())
    array = texts if isinstance(texts, pa.Array) else pa.array(texts, pa.large_string())
    if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
        array = array.cast(pa.large_string())
    return array.fill_null("") if array.null_count else array


def _pieces_of_one(text: U8, row: int, n: int, size: int) -> Iterator[Piece]:
    begin, length = 0, size
    while True:
        end = min(begin + length, len(text))
        words = _words(text[begin:end], np.array([0, end - begin], np.int64))
        if end == len(text):
            yield Piece(row, begin, len(words.keys), words)
            return
        # The last word may go on behind `end`, so it is left to the next piece.
        own = len(words.keys) - n
        if own <= n:
            length *= 2
            continue
        yield Piece(row, begin, own, words)
        begin, length = begin + int(words.start[own]), size


def _words(text: U8, offsets: I64) -> Words:
    keys, starts, ends = [], [], []
    begin = 0
    while begin < len(text):
        stop = _character_border(text, min(begin + PIECE, len(text)), begin)
        inside = offsets[np.searchsorted(offsets, begin, "right") : np.searchsorted(offsets, stop, "left")] - begin
        key, start, end = _scan(text[begin:stop], np.unique(inside))
        if stop < len(text) and len(end) and end[-1] == stop - begin:
            key, start, end, stop = key[:-1], start[:-1], end[:-1], begin + int(start[-1])
        keys.append(key)
        starts.append(start + begin)
        ends.append(end + begin)
        begin = stop
    if not keys:
        empty = np.empty(0, np.int64)
        return Words(np.empty(0, np.uint64), empty, empty, np.zeros(len(offsets), np.int64), text, offsets)
    one = len(keys) == 1
    start = starts[0] if one else np.concatenate(starts)
    end = ends[0] if one else np.concatenate(ends)
    return Words(keys[0] if one else np.concatenate(keys), start, end, np.searchsorted(start, offsets), text, offsets)


def _character_border(text: U8, position: int, least: int) -> int:
    while least + 1 < position < len(text) and text[position] & 0xC0 == 0x80:
        position -= 1
    return position


def _scan(text: U8, borders: I64) -> tuple[U64, I64, I64]:
    """Keys, starts and ends of the words of one piece; `borders` are document borders strictly inside it."""
    padded = np.zeros(len(text) + 16, np.uint8)
    folded = padded[: len(text)]
    upper = (text - np.uint8(65)) < 26
    np.add(text, upper.view(np.uint8) << np.uint8(5), out=folded)
    word = ((folded - np.uint8(97)) < 26) | ((text - np.uint8(48)) < 10)
    marks: Bools | None = None
    moved: I64 | None = None
    if len(text) and text.max() > 127:
        padded, moved, marks = _scan_beyond_ascii(text, padded, word)
    edge = np.flatnonzero(word[1:] != word[:-1])
    edge += 1
    if len(word) and word[0]:
        edge = np.concatenate([np.zeros(1, np.int64), edge])
    if len(edge) & 1:
        edge = np.concatenate([edge, np.array([len(word)])])
    if len(borders):
        joined = borders[word[borders - 1] & word[borders]]
        edge = np.insert(edge, np.repeat(np.searchsorted(edge, joined), 2), np.repeat(joined, 2))
    start, end = edge[0::2], edge[1::2]
    if marks is not None and marks.any():
        start, end = _begin_at_letters(start, end, word & ~marks, text)
    if len(start) and (end - start).max() > LONGEST_WORD:
        start, end = _cut_long(start, end, word if marks is None else word & ~marks, text)
    if moved is None:
        return _word_keys(padded, start, end), start, end
    return _word_keys(padded, moved[start], moved[end]), start, end


def _scan_beyond_ascii(text: U8, padded: U8, word: Bools) -> tuple[U8, I64 | None, Bools]:
    """Classes and folds the characters above U+007F, in place in `word` and `padded`. Returns the folded bytes, where
    each byte of the text went in them if folding changed lengths, and which bytes belong to marks."""
    classes, folds = _tables()
    safe = np.concatenate([text, np.zeros(4, np.uint8)])
    lead = np.flatnonzero(text >= 0xC0)
    first = text[lead]
    length = 2 + (first >= 0xE0).astype(np.int64) + (first >= 0xF0)
    point = np.zeros(len(lead), np.uint32)
    for size, bits in ((2, 0x1F), (3, 0x0F), (4, 0x07)):
        some = np.flatnonzero(length == size)
        at = lead[some]
        value = (first[some] & np.uint8(bits)).astype(np.uint32)
        for step in range(1, size):
            value = (value << np.uint32(6)) | (safe[at + step] & np.uint8(0x3F))
        point[some] = value
    np.minimum(point, 0x10FFFF, out=point)
    kind = classes[point]
    marks = np.zeros(len(text) + 4, bool)
    inside = np.zeros(len(text) + 4, bool)
    for step in range(4):
        some = np.flatnonzero((length > step) & (kind != _OTHER)) if step else np.flatnonzero(kind != _OTHER)
        at = lead[some] + step
        inside[at] = True
        marks[at] = kind[some] == _MARK
    word |= inside[: len(text)]
    changed = np.flatnonzero(folds[point] != point)
    if not len(changed):
        return padded, None, marks[: len(text)]
    at, old, target = lead[changed], length[changed], folds[point[changed]]
    new = _utf8_length(target)
    moved: I64 | None = None
    if (new != old).any():
        count = np.ones(len(text), np.int64)
        for step in range(1, 4):
            gone = at[(new != old) & (old > step)] + step
            count[gone[gone < len(text)]] = 0
        count[at[new != old]] = new[new != old]
        moved = np.zeros(len(text) + 1, np.int64)
        np.cumsum(count, out=moved[1:])
        padded = np.concatenate([np.repeat(padded[: len(text)], count), np.zeros(16, np.uint8)])
        at = moved[at]
    _put_utf8(padded, at, target, new)
    return padded, moved, marks[: len(text)]


def _utf8_length(points: npt.NDArray[np.uint32]) -> I64:
    return 1 + (points > 0x7F).astype(np.int64) + (points > 0x7FF) + (points > 0xFFFF)


def _put_utf8(out: U8, at: I64, points: npt.NDArray[np.uint32], length: I64) -> None:
    for size, prefix in ((1, 0), (2, 0xC0), (3, 0xE0), (4, 0xF0)):
        some = length == size
        where, value = at[some], points[some]
        for step in range(size - 1, 0, -1):
            out[where + step] = (value & np.uint32(0x3F)) | np.uint32(0x80)
            value = value >> np.uint32(6)
        out[where] = value | np.uint32(prefix)


def _begin_at_letters(start: I64, end: I64, letter: Bools, text: U8) -> tuple[I64, I64]:
    """Moves starts behind leading marks and drops runs that are marks only."""
    if letter[start].all():
        return start, end
    letters = np.concatenate([np.flatnonzero(letter), np.array([len(text)])])
    start = letters[np.searchsorted(letters, start)]
    some = start < end
    return start[some], end[some]


def _cut_long(start: I64, end: I64, letter: Bools, text: U8) -> tuple[I64, I64]:
    """Cuts runs of more than LONGEST_WORD bytes into words that end at character borders and begin with letters."""
    letters = np.flatnonzero(letter)
    long = np.flatnonzero(end - start > LONGEST_WORD)
    starts, ends, done = [], [], 0
    for run in long.tolist():
        starts.append(start[done:run])
        ends.append(end[done:run])
        done = run + 1
        begin, stop = int(start[run]), int(end[run])
        cuts: list[tuple[int, int]] = []
        while begin < stop:
            cut = stop if stop - begin <= LONGEST_WORD else _character_border(text, begin + LONGEST_WORD, begin)
            cuts.append((begin, cut))
            following = int(np.searchsorted(letters, cut))
            begin = int(letters[following]) if following < len(letters) else stop
        starts.append(np.array([cut[0] for cut in cuts], np.int64))
        ends.append(np.array([cut[1] for cut in cuts], np.int64))
    return np.concatenate([*starts, start[done:]]), np.concatenate([*ends, end[done:]])


def _word_keys(padded: U8, start: I64, end: I64) -> U64:
    """Keys of the folded words padded[start:end]; `padded` ends in 16 spare bytes."""
    if not len(start):
        return np.empty(0, np.uint64)
    # Eight bytes from any offset on: a view with a stride of one byte.
    eight = np.ndarray((len(padded) - 8,), "<u8", buffer=padded.data, strides=(1,))
    length = end - start
    # Up to eight bytes, shifted so that the low bytes of shorter words are free; the length goes there. Exact: the
    # first byte of an 8-byte word is a letter's, so it never looks like another length.
    key = eight[start]
    key <<= ((8 - np.minimum(length, 8)) << 3).view(np.uint64)
    key ^= length.view(np.uint64)
    key *= _MIX
    key ^= key >> _THIRTY_TWO
    on = np.flatnonzero(length > 8)
    if len(on):
        at, rest, mixed = start[on] + 8, length[on] - 8, key[on]
        while True:
            piece = eight[at] << ((8 - np.minimum(rest, 8)) << 3).view(np.uint64)
            mixed = (mixed ^ piece) * _MIX
            mixed ^= mixed >> _THIRTY_TWO
            key[on] = mixed
            more = rest > 8
            if not more.any():
                break
            on, at, rest, mixed = on[more], at[more] + 8, rest[more] - 8, mixed[more]
    key *= _MIX
    key ^= key >> _THIRTY_TWO
    return key


def _gram_keys(keys: U64, n: int) -> U64:
    """Keys of all runs of n words, document borders ignored."""
    count = len(keys) - n + 1
    block = 1 << 18
    power, inverse = _powers(min(block, count) + n)
    out = np.empty(count, np.uint64)
    for begin in range(0, count, block):
        part = keys[begin : min(begin + block, count) + n - 1]
        size = len(part) - n + 1
        total = np.empty(len(part) + 1, np.uint64)
        total[0] = 0
        np.cumsum(part * power[: len(part)], out=total[1:])
        gram = out[begin : begin + size]
        np.subtract(total[n:], total[:size], out=gram)
        gram *= inverse[:size]
        gram ^= gram >> _THIRTY_TWO
        gram *= _MIX_GRAM
        gram ^= gram >> _THIRTY_TWO
    return out


def _powers(count: int) -> tuple[U64, U64]:
    return _all_powers((count + (1 << 16) - 1) >> 16)


@cache
def _all_powers(blocks: int) -> tuple[U64, U64]:
    """Powers 0, 1, ... of the gram constant and of its inverse modulo 2^64."""

    def powers(base: int) -> U64:
        factors = np.full(blocks << 16, base, np.uint64)
        factors[0] = 1
        return np.cumprod(factors)

    return powers(_GRAM_BASE), powers(pow(_GRAM_BASE, -1, 1 << 64))


@cache
def _tables() -> tuple[U8, npt.NDArray[np.uint32]]:
    """Class (_OTHER, _WORD, _MARK) and fold of every code point: uint8 and uint32, 0x110000 long each."""
    of_category = {"L": _WORD, "N": _WORD, "M": _MARK}
    classes = np.fromiter(
        (of_category.get(unicodedata.category(chr(point))[0], _OTHER) for point in range(0x110000)),
        np.uint8,
        0x110000,
    )
    folds = np.arange(0x110000, dtype=np.uint32)
    for point, target in _fold_dict().items():
        folds[point] = target
    return classes, folds


@cache
def _fold_dict() -> dict[int, int]:
    folded: dict[int, int] = {0x130: 0x69}
    for point in range(0x110000):
        character = chr(point)
        full = character.casefold()
        target = full if len(full) == 1 else character.lower()
        if len(target) == 1 and target != character:
            folded[point] = ord(target)
    return folded
