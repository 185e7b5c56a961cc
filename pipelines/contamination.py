"""Contamination: which n-grams of the evaluation sets stand in which documents, and what follows from it.

`annotations/contamination` scans the documents in bulk and notes every occurrence of an indexed n-gram with its
place in the text. That is evidence; the view decides, counting over the documents kept: what to cut (GPT-3, appendix
C), and how contaminated each set is (GPT-2, section 4 and Table 6: the share of a set's n-grams that are found;
GPT-3, section 4: examples dirty and clean at N words).

Candidates are found by 64-bit keys; each one is then compared word by word, so a hit is never an accident of hashing.
Examples too short to hold an n-gram are counted as short, neither dirty nor clean.

An n-gram counts for cutting and dropping if it has `cut_ngram` words (GPT-3, appendix C), or the N words of a set
that holds it (section 4: what makes an example dirty). With `cut_ngram` alone, a set of short examples (questions,
headlines; N of 8 to 12) would be called dirty and never be cut.

The cut follows the paper, not lm-eval's Janitor, where they differ: an n-gram in more than `max_documents` kept
documents is common language and is ignored (so an example may stay dirty after the cut); windows of `window`
characters on each side are merged before anything is counted, so one long quotation is one cut; pieces are counted,
not hits.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.evaluation_sets import ELSEWHERE, IndexOptions, IndexTables, only_part
from pipelines.ngrams import I64, UNICODE_VERSION, Index, Texts, Words, find_grams, gram_texts, pieces
from pipelines.stages import Context, Stage, Task, annotation_tasks, document_part, write_annotation
from pipelines.workspace import Json, Manifest, PartFile, Workspace, iter_part, read_part

U32 = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class ContaminationOptions(IndexOptions):
    """What is indexed (IndexOptions) and the rules of the view, which need no new scan.

    max_documents, window (characters on each side), min_piece (characters), max_pieces: GPT-3, appendix C, over
    n-grams of `cut_ngram` words and those of its own N words that a set holds.
    """

    cut_ngram: int = field(default=13, metadata=ELSEWHERE)
    max_documents: int = field(default=10, metadata=ELSEWHERE)
    window: int = field(default=200, metadata=ELSEWHERE)
    min_piece: int = field(default=200, metadata=ELSEWHERE)
    max_pieces: int = field(default=10, metadata=ELSEWHERE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cut_ngram not in self.ngrams:
            raise ValueError(f"cut_ngram must be one of ngrams {list(self.ngrams)}, not {self.cut_ngram}")
        for name in ("max_documents", "window", "min_piece", "max_pieces"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, but is {getattr(self, name)}")


_HIT = pa.struct(
    [
        pa.field("n", pa.uint8(), False),
        pa.field("gram", pa.uint32(), False),
        pa.field("start", pa.uint32(), False),
        pa.field("end", pa.uint32(), False),
    ]
)
HITS = pa.schema([pa.field("hits", pa.list_(pa.field("item", _HIT, False)), False)])
"""annotations/contamination/: per document, every occurrence of an indexed n-gram, sorted by (start, n). gram: row of
evaluation/grams; start, end: UTF-8 byte offsets in the document's text, on character borders."""


# --- the scan --------------------------------------------------------------------------------------------


