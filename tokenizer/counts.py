"""How often each pretoken occurs: all that training a byte-level BPE needs to know of a corpus.

A count table is a `pa.Table` of `SCHEMA`, sorted by the pretoken's bytes, each pretoken once: equal corpora give
equal tables, whatever the order of their texts, and tables of parts add up to the table of the whole. So a large
corpus is counted part by part, anywhere, and the tables are merged; memory is bounded by a limit on the distinct
pretokens held at once, beyond which a run is closed and another begun.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tokenizer.pretokens import Texts, find_pretokens
from tokenizer.table import TypeTable

SCHEMA: Final = pa.schema(
    [pa.field("pretoken", pa.binary(), nullable=False), pa.field("count", pa.int64(), nullable=False)]
)
MAX_TYPES: Final = 1 << 22  # distinct pretokens in one run: about 400 MB while it is being counted
MAX_BYTES: Final = 1 << 28  # and their bytes

Counts = npt.NDArray[np.int64]


def count_pretokens(texts: Texts | Iterable[Texts], max_types: int = MAX_TYPES) -> pa.Table:
    """The count table of all texts: one string array, or a stream of them."""
    return merge_counts(count_runs(texts, max_types))


def count_runs(texts: Texts | Iterable[Texts], max_types: int = MAX_TYPES) -> Iterator[pa.Table]:
    """Count tables that together count all texts, each of about `max_types` pretokens at most (a megabyte of text may
    carry one beyond). Raises ValueError for texts that are null or not UTF-8."""
    if max_types < 1:
        raise ValueError(f"max_types must be at least 1, not {max_types}")
    table, counts = TypeTable(), np.zeros(1 << 12, np.int64)
    for array in _stream(texts):
        for pretokens in find_pretokens(array):
            rows = table.rows(pretokens)
            if table.count > len(counts):
                counts = np.concatenate([counts, np.zeros(table.count, np.int64)])
            seen = np.bincount(rows)
            counts[: len(seen)] += seen
            if table.count >= max_types or table.size >= MAX_BYTES:
                yield _count_table(table, counts)
                table, counts = TypeTable(), np.zeros(1 << 12, np.int64)
    if table.count:
        yield _count_table(table, counts)


def _stream(texts: Texts | Iterable[Texts]) -> Iterable[Texts]:
    if isinstance(texts, pa.Array | pa.ChunkedArray):
        return [texts]
    if isinstance(texts, list | tuple) and all(isinstance(text, str) for text in texts):
        return [texts]
    return texts


def _count_table(table: TypeTable, counts: Counts) -> pa.Table:
    offsets = pa.py_buffer(table.borders().astype(np.int64).tobytes())
    tokens = pa.Array.from_buffers(
        pa.large_binary(), table.count, [None, offsets, pa.py_buffer(table.text().tobytes())]
    )
    return _sorted_table(tokens.cast(pa.binary()), pa.array(counts[: table.count]))


def _sorted_table(tokens: pa.Array | pa.ChunkedArray, counts: pa.Array | pa.ChunkedArray) -> pa.Table:
    """In the order of the tokens' bytes, one chunk a column, no validity bitmaps: equal counts are equal bytes."""
    table = pa.Table.from_arrays([tokens, counts], schema=SCHEMA)
    table = table.take(pc.sort_indices(table, [("pretoken", "ascending")])).combine_chunks()
    return pa.Table.from_arrays([_bare(column) for column in table.columns], schema=SCHEMA)


def _bare(column: pa.ChunkedArray) -> pa.Array:
    if not len(column):
        return pa.array([], column.type)
    array = column.chunk(0)
    return pa.Array.from_buffers(array.type, len(array), [None, *array.buffers()[1:]], offset=array.offset)


def merge_counts(tables: Iterable[pa.Table]) -> pa.Table:
    """The sum of count tables, in any order and number. Holds the sum and the two tables being added; raises
    ValueError for a table of another schema, a null or a count below zero, and where a sum passes 2^63 - 1."""
    sums: list[pa.Table] = []  # each at least twice as long as the next, so that every row is added few times
    for table in tables:
        sums.append(_checked(table))
        while len(sums) > 1 and len(sums[-2]) < 2 * len(sums[-1]):
            sums.append(_added(sums.pop(), sums.pop()))
    while len(sums) > 1:
        sums.append(_added(sums.pop(), sums.pop()))
    return _added(sums[0]) if sums else SCHEMA.empty_table()


def _added(*tables: pa.Table) -> pa.Table:
    joined = pa.concat_tables(tables)
    _check_total(joined)
    summed = joined.group_by("pretoken", use_threads=False).aggregate([("count", "sum")])
    return _sorted_table(summed["pretoken"], summed["count_sum"])


def _check_total(table: pa.Table) -> None:
    high = pc.sum(pc.shift_right(table["count"], pa.scalar(32, pa.int64()))).as_py() or 0
    if high >= 1 << 30:  # with what the shift cut off, at most 2^62 + 2^32 rows * 2^32
        raise ValueError("the counts add up to more than 2^62, which a count table does not hold")


def _checked(table: pa.Table) -> pa.Table:
    """The table in `SCHEMA`'s types, or ValueError."""
    if table.column_names != SCHEMA.names:
        raise ValueError(f"a count table has the columns {SCHEMA.names}, not {table.column_names}")
    if any(column.null_count for column in table.columns):
        raise ValueError("a count table has no nulls")
    try:
        table = table.replace_schema_metadata(None).cast(SCHEMA)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"a count table has columns of types binary and int64: {error}") from error
    if len(table) and pc.min(table["count"]).as_py() < 0:
        raise ValueError("a count table has no counts below zero")
    return table


def prune(table: pa.Table, minimum: int) -> pa.Table:
    """The rows counted at least `minimum` times. Rare pretokens are most of a large corpus' types and hardly any of
    its text; leaving them out changes late merges only."""
    return table.filter(pc.greater_equal(table["count"], minimum)).combine_chunks()
