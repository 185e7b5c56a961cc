"""Byte-level BPE from a count table: exact, deterministic, in one process.

The method is Sennrich, Haddow and Birch (2016) over bytes, as GPT-2 uses it: the most frequent pair of neighbouring
tokens within a pretoken becomes a token, again and again. Of pairs equally frequent the one with the smaller ids
wins. So defined, the merges are those of `tokenizers`' BpeTrainer, one by one; its counts wrap at 2^31, which a few
dozen gigabytes of text reach, and these are 64 bits wide.

All pretokens lie in one array of tokens with links to the neighbours. A pair knows the places where it may stand; a
merge is a handful of array operations on these, or a short walk where they are few, as they are for most pairs. A
heap gives the next pair; counts only fall once a pair is made, so an entry that is too high is put back with the true
count when it comes up.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tokenizer.counts import merge_counts
from tokenizer.vocabulary import Vocabulary, base_bytes, new_vocabulary, read_token

Ints = npt.NDArray[np.int64]
Places = npt.NDArray[np.int32]

WRAPS: Final = 1 << 31  # counts that `tokenizers` cannot hold
FEW: Final = 24  # places up to which walking is faster than array operations
BITS: Final = 24  # of an id within a pair's number: left << BITS | right
RIGHT: Final = (1 << BITS) - 1
PAIR: Final = (1 << 2 * BITS) - 1


@dataclass(frozen=True)
class BpeOptions:
    """`vocab_size` counts the 256 bytes and `<|endoftext|>`. A pair seen fewer than `min_count` times makes no
    token. `max_token_length` bounds a token's bytes (0: no bound). `engine` "tokenizers" trains with the reference on
    the same counts, for comparison: it needs time in proportion to the text and refuses what would wrap."""

    vocab_size: int = 50257
    min_count: int = 2
    max_token_length: int = 0
    engine: Literal["counts", "tokenizers"] = "counts"

    def __post_init__(self) -> None:
        if not 257 <= self.vocab_size <= 1 << 24:
            raise ValueError(f"vocab_size must be between 257 and {1 << 24}, not {self.vocab_size}")
        if self.min_count < 1:
            raise ValueError(f"min_count must be at least 1, not {self.min_count}")
        if self.max_token_length < 0 or self.max_token_length == 1:
            raise ValueError(f"max_token_length must be 0 (no bound) or at least 2, not {self.max_token_length}")
        if self.engine not in ("counts", "tokenizers"):
            raise ValueError(f'engine must be "counts" or "tokenizers", not {self.engine!r}')


@dataclass(frozen=True)
class Trained:
    """A vocabulary and its lineage. `counts` int64[m]: how often each merge's pair stood in the corpus when it was
    chosen; empty where the engine does not tell. `wanted` is the size asked for: a small corpus yields less."""

    vocabulary: Vocabulary
    counts: tuple[int, ...]
    wanted: int

    @property
    def complete(self) -> bool:
        return self.vocabulary.size == self.wanted


def train(counts: pa.Table, options: BpeOptions | None = None) -> Trained:
    """The vocabulary of a count table (`counts.SCHEMA`, rows in any order). Raises ValueError for another schema and
    for counts whose pairs could pass 2^62."""
    options = options or BpeOptions()
    table = merge_counts([counts])
    table = table.filter(pc.greater(table["count"], 0))
    _check_range(table)
    if options.engine == "tokenizers":
        return Trained(_train_reference(table, options), (), options.vocab_size)
    corpus = Corpus(table, options)
    merges, frequencies = [], []
    while 256 + 1 + corpus.made < options.vocab_size:
        found = corpus.next_pair(options.min_count)
        if found is None:
            break
        pair, frequency = found
        merges.append((corpus.tokens[pair[0]], corpus.tokens[pair[1]]))
        frequencies.append(frequency)
        corpus.merge(*pair)
    return Trained(new_vocabulary(merges), tuple(frequencies), options.vocab_size)


def _check_range(table: pa.Table) -> None:
    """Every pair's count is at most the number of bytes, which must fit; so must the places."""
    lengths = pc.binary_length(table["pretoken"]).to_numpy().astype(object)
    if (size := sum(lengths)) >= 1 << 31:
        raise ValueError(f"the pretokens have {size} bytes, at most 2^31 - 1 can be trained on: prune the counts")
    total = int((lengths * table["count"].to_numpy().astype(object)).sum()) if len(table) else 0
    if total >= 1 << 62:
        raise ValueError(f"the counted text has {total} bytes; at most 2^62 - 1 can be trained on")