class GramIndex:
    """The indexed n-grams in memory, ready for scanning."""

    def __init__(self, grams: pa.Table) -> None:
        n = grams.column("n").to_numpy()
        keys = grams.column("key").to_numpy()
        self.texts = grams.column("text").combine_chunks()
        self.parts: list[tuple[int, int, Index]] = []
        for size in np.unique(n).tolist():
            begin, end = np.searchsorted(n, [size, size + 1]).tolist()
            self.parts.append((size, begin, Index(keys[begin:end])))

    def scan(self, texts: Texts) -> pa.Array:
        """The hits of each text, as in HITS; how the texts are batched changes nothing."""
        found: list[npt.NDArray[np.int64]] = []
        longest = max((n for n, _, _ in self.parts), default=1)
        for piece in pieces(texts, longest) if self.parts else ():
            for n, base, index in self.parts:
                found += self._hits(piece.words, piece.own, n, base, index, piece.row, piece.offset)
        hits = np.concatenate(found, axis=1) if found else np.empty((5, 0), np.int64)
        hits = hits[:, np.lexsort((hits[1], hits[3], hits[0]))]
        return _hit_lists(hits, len(texts))

    def _hits(
        self, words: Words, own: int, n: int, base: int, index: Index, row: int, offset: int
    ) -> Iterator[npt.NDArray[np.int64]]:
        grams = find_grams(words, n)
        at = index.find(grams.keys)
        some = np.flatnonzero((at >= 0) & (grams.first < own))
        if not len(some):
            return
        position, first = at[some] + base, grams.first[some]
        expected = self.texts.take(pa.array(position)).to_pylist()
        same = [text == other for text, other in zip(gram_texts(words, first, n), expected, strict=True)]
        position, first = position[same], first[same]
        document = np.searchsorted(words.documents, first, "right") - 1
        moved = offset - words.text_offsets[document]
        start, end = words.start[first] + moved, words.end[first + n - 1] + moved
        yield np.stack([document + row, np.full(len(first), n), position, start, end])


def _hit_lists(hits: npt.NDArray[np.int64], rows: int) -> pa.Array:
    borders = np.searchsorted(hits[0], np.arange(rows + 1)).astype(np.int32)
    values = pa.StructArray.from_arrays(
        [
            pa.array(hits[1].astype(np.uint8)),
            pa.array(hits[2].astype(np.uint32)),
            pa.array(hits[3].astype(np.uint32)),
            pa.array(hits[4].astype(np.uint32)),
        ],
        fields=list(_HIT),
    )
    return pa.ListArray.from_arrays(pa.array(borders), values, type=HITS.field("hits").type)


# --- the view --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cut:
    """What contamination does to one document: byte spans to cut (sorted, disjoint, on character borders) and the
    number of pieces that stay; `reason` is "" or why the whole document goes."""

    spans: tuple[tuple[int, int], ...]
    pieces: int
    reason: str = ""


def cut_spans(text: str | bytes, starts: Sequence[int], ends: Sequence[int], options: ContaminationOptions) -> Cut:
    """GPT-3's rule (appendix C) for one document, given the byte spans of its hits that count.

    Each hit is widened by `window` characters on each side; windows that touch are merged; what they leave are
    pieces. A document in more than `max_pieces` pieces goes ("too many pieces"). Pieces of fewer than `min_piece`
    characters are cut too; a document of which none stays goes ("no piece left").
    """
    raw = text.encode() if isinstance(text, str) else text
    if not len(starts):
        return Cut((), 1)
    borders = np.flatnonzero((np.frombuffer(raw, np.uint8) & 0xC0) != 0x80)
    size = len(borders)
    left = np.maximum(np.searchsorted(borders, np.sort(starts), "right") - 1 - options.window, 0)
    right = np.minimum(np.searchsorted(borders, np.sort(ends)) + options.window, size)
    apart = np.flatnonzero(left[1:] > right[:-1])
    windows = list(zip(left[np.r_[0, apart + 1]].tolist(), right[np.r_[apart, len(right) - 1]].tolist(), strict=True))
    between = list(zip([0, *(r for _, r in windows)], [*(left for left, _ in windows), size], strict=True))
    present = [(begin, end) for begin, end in between if end > begin]
    kept = [(begin, end) for begin, end in present if end - begin >= options.min_piece]
    if len(present) > options.max_pieces:
        return Cut((), len(present), "too many pieces")
    if not kept:
        return Cut((), 0, "no piece left")
    offsets = np.append(borders, len(raw))
    gaps = zip([0, *(end for _, end in kept)], [*(begin for begin, _ in kept), size], strict=True)
    spans = tuple((int(offsets[begin]), int(offsets[end])) for begin, end in gaps if end > begin)
    return Cut(spans, len(kept))


