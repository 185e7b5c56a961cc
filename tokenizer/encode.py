"""Text to ids and back, in bulk.

A pretoken's ids depend on nothing but its bytes, and a text repeats its pretokens. So the distinct ones are encoded
once, by the reference encoder (`tokenizers`), and kept in a table; a batch of text is cut into pretokens, the row of
each is looked up, and the ids of the rows are laid out one after the other, all as array operations.

A special token is never made from text: a document that says `<|endoftext|>` gets the ids of these characters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tokenizer.pretokens import Ints, Texts, find_pretokens
from tokenizer.table import Rows, TypeTable, spans
from tokenizer.vocabulary import Vocabulary, write_token

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_TYPES: Final = 1 << 21  # distinct pretokens remembered: about 150 MB
MAX_BYTES: Final = 1 << 27  # and their bytes
PIECE: Final = 1 << 18  # bytes of one pretoken given to the reference at once

Ids = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
EncodeBytes = Callable[[bytes], list[int]]


class Encoder:
    """Encodes string arrays. Remembers pretokens between calls (which changes no result); when it holds `max_types`
    of them or `MAX_BYTES`, it forgets them all and begins anew. Not for several threads at once; a pickle holds the
    vocabulary's path if there is one, otherwise the vocabulary, never the memory."""

    def __init__(self, vocabulary: Vocabulary, max_types: int = MAX_TYPES) -> None:
        if max_types < 1:
            raise ValueError(f"max_types must be at least 1, not {max_types}")
        self.vocabulary = vocabulary
        self.dtype = np.dtype(np.uint16 if vocabulary.size <= 1 << 16 else np.uint32)
        self._path: str | None = None
        self._max_types = max_types
        self._reference: Tokenizer | None = None
        self._forget()

    @classmethod
    def open(cls, path: str | Path, max_types: int = MAX_TYPES) -> Encoder:
        """The encoder of a tokenizer's folder or file (see `files.read_vocabulary`)."""
        from tokenizer.files import read_vocabulary

        encoder = cls(read_vocabulary(path), max_types)
        encoder._path = str(Path(path).absolute())
        return encoder

    def __reduce__(self) -> tuple[object, ...]:
        if self._path is not None:
            return Encoder.open, (self._path, self._max_types)
        return Encoder, (self.vocabulary, self._max_types)

    def encode(self, texts: Texts, end_of_text: bool = False) -> pa.ListArray:
        """list<uint16> (list<uint32> if there are more than 65,536 tokens), a list per text; with `end_of_text` each
        list ends in `<|endoftext|>`. Raises ValueError for nulls, for bytes that are not UTF-8, and for more than
        2^31 - 1 ids, which one list array cannot hold."""
        parts: list[Ids] = []
        ends: list[Ints] = [np.zeros(1, np.int64)]
        total = 0
        for pretokens in find_pretokens(texts):
            if self._table.count >= self._max_types or self._table.size >= MAX_BYTES:
                self._forget()
            rows = self._table.rows(pretokens)
            self._learn()
            ids, borders = self._ids_of(rows)
            parts.append(ids)
            ends.append(borders[pretokens.ends] + total)
            total += len(ids)
        values = np.concatenate([np.zeros(0, self.dtype), *parts])
        offsets = np.concatenate(ends)
        if end_of_text:
            values = np.insert(values, offsets[1:], self.vocabulary.end_of_text)
            offsets = offsets + np.arange(len(offsets))
        if len(values) >= 1 << 31:
            raise ValueError(f"{len(values)} ids do not fit one list array: encode fewer texts at once")
        return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))

    def _forget(self) -> None:
        self._table = TypeTable()
        self._ids = np.zeros(0, self.dtype)
        self._first = np.zeros(1, np.int64)  # of each row's ids, and their end

    def _ids_of(self, rows: Rows) -> tuple[Ids, Ints]:
        """The ids of the rows, one after the other, and int64[p + 1] where each row's begin."""
        first = self._first[rows]
        size = self._first[1:][rows] - first
        borders = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(size, out=borders[1:])
        if borders[-1] == len(rows):  # every pretoken is one token
            return self._ids[first], borders
        return self._ids[spans(first, size)], borders

    def _learn(self) -> None:
        """Gives the ids to the types that the table has met since."""
        known = len(self._first) - 1
        if known == self._table.count:
            return
        found = self._encode_types(self._table.types(known))
        ids = np.fromiter((number for each in found for number in each), self.dtype)
        sizes = np.fromiter((len(each) for each in found), np.int64, len(found))
        self._ids = np.concatenate([self._ids, ids])
        self._first = np.concatenate([self._first, np.cumsum(sizes) + self._first[-1]])

    def _encode_types(self, types: Sequence[bytes]) -> list[list[int]]:
        if self._reference is None:
            self._reference = reference_encoder(self.vocabulary)
        reference, tokens = self._reference, self.vocabulary.tokens
        short = [write_token(token) if len(token) <= PIECE else "" for token in types]
        found: list[list[int]] = [each.ids for each in reference.encode_batch_fast(short)]
        for place, token in enumerate(types):
            if len(token) > PIECE:
                found[place] = encode_in_pieces(
                    token, lambda piece: reference.encode(write_token(piece)).ids, tokens, PIECE
                )
        return found

    def decode(self, ids: Sequence[int] | npt.NDArray[np.generic] | pa.Array) -> str:
        """The text of ids, specials by their names; bytes that are not UTF-8 become U+FFFD, as in GPT-2's decoder.
        ValueError for an id that is no token's."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Sequence[int] | npt.NDArray[np.generic] | pa.Array) -> bytes:
        """The bytes of ids."""
        numbers = ids.to_numpy(zero_copy_only=False) if isinstance(ids, pa.Array) else np.asarray(ids)
        if numbers.size and (
            numbers.dtype.kind not in "iu" or numbers.min() < 0 or numbers.max() >= self.vocabulary.size
        ):
            raise ValueError(f"ids must be whole numbers between 0 and {self.vocabulary.size - 1}")
        tokens = self.vocabulary.tokens
        return b"".join([tokens[number] for number in numbers.tolist()])


def reference_encoder(vocabulary: Vocabulary) -> Tokenizer:
    """`tokenizers`' encoder of single pretokens, spelled by `write_token`: it merges what it is given and splits
    nothing, and knows no special tokens."""
    from tokenizers import Tokenizer, models

    spelled = [write_token(token) for token in vocabulary.tokens]
    ids = {spelled[place]: place for place in vocabulary.ids.values()}
    merges = [(spelled[left], spelled[right]) for left, right in vocabulary.merges]
    return Tokenizer(models.BPE(ids, merges))


def encode_in_pieces(data: bytes, encode: EncodeBytes, tokens: Sequence[bytes], piece: int) -> list[int]:
    """The ids of a pretoken too long for one call of `encode`, from calls of at most `piece` bytes.

    Exact, because tokens are the encoding of their bytes if and only if every two neighbours are the encoding of
    theirs: the first merge across a border would happen in these two alone as well. So two encodings that overlap may
    be joined at any token that both have at the same place. Where they have none, the pieces are doubled.
    """
    ids, start = encode(data[:piece]), 0  # `ids` encode what lies between `start` and `end`
    end = min(piece, len(data))
    done: list[int] = []
    while end < len(data):
        places = _places(ids, tokens, start)
        middle = int(np.searchsorted(places, (start + end) // 2))
        begin = int(places[middle])
        others = encode(data[begin : begin + piece])
        joint = _common_token(ids, places, others, _places(others, tokens, begin), middle)
        if joint is None:
            return encode_in_pieces(data, encode, tokens, 2 * piece)
        done += ids[: joint[0]]
        ids, start, end = others[joint[1] :], int(places[joint[0]]), min(begin + piece, len(data))
    return done + ids


def _places(ids: Sequence[int], tokens: Sequence[bytes], start: int) -> Ints:
    """int64[n + 1]: where each token begins, the first one at `start`, and where the last one ends."""
    return np.cumsum([start, *(len(tokens[number]) for number in ids)])


def _common_token(
    ids: Sequence[int], places: Ints, others: Sequence[int], other_places: Ints, first: int
) -> tuple[int, int] | None:
    """The indices, in both encodings, of the first token they share, from the `first` of `ids` on; not the very first
    of `ids`, which would be no step forward."""
    _, mine, theirs = np.intersect1d(places[:-1], other_places[:-1], assume_unique=True, return_indices=True)
    for one, other in zip(mine.tolist(), theirs.tolist(), strict=True):
        if one >= max(first, 1) and ids[one] == others[other]:
            return one, other
    return None
