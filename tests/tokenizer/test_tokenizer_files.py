"""Tokenizer files: the same bytes every time, readable by others, and hostile ones refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenizer.files
from tokenizer.counts import count_pretokens
from tokenizer.encode import Encoder
from tokenizer.files import parse_tokenizer_json, read_pair, read_vocabulary, save_vocabulary, tokenizer_files
from tokenizer.train import BpeOptions, train
from tokenizer.vocabulary import Vocabulary, byte_characters, new_vocabulary, read_token, write_token

TEXTS = ["The cat's hat, the cat; naïve café 日本 <|endoftext|>", "  don't  1234\n\n", ""]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return train(count_pretokens([text * 4 for text in TEXTS]), BpeOptions(320)).vocabulary


@pytest.fixture
def folder(vocabulary: Vocabulary, tmp_path: Path) -> Path:
    save_vocabulary(vocabulary, tmp_path / "made")
    return tmp_path / "made"


def test_gpt2_s_files_come_back_as_they_were(gpt2: Path) -> None:
    vocabulary = read_vocabulary(gpt2)
    assert (vocabulary.size, len(vocabulary.merges), vocabulary.end_of_text) == (50257, 50000, 50256)
    files = tokenizer_files(vocabulary)
    assert files["merges.txt"] == (gpt2 / "vocab.bpe").read_bytes()
    assert json.loads(files["vocab.json"]) == json.loads((gpt2 / "encoder.json").read_bytes())
    assert parse_tokenizer_json(files["tokenizer.json"]) == vocabulary


def test_the_byte_characters_are_gpt2_s() -> None:
    characters = byte_characters()
    assert len(set(characters)) == 256
    assert (characters[0x20], characters[0x0A], characters[0x00], characters[0xAD]) == ("Ġ", "Ċ", "Ā", "Ń")
    assert read_token(write_token(bytes(range(256)))) == bytes(range(256))
    with pytest.raises(ValueError, match=r"U\+65E5, which stands for no byte"):
        read_token("日")


def test_every_form_reads_back(folder: Path, vocabulary: Vocabulary) -> None:
    for path in (folder, folder / "tokenizer.json", folder / "vocab.json", str(folder)):
        assert read_vocabulary(path) == vocabulary
    (folder / "tokenizer.json").unlink()
    assert read_vocabulary(folder) == vocabulary
    with pytest.raises(FileNotFoundError, match="no tokenizer here"):
        read_vocabulary(folder.parent)


def test_equal_vocabularies_are_equal_bytes(folder: Path) -> None:
    again = tokenizer_files(read_vocabulary(folder))
    assert {name: (folder / name).read_bytes() for name in again} == again
    assert again["merges.txt"].startswith(b"#version: 0.2\n")


def test_tokenizers_and_transformers_open_them(folder: Path, vocabulary: Vocabulary) -> None:
    from tokenizers import Tokenizer
    from transformers import GPT2TokenizerFast, PreTrainedTokenizerFast

    expected = Encoder(vocabulary).encode(TEXTS).to_pylist()
    theirs = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert theirs.token_to_id("<|endoftext|>") == vocabulary.end_of_text == theirs.get_vocab_size() - 1
    assert theirs.encode("a<|endoftext|>").ids[-1] == vocabulary.end_of_text
    theirs.encode_special_tokens = True
    assert [theirs.encode(text).ids for text in TEXTS] == expected
    assert [theirs.decode(ids, skip_special_tokens=False) for ids in expected] == TEXTS
    fast = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    assert fast("The cat's")["input_ids"] == Encoder(vocabulary).encode(["The cat's"]).to_pylist()[0]
    named = GPT2TokenizerFast.from_pretrained(folder)
    assert named("The cat's")["input_ids"] == fast("The cat's")["input_ids"]
    assert named.eos_token_id == vocabulary.end_of_text


def test_what_tokenizers_writes_is_read(folder: Path, vocabulary: Vocabulary, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    for name in ("a", "b"):
        Tokenizer.from_file(str(folder / "tokenizer.json")).save(str(tmp_path / f"{name}.json"), pretty=name == "a")
        assert read_vocabulary(tmp_path / f"{name}.json") == vocabulary


def test_merges_spelled_as_strings_are_read(folder: Path, vocabulary: Vocabulary) -> None:
    value = json.loads((folder / "tokenizer.json").read_bytes())
    value["model"]["merges"] = [" ".join(pair) for pair in value["model"]["merges"]]
    assert parse_tokenizer_json(json.dumps(value).encode()) == vocabulary


def _set(*path: Any, value: Any) -> Callable[[Any], None]:
    def change(tree: Any) -> None:
        for name in path[:-1]:
            tree = tree[name]
        tree[path[-1]] = value

    return change


def _add(token: str) -> Callable[[Any], None]:
    return lambda tree: tree["model"]["vocab"].update({token: len(tree["model"]["vocab"])})


HOSTILE: list[tuple[Callable[[Any], None], str]] = [
    (lambda tree: tree.pop("model"), 'has no "model"'),
    (_set("model", value=[]), 'has no "model"'),
    (_set("model", "type", value="Unigram"), 'model has type "Unigram"'),
    (_set("model", "byte_fallback", value=True), "model has byte_fallback true"),
    (_set("model", "ignore_merges", value=True), "model has ignore_merges true"),
    (_set("model", "dropout", value=0.1), "model has dropout 0.1"),
    (_set("model", "end_of_word_suffix", value="</w>"), "model has end_of_word_suffix"),
    (_set("normalizer", value={"type": "NFC"}), "it has normalizer"),
    (_set("pre_tokenizer", value=None), "its pre_tokenizer is not ByteLevel"),
    (_set("pre_tokenizer", "add_prefix_space", value=True), "its pre_tokenizer has add_prefix_space true"),
    (_set("pre_tokenizer", "use_regex", value=False), "its pre_tokenizer has use_regex false"),
    (_set("model", "vocab", value=["a"]), "must be an object of tokens and ids, not a list"),
    (_set("model", "vocab", "!", value="0"), "the id of '!' must be a whole number, not a string"),
    (_set("model", "vocab", "!", value=True), "the id of '!' must be a whole number, not a truth value"),
    (_set("model", "vocab", "!", value=0.0), "the id of '!' must be a whole number, not a number"),
    (_set("model", "vocab", "!", value=5), "some id is there twice"),
    (_set("model", "vocab", "!", value=-1), "the ids must be 0 to"),
    (_set("model", "vocab", "!", value=10**30), "the ids must be 0 to"),
    (_add("日"), "'日' holds U+65E5, which stands for no byte"),
    (_add(""), "is empty"),
    (_set("model", "merges", value=None), "the merges must be a list, not null"),
    (_set("model", "merges", 0, value=["a"]), "merge 0 must name two tokens"),
    (_set("model", "merges", 0, value=["a", 3]), "merge 0 must name two tokens"),
    (_set("model", "merges", 0, value="a b c"), "merge 0 must name two tokens"),
    (_set("model", "merges", 0, value=["a", "日本"]), "merge 0 names '日本', which is no token"),
    (_set("model", "merges", 0, value=["~", "~"]), "merge 0 makes '~~', which is no token"),
    (lambda tree: tree["model"]["merges"].append(tree["model"]["merges"][0]), "two merges join the same pair"),
    (_set("model", "merges", 0, value=["<|endoftext|>", "a"]), "not both tokens of text"),
    (_set("added_tokens", value={}), "added_tokens must be a list, not an object"),
    (_set("added_tokens", 0, value=3), "added token 0 must have a content"),
    (_set("added_tokens", 0, "id", value="x"), "added token 0 must have a content"),
    (_set("added_tokens", 0, "id", value=3), "has two ids"),
]


@pytest.mark.parametrize(("change", "message"), HOSTILE, ids=[message for _, message in HOSTILE])
def test_hostile_files_get_one_clear_error(folder: Path, change: Callable[[Any], None], message: str) -> None:
    path = folder / "tokenizer.json"
    tree = json.loads(path.read_bytes())
    change(tree)
    path.write_bytes(json.dumps(tree).encode())
    with pytest.raises(ValueError, match=r"tokenizer\.json: ") as caught:
        read_vocabulary(folder)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a": 1, "a": 2}', "the name 'a' is there twice"),
        (b"null", 'has no "model"'),
        (b"1" * 10_000, "tokenizer.json: "),
    ],
)
def test_hostile_bytes_get_one_clear_error(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(ValueError, match=r"tokenizer\.json: ") as caught:
        read_vocabulary(tmp_path)
    assert message in str(caught.value)


def test_bytes_that_no_token_spells_are_told(folder: Path) -> None:
    path = folder / "vocab.json"
    ids = json.loads(path.read_bytes())
    ids["xyzxyz"] = ids.pop("~")
    path.write_bytes(json.dumps(ids).encode())
    with pytest.raises(ValueError, match=r"vocab.json with merges.txt: 1 of the 256 bytes have no token.* 0x7E"):
        read_pair(path, folder / "merges.txt")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"#version: 0.2\na b c\n", "line 2 must name two tokens"),
        (b"a\n", "line 1 must name two tokens"),
        (b"#version: 0.2\n\na b\n", "line 2 must name two tokens"),
        (b"\xff\xff", "not UTF-8"),
    ],
)
def test_hostile_merges_name_their_file_and_line(folder: Path, data: bytes, message: str) -> None:
    (folder / "merges.txt").write_bytes(data)
    with pytest.raises(ValueError, match=r"merges\.txt: ") as caught:
        read_vocabulary(folder / "vocab.json")
    assert message in str(caught.value)


def test_windows_line_ends_are_read(folder: Path, vocabulary: Vocabulary) -> None:
    data = (folder / "merges.txt").read_bytes()
    (folder / "merges.txt").write_bytes(data.replace(b"\n", b"\r\n"))
    assert read_vocabulary(folder / "vocab.json") == vocabulary


def test_huge_files_are_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer.files, "MAX_FILE", 1000)
    with pytest.raises(ValueError, match=r"tokenizer\.json: larger than 1000 bytes"):
        read_vocabulary(folder)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=60), place=st.integers(0, 10_000), cut=st.integers(0, 40))
def test_damage_anywhere_is_a_value_error_or_harmless(
    vocabulary: Vocabulary, data: bytes, place: int, cut: int
) -> None:
    whole = tokenizer_files(vocabulary)["tokenizer.json"]
    place %= len(whole)
    try:
        found = parse_tokenizer_json(whole[:place] + data + whole[place + cut :])
    except (ValueError, RecursionError):
        return
    assert isinstance(found, Vocabulary)


def test_specials_before_text_cannot_be_written(vocabulary: Vocabulary) -> None:
    first = Vocabulary((b"<s>", *(bytes([byte]) for byte in range(256))), (), (0,))
    with pytest.raises(ValueError, match="special tokens must come after all others"):
        tokenizer_files(first)


def test_a_prefix_is_what_a_smaller_training_makes(vocabulary: Vocabulary) -> None:
    table = count_pretokens([text * 4 for text in TEXTS])
    for size in (257, 258, 300):
        assert vocabulary.prefix(size) == train(table, BpeOptions(size)).vocabulary
    with pytest.raises(ValueError, match="a prefix has between 257"):
        vocabulary.prefix(10_000)


def test_a_merge_must_join_tokens_that_are_there() -> None:
    with pytest.raises(ValueError, match="not both tokens yet"):
        new_vocabulary([(b"ab", b"c")])