class Corpus:
    """All pretokens as linked tokens, and the pairs in them. A place is an index into the arrays; the neighbours of a
    place are -1 at the ends of a pretoken; a token swallowed by the one before it is -1."""

    def __init__(self, table: pa.Table, options: BpeOptions) -> None:
        self.tokens = [bytes([byte]) for byte in base_bytes()]
        self.made = 0
        self._ids = {token: place for place, token in enumerate(self.tokens)}
        self._longest = options.max_token_length or 1 << 62
        text, borders = _table_bytes(table)
        ids = np.zeros(256, np.int32)
        ids[list(base_bytes())] = np.arange(256)
        self._token = ids[text]
        self._next = np.arange(1, len(text) + 1, dtype=np.int32)
        self._before = np.arange(-1, len(text) - 1, dtype=np.int32)
        filled = borders[1:] > borders[:-1]
        self._next[borders[1:][filled] - 1] = -1
        self._before[borders[:-1][filled]] = -1
        self._weight = np.repeat(table["count"].to_numpy(), np.diff(borders))
        self._count: dict[int, int] = {}  # of a pair: exact
        self._views = (
            self._token.data,
            self._next.data,
            self._before.data,
            self._weight.data,
            self._count,
        )
        self._places: dict[int, list[Places | list[int]]] = {}  # of a pair's left token; some may be stale
        left = np.flatnonzero(self._next >= 0).astype(np.int32)
        self._add_pairs(left, self._weight[left], filed=True)
        self._heap = [_entry(pair, count) for pair, count in self._count.items()]
        heapq.heapify(self._heap)

    def next_pair(self, minimum: int) -> tuple[tuple[int, int], int] | None:
        """The most frequent pair and its count; None when none is counted `minimum` times."""
        while self._heap:
            entry = heapq.heappop(self._heap)
            pair = entry & PAIR
            count = self._count.get(pair, 0)
            if count >= minimum:
                if count == -(entry >> 2 * BITS):
                    return (pair >> BITS, pair & RIGHT), count
                heapq.heappush(self._heap, _entry(pair, count))
        return None

    def merge(self, left: int, right: int) -> None:
        """Makes one token of the pair wherever it stands, from left to right."""
        pair = left << BITS | right
        token = self.tokens[left] + self.tokens[right]
        new = self._ids.setdefault(token, len(self.tokens))
        if new == len(self.tokens):
            self.tokens.append(token)
            self.made += 1
        del self._count[pair]
        listed = self._places.pop(pair)
        few = sum(map(len, listed)) <= FEW
        for other in self._merge_few(left, right, new, listed) if few else self._merge_many(left, right, new, listed):
            heapq.heappush(self._heap, _entry(other, self._count[other]))

    def _merge_few(self, left: int, right: int, new: int, listed: list[Places | list[int]]) -> list[int]:
        """Walks the places in order; returns the pairs that came to be."""
        tokens, following, preceding, weights, counts = self._views
        gained: dict[int, int] = {}
        where: dict[int, list[int]] = {}
        for place in _in_order(listed):
            second = following[place]
            if tokens[place] != left or second < 0 or tokens[second] != right:
                continue
            weight, before, after = weights[place], preceding[place], following[second]
            changes = []
            if before >= 0:
                changes.append((tokens[before] << BITS | left, tokens[before] << BITS | new, before))
            if after >= 0:
                changes.append((right << BITS | tokens[after], new << BITS | tokens[after], place))
                preceding[after] = place
            for lost, made, at in changes:
                if lost in gained:
                    gained[lost] -= weight
                elif lost in counts:
                    counts[lost] -= weight
                gained[made] = gained.get(made, 0) + weight
                where.setdefault(made, []).append(at)
            tokens[place], tokens[second], following[place] = new, -1, after
        added = [pair for pair, count in gained.items() if count > 0 and self._allowed(pair)]
        for pair in added:
            counts[pair] = counts.get(pair, 0) + gained[pair]
            self._places.setdefault(pair, []).append(where[pair])
        return added

    def _merge_many(self, left: int, right: int, new: int, listed: list[Places | list[int]]) -> list[int]:
        """The same by array operations."""
        place, second = self._standing(left, right, listed)
        before, after = self._before[place], self._next[second]
        weight = self._weight[place]
        # Neighbours that are themselves merged here are seen from their right one only.
        chained = np.zeros(len(place), bool)
        chained[1:] = second[:-1] == before[1:]
        ends = np.ones(len(place), bool)
        ends[:-1] = ~chained[1:]
        has_before, has_after = before >= 0, (after >= 0) & ends
        lost = np.concatenate(
            [
                self._token[before[has_before]].astype(np.int64) << BITS | left,
                right << BITS | self._token[after[has_after]].astype(np.int64),
            ]
        )
        self._drop_pairs(lost, np.concatenate([weight[has_before], weight[has_after]]))
        self._token[place] = new
        self._token[second] = -1
        self._next[place] = after
        linked = after >= 0
        self._before[after[linked]] = place[linked]
        found = np.concatenate([self._before[place[has_before]], place[has_after]])
        return self._add_pairs(found, np.concatenate([weight[has_before], weight[has_after]]), filed=False)

    def _standing(self, left: int, right: int, listed: list[Places | list[int]]) -> tuple[Places, Places]:
        """The places where the pair really stands, in order and without overlap, and those of their right tokens."""
        places = [np.asarray(each, np.int32) for each in listed]
        place = places[0] if len(places) == 1 else np.unique(np.concatenate(places))
        place = place[self._token[place] == left]
        second = self._next[place]
        stands = (second >= 0) & (self._token[second] == right)
        place, second = place[stands], second[stands]
        if left == right and len(place) > 1:  # of a run of equal tokens every other one begins a pair
            opens = np.ones(len(place), bool)
            opens[1:] = second[:-1] != place[1:]
            number = np.arange(len(place))
            opening = np.maximum.accumulate(np.where(opens, number, 0))
            even = (number - opening) % 2 == 0
            place, second = place[even], second[even]
        return place, second

    def _add_pairs(self, place: Places, weight: Ints, filed: bool) -> list[int]:
        """Counts the pairs that begin at the places and files the places under them; returns the pairs. The first
        time (`filed`) the places are already in order."""
        if not place.size:
            return []
        pairs = self._token[place].astype(np.int64) << BITS | self._token[self._next[place]].astype(np.int64)
        if not filed:
            order = np.argsort(place, kind="stable")
            place, weight, pairs = place[order], weight[order], pairs[order]
        order = np.argsort(pairs, kind="stable")
        pairs, place = pairs[order], place[order]
        first = np.flatnonzero(np.concatenate([[True], pairs[1:] != pairs[:-1]]))
        sums = np.add.reduceat(weight[order], first).tolist()
        ends = [*first[1:].tolist(), len(pairs)]
        added = []
        for pair, low, high, count in zip(pairs[first].tolist(), first.tolist(), ends, sums, strict=True):
            if self._allowed(pair):
                self._count[pair] = self._count.get(pair, 0) + count
                self._places.setdefault(pair, []).append(place[low:high])
                added.append(pair)
        return added

    def _allowed(self, pair: int) -> bool:
        left, right = self.tokens[pair >> BITS], self.tokens[pair & RIGHT]
        return len(left) + len(right) <= self._longest

    def _drop_pairs(self, pairs: Ints, weight: Ints) -> None:
        if not pairs.size:
            return
        order = np.argsort(pairs, kind="stable")
        pairs = pairs[order]
        first = np.flatnonzero(np.concatenate([[True], pairs[1:] != pairs[:-1]]))
        sums = np.add.reduceat(weight[order], first)
        for pair, count in zip(pairs[first].tolist(), sums.tolist(), strict=True):
            if pair in self._count:
                self._count[pair] -= count


