"""Evaluation sets: every format and packing, every record counted, what is wrong in a recipe named."""

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pytest
import zstandard

from pipelines import evaluation_sets
from pipelines.evaluation_sets import EvaluationSet, IndexOptions, index_examples, read_set, set_files, set_n
from pipelines.options import RecipeError, build_options


def write(folder: Path, name: str, data: bytes) -> str:
    (folder / name).write_bytes(data)
    return str(folder / name)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress, zstandard.compress])
def test_lines_in_any_packing(tmp_path: Path, pack) -> None:  # type: ignore[no-untyped-def]
    data = "One é\r\n\n  \nTwo\n\xff".encode()
    file = write(tmp_path, "set", pack(data))
    examples, reading = read_set(EvaluationSet("s", file), file, "sets[0]")
    assert [(e.id, e.record, e.text) for e in examples] == [("1", 1, "One é"), ("4", 4, "Two"), ("5", 5, "\xff")]
    assert [data[e.start : e.end].decode().strip() for e in examples] == ["One é", "Two", "\xff"]
    assert dict(reading.counts) == {"in": 5, "kept": 3, "blank": 2}
    assert reading.broken is None


@pytest.mark.parametrize("format", ["lines", "stream"])
def test_carriage_returns_end_the_lines_of_a_file_without_line_feeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    data = "Öne two\r\r three\rfour".encode()
    file = write(tmp_path, "mac", data)
    for block in (1 << 20, 11):
        monkeypatch.setattr(evaluation_sets, "READ", block)
        examples, reading = read_set(EvaluationSet("s", file, format), file, "sets[0]")  # type: ignore[arg-type]
        assert [(e.record, e.text) for e in examples] == [(1, "Öne two"), (3, " three"), (4, "four")]
        assert [data[e.start : e.end].decode() for e in examples] == ["Öne two", " three", "four"]
        assert dict(reading.counts) == {"in": 4, "kept": 3, "blank": 1}
    mixed = write(tmp_path, "mixed", b"one\rtwo\nthree\r\nfour")
    examples, _ = read_set(EvaluationSet("s", mixed, format), mixed, "sets[0]")  # type: ignore[arg-type]
    assert [e.text for e in examples] == ["one\rtwo", "three", "four"]
    record = write(tmp_path, "record.jsonl", b'{\r"text": "one"}')
    assert [e.text for e in read_set(EvaluationSet("s", record, "jsonl"), record, "")[0]] == ["one"]


def test_a_small_set_without_an_example_is_refused_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = EvaluationSet("good", write(tmp_path, "good", b"a line\n"))
    for name, data, why in (
        ("empty", b"", r"\(the file is empty\)"),
        ("packed.gz", gzip.compress(b""), r"\(the file is empty\)"),
        ("cut.gz", gzip.compress(b"text")[:10], r"\(cut.gz: truncated after 0 unpacked bytes"),
        ("blank", b"\n \n", r"\(2 blank\)"),
    ):
        bad = write(tmp_path, name, data)
        with pytest.raises(RecipeError, match=rf"^evaluation\[1\]\.path: \S*{name} has no record {why}[^\n]*$"):
            set_files([good, EvaluationSet("bad", bad)], tmp_path, "evaluation")
        with pytest.raises(RecipeError, match=rf"^evaluation\[0\]\.train: \S*{name} has no record {why}[^\n]*$"):
            set_files([EvaluationSet("bad", good.path, train=bad)], tmp_path, "evaluation")
    with pytest.raises(RecipeError, match="no record with a text in field 'q'"):
        set_files([EvaluationSet("bad", write(tmp_path, "j", b'{"text": "x"}'), "jsonl", "q")], tmp_path, "sets")
    monkeypatch.setattr(evaluation_sets, "READ", 8)
    large = EvaluationSet("large", write(tmp_path, "large", b" " * 9))
    assert len(set_files([large], tmp_path, "evaluation")) == 1


