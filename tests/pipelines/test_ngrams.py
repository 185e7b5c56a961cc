"""Words and n-grams in bulk against a plain Python oracle: code points, fuzz, borders, pieces, vocabularies."""

import bz2
import gzip
import random
import unicodedata
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import ngrams
from pipelines.ngrams import LONGEST_WORD, Index, find_grams, find_words, fold, gram_text, gram_texts, pieces


def plain_fold(character: str) -> str:
    if character == "İ":
        return "i"
    full = character.casefold()
    simple = full if len(full) == 1 else character.lower()
    return simple if len(simple) == 1 else character


def plain_words(text: str) -> list[tuple[str, int, int]]:
    """The rule of the module's docstring, one character at a time: (folded word, start byte, end byte)."""
    words: list[tuple[str, int, int]] = []
    word, start, at = "", 0, 0
    for character in text:
        size = len(character.encode())
        kind = unicodedata.category(character)[0]
        if word and (kind not in "LNM" or at + size - start > LONGEST_WORD):
            words.append((word, start, at))
            word = ""
        if kind in "LN" and not word:
            start = at
        if kind in "LN" or (kind == "M" and word):
            word += plain_fold(character)
        at += size
    return [*words, (word, start, at)] if word else words


def bulk_words(texts: list[str]) -> list[list[tuple[str, int, int]]]:
    words = find_words(texts)
    offsets, borders = words.text_offsets.tolist(), words.documents.tolist()
    out = []
    for offset, (i, j) in zip(offsets[:-1], pairwise(borders), strict=True):
        spans = zip(words.start[i:j].tolist(), words.end[i:j].tolist(), strict=True)
        out.append([(gram_text(words, i + k, 1), s - offset, e - offset) for k, (s, e) in enumerate(spans)])
    return out


def keys_of(texts: list[str]) -> dict[str, int]:
    words = find_words(texts)
    spelled = gram_texts(words, np.arange(len(words.keys)), 1)
    found = dict(zip(spelled, words.keys.tolist(), strict=True))
    assert [found[word] for word in spelled] == words.keys.tolist()
    return found


CODE_POINTS = [chr(p) for p in range(0x110000) if not 0xD800 <= p < 0xE000]
POOL = [
    *map(chr, range(0x20, 0x250)), *"ẞßİıſKÅΩςσȺⱥ", *"ﬁŉᾈᎠꭰ", *"\u0301\u0345\u20dd\u200d\xad\u200b\ufeff", *"कि٣Ⅷ²",
    *"中文𝒳🜁😀\U0001e900", *"\n\t\u2028_'",
]  # fmt: skip


def test_every_code_point_in_every_place() -> None:
    texts = ["".join(f"a{c}{c}b {c} " for c in CODE_POINTS[i : i + 1000]) for i in range(0, len(CODE_POINTS), 1000)]
    words = find_words(texts)
    expected = [plain_words(text) for text in texts]
    borders = np.repeat(words.text_offsets[:-1], np.diff(words.documents))
    spans = zip((words.start - borders).tolist(), (words.end - borders).tolist(), strict=True)
    assert list(spans) == [(start, end) for found in expected for _, start, end in found]
    assert np.diff(words.documents).tolist() == [len(found) for found in expected]


def test_every_code_point_has_the_key_of_its_fold_and_of_no_other() -> None:
    keys: dict[str, int] = {}
    for begin in range(0, len(CODE_POINTS), 1 << 18):
        keys |= keys_of(CODE_POINTS[begin : begin + (1 << 18)])
        keys |= keys_of([f"wordpiece{c}" for c in CODE_POINTS[begin : begin + (1 << 18)]])
    assert len(set(keys.values())) == len(keys) > 250_000
    words = [c for c in CODE_POINTS if unicodedata.category(c)[0] in "LN" and plain_fold(c) != c]
    assert find_words(words).keys.tolist() == find_words([plain_fold(c) for c in words]).keys.tolist()
    assert len(words) > 1300


def test_simple_folding_agrees_with_regex() -> None:
    regex = pytest.importorskip("regex")
    for character in CODE_POINTS:
        folded = plain_fold(character)
        if folded != character and character != "İ":
            assert regex.fullmatch(regex.escape(folded), character, regex.I | regex.V0)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(st.sampled_from(POOL) | st.characters(exclude_categories=["Cs"]), max_size=40), max_size=8))
def test_words_equal_the_oracle(texts: list[str]) -> None:
    assert bulk_words(texts) == [plain_words(text) for text in texts]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(st.sampled_from("aB é1'\u0301 ,K"), max_size=60), max_size=6), st.integers(1, 5))
