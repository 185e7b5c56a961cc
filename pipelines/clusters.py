"""Which duplicate stays: the corpus's side of the evidence in `annotations/duplicates`.

Reads only that table's small columns, a score and a length per document; no text. The rule:

1. Only documents that survive the rules before this one take part. A survivor is never chosen among the dropped.
2. Documents stand in one total order (`rank_documents`): higher link score, then more words, then smaller doc_id.
3. Of exact copies the first in that order stands for the group. A group stands or falls as one: it is the same text.
4. Groups are taken in that order. One is kept unless it has a verified edge of at least the threshold to a group
   already kept. So each dropped document is verifiably similar to a kept one, no two kept ones share such an edge,
   and a chain a~b~c never drops c for a, as connected components do. Because every edge was counted from the texts,
   precision needs no sampling: no drop is false. Recall is a matter of chance: a pair is found with the probability
   of the S-curve (`minhash.match_probability`).
5. One exception to the order: the centres of overfull buckets come first, the one with most edges before the others.
   Evidence there is a star, so only its centre can vouch for the rest; taken late, it would fall and leave most of
   its copies standing. A centre is a group with more than `crowd` edges; among equals the order of 2 holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.minhash import I64
from pipelines.pairs import changes, schema_of

Bools = npt.NDArray[np.bool_]
F32 = npt.NDArray[np.float32]

REASONS = ("", "exact_duplicate", "near_duplicate")
KEPT, EXACT, NEAR = 0, 1, 2
COLUMNS = ["first_part", "first_row", "exact", "edges"]
"""The columns of `annotations/duplicates` that `read_evidence` needs."""
ROUNDS = 64

DROPPED = schema_of(row=pa.uint32(), reason=pa.string(), survivor=pa.string(), similarity=pa.float32())
"""The dropped rows of a document part: which, why (a name of REASONS), the doc_id of the kept document that stands
for it, and their counted similarity."""
DOCUMENTS = schema_of(reason=pa.string(), doc_id=pa.string(), score=pa.int64(), n_words=pa.int32())
"""What is asked about each document beside the evidence; `reason` is "" where the rules before kept it."""


@dataclass(frozen=True)
class ClusterOptions:
    """`similarity`: least that makes a near duplicate; not below the evidence's floor. `exact`: drop exact
    copies too. `crowd`: with more edges a document counts as the centre of an overfull bucket. `alarm`: a connected
    component of so many documents is reported for over-merging. `examples`: pairs listed in the report."""

    similarity: float = 0.8
    exact: bool = True
    crowd: int = 32
    alarm: int = 100
    examples: int = 20

    def __post_init__(self) -> None:
        if not 0 < self.similarity <= 1:
            raise ValueError(f"similarity: {self.similarity} is not in 0..1 (0 excluded)")
        for name in ("crowd", "alarm", "examples"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)} is negative")


@dataclass(frozen=True)
class Evidence:
    """The evidence of the n documents that have any, numbered through in the order of their parts and rows.

    part: int64[n], position among the parts; row: int64[n]; first: int64[n], number of the first exact copy (itself
    if alone); left < right: int64[m], similarity: float32[m], the edges, all between first copies.
    """

    part: I64
    row: I64
    first: I64
    left: I64
    right: I64
    similarity: F32


@dataclass(frozen=True)
class Keepers:
    """The judgement of n documents. reason: int8[n], index in REASONS; survivor: int64[n], number of the kept
    document that stands for a dropped one, -1 otherwise; similarity: float32[n], of those two, 0 where nothing was
    dropped. Documents that did not survive the rules before are left alone: reason "" and survivor -1."""

    reason: npt.NDArray[np.int8]
    survivor: I64
    similarity: F32


def read_evidence(parts: Sequence[tuple[int, pa.Table]]) -> Evidence:
    """Evidence from annotation parts: (part key, table with COLUMNS). Documents without copy or edge are left out.

    Raises ValueError where a row names a row that is not given or has no evidence itself: parts of different builds.
    """
    keys = np.array([key for key, _ in parts], np.uint64)
    by_key = np.argsort(keys, kind="stable")
    begins: I64 = np.cumsum([0, *(table.num_rows for _, table in parts)], dtype=np.int64)
    rows = [involved_rows(table) for _, table in parts]
    places = np.concatenate([np.empty(0, np.int64), *(begin + r for begin, r in zip(begins, rows, strict=False))])

    def number(part: npt.NDArray[np.uint64], row: npt.NDArray[np.uint32]) -> I64:
        if not len(part):
            return np.empty(0, np.int64)
        at = by_key[np.minimum(np.searchsorted(keys[by_key], part), len(keys) - 1)]
        wanted = begins[at] + row
        numbers = np.minimum(np.searchsorted(places, wanted), len(places) - 1)
        if not (np.array_equal(keys[at], part) and np.array_equal(places[numbers], wanted)):
            raise ValueError(
                "annotations/duplicates names a document that is not in its parts; build that stage again"
            )
        return numbers

    first, left, right, similarity, done = [], [], [], [], 0
    for (_, table), some in zip(parts, rows, strict=True):
        table = table.take(pa.array(some)).combine_chunks()
        first.append(number(table.column("first_part").to_numpy(), table.column("first_row").to_numpy()))
        lists = table.column("edges").combine_chunks()
        edges = lists.flatten()
        ends = number(edges.field("part").to_numpy(), edges.field("row").to_numpy())
        starts = done + np.repeat(np.arange(len(some)), lists.value_lengths().to_numpy(zero_copy_only=False))
        once = starts < ends  # an edge is listed at both ends
        left.append(starts[once])
        right.append(ends[once])
        similarity.append(edges.field("similarity").to_numpy()[once])
        done += len(some)
    empty = np.empty(0, np.int64)
    return Evidence(
        np.repeat(np.arange(len(parts)), [len(some) for some in rows]),
        np.concatenate([empty, *rows]),
        np.concatenate([empty, *first]),
        np.concatenate([empty, *left]),
        np.concatenate([empty, *right]),
        np.concatenate([np.empty(0, np.float32), *similarity]),
    )


def involved_rows(table: pa.Table) -> I64:
    """Rows with an exact copy or an edge, ascending."""
    edges = pc.list_value_length(table.column("edges")).to_numpy()
    rows: I64 = np.flatnonzero((table.column("exact").to_numpy() > 1) | (edges > 0))
    return rows


def choose_keepers(
    parts: Sequence[tuple[int, pa.Table, pa.Table]], *, exact: bool = True, similarity: float = 0.8
) -> tuple[dict[int, pa.Table], dict[str, Any]]:
    """Judge all documents: (DROPPED table by part key, figures for the report).

    `parts` holds for each document part its key, a table of its rows with the columns of DOCUMENTS, and its table of
    `annotations/duplicates` with at least COLUMNS.
    """
    options = ClusterOptions(similarity, exact)
    evidence = read_evidence([(key, table.select(COLUMNS)) for key, _, table in parts])
    of_part = np.searchsorted(evidence.part, np.arange(len(parts) + 1))
    rows = [evidence.row[begin:end] for begin, end in pairwise(of_part)]
    asked = [t.select(DOCUMENTS.names).take(pa.array(r)) for (_, t, _), r in zip(parts, rows, strict=True)]
    about = pa.concat_tables([DOCUMENTS.empty_table(), *(table.cast(DOCUMENTS) for table in asked)])
    doc_id = about.column("doc_id")
    survives = pc.equal(about.column("reason"), "").to_numpy().astype(bool)
    rank = rank_documents(about.column("score").to_numpy(), about.column("n_words").to_numpy(), doc_id)
    keepers = judge_documents(evidence, survives, rank, options)
    dropped = np.flatnonzero(keepers.reason)
    borders = np.searchsorted(evidence.part[dropped], np.arange(len(parts) + 1))
    tables = {}
    for i, (key, _, _) in enumerate(parts):
        some = dropped[borders[i] : borders[i + 1]]
        columns = [
            pa.array(evidence.row[some], pa.uint32()),
            pa.array([REASONS[code] for code in keepers.reason[some]], pa.string()),
            doc_id.take(pa.array(keepers.survivor[some])).combine_chunks().cast(pa.string()),
            pa.array(keepers.similarity[some]),
        ]
        tables[key] = pa.Table.from_arrays(columns, schema=DROPPED)
    report = report_clusters(evidence, keepers, survives, rank, options)
    return tables, figures_of(report, evidence, [key for key, _, _ in parts], doc_id, options.alarm)


def rank_documents(score: npt.ArrayLike, n_words: npt.ArrayLike, doc_id: pa.Array | pa.ChunkedArray) -> I64:
    """int64[n]: each document's place in the total order, 0 the best: higher score, more words, smaller doc_id."""
    table = pa.table({"score": np.asarray(score), "n_words": np.asarray(n_words), "doc_id": doc_id})
    order = [("score", "descending"), ("n_words", "descending"), ("doc_id", "ascending")]
    rank = np.empty(table.num_rows, np.int64)
    rank[pc.sort_indices(table, sort_keys=order).to_numpy()] = np.arange(table.num_rows)
    return rank