class Overlap:
    """Sums the hits of the kept documents: how many of them hold each n-gram, and the first few that do.

    Parts are added in the order of their ids, so that the few are the same every time.
    """

    shown = 3

    def __init__(self, grams: int) -> None:
        self.documents: I64 = np.zeros(grams, np.int64)
        self.places: dict[int, list[tuple[str, int]]] = {}

    def add(self, part: str, hits: pa.Array | pa.ChunkedArray, keep: npt.NDArray[np.bool_]) -> None:
        """Adds a part's hits, of the rows that `keep` marks."""
        row, gram = _pairs(hits, keep)
        for index in np.flatnonzero(self.documents[gram] < self.shown).tolist():
            places = self.places.setdefault(int(gram[index]), [])
            if len(places) < self.shown:
                places.append((part, int(row[index])))
        self.documents += np.bincount(gram, minlength=len(self.documents))


def _pairs(hits: pa.Array | pa.ChunkedArray, keep: npt.NDArray[np.bool_]) -> tuple[I64, I64]:
    """The distinct (row, gram) of the rows kept, by row."""
    array = hits.combine_chunks() if isinstance(hits, pa.ChunkedArray) else hits
    lengths = array.value_lengths().to_numpy(zero_copy_only=False)
    if len(lengths) != len(keep):
        raise ValueError(f"{len(lengths)} rows of hits, but {len(keep)} rows of decisions")
    row = np.repeat(np.arange(len(lengths)), lengths)
    gram = array.flatten().field("gram").to_numpy(zero_copy_only=False).astype(np.int64)
    some = keep[row]
    pairs = np.unique(row[some] << 32 | gram[some])
    return pairs >> 32, pairs & 0xFFFFFFFF


def document_frequency(parts: Iterable[tuple[pa.Array | pa.ChunkedArray, npt.NDArray[np.bool_]]], grams: int) -> I64:
    """How many kept documents hold each n-gram: int64[grams], from (hits, keep) of every part."""
    overlap = Overlap(grams)
    for hits, keep in parts:
        overlap.add("", hits, keep)
    return overlap.documents


def decisive_grams(
    sizes: npt.NDArray[np.uint8], own: npt.NDArray[np.uint8], occurrences: Iterable[pa.RecordBatch]
) -> npt.NDArray[np.bool_]:
    """Which n-grams have the N words of a set that holds them: bool[grams].

    sizes: words of each n-gram; own: the N of each example's set; occurrences: batches of evaluation/occurrences. An
    n-gram of 8 words counts for the sets whose N is 8, and not because another set, whose N is 13, holds it too.
    """
    decisive = np.zeros(len(sizes), bool)
    for batch in occurrences:
        gram, example = batch.column("gram").to_numpy(), batch.column("example").to_numpy()
        decisive[gram[sizes[gram] == own[example]]] = True
    return decisive


def read_decisive(workspace: Workspace, index: Mapping[str, Json]) -> npt.NDArray[np.bool_]:
    """`decisive_grams` of the index whose parts `decisive_inputs` names; occurrences are read batch by batch."""
    examples, grams, occurrences = (PartFile.of(index[name]) for name in ("examples", "grams", "occurrences"))
    sizes = read_part(workspace, grams, ["n"]).column("n").to_numpy()
    own = read_part(workspace, examples, ["n"]).column("n").to_numpy()
    return decisive_grams(sizes, own, iter_part(workspace, occurrences, ["gram", "example"]))


def decisive_inputs(evaluation: Manifest) -> dict[str, Json]:
    """What `read_decisive` depends on, as a task's input: the parts of the index's three tables."""
    tables = {"examples": "", "grams": "grams", "occurrences": "occurrences"}
    return {name: dataclasses.asdict(only_part(evaluation, table)) for name, table in tables.items()}


def counted_hits(
    hits: pa.Array,
    row: int,
    frequency: I64,
    decisive: npt.NDArray[np.bool_],
    options: ContaminationOptions,
) -> tuple[I64, I64]:
    """Starts and ends of a document's hits that count for cutting and dropping: n-grams of `cut_ngram` words, and
    `decisive` ones (of their set's N words: they alone make its examples dirty, and a set whose examples are shorter
    than `cut_ngram` has no others), both only if in at most `max_documents` kept documents."""
    values = hits[row].values
    n, gram, start, end = (values.field(i).to_numpy(zero_copy_only=False) for i in range(4))
    some = ((n == options.cut_ngram) | decisive[gram]) & (frequency[gram] <= options.max_documents)
    return start[some].astype(np.int64), end[some].astype(np.int64)


