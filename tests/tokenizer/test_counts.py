"""Count tables: right, canonical, additive, bounded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenizer.table
from tokenizer.counts import SCHEMA, count_pretokens, count_runs, merge_counts, prune
from tokenizer.pretokens import Pretokens, find_keys

Split = Callable[..., list[list[bytes]]]
texts_strategy = st.lists(st.text(alphabet="ab '\n1é中s.", max_size=30), max_size=12)


def expected(documents: list[list[bytes]]) -> list[dict[str, object]]:
    counts = Counter(token for document in documents for token in document)
    return [{"pretoken": token, "count": counts[token]} for token in sorted(counts)]


def ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


@settings(max_examples=100, deadline=None)
@given(texts=texts_strategy, max_types=st.integers(1, 20))
def test_counts_are_those_of_a_counter(reference_split: Split, texts: list[str], max_types: int) -> None:
    table = count_pretokens(texts, max_types)
    assert table.schema == SCHEMA
    assert table.to_pylist() == expected(reference_split(texts))


def test_web_text(c4: list[str], reference_split: Split) -> None:
    assert count_pretokens(pa.array(c4[:300])).to_pylist() == expected(reference_split(c4[:300]))


def test_a_stream_of_arrays_and_short_runs_give_the_same_bytes(c4: list[str]) -> None:
    whole = count_pretokens(pa.array(c4[:200]))
    stream = (pa.array(c4[start : start + 8]) for start in range(0, 200, 8))
    assert ipc(count_pretokens(stream)) == ipc(whole)
    runs = list(count_runs([pa.array(c4[start : start + 8]) for start in range(0, 200, 8)], 1000))
    assert len(runs) > 5
    assert max(map(len, runs)) < 10_000
    assert ipc(merge_counts(reversed(runs))) == ipc(whole)
    assert ipc(count_pretokens(list(reversed(c4[:200])), 1000)) == ipc(whole)


@given(texts=texts_strategy, cut=st.integers(0, 12))
def test_tables_of_parts_add_up(texts: list[str], cut: int) -> None:
    parts = [count_pretokens(texts[cut:]), count_pretokens(texts[:cut])]
    assert ipc(merge_counts(parts)) == ipc(count_pretokens(texts))


def test_nothing_counts_to_an_empty_table() -> None:
    empty = SCHEMA.empty_table()
    for table in (count_pretokens([]), count_pretokens(["", ""]), merge_counts([]), merge_counts([empty, empty])):
        assert table.schema == SCHEMA
        assert len(table) == 0


def test_prune_keeps_what_is_frequent() -> None:
    table = count_pretokens(["a b b c c c"])
    assert prune(table, 2).to_pylist() == [{"pretoken": b" b", "count": 2}, {"pretoken": b" c", "count": 3}]
    assert ipc(prune(table, 0)) == ipc(table)


def test_counts_beyond_32_bits_add_up() -> None:
    table = pa.table({"pretoken": [b"a", b"b"], "count": [1 << 40, 1 << 60]}, SCHEMA)
    assert merge_counts([table, table])["count"].to_pylist() == [1 << 41, 1 << 61]
    with pytest.raises(ValueError, match="more than 2\\^62"):
        merge_counts([table] * 5)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"pretoken": [b"a"]}), "has the columns"),
        (pa.table({"pretoken": ["a"], "count": ["x"]}), "types binary and int64"),
        (pa.table({"pretoken": [b"a"], "count": pa.array([None], pa.int64())}), "no nulls"),
        (pa.table({"pretoken": [b"a"], "count": [-1]}), "below zero"),
    ],
)
def test_other_tables_are_refused(table: pa.Table, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        merge_counts([table])


def test_limits_must_make_sense() -> None:
    with pytest.raises(ValueError, match="max_types must be at least 1, not 0"):
        count_pretokens(["a"], 0)


def test_keys_that_collide_never_mix_counts(
    monkeypatch: pytest.MonkeyPatch, c4: list[str], reference_split: Split
) -> None:
    """All long pretokens share four keys here: what the bytes say decides."""

    def colliding(pretokens: Pretokens) -> npt.NDArray[np.uint64]:
        keys = find_keys(pretokens)
        long = keys >= np.uint64(0xFF << 56)
        return np.where(long, (keys & np.uint64(3)) | np.uint64(0xFF << 56), keys)

    monkeypatch.setattr(tokenizer.table, "find_keys", colliding)
    texts = [*c4[:40], " x" * 9 + "y" * 100, "y" * 99 + "z", "y" * 100]
    assert count_pretokens(texts).to_pylist() == expected(reference_split(texts))


def test_the_table_grows_and_keeps_its_rows() -> None:
    table = tokenizer.table.TypeTable()
    tokens = [b"w%d" % number for number in range(50_000)]
    text = np.frombuffer(b"".join(tokens) + bytes(8), np.uint8)
    batch = Pretokens(text, np.cumsum([0, *map(len, tokens)]), np.zeros(0, np.int64))
    assert (table.rows(batch) == np.arange(50_000)).all()
    assert table.types() == tokens
    assert (table.rows(batch) == np.arange(50_000)).all()
    assert table.count == 50_000
    assert table.size == sum(map(len, tokens))