def judge_documents(evidence: Evidence, survives: Bools, rank: I64, options: ClusterOptions) -> Keepers:
    """Judge n documents by the module's rule. `survives`: bool[n], kept by the rules before; `rank`: int64[n], from
    `rank_documents`, without ties. Depends on neither the order of documents nor of edges."""
    count = len(evidence.first)
    best = best_of_groups(evidence.first, survives, rank)
    nodes, left, right, similarity = _live_edges(evidence, best, options.similarity)
    degree = np.bincount(left, minlength=len(nodes)) + np.bincount(right, minlength=len(nodes))
    turn = np.empty(len(nodes), np.int64)
    edges_of_centre = np.where(degree > options.crowd, degree, 0)
    turn[np.lexsort((rank[best[nodes]], -edges_of_centre))] = np.arange(len(nodes))
    kept = greedy_keepers(turn, left, right)

    near_survivor = np.full(count, -1, np.int64)
    near_similarity = np.zeros(count, np.float32)
    dropped = np.concatenate([left[kept[right] & ~kept[left]], right[kept[left] & ~kept[right]]])
    keeper = np.concatenate([right[kept[right] & ~kept[left]], left[kept[left] & ~kept[right]]])
    alike = np.concatenate([similarity[kept[right] & ~kept[left]], similarity[kept[left] & ~kept[right]]])
    order = np.lexsort((turn[keeper], -alike, dropped))  # the most similar keeper, then the better one
    order = order[changes(dropped[order])]
    near_survivor[nodes[dropped[order]]] = best[nodes[keeper[order]]]
    near_similarity[nodes[dropped[order]]] = alike[order]

    survivor = np.where(survives, near_survivor[evidence.first], -1)
    near = survivor >= 0
    group_best = best[evidence.first]
    exact = survives & ~near & (group_best != np.arange(count)) & options.exact
    reason = np.where(near, NEAR, np.where(exact, EXACT, KEPT)).astype(np.int8)
    similarity_of = np.where(near, near_similarity[evidence.first], exact.astype(np.float32))
    return Keepers(reason, np.where(exact, group_best, survivor), similarity_of.astype(np.float32))


