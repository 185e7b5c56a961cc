"""Simple measures of a document's text, and the rule that judges by them.

Measures are evidence and need no option; the thresholds are the recipe's (`QualityRule`), so changing one reads small
columns only. Both follow Gopher's quality and repetition filters (Rae et al. 2021, arXiv:2112.11446, App. A.1.1,
Table A1); GPT-2 says only "some heuristic based cleaning" (§2.1), OpenWebText drops documents under 128 tokens, C4
(Raffel et al. 2020, §2.2) asks for five sentences.

Everything is computed for some hundred kilobytes of documents at a time as arrays over code points: positions of
words and lines by changes of class, sums by differences of running sums, repetition by 64-bit keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.ngrams import find_grams, find_words
from pipelines.stages import Context, Stage, Task, document_part, write_annotation
from pipelines.workspace import iter_part

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]

_INT, _FLOAT = pa.int32(), pa.float32()
SCHEMA = pa.schema(
    [
        pa.field(name, kind, nullable=False)
        for name, kind in {
            "n_chars": _INT,
            "n_words": _INT,
            "n_lines": _INT,
            "mean_word_length": _FLOAT,
            "alpha_ratio": _FLOAT,
            "symbol_ratio": _FLOAT,
            "stop_words": _INT,
            "bullet_ratio": _FLOAT,
            "ellipsis_ratio": _FLOAT,
            "duplicate_line_ratio": _FLOAT,
            "duplicate_ngram_ratio": _FLOAT,
        }.items()
    ]
)
"""annotations/quality. n_chars: code points. n_words: runs without white space. n_lines: lines that are not blank.
mean_word_length: code points a word. alpha_ratio: share of words with a letter. symbol_ratio: "#" or ellipses ("…",
"..."), whichever are more, per word. stop_words: how many of STOP_WORDS stand in it. bullet_ratio, ellipsis_ratio:
share of lines that begin with a bullet, that end with an ellipsis. duplicate_line_ratio: share of lines equal to an
earlier one. duplicate_ngram_ratio: share of the words' bytes in word 5-grams that came before. Ratios of nothing are
0. Beyond its first MEASURED code points a text is not measured; n_chars is exact."""

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
BULLETS = "•‣◦▪●*-"
REPEATED = 5
"""Words of the n-grams whose repetition is measured."""
MEASURED = 1 << 22
PIECE = 1 << 18


@dataclass(frozen=True)
class QualityRule:
    """Thresholds a document must meet, Gopher's unless said. A limit that cannot be passed (0, 1, a large number)
    switches a test off. Made for languages that put spaces between words; min_stop_words for English.

    min_words, max_words; min_word_length, max_word_length: mean; max_symbol_ratio; max_bullet_ratio: of lines;
    max_ellipsis_ratio: of lines; min_alpha_ratio: of words; min_stop_words: of the eight; max_duplicate_line_ratio;
    max_duplicate_ngram_ratio: in 5-grams.
    """

    min_words: int = 50
    max_words: int = 100_000
    min_word_length: float = 3.0
    max_word_length: float = 10.0
    max_symbol_ratio: float = 0.1
    max_bullet_ratio: float = 0.9
    max_ellipsis_ratio: float = 0.3
    min_alpha_ratio: float = 0.8
    min_stop_words: int = 2
    max_duplicate_line_ratio: float = 0.3
    max_duplicate_ngram_ratio: float = 0.15

    def __post_init__(self) -> None:
        if not 0 <= self.min_words <= self.max_words:
            raise ValueError("min_words must be at least 0 and at most max_words")
        if not 0 <= self.min_word_length <= self.max_word_length:
            raise ValueError("min_word_length must be at least 0 and at most max_word_length")
        if not 0 <= self.min_stop_words <= len(STOP_WORDS):
            raise ValueError(f"min_stop_words must be between 0 and {len(STOP_WORDS)}, not {self.min_stop_words}")
        for name in ("symbol", "bullet", "ellipsis", "duplicate_line", "duplicate_ngram"):
            if not getattr(self, f"max_{name}_ratio") >= 0:
                raise ValueError(f"max_{name}_ratio must be at least 0")
        if not 0 <= self.min_alpha_ratio <= 1:
            raise ValueError(f"min_alpha_ratio must be between 0 and 1, not {self.min_alpha_ratio}")


def judge(evidence: pa.Table, rule: QualityRule) -> npt.NDArray[np.object_]:
    """The first test each row of annotations/quality fails, "" where it passes all: few_words, many_words,
    word_length, symbols, bullets, ellipses, few_letters, few_stop_words, repeated_lines, repeated_ngrams."""

    def column(name: str) -> npt.NDArray[Any]:
        return np.asarray(evidence.column(name).to_numpy())

    length = column("mean_word_length")
    failed = {
        "few_words": column("n_words") < rule.min_words,
        "many_words": column("n_words") > rule.max_words,
        "word_length": (length < np.float32(rule.min_word_length)) | (length > np.float32(rule.max_word_length)),
        "symbols": column("symbol_ratio") > np.float32(rule.max_symbol_ratio),
        "bullets": column("bullet_ratio") > np.float32(rule.max_bullet_ratio),
        "ellipses": column("ellipsis_ratio") > np.float32(rule.max_ellipsis_ratio),
        "few_letters": column("alpha_ratio") < np.float32(rule.min_alpha_ratio),
        "few_stop_words": column("stop_words") < rule.min_stop_words,
        "repeated_lines": column("duplicate_line_ratio") > np.float32(rule.max_duplicate_line_ratio),
        "repeated_ngrams": column("duplicate_ngram_ratio") > np.float32(rule.max_duplicate_ngram_ratio),
    }
    reasons = np.full(evidence.num_rows, "", object)
    for name, rows in reversed(failed.items()):
        reasons[rows] = name
    return reasons


# Measuring.


def measure(texts: Sequence[str]) -> pa.RecordBatch:
    """The measures of some texts, a row each, in SCHEMA. Fastest for some hundred kilobytes at a time."""
    lengths = np.array([len(text) for text in texts], np.int64)
    seen = [text if len(text) <= MEASURED else text[:MEASURED] for text in texts]
    points = _points("".join(seen))
    borders = np.zeros(len(seen) + 1, np.int64)
    np.cumsum(np.minimum(lengths, MEASURED), out=borders[1:])
    kinds = _kinds()[points]
    space, letter = (kinds & 1).astype(np.bool_), (kinds & 2).astype(np.bool_)
    first = np.zeros(len(points) + 1, np.bool_)  # of a document
    first[borders[:-1]] = True
    columns = {
        "n_chars": lengths,
        **_word_measures(points, space, letter, first, borders),
        **_line_measures(points, space, first, borders),
        **_repetition(seen),
    }
    return pa.RecordBatch.from_arrays(
        [pa.array(columns[f.name]).cast(f.type, safe=False) for f in SCHEMA], schema=SCHEMA
    )


def _points(text: str) -> npt.NDArray[Any]:
    """Code points: uint8 where all are ASCII, else uint32."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "replace"), np.uint32)