def _entry(pair: int, count: int) -> int:
    """One number a pair, smallest for the pair to merge next: by count, falling, then by ids."""
    return -count << 2 * BITS | pair


def _in_order(listed: list[Places | list[int]]) -> list[int]:
    lists = [each if isinstance(each, list) else each.tolist() for each in listed]
    return lists[0] if len(lists) == 1 else sorted(set(itertools.chain(*lists)))


def _table_bytes(table: pa.Table) -> tuple[npt.NDArray[np.uint8], Ints]:
    """The bytes of all pretokens, one after the other, and int64[n + 1] where each begins."""
    column = table["pretoken"].combine_chunks()
    column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    if not len(column):
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    _, offsets, values = column.buffers()
    borders = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1].astype(np.int64)
    text = np.zeros(0, np.uint8) if values is None else np.frombuffer(values, np.uint8)
    return text[borders[0] : borders[-1]], borders - borders[0]


def _train_reference(table: pa.Table, options: BpeOptions) -> Vocabulary:
    """The same by `tokenizers`: each pretoken is shown to it as often as it is counted."""
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    total = int(sum(table["count"].to_pylist()))
    if total >= WRAPS:
        raise ValueError(f'engine "tokenizers" counts up to 2^31; {total} pretokens need engine "counts"')
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=options.vocab_size - 1,
        min_frequency=options.min_count,
        max_token_length=options.max_token_length + 1 if options.max_token_length else None,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_shown(table), trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return new_vocabulary([(read_token(left), read_token(right)) for left, right in merges])


def _shown(table: pa.Table) -> Iterator[list[str]]:
    for token, count in zip(table["pretoken"].to_pylist(), table["count"].to_pylist(), strict=True):
        text = token.decode("utf-8")
        for start in range(0, count, 1000):
            yield [text] * min(1000, count - start)
