"""Pairs of documents: who may be alike (buckets), and how alike they are (counted, never estimated).

A bucket of k <= max_bucket contents gives all pairs, a larger one a star around its smallest member and a chain
through the rest: 2 (k - 1) pairs instead of k²/2. Exact copies are first collapsed to the smallest (part, row).

Candidates are verified in cells, a range of parts × a range of parts: R cells read each document part about sqrt(R)
times, where R ranges of left ends would read it R times (the fragment-and-replicate join).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.minhash import I64, U32, U64, slices_of_text
from pipelines.ngrams import find_grams, find_words

SHINGLES_HELD = 1 << 24  # keys of left ends held while right ends stream by: 128 MiB
PAIRS_PER_CELL = 1 << 17  # candidates, found again where ranges of buckets found them too: seconds of work


RowsReader = Callable[[int, U32], Iterator[tuple[U32, pa.Array]]]
"""(part key, ascending rows of it) -> runs of those rows and their texts, in order, a bounded number at a time."""


def schema_of(**columns: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])


_u64, _u32, _f32 = pa.uint64(), pa.uint32(), pa.float32()


BANDS = schema_of(band=_u64, content_high=_u64, content_low=_u64, part=_u64, row=_u32)
"""A content of a part in one of its buckets."""
PAIRS = schema_of(part=_u64, row=_u32, content=_u64, other_part=_u64, other_row=_u32, other_content=_u64)
"""Candidates, (part, row) < (other_part, other_row). The contents make equal tables mean equal texts."""
ROUTED = pa.schema([pa.field("cell", _u64, nullable=False), *PAIRS])
EDGES = schema_of(part=_u64, row=_u32, other_part=_u64, other_row=_u32, similarity=_f32)
"""Verified pairs of similarity >= floor, (part, row) < (other_part, other_row)."""


# Buckets.


class Candidates(NamedTuple):
    """PAIRS, and how full the buckets were: with two or more contents, with more than `max_bucket`, the fullest."""

    pairs: pa.Table
    buckets: int
    overfull: int
    fullest: int


def candidates(bands: pa.Table, max_bucket: int) -> Candidates:
    """BANDS of all parts (of some buckets), in any order -> distinct candidate pairs."""
    band, high, low, part, row = columns_of(bands, BANDS)
    order = np.lexsort((row, part, low, high, band))
    order = order[changes(band[order], high[order], low[order])]  # of exact copies, the smallest (part, row)
    order = order[np.lexsort((row[order], part[order], band[order]))]
    band, high, part, row = band[order], high[order], part[order], row[order]
    starts = changes(band)
    sizes = np.diff(np.append(starts, len(band)))
    left, right = bucket_pairs(starts, sizes, max_bucket)

    ranks = np.empty(len(part), np.int64)
    by_document = np.lexsort((row, part))
    distinct = changes(part[by_document], row[by_document])
    ranks[by_document] = np.repeat(np.arange(len(distinct)), np.diff(np.append(distinct, len(part))))
    pair = np.unique(ranks[left] * len(distinct) + ranks[right])
    documents = by_document[distinct]
    a, b = np.divmod(pair, max(1, len(distinct)))
    a, b = documents[a], documents[b]
    pairs = table_of(PAIRS, part[a], row[a], high[a], part[b], row[b], high[b])
    fullest = int(sizes.max(initial=0))
    return Candidates(pairs, int((sizes > 1).sum()), int((sizes > max_bucket).sum()), fullest)


def bucket_pairs(starts: I64, sizes: I64, max_bucket: int) -> tuple[I64, I64]:
    """Positions of the pairs to look at in buckets of consecutive members: all of them up to `max_bucket` members,
    beyond that the first with each other and each with the next."""
    left, right = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for size in range(2, min(max_bucket, int(sizes.max(initial=0))) + 1):
        one, other = np.triu_indices(size, 1)
        begin = starts[sizes == size][:, None]
        left.append((begin + one).ravel())
        right.append((begin + other).ravel())
    for start, size in zip(starts[sizes > max_bucket], sizes[sizes > max_bucket], strict=True):
        members = np.arange(start, start + size)
        left += [np.full(size - 1, start), members[1:-1]]
        right += [members[1:], members[2:]]
    return np.concatenate(left), np.concatenate(right)


# Verification.


def shingle_set(grams: U64) -> U64:
    """The distinct keys of a document's shingles, ascending."""
    ordered = np.sort(grams)
    return ordered[changes(ordered)]


def jaccard(one: U64, other: U64) -> float:
    """|A ∩ B| / |A ∪ B| of two sets given as ascending distinct keys; 0 where both are empty."""
    merged = np.concatenate((one, other))
    merged.sort(kind="stable")  # two ascending runs: a merge
    shared = int(np.count_nonzero(merged[1:] == merged[:-1]))
    return shared / (len(merged) - shared) if len(merged) else 0.0


def shingle_sets(part: int, rows: U32, read_rows: RowsReader, shingle: int) -> Iterator[tuple[int, U64]]:
    """(row, its shingle set) for ascending rows of a part, read and cut a megabyte of text at a time."""
    for found, texts in read_rows(part, rows):
        done = 0
        for piece in slices_of_text(texts):
            grams = find_grams(find_words(piece), shingle)
            for i in range(len(piece)):
                yield int(found[done + i]), shingle_set(grams.keys[grams.documents[i] : grams.documents[i + 1]])
            done += len(piece)


class Verified(NamedTuple):
    """EDGES, and how many distinct pairs were compared."""

    edges: pa.Table
    compared: int