@cache
def _kinds() -> npt.NDArray[np.uint8]:
    """For every code point: bit 0 white space, bit 1 a letter (str.isspace, str.isalpha)."""
    characters = list(map(chr, range(0x110000)))
    space = np.fromiter(map(str.isspace, characters), np.uint8, len(characters))
    letter = np.fromiter(map(str.isalpha, characters), np.uint8, len(characters))
    return (space | letter << 1).astype(np.uint8)


def _sums(flags: npt.NDArray[Any], borders: Ints) -> Ints:
    """Sums of an array between borders."""
    return np.diff(_running(flags)[borders])


def _running(flags: npt.NDArray[Any]) -> Ints:
    total = np.zeros(len(flags) + 1, np.int64)
    np.cumsum(flags, out=total[1:])
    return total


def _ratio(part: Ints, whole: Ints) -> Floats:
    return (part / np.maximum(whole, 1)).astype(np.float32)


def _word_measures(
    points: npt.NDArray[Any], space: Bools, letter: Bools, first: Bools, borders: Ints
) -> dict[str, npt.NDArray[Any]]:
    before = np.concatenate([[True], space[:-1]]) | first[:-1] if len(space) else space
    after = np.concatenate([space[1:], [True]]) | first[1:] if len(space) else space
    starts, ends = np.flatnonzero(~space & before), np.flatnonzero(~space & after) + 1
    words = np.searchsorted(starts, borders)
    letters = _running(letter)
    count = np.diff(words)
    ellipses = _ellipses(points, first, borders)
    return {
        "n_words": count,
        "mean_word_length": _ratio(_sums(~space, borders), count),
        "alpha_ratio": _ratio(_sums(letters[ends] > letters[starts], words), count),
        "symbol_ratio": _ratio(np.maximum(_sums(points == ord("#"), borders), ellipses), count),
    }


