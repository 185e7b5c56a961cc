"""GPT-2's pretokens: equal to the pattern's, whatever the characters, the windows and the borders of documents."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenizer.classes
from tokenizer.classes import CODE_POINTS, LETTER, NUMBER, OTHER, SPACE, SURROGATES, code_point_classes
from tokenizer.pretokens import Pretokens, find_keys, find_pretokens, is_word

Split = Callable[..., list[list[bytes]]]

SPACES = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000"
# Characters of one to four bytes of every class, and what only looks like one: U+001C, U+200B, U+180E, marks, signs.
AWKWARD = (
    SPACES
    + "azZéßıſжא中あ한𐐀𝒳"
    + "019²½٣Ⅷ〇①𝟘"
    + "!_.’-—…€😀\x00\x1c\x1f\x7f\u200b\u200d\u180e\ufeff\u0301\u20e3𝅥\U0010ffff"
)
PIECES = [
    "'",
    "'s",
    "'t",
    "'re",
    "'ve",
    "'m",
    "'ll",
    "'d",
    "'S",
    "'l",
    "'r",
    "'v",
    " ",
    "  ",
    " '",
    "\n",
    "\u3000",
    "\xa0",
]
awkward_text = st.lists(st.one_of(st.sampled_from(AWKWARD), st.sampled_from(PIECES)), max_size=24).map("".join)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" ", [" "]),
        ("Hello world", ["Hello", " world"]),
        ("  two   three ", [" ", " two", "  ", " three", " "]),
        ("I'm, they've 'so' it's", ["I", "'m", ",", " they", "'ve", " '", "so", "'", " it", "'s"]),
        ("I'M l'lama", ["I", "'", "M", " l", "'", "lama"]),
        ("x\u3000\u3000y", ["x", "\u3000", "\u3000", "y"]),
        ("''s 1's", ["''", "s", " 1", "'s"]),
        ("a1½!_", ["a", "1½", "!_"]),
        ("\r\n\r\nA", ["\r\n\r", "\n", "A"]),
    ],
)
def test_examples(split: Split, text: str, expected: list[str]) -> None:
    assert split([text]) == [[token.encode() for token in expected]]


def test_every_code_point_has_the_reference_s_class() -> None:
    table = tokenizer.classes.reference_classes()
    ours = code_point_classes()
    different = np.flatnonzero(ours[:CODE_POINTS] != table)
    assert [f"U+{point:04X}" for point in different[:20]] == []
    assert (ours[CODE_POINTS:] == OTHER).all()
    written = Path(tokenizer.classes.__file__).with_name("classes.txt").read_text("ascii")
    assert written == tokenizer.classes.write_ranges(table)


def test_differs_from_regex_only_where_its_unicode_is_newer() -> None:
    import regex

    ours = code_point_classes()
    members = {
        kind: regex.compile(rf"[{name}]") for kind, name in ((LETTER, r"\p{L}"), (NUMBER, r"\p{N}"), (SPACE, r"\s"))
    }
    unassigned = regex.compile(r"\p{Cn}")
    for point in range(CODE_POINTS):
        if point in SURROGATES:
            continue
        theirs = next((kind for kind, member in members.items() if member.match(chr(point))), OTHER)
        if theirs != ours[point]:
            assert ours[point] == OTHER, f"U+{point:04X}"
            assert not unassigned.match(chr(point)), f"U+{point:04X}"
            assert theirs in (LETTER, NUMBER), f"U+{point:04X}"


def _telling_code_points() -> list[int]:
    """Every letter, number and space, every place where the class changes, and a sample of the others."""
    table = code_point_classes()[:CODE_POINTS]
    changes = np.flatnonzero(np.diff(table))
    points = {*np.flatnonzero(table != OTHER).tolist(), *changes.tolist(), *(changes + 1).tolist()}
    points |= {*range(0x300), *range(0x300, CODE_POINTS, 97), 0x7FF, 0x800, 0xFFFF, 0x10000, 0x10FFFF}
    return sorted(points.difference(SURROGATES))


def test_every_neighbourhood_equals_the_pattern(split: Split, pattern_split: Split) -> None:
    import regex

    newer = regex.compile(r"\p{L}|\p{N}")
    table = code_point_classes()
    points = [p for p in _telling_code_points() if bool(newer.match(chr(p))) == (table[p] in (LETTER, NUMBER))]
    around = "{0}a{0}1{0}!{0}\n{0} {0}{0}'s{0}' {0}\u3000{0}  {0}'re{0}"
    texts = [around.format(chr(point)) for point in points]
    assert len(texts) > 140_000
    ours = split(texts)
    theirs = pattern_split(texts)
    assert ours == theirs


def test_where_classes_change_every_neighbourhood_equals_the_reference(split: Split, reference_split: Split) -> None:
    changes = np.flatnonzero(np.diff(code_point_classes()[:CODE_POINTS]))
    points = sorted({*changes.tolist(), *(changes + 1).tolist()}.difference(SURROGATES))
    around = "{0}a{0}1{0}!{0}\n{0} {0}{0}'s{0}' {0}\u3000{0}  {0}'re{0}"
    texts = [around.format(chr(point)) for point in points]
    assert split(texts) == reference_split(texts)


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(st.one_of(awkward_text, st.text(max_size=20)), max_size=8), window=st.integers(1, 40))
def test_any_text_in_any_windows_equals_the_reference(
    split: Split, reference_split: Split, texts: list[str], window: int
) -> None:
    assert split(texts, window) == reference_split(texts)


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(awkward_text, min_size=1, max_size=8), cut=st.integers(0, 8), wide=st.booleans())
def test_slices_and_chunks_are_read_where_they_lie(split: Split, texts: list[str], cut: int, wide: bool) -> None:
    kind = pa.large_string() if wide else pa.string()
    array = pa.array(["before é", *texts, "after"], kind)
    whole = split(texts)
    assert split(array.slice(1, len(texts))) == whole
    assert split(pa.chunked_array([array.slice(1, min(cut, len(texts))), array.slice(1 + cut)[:-1]], kind)) == whole


def test_web_text_equals_the_reference(split: Split, reference_split: Split, c4: list[str]) -> None:
    assert split(c4[:200], 5000) == reference_split(c4[:200])


def test_a_text_without_a_space_needs_no_more_memory_than_a_few_copies() -> None:
    size = 1 << 25
    array = pa.array(["x" * size, "y z"])
    tracemalloc.start()
    try:
        found = list(find_pretokens(array))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(part.count for part in found) == 3
    assert found[0].borders[1] == size
    assert peak < 2 * size + (1 << 25)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (pa.array([1, 2]), "must be of type string or large_string, not int64"),
        (pa.array(["a", None]), "row 1 is null"),
        ([None, "a"], "row 0 is null"),
        ([1], "must be strings"),
        (["\ud800"], "must be strings that are valid Unicode"),
        (pa.array([b"a\xff"]).view(pa.string()), "must be valid UTF-8"),
        (pa.array([b"\xf4\x90\x80\x80"]).view(pa.string()), "must be valid UTF-8"),
    ],
)
def test_what_is_not_text_is_refused(texts: pa.Array, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(find_pretokens(texts))


def _keys(tokens: list[bytes]) -> list[int]:
    text = np.frombuffer(b"".join(tokens) + bytes(8), np.uint8)
    borders = np.cumsum([0, *map(len, tokens)])
    return find_keys(Pretokens(text, borders, np.zeros(0, np.int64))).tolist()


@given(tokens=st.lists(st.binary(min_size=1, max_size=40), max_size=20))
def test_keys_tell_short_pretokens_apart_and_know_nothing_of_their_surroundings(tokens: list[bytes]) -> None:
    keys = _keys(tokens)
    for token, key in zip(tokens, keys, strict=True):
        if len(token) <= 7:
            assert key == int.from_bytes(token, "little") | len(token) << 56
        else:
            assert key >> 56 == 0xFF
        assert _keys([token]) == [key]


def test_keys_of_long_pretokens_spread() -> None:
    tokens = [b" word%d" % number for number in range(300_000)] + [b"x" * size for size in range(8, 2000)]
    assert len(set(_keys(tokens))) == len(tokens)


def test_words_are_pretokens_of_letters() -> None:
    tokens = ["the", " the", " жук", " ", "  ", "1", " 1", "!", "'s", " é", "\n", "中文"]
    assert is_word([token.encode() for token in tokens]).tolist() == [
        token in ("the", " the", " жук", " é", "中文") for token in tokens
    ]
