"""A table of pretoken types: every distinct pretoken gets one row, for good, in the order of first meeting.

Counting adds up rows, encoding looks ids up by row. A type is found by its 64-bit key in an open-addressing table of
two arrays, all pretokens of a batch at once, and then confirmed byte by byte, so that two types with one key can
never be taken for each other: the second of such a pair has its row in a dictionary of its own.
"""

from __future__ import annotations

import itertools
import os
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from tokenizer.pretokens import PADDING, Bytes, Flags, Ints, Keys, Pretokens, eight_bytes, find_keys

_MASKS: Final = np.array([(1 << (8 * size)) - 1 for size in range(9)], np.uint64)
_EXACT: Final = np.uint64(0xFF << 56)  # keys below are the bytes themselves
_ROUNDS: Final = 4  # comparisons of eight bytes for all at once; what is longer is compared one by one

Rows = npt.NDArray[np.int32]
Scalar = TypeVar("Scalar", bound=np.generic)


class TypeTable:
    """Rows 0, 1, 2… for the pretoken types met so far. At most 2^31 - 1 types and as many bytes as memory holds."""

    def __init__(self) -> None:
        self.count = 0
        self._bytes = np.zeros(1 << 16, np.uint8)
        self._borders = np.zeros(1 << 12, np.int64)  # of each row's bytes; count + 1 are in use
        self._keys = np.zeros(1 << 12, np.uint64)  # of each row
        # Drawn anew for every table, so that no text can be written to crowd one slot; rows do not depend on it.
        self._spread = np.uint64(int.from_bytes(os.urandom(8), "little") | 1 << 63 | 1)
        self._slots(1 << 14)
        self._twins: dict[bytes, int] = {}  # types whose key belongs to another type's row

    @property
    def size(self) -> int:
        """Bytes of all types."""
        return int(self._borders[self.count])

    def borders(self, first: int = 0) -> Ints:
        """int64[count - first + 1]: where the types from row `first` on lie in `text()`."""
        return self._borders[first : self.count + 1]

    def text(self) -> Bytes:
        """uint8[size]: the types' bytes, one after the other."""
        return self._bytes[: self.size]

    def types(self, first: int = 0) -> list[bytes]:
        """The types from row `first` on."""
        borders = self._borders[first : self.count + 1]
        data = self._bytes[borders[0] : borders[-1]].tobytes()
        places = (borders - borders[0]).tolist()
        return [data[low:high] for low, high in itertools.pairwise(places)]

    def rows(self, pretokens: Pretokens) -> Rows:
        """int32[p]: the row of each pretoken; types not met before are added."""
        keys = find_keys(pretokens)
        found = self._find(keys)
        unknown = np.flatnonzero(found < 0)
        if unknown.size:
            self._add(pretokens, keys, unknown)
            found[unknown] = self._find(keys[unknown])
        long = np.flatnonzero(keys >= _EXACT)
        if long.size:
            wrong = long[~self._same(pretokens, long, found[long])]
            for place in wrong.tolist():
                found[place] = self._twin(_bytes_at(pretokens, place))
        return found

    def _find(self, keys: Keys) -> Rows:
        """The row of each key, -1 where it has none."""
        slot = self._slot(keys)
        rows = self._slot_rows[slot]
        todo = np.flatnonzero((self._slot_keys[slot] != keys) & (rows >= 0))
        place = slot[todo]
        while todo.size:
            place = (place + 1) & self._last_slot
            met = self._slot_rows[place]
            rows[todo] = met
            other = (self._slot_keys[place] != keys[todo]) & (met >= 0)
            todo, place = todo[other], place[other]
        return rows

    def _slot(self, keys: Keys) -> Ints:
        mixed = (keys ^ (keys >> np.uint64(32))) * self._spread
        return (mixed >> self._shift).view(np.int64)

    def _slots(self, size: int) -> None:
        """An empty table of `size` slots, a power of two."""
        self._slot_keys = np.zeros(size, np.uint64)
        self._slot_rows = np.full(size, -1, np.int32)
        self._last_slot = np.int64(size - 1)
        self._shift = np.uint64(64 - size.bit_length() + 1)

    def _enter(self, first: int) -> None:
        """Puts the keys of the rows from `first` on into free slots; where several want one slot, the last gets it
        and the others look on."""
        rows = np.arange(first, self.count, dtype=np.int32)
        rows = rows[self._keys[first : self.count] != 0]  # a twin has no key of its own
        place = self._slot(self._keys[rows])
        while rows.size:
            free = self._slot_rows[place] < 0
            self._slot_rows[place[free]] = rows[free]
            won = free & (self._slot_rows[place] == rows)
            self._slot_keys[place[won]] = self._keys[rows[won]]
            rows, place = rows[~won], (place[~won] + 1) & self._last_slot

    def _add(self, pretokens: Pretokens, keys: Keys, unknown: Ints) -> None:
        """New rows for the distinct keys among the pretokens at `unknown`, in the order of first meeting."""
        distinct, first = np.unique(keys[unknown], return_index=True)
        order = np.argsort(first)
        places = unknown[first[order]]
        before = self.count
        self._append(pretokens, places, distinct[order])
        if self.count * 5 > len(self._slot_rows) * 2:
            size = len(self._slot_rows)
            while self.count * 5 > size * 2:
                size *= 2
            self._slots(size)
            before = 0
        self._enter(before)

    def _append(self, pretokens: Pretokens, places: Ints, keys: Keys) -> None:
        low, high = pretokens.borders[places], pretokens.borders[places + 1]
        ends = np.cumsum(high - low) + self.size
        count = self.count + len(places)
        self._bytes = _grown(self._bytes, int(ends[-1]) + PADDING)
        self._borders = _grown(self._borders, count + 1)
        self._keys = _grown(self._keys, count)
        self._bytes[self.size : ends[-1]] = pretokens.text[spans(low, high - low)]
        self._borders[self.count + 1 : count + 1] = ends
        self._keys[self.count : count] = keys
        self.count = count

    def _twin(self, token: bytes) -> int:
        row = self._twins.get(token)
        if row is None:
            row = self.count
            self._twins[token] = row
            alone = np.frombuffer(token + bytes(PADDING), np.uint8)
            one = Pretokens(alone, np.array([0, len(token)]), np.zeros(0, np.int64))
            self._append(one, np.zeros(1, np.int64), np.zeros(1, np.uint64))
        return row

    def _same(self, pretokens: Pretokens, places: Ints, rows: Rows) -> Flags:
        """bool[n]: whether the pretoken at each place has the bytes of the row found for it."""
        here, there = eight_bytes(pretokens.text), eight_bytes(self._bytes[: self.size + PADDING])
        first, own = pretokens.borders[places], self._borders[rows]
        size = pretokens.borders[places + 1] - first
        same: Flags = (self._borders[rows + 1] - own) == size
        todo = np.flatnonzero(same)
        for step in range(0, 8 * _ROUNDS, 8):
            mask = _MASKS[np.minimum(size[todo] - step, 8)]
            equal = ((here[first[todo] + step] ^ there[own[todo] + step]) & mask) == 0
            same[todo] = equal
            todo = todo[equal & (size[todo] > step + 8)]
            if not todo.size:
                return same
        for place in todo.tolist():
            low, other, length = int(first[place]), int(own[place]), int(size[place])
            same[place] = np.array_equal(pretokens.text[low : low + length], self._bytes[other : other + length])
        return same


def spans(first: Ints, size: Ints) -> Ints:
    """int64[sum of size]: the numbers first, first + 1, … first + size - 1 of every span, one after the other."""
    ends = np.cumsum(size)
    total = int(ends[-1]) if ends.size else 0
    return np.repeat(first - (ends - size), size) + np.arange(total)


def _bytes_at(pretokens: Pretokens, place: int) -> bytes:
    return pretokens.text[pretokens.borders[place] : pretokens.borders[place + 1]].tobytes()


def _grown(array: npt.NDArray[Scalar], size: int) -> npt.NDArray[Scalar]:
    """The array with room for `size` entries; it at least doubles when it must grow."""
    if size <= len(array):
        return array
    grown = np.zeros(max(size, 2 * len(array)), array.dtype)
    grown[: len(array)] = array
    return grown