def best_of_groups(first: I64, survives: Bools, rank: I64) -> I64:
    """int64[n]: at each group's first copy its best surviving document, -1 where none survives and elsewhere."""
    best = np.full(len(first), -1, np.int64)
    alive = np.flatnonzero(survives)
    alive = alive[np.argsort(-rank[alive], kind="stable")]
    best[first[alive]] = alive  # of several the last is written, which is the best
    return best


def _live_edges(evidence: Evidence, best: I64, threshold: float) -> tuple[I64, I64, I64, F32]:
    """Edges of at least the threshold between groups with a survivor: (groups, left, right, similarity), where left
    and right are positions in groups. Compared as float32, as stored: 0.7 is not less than 0.7."""
    live = evidence.similarity >= np.float32(threshold)
    live &= (best[evidence.left] >= 0) & (best[evidence.right] >= 0)
    left, right = evidence.left[live], evidence.right[live]
    nodes, ends = np.unique(np.concatenate([left, right]), return_inverse=True)
    return nodes, ends[: len(left)], ends[len(left) :], evidence.similarity[live]


def greedy_keepers(turn: I64, left: I64, right: I64) -> Bools:
    """bool[k]: what is kept when k nodes are taken in the order of `turn` (a permutation of 0..k-1) and a node is
    kept unless it neighbours a kept one: the lexicographically first maximal independent set.

    In rounds: whoever comes before all its undecided neighbours is kept. A random order needs about log k rounds
    (Blelloch, Fineman, Shun, "Greedy sequential maximal independent set and matching are parallel on average", 2012);
    what a bad order leaves after `ROUNDS` is done one by one, with the same result.
    """
    kept = np.zeros(len(turn), bool)
    undecided = np.ones(len(turn), bool)
    for _ in range(ROUNDS):
        if not len(left):
            break
        waits = np.zeros(len(turn), bool)
        waits[np.where(turn[left] < turn[right], right, left)] = True
        now = undecided & ~waits
        kept |= now
        undecided &= ~now
        undecided[left[now[right]]] = False
        undecided[right[now[left]]] = False
        open_edges = undecided[left] & undecided[right]
        left, right = left[open_edges], right[open_edges]
    if len(left):
        _one_by_one(turn, left, right, kept, undecided)
    return kept | undecided


