"""Keepers: every dropped document names a kept one that it verifiably resembles, and no two kept ones are alike."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import clusters
from pipelines.clusters import (
    EXACT,
    KEPT,
    NEAR,
    ClusterOptions,
    Evidence,
    choose_keepers,
    greedy_keepers,
    judge_documents,
    rank_documents,
    read_evidence,
    report_clusters,
)
from pipelines.duplicates import DuplicateOptions, annotate_all
from pipelines.workspace import part_key

OPTIONS = ClusterOptions(similarity=0.7, crowd=4)


def evidence_of(first: list[int], edges: dict[tuple[int, int], float]) -> Evidence:
    ends = sorted(edges)
    left, right = (np.array([pair[side] for pair in ends], np.int64) for side in (0, 1))
    similarity = np.array([edges[pair] for pair in ends], np.float32)
    count = len(first)
    return Evidence(np.zeros(count, np.int64), np.arange(count), np.array(first, np.int64), left, right, similarity)


def judge(
    evidence: Evidence, survives: list[bool] | None = None, rank: list[int] | None = None, **options: Any
) -> Any:
    count = len(evidence.first)
    alive = np.ones(count, bool) if survives is None else np.array(survives, bool)
    order = np.arange(count) if rank is None else np.array(rank)
    return judge_documents(evidence, alive, order, ClusterOptions(**{"similarity": 0.7, "crowd": 4, **options}))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Evidence, np.ndarray, np.ndarray]:
    count = draw(st.integers(0, 14))
    first: list[int] = []
    for i in range(count):
        first.append(draw(st.sampled_from([i, *sorted(set(first))])))
    firsts = sorted(set(first))
    possible = list(itertools.combinations(firsts, 2))
    chosen = draw(st.lists(st.sampled_from(possible), unique=True)) if possible else []
    edges = {pair: draw(st.sampled_from([0.5, 0.6999, 0.7, 0.8, 1.0])) for pair in chosen}
    survives = np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)), bool)
    rank = np.array(draw(st.permutations(range(count))), np.int64)
    return evidence_of(first, edges), survives, rank


def one_by_one(evidence: Evidence, survives: np.ndarray, rank: np.ndarray, options: ClusterOptions) -> set[int]:
    """The rule in plain Python: the documents kept."""
    best: dict[int, int] = {}
    for i in sorted(np.flatnonzero(survives).tolist(), key=lambda i: rank[i]):
        best.setdefault(int(evidence.first[i]), i)
    neighbours: dict[int, set[int]] = {group: set() for group in best}
    for a, b, similarity in zip(evidence.left, evidence.right, evidence.similarity, strict=True):
        if similarity >= np.float32(options.similarity) and a in best and b in best:
            neighbours[int(a)].add(int(b))
            neighbours[int(b)].add(int(a))
    kept: set[int] = set()
    centres = {g: len(neighbours[g]) if len(neighbours[g]) > options.crowd else 0 for g in best}
    for group in sorted(best, key=lambda g: (-centres[g], rank[best[g]])):
        if not neighbours[group] & kept:
            kept.add(group)
    return {best[group] for group in kept}


@settings(max_examples=300, deadline=None)
@given(cases(), st.sampled_from([0, 1, 64]))
def test_the_rule(case: tuple[Evidence, np.ndarray, np.ndarray], rounds: int) -> None:
    evidence, survives, rank = case
    before, clusters.ROUNDS = clusters.ROUNDS, rounds
    try:
        keepers = judge_documents(evidence, survives, rank, OPTIONS)
    finally:
        clusters.ROUNDS = before
    kept = set(np.flatnonzero(survives & (keepers.reason == KEPT)).tolist())
    assert kept == one_by_one(evidence, survives, rank, OPTIONS)
    similar = {
        frozenset((int(a), int(b))): similarity
        for a, b, similarity in zip(evidence.left, evidence.right, evidence.similarity, strict=True)
    }
    for i in range(len(survives)):
        survivor = int(keepers.survivor[i])
        groups = frozenset((int(evidence.first[i]), int(evidence.first[survivor])))
        if not survives[i] or i in kept:
            assert (keepers.reason[i], survivor, keepers.similarity[i]) == (KEPT, -1, 0)
            continue
        assert survivor in kept
        assert keepers.similarity[i] >= np.float32(0.7)
        if keepers.reason[i] == EXACT:
            assert (len(groups), keepers.similarity[i]) == (1, 1)
            assert rank[survivor] < rank[i]
        else:
            assert (keepers.reason[i], keepers.similarity[i]) == (NEAR, similar[groups])
    for a, b in itertools.combinations(sorted(kept), 2):
        groups = frozenset((int(evidence.first[a]), int(evidence.first[b])))
        assert len(groups) == 2
        assert similar.get(groups, 0) < np.float32(0.7)


@settings(max_examples=100, deadline=None)
@given(cases(), st.randoms(use_true_random=False))
def test_the_order_of_documents_and_edges_does_not_matter(
    case: tuple[Evidence, np.ndarray, np.ndarray], random: Any
) -> None:
    evidence, survives, rank = case
    count = len(survives)
    place = np.array(random.sample(range(count), count), np.int64)  # old number -> new
    back = np.argsort(place)
    lowest: dict[int, int] = {}
    for i in range(count):
        group = int(evidence.first[i])
        lowest[group] = min(lowest.get(group, count), int(place[i]))
    first = [lowest[int(evidence.first[back[i]])] for i in range(count)]
    edges = {
        (min(lowest[int(a)], lowest[int(b)]), max(lowest[int(a)], lowest[int(b)])): float(s)
        for a, b, s in zip(evidence.left, evidence.right, evidence.similarity, strict=True)
    }
    moved = judge_documents(evidence_of(first, edges), survives[back], rank[back], OPTIONS)
    same = judge_documents(evidence, survives, rank, OPTIONS)
    assert np.array_equal(moved.reason[place], same.reason)
    assert np.array_equal(moved.similarity[place], same.similarity)
    expected = np.where(same.survivor >= 0, place[same.survivor] if count else 0, -1)
    assert np.array_equal(moved.survivor[place], expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(0, 80), st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_greedy_in_rounds_is_greedy_one_by_one(nodes: int, edges: int, seed: int, rounds: int) -> None:
    rng = np.random.default_rng(seed)
    left, right = rng.integers(0, nodes, (2, edges))
    left, right = left[left != right], right[left != right]
    turn = rng.permutation(nodes)
    kept: set[int] = set()
    for node in np.argsort(turn).tolist():
        if not any({a, b} == {node, other} for a, b in zip(left, right, strict=True) for other in kept):
            kept.add(node)
    before, clusters.ROUNDS = clusters.ROUNDS, rounds
    try:
        found = greedy_keepers(turn, left, right)
    finally:
        clusters.ROUNDS = before
    assert set(np.flatnonzero(found).tolist()) == kept


def test_a_long_chain_in_the_worst_order_ends() -> None:
    nodes = np.arange(100_000)
    assert np.array_equal(np.flatnonzero(greedy_keepers(nodes, nodes[:-1], nodes[1:])), nodes[::2])


def test_a_chain_is_never_merged_whole() -> None:
    chain = evidence_of([0, 1, 2], {(0, 1): 0.9, (1, 2): 0.9})
    assert judge(chain).reason.tolist() == [KEPT, NEAR, KEPT]
    assert judge(chain, rank=[1, 0, 2]).survivor.tolist() == [1, -1, 1]
    assert judge(chain, survives=[True, False, True]).reason.tolist() == [KEPT, KEPT, KEPT]


def test_the_keeper_is_chosen_among_survivors() -> None:
    copies = evidence_of([0, 0, 0, 3], {(0, 3): 0.8})
    keepers = judge(copies, survives=[False, True, True, True], rank=[0, 2, 1, 3])
    assert keepers.survivor.tolist() == [-1, 2, -1, 2]
    assert keepers.reason.tolist() == [KEPT, EXACT, KEPT, NEAR]
    assert keepers.similarity.tolist() == pytest.approx([0, 1, 0, 0.8])
    better = judge(copies, rank=[3, 2, 1, 0])  # a group falls as one, each copy by the same evidence
    assert better.reason.tolist() == [NEAR, NEAR, NEAR, KEPT]
    assert judge(copies, exact=False, similarity=0.9).reason.tolist() == [KEPT] * 4


def test_the_threshold_is_compared_as_stored() -> None:
    edge = evidence_of([0, 1], {(0, 1): 0.7})
    assert judge(edge, similarity=0.7).reason.tolist() == [KEPT, NEAR]
    assert judge(edge, similarity=0.7000001).reason.tolist() == [KEPT, KEPT]


def test_the_centre_of_an_overfull_bucket_vouches_for_the_rest() -> None:
    leaves = 100
    star = {(0, i): 0.9 for i in range(1, leaves + 1)} | {(i, i + 1): 0.9 for i in range(1, leaves)}
    bucket = evidence_of(list(range(leaves + 1)), star)
    worst_first = list(range(leaves, -1, -1))  # the centre has the last rank
    keepers = judge(bucket, rank=worst_first, crowd=32)
    assert keepers.survivor.tolist() == [-1] + [0] * leaves
    small = evidence_of([0, 1, 2], {(0, 1): 0.9, (0, 2): 0.9})
    assert judge(small, rank=[2, 1, 0], crowd=32).reason.tolist() == [NEAR, KEPT, KEPT]


def test_rank_is_score_then_words_then_doc_id() -> None:
    rank = rank_documents([1, 5, 5, 5, 0], [9, 2, 3, 3, 99], pa.array(["a", "b", "d", "c", "e"]))
    assert rank.tolist() == [3, 2, 1, 0, 4]
    assert rank_documents([], [], pa.array([], pa.string())).tolist() == []


def test_report_counts_what_was_done() -> None:
    first = [0, 0, 2, 3, 4, 5, 6]
    evidence = evidence_of(first, {(0, 2): 0.9, (2, 3): 0.8, (3, 4): 0.75, (5, 6): 0.5})
    survives, rank = np.ones(7, bool), np.arange(7)
    options = ClusterOptions(similarity=0.7, alarm=5)
    keepers = judge_documents(evidence, survives, rank, options)
    assert keepers.survivor.tolist() == [-1, 0, 0, -1, 3, -1, -1]
    report = report_clusters(evidence, keepers, survives, rank, options)
    assert (report.exact, report.near, report.exact_groups, report.near_edges) == (1, 2, 1, 3)
    assert report.sizes == {2: 1, 3: 1}
    assert [(c.documents, c.kept, c.best) for c in report.components] == [(5, 2, 0)]
    assert report.components[0].least == pytest.approx(0.75)
    assert report.chained == 1
    assert [(e.dropped, e.survivor, e.reason) for e in report.examples] == [
        (4, 3, "near_duplicate"),
        (2, 0, "near_duplicate"),
        (1, 0, "exact_duplicate"),
    ]
    assert len(clusters.choose_examples(keepers, rank, 1)) == 1
    nothing = judge_documents(evidence_of([], {}), np.empty(0, bool), np.empty(0, np.int64), options)
    empty = report_clusters(evidence_of([], {}), nothing, np.empty(0, bool), np.empty(0, np.int64), options)
    assert (empty.sizes, empty.components, empty.examples) == ({}, (), ())


def documents_table(count: int, **columns: Any) -> pa.Table:
    defaults = {"reason": [""] * count, "score": [0] * count, "n_words": [1] * count}
    return pa.table({**defaults, "doc_id": [f"{i:032x}" for i in range(count)], **columns})


def near_copies(count: int, words: int) -> list[str]:
    text = [f"word{i}" for i in range(words)]
    return [" ".join([*text[:-1], f"other{i}"]) for i in range(count)]


def test_from_annotations_to_dropped_rows() -> None:
    text = near_copies(1, 60)[0]
    texts = {"a": [text, "a text on its own, quite unlike"], "b": ["also unlike the others here", text, text.upper()]}
    annotations = annotate_all({n: pa.table({"text": t}) for n, t in texts.items()}, DuplicateOptions())
    asked = {
        "a": documents_table(2, score=[1, 0], doc_id=["00", "01"]),
        "b": documents_table(3, score=[0, 9, 3], reason=["language", "language", ""], doc_id=["10", "11", "12"]),
    }
    parts = [(part_key(name), asked[name], annotations[name]) for name in texts]
    dropped, figures = choose_keepers(parts)
    rows = {name: dropped[part_key(name)].to_pylist() for name in texts}
    expected = {"row": 0, "reason": "exact_duplicate", "survivor": "12", "similarity": 1.0}
    assert rows == {"a": [expected], "b": []}
    assert figures["sizes"] == [{"size": "2", "clusters": 1}]
    assert figures["examples"][0]["survivor"] == {"doc_id": "12", "part": part_key("b"), "row": 2}
    assert choose_keepers([])[0] == {}


def test_a_thousand_near_copies_leave_one() -> None:
    texts = near_copies(1000, 80)
    documents = {f"p{i}": pa.table({"text": texts[i::4]}) for i in range(4)}
    annotations = annotate_all(documents, DuplicateOptions(), 3)
    rng = np.random.default_rng(5)
    parts = []
    for name, table in documents.items():
        ids = [f"{name}-{i}" for i in range(table.num_rows)]
        asked = documents_table(table.num_rows, doc_id=ids, score=rng.integers(0, 99, table.num_rows))
        parts.append((part_key(name), asked, annotations[name]))
    dropped, figures = choose_keepers(parts)
    assert sum(table.num_rows for table in dropped.values()) == 999
    assert len({row["survivor"] for table in dropped.values() for row in table.to_pylist()}) == 1
    assert figures["sizes"] == [{"size": "513-1024", "clusters": 1}]
    assert (figures["large_components"], figures["largest_component"], figures["chained"]) == (1, 1000, 0)


def test_parts_of_different_builds_are_an_error() -> None:
    texts = ["a b c d e f"] * 2
    annotations = annotate_all({n: pa.table({"text": texts}) for n in ("a", "b")}, DuplicateOptions())
    first = min(("a", "b"), key=part_key)
    other = "b" if first == "a" else "a"
    with pytest.raises(ValueError, match="build that stage again"):
        read_evidence([(part_key(other), annotations[other])])


@pytest.mark.parametrize(("field", "value"), [("similarity", 0.0), ("crowd", -1), ("alarm", -1)])
def test_options_name_the_field(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        ClusterOptions(**{field: value})
