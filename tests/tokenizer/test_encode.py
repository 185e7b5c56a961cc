"""Encoding in bulk: the reference's ids for every text, whatever the batches, the memory and the keys."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenizer.encode
import tokenizer.table
from tokenizer.counts import count_pretokens
from tokenizer.encode import Encoder, encode_in_pieces, reference_encoder
from tokenizer.pretokens import Pretokens, find_keys
from tokenizer.train import BpeOptions, train
from tokenizer.vocabulary import END_OF_TEXT, Vocabulary, new_vocabulary, write_token

Reference = Callable[[list[str]], list[list[int]]]


@pytest.fixture(scope="module")
def encoder(gpt2: Path) -> Encoder:
    return Encoder.open(gpt2)


@pytest.fixture(scope="module")
def reference(gpt2: Path) -> Reference:
    """The whole reference, splitting included, from GPT-2's own files, taking specials in text for text."""
    from tokenizers import ByteLevelBPETokenizer

    files = str(gpt2 / "encoder.json"), str(gpt2 / "vocab.bpe")
    whole = ByteLevelBPETokenizer.from_file(*files)
    return lambda texts: [found.ids for found in whole.encode_batch(texts)]


def small(longest: str = "abcabcabc", size: int = 300) -> Vocabulary:
    return train(count_pretokens([longest] * 5 + ["the cat", "the hat"] * 3), BpeOptions(size)).vocabulary


def test_the_released_test_vectors(encoder: Encoder, shared: Path) -> None:
    lines = (shared / "data" / "vocab" / "gpt2" / "test_vectors.jsonl").read_text("utf-8").splitlines()
    vectors = [json.loads(line) for line in lines]
    assert len(vectors) == 44
    assert encoder.encode([vector["text"] for vector in vectors]).to_pylist() == [vector["ids"] for vector in vectors]


def test_the_vectors_of_the_papers_code(encoder: Encoder, shared: Path) -> None:
    vectors = json.loads((shared / "reference" / "gpt2_bpe_vectors.json").read_text("utf-8"))
    assert len(vectors) >= 34
    assert encoder.encode(list(vectors)).to_pylist() == list(vectors.values())
    assert [encoder.decode(ids) for ids in vectors.values()] == list(vectors)


def test_every_code_point(encoder: Encoder, reference: Reference) -> None:
    points = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    texts = ["".join(points[start : start + 64]) for start in range(0, len(points), 64)]
    encoded = encoder.encode(texts)
    assert encoded.to_pylist() == reference(texts)
    assert encoder.decode(encoded.values) == "".join(points)


awkward = st.lists(
    st.one_of(
        st.sampled_from(
            ["'s", "'re", " ", "  ", "\n", " '", "\u3000", "<|endoftext|>", "the", " the", "é", "日本", "😀"]
        ),
        st.text(max_size=6),
    ),
    max_size=16,
).map("".join)


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(awkward, max_size=6))
def test_any_text(encoder: Encoder, reference: Reference, texts: list[str]) -> None:
    encoded = encoder.encode(texts)
    assert encoded.to_pylist() == reference(texts)
    assert [encoder.decode(ids.values) for ids in encoded] == texts


def test_web_text_equals_tiktoken(encoder: Encoder, c4: list[str]) -> None:
    import tiktoken

    theirs = tiktoken.Encoding(
        "gpt2-from-files",
        pat_str=r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
        mergeable_ranks=encoder.vocabulary.ids,
        special_tokens={END_OF_TEXT: encoder.vocabulary.end_of_text},
    )
    assert encoder.encode(pa.array(c4)).to_pylist() == theirs.encode_ordinary_batch(c4, num_threads=1)


def test_end_of_text_is_put_at_ends_and_never_read_from_text(encoder: Encoder) -> None:
    texts = ["a<|endoftext|>", "", "<|endoftext|>", "b"]
    spelled = [27, 91, 437, 1659, 5239, 91, 29]
    plain = [[64, *spelled], [], spelled, [65]]
    assert encoder.encode(texts).to_pylist() == plain
    assert encoder.encode(texts, end_of_text=True).to_pylist() == [[*ids, 50256] for ids in plain]
    assert encoder.encode([], end_of_text=True).to_pylist() == []
    assert encoder.encode(["", ""], end_of_text=True).to_pylist() == [[50256], [50256]]


def test_a_special_name_that_is_one_pretoken_is_still_text() -> None:
    base = small()
    vocabulary = Vocabulary((*base.tokens, b"the"), base.merges, (*base.specials, base.size))
    encoder = Encoder(vocabulary)
    assert base.size not in encoder.encode(["the the"]).values.to_pylist()
    assert encoder.decode(encoder.encode(["the the"]).values) == "the the"