def _one_by_one(turn: I64, left: I64, right: I64, kept: Bools, undecided: Bools) -> None:
    source = np.concatenate([left, right])
    order = np.argsort(source, kind="stable")
    neighbours = np.concatenate([right, left])[order]
    borders = np.searchsorted(source[order], np.arange(len(turn) + 1))
    waiting = np.flatnonzero(undecided)
    for node in waiting[np.argsort(turn[waiting])].tolist():
        if undecided[node]:
            kept[node] = True
            undecided[node] = False
            undecided[neighbours[borders[node] : borders[node + 1]]] = False


# What the report says about clusters.


@dataclass(frozen=True)
class Example:
    """A dropped document, the kept one that stands for it (both by number) and their counted similarity."""

    dropped: int
    survivor: int
    reason: str
    similarity: float


@dataclass(frozen=True)
class Component:
    """Documents joined by chains of edges: how many, how many of them stay, the least similarity of an edge, and the
    number of the best document."""

    documents: int
    kept: int
    least: float
    best: int


@dataclass(frozen=True)
class ClusterReport:
    """`exact`, `near`: documents dropped. `exact_groups`: contents with two or more surviving copies. `near_edges`:
    verified pairs of contents at or above the threshold. `sizes`: cluster size -> clusters, a cluster being a kept
    document and those dropped for it, two or more. `chained`: contents kept that single linkage would have dropped.
    `components`: documents joined by chains, largest first."""

    exact: int
    near: int
    exact_groups: int
    near_edges: int
    sizes: dict[int, int]
    chained: int
    components: tuple[Component, ...]
    examples: tuple[Example, ...]


def report_clusters(
    evidence: Evidence, keepers: Keepers, survives: Bools, rank: I64, options: ClusterOptions
) -> ClusterReport:
    """Count what `judge_documents` did. Examples are spread evenly from the least to the most similar near
    duplicates, so the doubtful ones are among them."""
    dropped = keepers.reason != KEPT
    sizes, clusters = np.unique(np.bincount(keepers.survivor[dropped]) + 1, return_counts=True)
    edges = _live_edges(evidence, best_of_groups(evidence.first, survives, rank), options.similarity)
    components = find_components(evidence, keepers, survives, rank, options.similarity)
    return ClusterReport(
        exact=int((keepers.reason == EXACT).sum()),
        near=int((keepers.reason == NEAR).sum()),
        exact_groups=int((np.bincount(evidence.first[survives]) > 1).sum()),
        near_edges=len(edges[1]),
        sizes={int(s): int(c) for s, c in zip(sizes, clusters, strict=True) if s > 1},
        chained=sum(component.kept - 1 for component in components),
        components=tuple(components),
        examples=choose_examples(keepers, rank, options.examples),
    )