def example_overlap(index: IndexTables, frequency: I64) -> pa.Table:
    """A row per example: set, id, record, words, n (its set's N), grams and found (of N words, beginning in it),
    status ("dirty": an n-gram of N words that touches it is in a kept document; "clean"; "short": fewer than N
    words). This is what scores are split by."""
    examples = index.examples
    own, words = examples.column("n").to_numpy(), examples.column("words").to_numpy()
    gram, first, last, _ = (column.to_numpy() for column in index.occurrences.columns)
    mine = index.grams.column("n").to_numpy()[gram] == own[first] if len(gram) else np.zeros(0, bool)
    hit = frequency[gram] > 0
    count = np.bincount(first[mine], minlength=len(own))
    found = np.bincount(first[mine & hit], minlength=len(own))
    touched = np.zeros(len(own) + 1, np.int64)
    np.add.at(touched, first[mine & hit], 1)
    np.add.at(touched, last[mine & hit].astype(np.int64) + 1, -1)
    dirty = np.cumsum(touched)[: len(own)] > 0
    status = np.where(words < own, "short", np.where(dirty, "dirty", "clean"))
    kept = examples.select(["set", "id", "record", "words", "n"])
    return (
        kept.append_column("grams", pa.array(count.astype(np.uint32)))
        .append_column("found", pa.array(found.astype(np.uint32)))
        .append_column("status", pa.array(status.astype(str), pa.string()))
    )


def contamination_table(
    index: IndexTables, overlap: Overlap, options: ContaminationOptions, dirty_shown: int = 100
) -> list[dict[str, Json]]:
    """The report, JSON-able, one entry per set in the index's order (by name):

    set, examples, words, n, short, dirty, clean, dirty_share (of dirty + clean) and its interval;
    ngrams: {"8": {total, found, share, interval, rare_share, distinct, own_train_share}}, where found counts
    occurrences in the set of n-grams held by any kept document, rare_share only those in at most max_documents of
    them, and own_train_share those in the set's own training text, 0 if none is named (all 0 to 1, or null for a set
    without n-grams of that size);
    dirty_examples: the first `dirty_shown`: id, record, found, grams, text, matches [{gram, documents, places}].
    Intervals are 95 %: Wilson's, for n-grams with the sample size that the scatter between examples leaves.
    """
    rows = example_overlap(index, overlap.documents)
    names = rows.column("set").to_numpy(zero_copy_only=False)
    gram, first, last, train = (column.to_numpy() for column in index.occurrences.columns)
    sizes = index.grams.column("n").to_numpy()[gram] if len(gram) else np.empty(0, np.uint8)
    out: list[dict[str, Json]] = []
    for name in sorted(set(names.tolist())):
        inside = np.flatnonzero(names == name)
        begin, end = int(inside[0]), int(inside[-1]) + 1
        mine = (first >= begin) & (first < end)
        status = rows.column("status").slice(begin, end - begin).to_numpy(zero_copy_only=False)
        count = {kind: int((status == kind).sum()) for kind in ("short", "dirty", "clean")}
        judged = count["dirty"] + count["clean"]
        entry: dict[str, Json] = {
            "set": name,
            "examples": end - begin,
            "words": int(rows.column("words").slice(begin, end - begin).to_numpy().sum()),
            "n": int(rows.column("n")[begin].as_py()),
            **count,
            "dirty_share": _share(count["dirty"], judged),
            "interval": wilson(count["dirty"] / judged, judged) if judged else None,
            "ngrams": {},
            "dirty_examples": _dirty_examples(
                index, overlap, rows, begin + np.flatnonzero(status == "dirty")[:dirty_shown], (gram, first, last)
            ),
        }
        for n in options.ngrams:
            some = mine & (sizes == n)
            seen = overlap.documents[gram[some]]
            entry["ngrams"][str(n)] = {
                "total": int(some.sum()),
                "found": int((seen > 0).sum()),
                "share": _share(int((seen > 0).sum()), int(some.sum())),
                "interval": _gram_interval(first[some].astype(np.int64) - begin, seen > 0, end - begin),
                "rare_share": _share(int(((seen > 0) & (seen <= options.max_documents)).sum()), int(some.sum())),
                "distinct": len(np.unique(gram[some])),
                "own_train_share": _share(int(train[some].sum()), int(some.sum())),
            }
        out.append(entry)
    return out