def test_ids_are_as_narrow_as_the_vocabulary_allows() -> None:
    singles = [bytes([byte]) for byte in range(256)]
    pairs = [(left, right) for left in singles for right in singles]
    narrow, wide = new_vocabulary(pairs[: 65536 - 257]), new_vocabulary(pairs[: 65536 - 256])
    assert (narrow.size, wide.size) == (65536, 65537)
    for vocabulary, kind in ((narrow, pa.uint16()), (wide, pa.uint32())):
        encoded = Encoder(vocabulary).encode(["héé"], end_of_text=True)
        assert encoded.type == pa.list_(kind)
        assert encoded.values[-1].as_py() == vocabulary.size - 1
        assert Encoder(vocabulary).encode([]).type == pa.list_(kind)


def test_slices_chunks_and_large_strings(encoder: Encoder, c4: list[str]) -> None:
    expected = encoder.encode(c4[10:30])
    assert encoder.encode(pa.array(c4[:40]).slice(10, 20)) == expected
    assert encoder.encode(pa.array(c4[10:30], pa.large_string())) == expected
    assert encoder.encode(pa.chunked_array([c4[10:17], [], c4[17:30]])) == expected


def test_forgetting_changes_nothing(gpt2: Path, encoder: Encoder, c4: list[str]) -> None:
    forgetful = Encoder.open(gpt2, max_types=1)
    for start in range(0, 60, 20):
        assert forgetful.encode(c4[start : start + 20]) == encoder.encode(c4[start : start + 20])
    forgetful.encode(["a"])
    assert forgetful._table.count == 1
    with pytest.raises(ValueError, match="max_types must be at least 1"):
        Encoder(encoder.vocabulary, 0)


def test_keys_that_collide_never_give_wrong_ids(
    monkeypatch: pytest.MonkeyPatch, gpt2: Path, encoder: Encoder, c4: list[str]
) -> None:
    def colliding(pretokens: Pretokens) -> npt.NDArray[np.uint64]:
        keys = find_keys(pretokens)
        long = keys >= np.uint64(0xFF << 56)
        return np.where(long, (keys & np.uint64(3)) | np.uint64(0xFF << 56), keys)

    expected = encoder.encode(c4[:50])
    monkeypatch.setattr(tokenizer.table, "find_keys", colliding)
    assert Encoder(encoder.vocabulary).encode(c4[:50]) == expected


def test_a_pickle_is_a_path_or_a_vocabulary(gpt2: Path, encoder: Encoder) -> None:
    encoder.encode(["something to remember"])
    data = pickle.dumps(encoder)
    assert len(data) < 1000
    copy = pickle.loads(data)
    assert copy.vocabulary == encoder.vocabulary
    assert copy.encode(["one two"]) == encoder.encode(["one two"])
    bare = Encoder(small())
    assert pickle.loads(pickle.dumps(bare)).encode(["the cat"]) == bare.encode(["the cat"])


@settings(max_examples=200, deadline=None)
@given(data=st.text(alphabet="abcthe é", min_size=1, max_size=200), piece=st.integers(1, 50))
def test_a_pretoken_encoded_in_pieces_has_the_same_ids(data: str, piece: int) -> None:
    vocabulary = small("abcabcabcab" * 9 + " aaaaaaaa")
    whole = reference_encoder(vocabulary)

    def encode(part: bytes) -> list[int]:
        return list(whole.encode(write_token(part)).ids)

    assert encode_in_pieces(data.encode(), encode, vocabulary.tokens, piece) == encode(data.encode())


def test_a_pretoken_longer_than_a_piece(
    monkeypatch: pytest.MonkeyPatch, encoder: Encoder, reference: Reference
) -> None:
    monkeypatch.setattr(tokenizer.encode, "PIECE", 1000)
    source = random.Random(1)
    texts = ["".join(source.choices("abcdefghijé", k=20_000)), "a" * 5001, " " * 3000, "x " + "ф" * 2000 + " z"]
    fresh = Encoder(encoder.vocabulary)
    assert fresh.encode(texts).to_pylist() == reference(texts)


def test_a_megabyte_without_a_space(encoder: Encoder) -> None:
    text = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz", k=1 << 20))
    encoded = encoder.encode([text])
    assert encoder.decode(encoded.values) == text


def test_decoding(encoder: Encoder) -> None:
    assert encoder.decode([15496, 995, 50256]) == "Hello world<|endoftext|>"
    assert encoder.decode([447]) == "\ufffd"
    assert encoder.decode_bytes([447]) == b"\xe2\x80"
    assert encoder.decode([]) == ""
    assert encoder.decode(np.array([15496], np.uint16)) == "Hello"
    for wrong in ([50257], [-1], [0.5]):
        with pytest.raises(ValueError, match="between 0 and 50256"):
            encoder.decode(wrong)  # type: ignore[arg-type]


def test_without_an_end_of_text_none_can_be_put() -> None:
    base = small()
    vocabulary = Vocabulary(base.tokens[:-1], base.merges, ())
    assert Encoder(vocabulary).encode(["the"]) == Encoder(base).encode(["the"])
    with pytest.raises(ValueError, match=r"no <\|endoftext\|>"):
        Encoder(vocabulary).encode(["the"], end_of_text=True)