def test_grams_equal_the_oracle_and_cross_no_document(texts: list[str], n: int) -> None:
    words = find_words(texts)
    grams = find_grams(words, n)
    expected, borders = [], [0]
    for text in texts:
        folded = [word for word, _, _ in plain_words(text)]
        expected += [" ".join(folded[i : i + n]) for i in range(len(folded) - n + 1)]
        borders.append(len(expected))
    assert [gram_text(words, i, n) for i in grams.first.tolist()] == expected
    assert grams.documents.tolist() == borders
    assert gram_texts(words, grams.first, n) == expected
    assert gram_texts(words, grams.first[-1:], n) == expected[-1:]
    by_text = dict(zip(expected, grams.keys.tolist(), strict=True))
    assert [by_text[text] for text in expected] == grams.keys.tolist()
    assert len(set(by_text.values())) == len(by_text)


def test_a_document_has_the_same_keys_alone_and_among_others() -> None:
    rng = random.Random(5)
    texts = ["".join(rng.choice(POOL) for _ in range(rng.randrange(80))) for _ in range(200)]
    together = find_words(texts)
    for n in (1, 3):
        grams = find_grams(together, n)
        for row, text in enumerate(texts):
            alone = find_grams(find_words([text]), n).keys
            assert alone.tolist() == grams.keys[grams.documents[row] : grams.documents[row + 1]].tolist()


def test_kinds_of_input_give_the_same_words() -> None:
    texts = ["One, two", "", "drei VIER", "¡Cinco!", "six"]
    expected = find_words(texts).keys.tolist()
    for array in (
        pa.array(texts),
        pa.array(texts, pa.large_string()),
        pa.array(["skip", *texts, "skip"]).slice(1, 5),
        pa.chunked_array([pa.array(texts[:2]), pa.array(texts[2:])]),
        pa.array(texts).dictionary_encode(),
        pa.array(texts, pa.string_view()),
    ):
        assert find_words(array).keys.tolist() == expected
    assert find_words(pa.array(["a", None, "b"])).documents.tolist() == [0, 1, 1, 2]
    for empty in ([], [""], ["", ""], pa.array([], pa.string()), pa.chunked_array([], pa.string())):
        assert len(find_words(empty).keys) == 0
        assert find_words(empty).documents.tolist() == [0] * (len(empty) + 1)


def test_bytes_that_are_not_utf8_do_no_harm() -> None:
    rng = random.Random(7)
    for _ in range(300):
        raw = rng.randbytes(rng.randrange(1, 40)) + rng.choice([b"", b"\xff", b"\xf4", b"\xe1\x80", b"\xc3"])
        offsets = pa.py_buffer(np.array([0, len(raw)], np.int32))
        words = find_words(pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(raw)]))
        assert (words.start < words.end).all()
        assert (words.end <= len(raw)).all()


@pytest.mark.parametrize("piece", [1024, 1500, 4096])
def test_pieces_inside_change_nothing(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(11)
    chunks = ["".join(rng.choice(POOL) for _ in range(rng.randrange(30))) for _ in range(400)]
    texts = ["".join(chunks), "x" * 3000, "é" * 2000, "a" + "\u0301" * 1500, "\u0301" * 1500, " " * 3000, "", "end"]
    whole = find_words(texts)
    monkeypatch.setattr(ngrams, "PIECE", piece)
    parts = find_words(texts)
    for name in ("keys", "start", "end", "documents"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name)), name
    assert bulk_words(texts) == [plain_words(text) for text in texts]


@pytest.mark.parametrize("size", [600, 2000, 10_000, 1 << 20])
def test_walking_in_pieces_finds_every_gram_once(size: int) -> None:
    rng = random.Random(13)
    texts = [" ".join(rng.choice(["one", "two", "trois", "四", "  ,  "]) for _ in range(rng.choice([0, 3, 50, 3000])))
             for _ in range(40)]  # fmt: skip
    texts += [" " * 5000 + "alone" + " " * 5000 + "here " * 20, "x" * 9000]
    words = find_words(texts)
    for n in (1, 4, 13):
        grams = find_grams(words, n)
        row = np.repeat(np.arange(len(texts)), np.diff(grams.documents))
        begin = words.start[grams.first] - words.text_offsets[row]
        expected = list(zip(row.tolist(), begin.tolist(), grams.keys.tolist(), strict=True))
        found = []
        for piece in pieces(texts, 13, size):
            part = find_grams(piece.words, n)
            own = part.first < piece.own
            inside = np.repeat(np.arange(len(part.documents) - 1), np.diff(part.documents))[own]
            begin = piece.offset + piece.words.start[part.first[own]] - piece.words.text_offsets[inside]
            found += zip((piece.row + inside).tolist(), begin.tolist(), part.keys[own].tolist(), strict=True)
        assert found == expected


