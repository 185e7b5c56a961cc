"""Quality: the bulk measures are those of a few plain lines of Python, and the rule names the first test failed."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import quality
from pipelines.documents import SCHEMA as DOCUMENTS
from pipelines.documents import STAGE as DOCUMENTS_STAGE
from pipelines.quality import BULLETS, REPEATED, SCHEMA, STOP_WORDS, QualityRule, judge, measure, pieces
from pipelines.stages import Context, Task
from pipelines.workspace import PartFile, Workspace, read_part


def share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def plainly(text: str) -> dict[str, float]:
    """The measures, the obvious way (words of n-grams for ASCII texts only)."""
    words = text.split()
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    tokens = re.findall(r"[a-z0-9]+", text.lower())
    grams = [tuple(tokens[i : i + REPEATED]) for i in range(len(tokens) - REPEATED + 1)]
    covered = {j for i, gram in enumerate(grams) if gram in grams[:i] for j in range(i, i + REPEATED)}
    return {
        "n_chars": len(text),
        "n_words": len(words),
        "n_lines": len(lines),
        "mean_word_length": share(sum(map(len, words)), len(words)),
        "alpha_ratio": share(sum(any(c.isalpha() for c in word) for word in words), len(words)),
        "symbol_ratio": share(max(text.count("#"), text.count("...") + text.count("…")), len(words)),
        "stop_words": len(set(STOP_WORDS) & set(tokens)),
        "bullet_ratio": share(sum(line[0] in BULLETS for line in lines), len(lines)),
        "ellipsis_ratio": share(sum(line.endswith(("...", "…")) for line in lines), len(lines)),
        "duplicate_line_ratio": share(len(lines) - len(set(lines)), len(lines)),
        "duplicate_ngram_ratio": share(sum(len(tokens[j]) for j in covered), sum(map(len, tokens))),
    }


def assert_same(texts: list[str], skip: frozenset[str] = frozenset()) -> None:
    for text, row in zip(texts, measure(texts).to_pylist(), strict=True):
        expected = plainly(text)
        for name in SCHEMA.names:
            if name not in skip:
                assert row[name] == pytest.approx(expected[name], rel=1e-6), (name, text[:200])


TOKENS = [
    "the",
    "with",
    "a",
    "b",
    "word",
    "x1",
    "#",
    "...",
    "..",
    "…",
    "\n",
    "\n\n",
    " ",
    "•",
    "- ",
    "é",
    "日本",
    "\u00a0",
    "42",
]
TEXTS = st.lists(st.sampled_from(TOKENS), max_size=60).map(" ".join) | st.text(
    alphabet="ab .\n#é-…\t\u00a0", max_size=80
)


@settings(max_examples=300, deadline=None)
@given(st.lists(TEXTS, max_size=6))
def test_measures_are_the_plain_ones(texts: list[str]) -> None:
    ascii_only = all(text.isascii() for text in texts)
    assert_same(texts, frozenset() if ascii_only else frozenset({"duplicate_ngram_ratio", "stop_words"}))


def test_measures_of_real_pages(shared: Path) -> None:
    lines = gzip.decompress((shared / "data" / "c4-sample" / "c4.jsonl.gz").read_bytes()).splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    assert_same(texts, frozenset({"duplicate_ngram_ratio"}))
    assert_same([text for text in texts if text.isascii()][:150])


def test_neighbours_and_pieces_change_nothing() -> None:
    texts = ["one two three four five six " * n + "…\n" * (n % 3) for n in (0, 1, 40, 3, 9000, 2, 70000)]
    together = measure(texts).to_pylist()
    assert together == [row for text in texts for row in measure([text]).to_pylist()]
    assert together == [row for piece in pieces(texts) for row in measure(piece).to_pylist()]
    assert [text for piece in pieces(texts) for text in piece] == texts
    assert measure([]).num_rows == 0


def test_a_very_long_text_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "MEASURED", 1000)
    (row,) = measure(["word " * 5000]).to_pylist()
    assert (row["n_chars"], row["n_words"]) == (25000, 200)


GOOD = """Rivers bend because water on the outside of a curve runs faster than the water within it.
The faster stream wears away the bank, while sand settles on the other side, where the current is weak.
Over the years a small curve grows into a wide one, and at last two curves may meet.
When that happens the river takes the shorter way, and an old arm of it is left behind as a quiet lake.
Farmers have known this for a long time: their fields grew on one shore and were lost on the other."""
BAD = {
    "": GOOD,
    "few_words": "Too short to be of any use.",
    "many_words": "and to " * 60_000,
    "word_length": "incomprehensibilities " * 60,
    "symbols": "# # people with ordinary thoughts and sentences that have something else to say " * 20,
    "bullets": "\n".join(f"- the number {i} of things people hope to do and to have" for i in range(30)),
    "ellipses": "\n".join(f"This is the teaser number {i} of a story to be read elsewhere..." for i in range(9)),
    "few_letters": "the 1200 3400 5600 7800 9000 and 11.50 22,40 300-100 " * 15,
    "few_stop_words": " ".join(f"Ett svenskt ord nummer {i} kommer efter ett annat ord" for i in range(20)),
    "repeated_lines": "\n".join(["the same line of words to be seen again", *["and thereafter onwards"] * 40]),
    "repeated_ngrams": "to be the first of all and with that have a look at this " * 12,
}


def test_the_rule_names_the_first_test_failed() -> None:
    evidence = pa.Table.from_batches([measure(list(BAD.values()))])
    assert judge(evidence, QualityRule()).tolist() == list(BAD)


def test_thresholds_are_inclusive_and_can_be_switched_off() -> None:
    evidence = pa.Table.from_batches([measure(list(BAD.values()))])
    off = QualityRule(0, 10**9, 0.0, 1e9, 1e9, 1.0, 1.0, 0.0, 0, 1.0, 1.0)
    assert judge(evidence, off).tolist() == [""] * len(BAD)
    words = evidence.column("n_words")[1].as_py()
    kept = judge(evidence.slice(1, 1), QualityRule(min_words=words, min_stop_words=0))
    assert kept.tolist() == [""]


def test_evidence_fits_its_part(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path, create=True)
    rows: list[dict[str, Any]] = [
        {"doc_id": f"{i:032x}", "url": f"http://e.org/{i}", "title": "", "date": "", "language": "", "text": text}
        for i, text in enumerate(BAD.values())
    ]
    documents = Context(workspace, DOCUMENTS_STAGE, None)
    documents.write("", "p-00000000-0000", pa.Table.from_pylist(rows, schema=DOCUMENTS), DOCUMENTS)
    (file,) = documents.record()["tables"][""]
    context = Context(workspace, quality.STAGE, None)
    quality.annotate(Task("p", {"documents": file}), context)
    (written,) = (PartFile.of(f) for f in context.record()["tables"][""])
    table = read_part(workspace, written)
    assert table.schema.remove_metadata() == SCHEMA
    assert judge(table, QualityRule()).tolist() == list(BAD)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"min_words": 5, "max_words": 4}, "min_words"),
        ({"min_word_length": -1.0}, "min_word_length"),
        ({"min_stop_words": 9}, "min_stop_words"),
        ({"max_bullet_ratio": -0.1}, "max_bullet_ratio"),
        ({"min_alpha_ratio": 1.5}, "min_alpha_ratio"),
    ],
)
def test_options_are_checked(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        QualityRule(**fields)