def _ellipses(points: npt.NDArray[Any], first: Bools, borders: Ints) -> Ints:
    """How many "…", and "..." that do not overlap, each document has."""
    dot = points == ord(".")
    found = _sums(points == ord("…"), borders) if points.dtype != np.uint8 else np.zeros(len(borders) - 1, np.int64)
    if not dot.any():
        return found
    starts = np.flatnonzero(dot & (~np.concatenate([[False], dot[:-1]]) | first[:-1]))
    ends = np.flatnonzero(dot & (~np.concatenate([dot[1:], [False]]) | first[1:])) + 1
    return found + _sums((ends - starts) // 3, np.searchsorted(starts, borders))


def _line_measures(
    points: npt.NDArray[Any], space: Bools, first: Bools, borders: Ints
) -> dict[str, npt.NDArray[Any]]:
    """Measures of lines without the white space around them, blank ones left out."""
    newline = points == ord("\n")
    starts = np.flatnonzero(np.concatenate([[False], newline[:-1]]) | first[:-1]) if len(points) else borders[:0]
    ends = np.append(starts[1:], len(points)) if len(starts) else starts
    solid = np.flatnonzero(~space)
    before = _running(~space)
    full = before[ends] > before[starts]
    starts, ends = starts[full], ends[full]
    head, tail = solid[before[starts]], solid[before[ends] - 1]
    lines = np.searchsorted(starts, borders)
    count = np.diff(lines)
    bullet = np.isin(points[head], np.array([ord(b) for b in BULLETS], np.uint32))
    dots = [points[np.maximum(tail - i, 0)] == ord(".") for i in range(3)]
    ellipsis = (points[tail] == ord("…")) if points.dtype != np.uint8 else np.zeros(len(tail), np.bool_)
    ellipsis |= dots[0] & dots[1] & dots[2] & (tail - head >= 2)
    keys = _with_document(_span_keys(points, head, tail + 1), count)
    return {
        "n_lines": count,
        "bullet_ratio": _ratio(_sums(bullet, lines), count),
        "ellipsis_ratio": _ratio(_sums(ellipsis, lines), count),
        "duplicate_line_ratio": _ratio(_sums(_repeats(keys), lines), count),
    }


def _repetition(texts: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    words = find_words(texts)
    stop = find_words(STOP_WORDS).keys
    known = np.flatnonzero(np.isin(words.keys, stop))
    owner = np.searchsorted(words.documents, known, side="right") - 1
    which = np.searchsorted(np.sort(stop), words.keys[known])
    distinct = np.unique(owner * len(stop) + which) // len(stop)
    grams = find_grams(words, REPEATED)
    again = grams.first[_repeats(_with_document(grams.keys, np.diff(grams.documents)))]
    change = np.zeros(len(words.keys) + 1, np.int64)
    np.add.at(change, again, 1)
    np.add.at(change, again + REPEATED, -1)
    size = words.end - words.start
    covered = np.where(np.cumsum(change[:-1]) > 0, size, 0)
    return {
        "stop_words": np.bincount(distinct, minlength=len(texts)).astype(np.int64),
        "duplicate_ngram_ratio": _ratio(_sums(covered, words.documents), _sums(size, words.documents)),
    }


_C = np.uint64(0x9E3779B97F4A7C15)
_INVERSE = np.uint64(pow(int(_C), -1, 1 << 64))


def _span_keys(points: npt.NDArray[Any], starts: Ints, ends: Ints) -> npt.NDArray[np.uint64]:
    """A 64-bit key of each stretch of code points: a polynomial by differences of prefix sums, then mixed."""
    powers = np.cumprod(np.full(len(points) + 1, _C))
    inverse = np.cumprod(np.full(len(points) + 1, _INVERSE))
    sums = np.zeros(len(points) + 1, np.uint64)
    np.cumsum((points.astype(np.uint64) + np.uint64(1)) * powers[:-1], out=sums[1:])
    own = (sums[ends] - sums[starts]) * inverse[starts]
    return _mixed((own + (ends - starts).astype(np.uint64)).astype(np.uint64))


def _with_document(keys: npt.NDArray[np.uint64], per_document: Ints) -> npt.NDArray[np.uint64]:
    """Keys that also differ between documents: 64 bits over one piece, so chance does not matter."""
    owner = np.repeat(np.arange(len(per_document), dtype=np.uint64), per_document)
    return keys ^ _mixed(owner + np.uint64(1))


def _mixed(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    keys = (keys ^ (keys >> np.uint64(32))) * _C
    return keys ^ (keys >> np.uint64(29))


def _repeats(keys: npt.NDArray[np.uint64]) -> Bools:
    """Whether each key came before."""
    order = np.argsort(keys, kind="stable")
    again = np.zeros(len(keys), np.bool_)
    again[order[1:]] = keys[order[1:]] == keys[order[:-1]]
    return again


def pieces(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Consecutive texts, about PIECE characters together."""
    start = held = 0
    for i, text in enumerate(texts):
        held += len(text)
        if held >= PIECE:
            yield texts[start : i + 1]
            start, held = i + 1, 0
    if start < len(texts):
        yield texts[start:]


def annotate(task: Task, context: Context) -> None:
    """The stage's work: one document part's measures."""

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in iter_part(context.workspace, document_part(task), ["text"]):
            yield from map(measure, pieces(batch.column("text").to_pylist()))

    write_annotation(task, context, batches(), SCHEMA)


STAGE = Stage("annotations/quality", 1, annotate)
