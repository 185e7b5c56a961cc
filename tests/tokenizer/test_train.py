"""Training: the reference's merges, one by one, where it does not wrap; right where it does."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import unittest.mock
from collections.abc import Callable

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenizer.train
from tokenizer.counts import SCHEMA, count_pretokens
from tokenizer.train import BpeOptions, Trained, train
from tokenizer.vocabulary import END_OF_TEXT, base_bytes

Merges = list[tuple[bytes, bytes]]
ReferenceMerges = Callable[..., Merges]

ALPHABETS = {
    "english": "etaoinshrdlu",
    "russian": "оеаинтсрвлкм",
    "hindi": "कखगघचछजट\u093e\u093f\u0940\u094d",
    "japanese": "日本語のはをがに東京大学",
    "code": "abc_(){}=;01",
    "emoji": "😀👍🏽❤\ufe0f\u200d👩",
}


def made(trained: Trained) -> Merges:
    tokens = trained.vocabulary.tokens
    return [(tokens[left], tokens[right]) for left, right in trained.vocabulary.merges]


def learn(texts: list[str], **options: int) -> Merges:
    return made(train(count_pretokens(texts), BpeOptions(**options)))  # type: ignore[arg-type]


def babble(alphabet: str, seed: int, words: int = 4000) -> list[str]:
    """Lines of invented words, some far more frequent than others."""
    source = random.Random(seed)
    lexicon = ["".join(source.choices(alphabet, k=source.randrange(1, 9))) for _ in range(400)]
    chosen = source.choices(lexicon, [1 / rank for rank in range(1, 401)], k=words)
    return [" ".join(chosen[start : start + 11]) + "\n" for start in range(0, words, 11)]


@pytest.mark.parametrize("language", ALPHABETS)
@pytest.mark.parametrize("vocab_size", [257, 300, 1500])
def test_merges_are_the_reference_s(reference_merges: ReferenceMerges, language: str, vocab_size: int) -> None:
    texts = babble(ALPHABETS[language], vocab_size)
    expected = reference_merges(texts, vocab_size)
    assert learn(texts, vocab_size=vocab_size) == expected
    assert bool(expected) == (vocab_size > 257)


def test_merges_of_web_text_are_the_reference_s(reference_merges: ReferenceMerges, c4: list[str]) -> None:
    assert learn(c4, vocab_size=8000) == reference_merges(c4, 8000)


@settings(max_examples=150, deadline=None)
@given(
    texts=st.lists(st.text(alphabet="aab é'1\n", max_size=60), min_size=1, max_size=12),
    vocab_size=st.sampled_from([257, 258, 270, 400]),
    min_count=st.integers(1, 3),
    longest=st.sampled_from([0, 0, 2, 3, 5]),
    few=st.sampled_from([0, 3, 1000]),
)
def test_merges_of_anything_are_the_reference_s(
    reference_merges: ReferenceMerges, texts: list[str], vocab_size: int, min_count: int, longest: int, few: int
) -> None:
    """Whether by walking or by array operations."""
    with unittest.mock.patch.object(tokenizer.train, "FEW", few):
        ours = learn(texts, vocab_size=vocab_size, min_count=min_count, max_token_length=longest)
    assert ours == reference_merges(texts, vocab_size, min_count, longest)


def test_a_run_of_one_letter_merges_from_the_left(reference_merges: ReferenceMerges) -> None:
    texts = ["a" * size for size in range(1, 40)]
    assert learn(texts, vocab_size=300) == reference_merges(texts, 300)


def test_ties_go_to_the_smaller_ids() -> None:
    assert learn(["cd", "cd", "ab", "ab", "Zz", "Zz"], vocab_size=260) == [(b"Z", b"z"), (b"a", b"b"), (b"c", b"d")]


def test_counts_beyond_32_bits_are_right() -> None:
    """Ten billion times a pretoken: 32 bits would make 1,410,065,408 of it, and " ab" would come first."""
    table = pa.table({"pretoken": [b" ab", b" t"], "count": [2_000_000_000, 10_000_000_000]}, SCHEMA)
    trained = train(table, BpeOptions(vocab_size=260))
    assert made(trained) == [(b" ", b"t"), (b"a", b"b"), (b" ", b"ab")]
    assert trained.counts == (10_000_000_000, 2_000_000_000, 2_000_000_000)


def test_a_corpus_billions_of_times_as_large_has_the_same_merges(c4: list[str]) -> None:
    table = count_pretokens(c4[:200])
    factor = 1 << 33
    large = table.set_column(1, SCHEMA.field("count"), pa.compute.multiply(table["count"], factor))
    one, other = train(table, BpeOptions(2000, 1)), train(large, BpeOptions(2000, factor))
    assert other.vocabulary == one.vocabulary
    assert other.counts == tuple(count * factor for count in one.counts)


def test_counts_that_no_integer_holds_are_refused() -> None:
    table = pa.table({"pretoken": [b"abcdefgh"], "count": [1 << 60]}, SCHEMA)
    with pytest.raises(ValueError, match=r"at most 2\^62 - 1"):
        train(table)


def test_end_of_text_is_last_and_the_bytes_are_first() -> None:
    vocabulary = train(count_pretokens(["abab"]), BpeOptions(vocab_size=258)).vocabulary
    assert vocabulary.tokens[:256] == tuple(bytes([byte]) for byte in base_bytes())
    assert vocabulary.tokens[256:] == (b"ab", END_OF_TEXT.encode())
    assert vocabulary.end_of_text == 257
    assert vocabulary.specials == (257,)


def test_a_small_corpus_says_that_it_yields_less() -> None:
    trained = train(count_pretokens(["ab ab"]))
    assert (trained.complete, trained.wanted, trained.vocabulary.size) == (False, 50257, 258)
    assert train(count_pretokens(["ab ab"]), BpeOptions(258)).complete
    assert train(count_pretokens([])).vocabulary.size == 257


def test_rows_in_any_order_and_zero_counts_change_nothing(c4: list[str]) -> None:
    table = count_pretokens(c4[:50])
    mixed = pa.concat_tables(
        [table.slice(300), pa.table({"pretoken": [b"zz"], "count": [0]}, SCHEMA), table.slice(0, 300)]
    )
    assert train(mixed, BpeOptions(500)) == train(table, BpeOptions(500))


def test_the_engine_of_the_reference_gives_the_same(c4: list[str]) -> None:
    table = count_pretokens(c4[:100])
    ours = train(table, BpeOptions(1000))
    theirs = train(table, BpeOptions(1000, engine="tokenizers"))
    assert theirs.vocabulary == ours.vocabulary
    assert theirs.counts == ()
    large = pa.table({"pretoken": [b"ab"], "count": [1 << 31]}, SCHEMA)
    with pytest.raises(ValueError, match='need engine "counts"'):
        train(large, BpeOptions(300, engine="tokenizers"))


def test_no_token_is_longer_than_allowed(c4: list[str]) -> None:
    vocabulary = train(count_pretokens(c4[:100]), BpeOptions(2000, max_token_length=5)).vocabulary
    assert max(map(len, vocabulary.tokens[:-1])) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 256}, "vocab_size must be between 257"),
        ({"min_count": 0}, "min_count must be at least 1"),
        ({"max_token_length": 1}, "max_token_length must be 0"),
        ({"engine": "gpu"}, 'engine must be "counts" or "tokenizers"'),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BpeOptions(**options)  # type: ignore[arg-type]


def test_the_result_does_not_depend_on_the_hash_seed() -> None:
    code = (
        "import random, hashlib; from tokenizer.counts import *; from tokenizer.train import *;"
        "from tokenizer.files import tokenizer_files;"
        "r = random.Random(1); t = [''.join(r.choices('abcdef ', k=40)) for _ in range(300)];"
        "v = train(count_pretokens(t), BpeOptions(700)).vocabulary;"
        "print(hashlib.sha256(repr(tokenizer_files(v)).encode()).hexdigest())"
    )
    results = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("0", "77")
    }
    assert len(results) == 1