def verify(pairs: pa.Table, read_rows: RowsReader, shingle: int, floor: float) -> Verified:
    """PAIRS, in any order and repeated at will -> EDGES of exact similarity >= floor.

    Left ends are held in blocks of `SHINGLES_HELD` keys while the right ends stream by, so memory stays bounded
    however many pairs there are. Raises ValueError when a document part lacks a row that a pair names.
    """
    part, row, _, other_part, other_row, _ = columns_of(pairs, PAIRS)
    order = np.lexsort((other_row, other_part, row, part))
    order = order[changes(part[order], row[order], other_part[order], other_row[order])]
    part, row, other_part, other_row = part[order], row[order], other_part[order], other_row[order]
    similarity = np.full(len(part), np.nan, np.float32)
    for begin, end, held in _left_blocks(part, row, read_rows, shingle):
        by_other = begin + np.lexsort((other_row[begin:end], other_part[begin:end]))
        for same in np.split(by_other, changes(other_part[by_other])[1:]):
            _compare(same, part, row, int(other_part[same[0]]), other_row, held, read_rows, shingle, similarity)
    if np.isnan(similarity).any():
        i = int(np.flatnonzero(np.isnan(similarity))[0])
        raise ValueError(
            f"a pair names rows {row[i]} and {other_row[i]} of the parts with keys {part[i]} and {other_part[i]}, "
            "and one of them is not there; build the documents and their sketches again"
        )
    kept = np.flatnonzero(similarity >= np.float32(floor))
    edges = table_of(EDGES, part[kept], row[kept], other_part[kept], other_row[kept], similarity[kept])
    return Verified(edges, len(part))


def _left_blocks(
    part: U64, row: U32, read_rows: RowsReader, shingle: int
) -> Iterator[tuple[int, int, dict[tuple[int, int], U64]]]:
    """Cut sorted pairs into runs whose left ends' sets fit: (first pair, end, sets by (part, row))."""
    held: dict[tuple[int, int], U64] = {}
    begin, end, size = 0, 0, 0
    borders = changes(part, row)
    ends = np.append(borders[1:], len(part))
    document = 0
    for same in np.split(borders, changes(part[borders])[1:]) if len(borders) else []:
        key = int(part[same[0]])
        for at, grams in shingle_sets(key, row[same], read_rows, shingle):
            held[key, at] = grams
            size += len(grams)
            end = int(ends[document])
            document += 1
            if size >= SHINGLES_HELD:
                yield begin, end, held
                held, begin, size = {}, end, 0
    if held:
        yield begin, end, held


def _compare(
    same: I64,
    part: U64,
    row: U32,
    other: int,
    other_row: U32,
    held: Mapping[tuple[int, int], U64],
    read_rows: RowsReader,
    shingle: int,
    similarity: npt.NDArray[np.float32],
) -> None:
    """Fill in the similarity of the pairs `same`, whose right ends are in part `other`, sorted by their rows."""
    rows, first = np.unique(other_row[same], return_index=True)
    borders = [*first.tolist(), len(same)]
    position = {int(at): i for i, at in enumerate(rows)}
    here = {int(at): held[other, int(at)] for at in rows if (other, int(at)) in held}
    missing = np.array([at for at in rows if int(at) not in here], np.uint32)
    read = shingle_sets(other, missing, read_rows, shingle) if len(missing) else iter(())
    for sets in (iter(here.items()), read):
        for at, grams in sets:
            i = position[at]
            for pair in same[borders[i] : borders[i + 1]].tolist():
                similarity[pair] = jaccard(held[int(part[pair]), int(row[pair])], grams)


def cell_name(left: int, right: int, bits: int) -> str:
    return f"cell-{left:04d}-{right:04d}-of-{1 << bits:04d}"


def cell_names(bits: int) -> list[str]:
    """All cells of a grid of 2^bits ranges of part keys by as many, left range <= right range."""
    return [cell_name(i, j, bits) for i in range(1 << bits) for j in range(i, 1 << bits)]


def cell_bits(pairs: int) -> int:
    """How fine the grid must be for so many candidates.

    >>> cell_bits(1000), cell_bits(3 << 17), cell_bits(100 << 17)
    (0, 1, 4)
    """
    bits = 0
    while bits < 10 and ((1 << bits) * ((1 << bits) + 1) // 2) * PAIRS_PER_CELL < pairs:
        bits += 1
    return bits


def in_cells(pairs: pa.Table, bits: int, key_of: Callable[[str], int]) -> pa.Table:
    """PAIRS -> ROUTED: each with the key of its cell, by the leading bits of its parts' keys."""
    left, right = pairs.column("part").to_numpy(), pairs.column("other_part").to_numpy()
    keys = np.zeros((1 << bits, 1 << bits), np.uint64)
    for i in range(1 << bits):
        keys[i, i:] = [key_of(cell_name(i, j, bits)) for j in range(i, 1 << bits)]
    cell = keys[_leading(left, bits), _leading(right, bits)]
    return pairs.add_column(0, ROUTED.field("cell"), pa.array(cell)).cast(ROUTED)


def _leading(keys: U64, bits: int) -> I64:
    return (keys >> np.uint64(64 - bits)).astype(np.int64) if bits else np.zeros(len(keys), np.int64)


def changes(*columns: npt.NDArray[Any]) -> I64:
    """Where a row of sorted columns differs from the row before it; 0 is always among them unless there is no row."""
    count = len(columns[0])
    new = np.zeros(count, bool)
    new[:1] = True
    for column in columns:
        new[1:] |= column[1:] != column[:-1]
    return np.flatnonzero(new)


def columns_of(table: pa.Table, schema: pa.Schema) -> list[npt.NDArray[Any]]:
    return [table.column(name).to_numpy() for name in schema.names]


def table_of(schema: pa.Schema, *columns: npt.NDArray[Any]) -> pa.Table:
    arrays = [pa.array(c).cast(f.type, safe=False) for c, f in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)
