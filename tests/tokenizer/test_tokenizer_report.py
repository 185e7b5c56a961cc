"""The compression report, against numbers that training and plain counting give."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from tokenizer.counts import SCHEMA, count_pretokens
from tokenizer.encode import Encoder
from tokenizer.report import report
from tokenizer.train import BpeOptions, train


def test_a_small_text_by_hand() -> None:
    table = count_pretokens(["ab ab ab! 12"])
    found = report(train(table, BpeOptions(259)).vocabulary, table, sizes=[257, 258])
    assert (found["types"], found["pretokens"], found["words"], found["n_bytes"]) == (4, 5, 3, 12)
    sizes = found["sizes"]
    assert isinstance(sizes, list)
    assert [entry["vocab_size"] for entry in sizes] == [257, 258, 259]
    assert [entry["tokens"] for entry in sizes] == [12, 9, 7]  # ab, then the blank before it
    assert sizes[1]["bytes_per_token"] == pytest.approx(12 / 9)
    assert sizes[1]["tokens_per_word"] == pytest.approx(5 / 3)
    assert sizes[1]["single_byte_share"] == pytest.approx(6 / 9)
    assert [entry["unused"] for entry in sizes] == [250, 252, 252]


def test_web_text_at_every_size_is_what_encoding_it_gives(c4: list[str]) -> None:
    texts = c4[:100]
    table = count_pretokens(texts)
    vocabulary = train(table, BpeOptions(2000)).vocabulary
    found = report(vocabulary, table, sizes=[512, 1024, 4096])
    assert json.loads(json.dumps(found)) == found
    sizes = found["sizes"]
    assert isinstance(sizes, list)
    assert [entry["vocab_size"] for entry in sizes] == [512, 1024, 2000]
    for entry in sizes:
        encoded = Encoder(vocabulary.prefix(entry["vocab_size"])).encode(texts)
        assert entry["tokens"] == len(encoded.values)
        assert entry["bytes_per_token"] == pytest.approx(
            sum(len(text.encode()) for text in texts) / len(encoded.values)
        )
    assert found["n_bytes"] == sum(len(text.encode()) for text in texts)


def test_an_empty_text_has_a_report() -> None:
    empty = SCHEMA.empty_table()
    found = report(train(empty, BpeOptions(300)).vocabulary, empty)
    assert found["sizes"] == [
        {
            "vocab_size": 257,
            "tokens": 0,
            "bytes_per_token": 0.0,
            "tokens_per_word": 0.0,
            "single_byte_share": 0.0,
            "unused": 256,
        }
    ]


def test_counts_of_what_is_not_text_are_refused() -> None:
    table = pa.table({"pretoken": [b"\xff"], "count": [1]}, SCHEMA)
    with pytest.raises(ValueError, match="a counted pretoken is not UTF-8"):
        report(train(SCHEMA.empty_table(), BpeOptions(300)).vocabulary, table)