def test_planted_gram_is_found_whatever_stands_between_its_words() -> None:
    words = ["didn", "t", "think", "you", "d", "be", "here", "at", "the", "Café", "in", "1984"]
    wanted = find_grams(find_words([" ".join(words)]), len(words)).keys
    for between in (" ", "\n", "\r\n  ", "-", "'", "’", ", ", ' "', "\xa0", "\t_", "…", "\u200b", "—", "/"):
        for casing in (str.lower, str.upper, str.title):
            text = f"before{between}{casing(between.join(words))}{between}after"
            assert wanted[0] in find_grams(find_words([text]), len(words)).keys


def test_index_finds_what_is_there_and_nothing_else() -> None:
    rng = np.random.default_rng(3)
    for size in (0, 1, 2, 100, 50_000):
        keys = rng.integers(0, 1 << 63, size, np.uint64) * np.uint64(2)
        index = Index(keys)
        assert index.find(keys).tolist() == list(range(size))
        assert (index.find(keys + np.uint64(1)) == -1).all()
        assert (index.find(np.array([0, 1, (1 << 64) - 1], np.uint64)) == -1).all()
    crowded = np.arange(5000, dtype=np.uint64)
    assert Index(crowded).find(crowded).tolist() == list(range(5000))
    assert Index(crowded).find(crowded + np.uint64(5000)).max() == -1
    assert Index(np.array([7, 9, 7, 7, 9], np.uint64)).find(np.array([9, 7], np.uint64)).tolist() == [1, 0]
    assert Index(np.zeros(1, np.uint64)).find(np.zeros(2, np.uint64)).tolist() == [0, 0]


def test_a_million_random_strings_hit_nothing(shared: Path) -> None:
    text = gzip.decompress((shared / "data" / "wikitext-2" / "test.txt.gz").read_bytes()).decode()
    index = Index(np.unique(find_grams(find_words([text]), 8).keys))
    rng = np.random.default_rng(17)
    vocabulary = np.array(sorted({word for word, _, _ in plain_words(text[:200_000])}))
    drawn = " ".join(vocabulary[rng.integers(0, len(vocabulary), 1_000_007)].tolist())
    grams = find_grams(find_words([drawn]), 8)
    assert len(grams.keys) >= 1_000_000
    assert (index.find(grams.keys) >= 0).sum() == 0


def test_keys_are_unique_over_real_vocabularies(shared: Path) -> None:
    regex = pytest.importorskip("regex")
    names = "wikitext-2/valid.txt.gz", "c4-sample/c4.jsonl.gz"
    texts = [gzip.decompress((shared / "data" / name).read_bytes()).decode() for name in names]
    dump = next((shared / "data" / "wikipedia").glob("enwiki-latest*.bz2"))
    texts.append(bz2.decompress(dump.read_bytes()).decode()[:1_000_000])
    words = find_words(texts)
    rule = regex.compile(r"[\p{L}\p{N}][\p{L}\p{N}\p{M}]*")
    vocabulary = {word for text in texts for word in rule.findall(fold(text))}
    assert max(map(len, vocabulary)) <= LONGEST_WORD // 4
    keys, ids = np.unique(words.keys, return_inverse=True)
    assert len(keys) == len(vocabulary) > 40_000
    # Ranks of pairs of ranks are exact: distinct ranks are distinct n-grams, against which distinct keys are counted.
    ranks = {1: ids.astype(np.int64)}
    for n, half, shift in ((2, 1, 1), (4, 2, 2), (8, 4, 4), (13, 8, 5)):
        pairs = ranks[half][: len(ids) - n + 1] << 32 | ranks[half][shift : shift + len(ids) - n + 1]
        ranks[n] = np.unique(pairs, return_inverse=True)[1]
        grams = find_grams(words, n)
        assert len(np.unique(grams.keys)) == len(np.unique(ranks[n][grams.first])), n


def test_structured_words_and_grams_do_not_collide() -> None:
    short = ["".join(letters) for letters in product("abz09", repeat=5)]
    doubled = [w[:4] * 2 * k for w in short for k in (1, 2, 3, 4)] + [w * k for w in short for k in (1, 2, 5)]
    numbers = [f"{i:09d}" for i in range(200_000)] + [f"article{i}section{i % 7}" for i in range(100_000)]
    assert len(set(keys_of([" ".join(doubled + numbers)]).values())) == len(set(doubled + numbers))
    for n in (8, 13):
        grams = find_grams(find_words([" ".join(letters) for letters in product("ab", repeat=n)]), n)
        assert len(np.unique(grams.keys)) == 1 << n


def test_n_out_of_range_is_refused() -> None:
    for n in (0, -1, 65):
        with pytest.raises(ValueError, match=r"n must be in 1\.\.64"):
            find_grams(find_words(["a b"]), n)