def test_every_broken_record_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation_sets, "LONGEST_RECORD", 1000)
    lines = [
        b'{"text": "kept", "key": 7}',
        b"",
        b"{broken",
        b'{"text": "\xff"}',
        b'{"other": "x"}',
        b'{"text": 5}',
        b'["text"]',
        b'{"text": ["a", "b"], "key": "two"}',
        b'{"text": "  "}',
        b'{"text": "' + b"x" * 2000 + b'"}',
        b"[" * 900,
        b'{"text": "\\ud800 half"}',
    ]
    file = write(tmp_path, "set.jsonl", b"\n".join(lines))
    examples, reading = read_set(EvaluationSet("s", file, "jsonl", id_field="key"), file, "sets[0]")
    assert [(e.id, e.text) for e in examples] == [("7", "kept"), ("two", "a\nb"), ("12", "? half")]
    assert dict(reading.counts) == {
        "in": 12,
        "kept": 3,
        "blank": 2,
        "not JSON": 2,
        "not UTF-8": 1,
        "no field text": 2,
        "field text is not text": 1,
        "too long": 1,
    }


def test_a_truncated_file_gives_what_can_be_read_and_says_so(tmp_path: Path) -> None:
    whole = gzip.compress(b"".join(b"line %d\n" % (i * i) for i in range(20_000)))
    file = write(tmp_path, "cut.gz", whole[: len(whole) // 2])
    examples, reading = read_set(EvaluationSet("s", file), file, "sets[0]")
    assert len(examples) > 1000
    assert reading.broken is not None
    assert "truncated" in str(reading.broken)


def test_a_whole_file_can_be_one_example(tmp_path: Path) -> None:
    file = write(tmp_path, "book.txt", b"Chapter one.\n\nIt was\n")
    examples, _ = read_set(EvaluationSet("book", file, "text"), file, "sets[0]")
    assert [(e.text, e.start, e.end) for e in examples] == [("Chapter one.\n\nIt was\n", 0, 21)]


def test_what_is_wrong_in_a_recipe_is_named(tmp_path: Path) -> None:
    file = write(tmp_path, "set.jsonl", b'{"story": "x"}\n{"story": "y"}\n')
    with pytest.raises(RecipeError, match=r"sets\[1\].path names no file: gone.txt"):
        set_files([EvaluationSet("a", file), EvaluationSet("b", "gone.txt")], tmp_path, "sets")
    with pytest.raises(RecipeError, match=r"sets\[1\].name: two evaluation sets are named a"):
        set_files([EvaluationSet("a", file), EvaluationSet("a", file)], tmp_path, "sets")
    with pytest.raises(RecipeError, match=r"sets\[0\]: .*set.jsonl has no record with a text in field 'text' \(2 no"):
        read_set(EvaluationSet("a", file, "jsonl"), file, "sets[0]")
    with pytest.raises(RecipeError, match=r"sets\[0\]: .* has no record \(the file is empty\)"):
        read_set(EvaluationSet("a", "e"), write(tmp_path, "empty", b""), "sets[0]")
    with pytest.raises(RecipeError, match="format must be one of lines, stream, jsonl, text"):
        build_options(EvaluationSet, {"name": "a", "path": "b", "format": "csv"}, "sets[0]")
    for name in ("", "a/b", "a b"):
        with pytest.raises(ValueError, match="name must be"):
            EvaluationSet(name, "p")
    files = set_files([EvaluationSet("a", "set.jsonl", train=file)], tmp_path, "sets")
    assert [(f.name, f.path) for f in files] == [("a/set.jsonl", file)]


@pytest.mark.parametrize(
    "fault", [{"ngrams": ()}, {"ngrams": (0,)}, {"percentile": 101.0}, {"least": 14}, {"most_grams": 0}]
)
def test_options_out_of_range_are_refused(fault: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(fault))):
        IndexOptions(**fault)  # type: ignore[arg-type]


def read(one: EvaluationSet) -> tuple[EvaluationSet, list, list[str]]:  # type: ignore[type-arg]
    return one, read_set(one, one.path, "sets[0]")[0], []


def test_index_lists_every_gram_of_every_set_once(tmp_path: Path) -> None:
    first = EvaluationSet("first", write(tmp_path, "a", b"a b c d\nb, C d? e\nshort one\n"), "lines")
    second = EvaluationSet("second", write(tmp_path, "b", b"a b\nc d\n"), "stream")
    tables = index_examples([read(first), read(second)], IndexOptions(ngrams=(3,), least=2, most=2))
    grams = tables.grams.to_pylist()
    assert sorted((g["n"], g["text"]) for g in grams) == sorted(
        [(2, t) for t in ("a b", "b c", "c d", "d e", "short one")] + [(3, t) for t in ("a b c", "b c d", "c d e")]
    )
    assert [(g["n"], g["key"]) for g in grams] == sorted((g["n"], g["key"]) for g in grams)
    found = {(grams[o["gram"]]["text"], o["example"], o["last"]) for o in tables.occurrences.to_pylist()}
    assert found == {
        ("a b", 0, 0), ("b c", 0, 0), ("c d", 0, 0), ("a b c", 0, 0), ("b c d", 0, 0),
        ("b c", 1, 1), ("c d", 1, 1), ("d e", 1, 1), ("b c d", 1, 1), ("c d e", 1, 1), ("short one", 2, 2),
        ("a b", 3, 3), ("b c", 3, 4), ("c d", 4, 4), ("a b c", 3, 4), ("b c d", 3, 4),
    }  # fmt: skip
    assert tables.examples.column("words").to_pylist() == [4, 4, 2, 2, 2]
    assert tables.examples.column("set").to_pylist() == ["first"] * 3 + ["second"] * 2


def test_too_many_grams_are_refused(tmp_path: Path) -> None:
    one = EvaluationSet("a", write(tmp_path, "a", b"a b c d e f g h i\n"))
    with pytest.raises(ValueError, match="most_grams = 1"):
        index_examples([read(one)], IndexOptions(most_grams=1))
    assert index_examples([], IndexOptions()).grams.num_rows == 0


def test_n_is_the_fifth_percentile_within_bounds() -> None:
    import numpy as np

    options = IndexOptions()
    assert set_n(np.arange(1, 101), options) == 8
    assert set_n(np.full(10, 11), options) == 11
    assert set_n(np.full(10, 400), options) == 13
    assert set_n(np.array([3] + [50] * 99), IndexOptions(percentile=0.0, least=2)) == 3
    assert set_n(np.empty(0, np.int64), options) == 8


def test_real_sets(shared: Path) -> None:
    data = shared / "data"
    lambada = EvaluationSet("lambada", str(data / "lambada/lambada_test.jsonl.gz"), "jsonl")
    examples, reading = read_set(lambada, lambada.path, "sets[0]")
    assert len(examples) == reading.counts["kept"] == 5153
    assert (
        json.loads(gzip.decompress(Path(lambada.path).read_bytes())[examples[7].start : examples[7].end])["text"]
        == examples[7].text
    )
    ptb = EvaluationSet("ptb", str(data / "ptb/ptb.test.txt.gz"), "stream")
    examples, reading = read_set(ptb, ptb.path, "sets[0]")
    assert (reading.counts["in"], len(examples)) == (3761, 3761)


@pytest.mark.parametrize(("name", "files", "expected"), [
    ("ptb", ("ptb/ptb.test.txt.gz", "ptb/ptb.train.txt.gz"), 0.0206),
    ("wikitext-2", ("wikitext-2/test.txt.gz", "wikitext-2/train.txt.gz"), 0.0016),
])  # fmt: skip
def test_own_train_overlap_is_the_plain_count(
    shared: Path, name: str, files: tuple[str, str], expected: float
) -> None:
    """GPT-2, Table 6, by a plain exact count over [a-z0-9]+ of the file as one stream: 2.06 % and 0.16 %."""
    test, train = (str(shared / "data" / file) for file in files)
    one = EvaluationSet(name, test, "stream", train=train)
    own = ["\n".join(example.text for example in read_set(one, train, "")[0])]
    tables = index_examples([(one, read_set(one, test, "")[0], own)], IndexOptions(ngrams=(8,), most=8))
    share = sum(tables.occurrences.column("in_train").to_pylist()) / tables.occurrences.num_rows
    assert share == pytest.approx(expected, abs=0.00006)