def figures_of(
    report: ClusterReport, evidence: Evidence, keys: Sequence[int], doc_id: pa.ChunkedArray, alarm: int
) -> dict[str, Any]:
    """A report as JSON, documents named by doc_id, part key and row; of the components only those of `alarm`
    documents or more, the hundred largest."""

    def name(document: int) -> dict[str, Any]:
        place = {"part": keys[evidence.part[document]], "row": int(evidence.row[document])}
        return {"doc_id": doc_id[document].as_py(), **place}

    large = [c for c in report.components if c.documents >= alarm]
    return {
        "exact": report.exact,
        "near": report.near,
        "exact_groups": report.exact_groups,
        "near_edges": report.near_edges,
        "sizes": [{"size": label, "clusters": n} for label, n in size_classes(report.sizes).items()],
        "largest_component": max((c.documents for c in report.components), default=0),
        "chained": report.chained,
        "large_components": len(large),
        "components": [
            {"documents": c.documents, "kept": c.kept, "least": c.least, "best": name(c.best)} for c in large[:100]
        ],
        "examples": [
            {
                "similarity": example.similarity,
                "reason": example.reason,
                "survivor": name(example.survivor),
                "dropped": name(example.dropped),
            }
            for example in report.examples
        ],
    }


def size_classes(sizes: Mapping[int, int]) -> dict[str, int]:
    """Clusters by size, sizes above 8 in classes that double.

    >>> size_classes({2: 5, 9: 1, 16: 1, 17: 1})
    {'2': 5, '9-16': 2, '17-32': 1}
    """
    classes: dict[str, int] = {}
    for size in sorted(sizes):
        top = 1 << (size - 1).bit_length()
        label = str(size) if size <= 8 else f"{top // 2 + 1}-{top}"
        classes[label] = classes.get(label, 0) + sizes[size]
    return classes


def choose_examples(keepers: Keepers, rank: I64, count: int) -> tuple[Example, ...]:
    """At most `count` near duplicates, at even steps of similarity, and where there are fewer, exact ones too."""
    dropped = np.flatnonzero(keepers.reason)
    near = keepers.reason[dropped] == NEAR
    order = dropped[np.lexsort((rank[dropped], keepers.similarity[dropped], ~near))]
    pool = max(int(near.sum()), min(count, len(order)))
    steps = np.unique(np.linspace(0, max(0, pool - 1), min(count, pool)).astype(np.int64))
    return tuple(
        Example(int(i), int(keepers.survivor[i]), REASONS[keepers.reason[i]], float(keepers.similarity[i]))
        for i in order[steps]
    )


def find_components(
    evidence: Evidence, keepers: Keepers, survives: Bools, rank: I64, threshold: float
) -> list[Component]:
    """Connected components of two or more groups over live edges, largest first: what single linkage would merge."""
    best = best_of_groups(evidence.first, survives, rank)
    nodes, left, right, similarity = _live_edges(evidence, best, threshold)
    label = connected(len(nodes), left, right)
    roots, number = np.unique(label, return_inverse=True)
    copies = np.bincount(evidence.first[survives], minlength=len(best))[nodes]
    documents = np.bincount(number, copies, len(roots)).astype(np.int64)
    kept = np.bincount(number, keepers.reason[best[nodes]] == KEPT, len(roots)).astype(np.int64)
    least = np.full(len(roots), np.inf, np.float32)
    np.minimum.at(least, number[left], similarity)
    by_rank = np.argsort(-rank[best[nodes]], kind="stable")
    leader = np.empty(len(roots), np.int64)
    leader[number[by_rank]] = best[nodes][by_rank]
    order = np.lexsort((rank[leader], -documents))
    return [Component(int(documents[i]), int(kept[i]), float(least[i]), int(leader[i])) for i in order]


def connected(count: int, left: I64, right: I64) -> I64:
    """int64[count]: the smallest node of each node's connected component, by hooking and pointer jumping."""
    label = np.arange(count)
    while True:
        one, other = label[left], label[right]
        apart = one != other
        if not apart.any():
            return label
        left, right = left[apart], right[apart]
        np.minimum.at(label, np.maximum(one, other)[apart], np.minimum(one, other)[apart])
        while not np.array_equal(label, label[label]):
            label = label[label]