def _dirty_examples(
    index: IndexTables, overlap: Overlap, rows: pa.Table, which: I64, occurrences: tuple[U32, U32, U32]
) -> list[dict[str, Json]]:
    gram, first, last = occurrences
    sizes = index.grams.column("n").to_numpy()
    reach = int((last.astype(np.int64) - first).max(initial=0))
    found = []
    for example in which.tolist():
        entry = {key: rows.column(key)[example].as_py() for key in ("id", "record", "found", "grams")}
        begin, end = np.searchsorted(first, [max(0, example - reach), example + 1]).tolist()
        touching = gram[begin:end][last[begin:end] >= example]
        own = sizes[touching] == rows.column("n")[example].as_py()
        hits = [g for g in dict.fromkeys(touching[own].tolist()) if overlap.documents[g]]
        entry["text"] = index.examples.column("text")[example].as_py()[:2000]
        entry["matches"] = [
            {
                "gram": index.grams.column("text")[g].as_py(),
                "documents": int(overlap.documents[g]),
                "places": [{"part": part, "row": row} for part, row in overlap.places.get(g, [])],
            }
            for g in hits[:10]
        ]
        found.append(entry)
    return found


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def wilson(share: float, size: float) -> list[float]:
    """Wilson's 95 % interval of a share seen in a sample of `size`."""
    z = 1.959963984540054
    middle = (share + z * z / (2 * size)) / (1 + z * z / size)
    half = z / (1 + z * z / size) * ((share * (1 - share) + z * z / (4 * size)) / size) ** 0.5
    return [max(0.0, middle - half) if share > 0 else 0.0, min(1.0, middle + half) if share < 1 else 1.0]


def _gram_interval(example: I64, found: npt.NDArray[np.bool_], examples: int) -> list[float] | None:
    """n-grams of one example come and go together, so examples are the sample: the variance of the ratio estimator
    (linearised) gives the size of the independent sample that would scatter as much."""
    total = np.bincount(example, minlength=examples).astype(float)
    hits = np.bincount(example[found], minlength=examples).astype(float)
    sampled = int((total > 0).sum())
    if not sampled:
        return None
    share = hits.sum() / total.sum()
    scatter = float(((hits - share * total) ** 2).sum()) / total.sum() ** 2 * sampled / max(sampled - 1, 1)
    size = share * (1 - share) / scatter if scatter > 0 else float(sampled)
    return wilson(float(share), max(1.0, size))


# --- the stages ------------------------------------------------------------------------------------------


def contamination_tasks(documents: Manifest, evaluation: Manifest) -> list[Task]:
    """One task per document part, depending on the index's n-grams and on the character table."""
    grams = dataclasses.asdict(only_part(evaluation, "grams"))
    return annotation_tasks(documents, {"grams": grams, "unicode": UNICODE_VERSION})


def annotate_contamination(task: Task, context: Context) -> None:
    """Work of the stage `annotations/contamination`: a document part's hits, batch by batch."""
    index = _load(context.workspace, PartFile.of(task.inputs["grams"]))
    batches = iter_part(context.workspace, document_part(task), ["text"])
    write_annotation(task, context, (pa.record_batch([index.scan(batch.column(0))], HITS) for batch in batches), HITS)


CONTAMINATION = Stage(name="annotations/contamination", version=1, work=annotate_contamination, libraries=("numpy",))

_loaded: OrderedDict[tuple[str, str], GramIndex] = OrderedDict()


def _load(workspace: Workspace, grams: PartFile) -> GramIndex:
    """The index of a part; the process keeps the last two."""
    key = (workspace.url, grams.sha256)
    if key not in _loaded:
        _loaded[key] = GramIndex(read_part(workspace, grams))
        while len(_loaded) > 2:
            _loaded.popitem(last=False)
    return _loaded[key]
