"""The language each document is written in: evidence for the recipe's language rule.

The detector is langid.py's naive Bayes over byte n-grams (Lui and Baldwin 2012, ACL demo) in py3langid's model of 140
languages, which ships in its wheel. GPT-2 removed non-English pages (§3.7 of the paper checks the rest with CLD2).

py3langid walks a text byte by byte through an automaton. Here the automaton walks `BLOCK` documents in step, one
NumPy gather per byte position, which gives the same features, scores and answers several times faster.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.stages import Context, Stage, Task, document_part, write_annotation
from pipelines.workspace import iter_part


@dataclass(frozen=True)
class LanguageOptions:
    """max_chars: characters looked at, from the start and from the middle of a longer text, half each."""

    max_chars: int = 2000

    def __post_init__(self) -> None:
        if not 16 <= self.max_chars <= 1_000_000:
            raise ValueError(f"language.max_chars must be between 16 and 1000000, not {self.max_chars}")


SCHEMA = pa.schema(
    [pa.field("language", pa.string(), nullable=False), pa.field("confidence", pa.float32(), nullable=False)]
)
"""annotations/language/: language, ISO 639-1 (639-3 where there is none), "" for a text in which the model knows
nothing; confidence in 0..1, the model's probability rounded to 3 decimals (machines differ in the last digits)."""

BLOCK = 512
"""Documents that walk in step."""


@dataclass(frozen=True)
class Model:
    """py3langid's model as arrays. next_state: int32[rows * 256] by row base + byte; row: int32[states], the row base
    of a state; feature: int32[states], -1 none; weights: float32[features, classes]; prior: float32[classes];
    classes: their labels; aliases: columns that share a label, (first, other)."""

    next_state: npt.NDArray[np.int32]
    row: npt.NDArray[np.int32]
    feature: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    prior: npt.NDArray[np.float32]
    classes: tuple[str, ...]
    aliases: tuple[tuple[int, int], ...]
    encode: Any


@cache
def load_model() -> Model:
    """The model, read once per process (about a second, 110 MiB)."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    known = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    return Model(
        np.asarray(known.tk_nextmove, np.int32),
        np.asarray(known.tk_row, np.int32) << 8,
        np.asarray(known.tk_output, np.int32),
        np.asarray(known.nb_ptc, np.float32),
        np.asarray(known.nb_pc, np.float32),
        tuple(known.nb_classes),
        tuple(known._alias_pairs),
        known._encode,
    )


def excerpt(text: str, max_chars: int) -> str:
    """What is looked at: all of a short text, else its beginning and as much from its middle."""
    if len(text) <= max_chars:
        return text
    half, middle = max_chars // 2, len(text) // 2
    return text[:half] + "\n" + text[max(half, middle) : max(half, middle) + half]


def find_languages(texts: Sequence[str], options: LanguageOptions) -> tuple[list[str], npt.NDArray[np.float32]]:
    """The language of each text and how sure the model is; ("", 0) for a text in which it knows nothing."""
    model = load_model()
    encoded = [cast(bytes, model.encode(excerpt(text, options.max_chars))) for text in texts]
    order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i]))
    languages, confidence = [""] * len(texts), np.zeros(len(texts), np.float32)
    for start in range(0, len(order), BLOCK):
        chosen = order[start : start + BLOCK]
        best, sure = _classify([encoded[i] for i in chosen], model)
        for i, column, p in zip(chosen, best.tolist(), sure, strict=True):
            if column >= 0:
                languages[i], confidence[i] = model.classes[column], np.round(p, 3)
    return languages, confidence


def _classify(texts: Sequence[bytes], model: Model) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The best class of each text, longest text first, and its probability; -1 where no feature was seen."""
    owners, features = _walk(texts, model)
    best = np.full(len(texts), -1, np.int64)
    sure = np.zeros(len(texts), np.float32)
    if not len(owners):
        return best, sure
    size = len(model.feature)
    seen, counts = np.unique(owners * size + features, return_counts=True)
    owner, feature = seen // size, seen % size
    borders = np.flatnonzero(np.diff(owner, prepend=-1))
    weight = np.log1p(counts.astype(np.float32))[:, None]
    spans = itertools.pairwise([*borders.tolist(), len(seen)])
    # one text at a time stays in cache; summed row by row, which no BLAS promises to do alike everywhere
    scores = np.stack([(weight[a:b] * model.weights[feature[a:b]]).sum(axis=0) for a, b in spans]) + model.prior
    lengths = np.array([len(text) for text in texts], np.float32)[owner[borders]]
    scores /= np.sqrt(np.maximum(lengths, 1))[:, None]  # the model's calibration across lengths
    chance = np.exp(scores - scores.max(axis=1, keepdims=True))
    chance /= chance.sum(axis=1, keepdims=True)
    for first, other in model.aliases:
        chance[:, first] += chance[:, other]
        chance[:, other] = 0
    best[owner[borders]] = chance.argmax(axis=1)
    sure[owner[borders]] = chance.max(axis=1)
    return best, sure


def _walk(texts: Sequence[bytes], model: Model) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(text number, feature) for every feature the automaton meets in every text. Longest text first."""
    lengths = np.array([len(text) for text in texts])
    longest = int(lengths[0]) if len(lengths) else 0
    columns = np.zeros((longest, len(texts)), np.uint8)
    for i, text in enumerate(texts):
        columns[: len(text), i] = np.frombuffer(text, np.uint8)
    walking = np.searchsorted(-lengths, -np.arange(longest), side="left")  # texts longer than each position
    state = np.zeros(len(texts), np.int32)
    owners: list[npt.NDArray[np.int64]] = []
    features: list[npt.NDArray[np.int32]] = []
    for position in range(longest):
        n = int(walking[position])
        state = model.next_state[model.row[state[:n]] + columns[position, :n]]
        met = model.feature[state]
        at = np.flatnonzero(met >= 0)
        owners.append(at)
        features.append(met[at])
    if not owners:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return np.concatenate(owners), np.concatenate(features).astype(np.int64)


def annotate(task: Task, context: Context) -> None:
    """The stage's work: one document part's languages."""

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in iter_part(context.workspace, document_part(task), ["text"]):
            languages, confidence = find_languages(batch.column("text").to_pylist(), context.options)
            yield pa.RecordBatch.from_arrays([pa.array(languages, pa.string()), pa.array(confidence)], schema=SCHEMA)

    write_annotation(task, context, batches(), SCHEMA)


STAGE = Stage("annotations/language", 1, annotate, libraries=("py3langid",))
