"""Duplicate evidence: exact against an oracle on labelled data, and independent of parts, order and receivers."""

from __future__ import annotations

import gzip
import itertools
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import duplicates, pairs
from pipelines.duplicates import DuplicateOptions, annotate_all
from pipelines.pairs import BANDS, PAIRS, candidates, jaccard, shingle_set, verify
from pipelines.workspace import PartFile, Workspace, part_key

Found = dict[tuple[int, int], float]
SMALL = DuplicateOptions(permutations=16, bands=8, rows=2, shingle=2, floor=0.3)


def shingles(text: str, n: int = 5) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def oracle(texts: Sequence[str], floor: float, n: int = 5) -> Found:
    """All pairs of at least `floor`, compared one by one with Python's sets."""
    sets = [shingles(text, n) for text in texts]
    by_shingle: dict[tuple[str, ...], list[int]] = {}
    for i, shingle in ((i, s) for i, found in enumerate(sets) for s in found):
        by_shingle.setdefault(shingle, []).append(i)
    together = {p for members in by_shingle.values() for p in itertools.combinations(sorted(members), 2)}
    similarity = {(i, j): len(sets[i] & sets[j]) / len(sets[i] | sets[j]) for i, j in together}
    return {pair: value for pair, value in similarity.items() if value >= floor}


def in_parts(texts: Sequence[str], count: int) -> dict[str, pa.Table]:
    return {f"part-{i}": pa.table({"text": pa.array(texts[i::count], pa.string())}) for i in range(count)}


def pairs_of_documents(annotations: dict[str, pa.Table]) -> Found:
    """Evidence spread from first copies to all: {(document, document): similarity}, numbered as `in_parts` deals."""
    count = len(annotations)
    number = {part_key(name): int(name.split("-")[1]) for name in annotations}
    copies: dict[int, list[int]] = {}
    edges: Found = {}
    for name, table in annotations.items():
        for row, document in enumerate(table.to_pylist()):
            i = row * count + int(name.split("-")[1])
            first = document["first_row"] * count + number[document["first_part"]]
            copies.setdefault(first, []).append(i)
            for edge in document["edges"]:
                edges[i, edge["row"] * count + number[edge["part"]]] = edge["similarity"]
    found = {p: 1.0 for group in copies.values() for p in itertools.combinations(sorted(group), 2)}
    for (a, b), similarity in edges.items():
        assert edges[b, a] == similarity, "an edge is listed at both ends"
        found |= {(min(p), max(p)): similarity for p in itertools.product(copies[a], copies[b])}
    return found


@pytest.fixture(scope="module")
def reuters(shared: Path) -> list[str]:
    with zipfile.ZipFile(shared / "data/near-dup/ndd-r8/R8.zip") as archive:
        names = sorted((n for n in archive.namelist() if n.endswith(".txt")), key=lambda n: int(n[7:-4]))
        return [archive.read(name).decode("latin-1") for name in names]


def test_reuters_clusters_and_similarities(reuters: list[str]) -> None:
    clusters = [range(0, 11), range(11, 21), range(21, 31), range(31, 41), range(41, 50)]
    truth = oracle(reuters, 0.8)
    assert set(truth) == {pair for cluster in clusters for pair in itertools.combinations(cluster, 2)}
    assert len(truth) == 226
    found = pairs_of_documents(annotate_all(in_parts(reuters, 3), DuplicateOptions(), 2))
    alike = {pair for pair, similarity in found.items() if similarity >= 0.8}
    assert alike <= truth.keys()
    assert len(alike) >= 0.99 * len(truth)
    everything = oracle(reuters, 0.5)
    assert all(similarity == pytest.approx(everything[pair], abs=1e-6) for pair, similarity in found.items())
    for cluster in clusters:  # what was missed leaves no cluster in pieces
        reached = {cluster[0]}
        for _ in cluster:
            reached |= {j for pair in alike if reached & set(pair) for j in pair}
        assert reached == set(cluster)


@pytest.mark.parametrize("size", [100, 1000])
def test_planted_articles(shared: Path, size: int) -> None:
    folder = shared / "data/near-dup/minhash-articles"
    lines = gzip.decompress((folder / f"articles_{size}.train.gz").read_bytes()).decode().splitlines()
    names, texts = zip(*(line.split(" ", 1) for line in lines), strict=True)
    truth = {tuple(sorted(line.split())) for line in (folder / f"articles_{size}.truth").read_text().splitlines()}
    found = pairs_of_documents(annotate_all(in_parts(texts, 4), DuplicateOptions(), 3))
    assert {tuple(sorted((names[i], names[j]))) for i, j in found} == truth
    assert min(found.values()) > 0.9


words = st.lists(st.sampled_from("abcdefgh"), max_size=14)
corpora = st.lists(words, max_size=5).flatmap(
    lambda seeds: st.lists(
        st.one_of(st.sampled_from(seeds) if seeds else words, words, st.just([])).map(" ".join), max_size=24
    )
)


@settings(max_examples=40, deadline=None)
@given(corpora, st.integers(1, 4), st.integers(1, 5))
def test_evidence_depends_on_neither_receivers_nor_parts(texts: list[str], parts: int, receivers: int) -> None:
    documents = in_parts(texts, parts)
    one = annotate_all(documents, SMALL)
    many = annotate_all(dict(reversed(documents.items())), SMALL, receivers)
    assert all(one[name].equals(many[name]) for name in documents)
    found = pairs_of_documents(one)
    assert found == pairs_of_documents(annotate_all(in_parts(texts, 1), SMALL))
    normal = [tuple(re.findall("[a-z]", text)) for text in texts]
    for table, (name, given_) in zip(one.values(), documents.items(), strict=True):
        table.validate(full=True)
        assert table.schema == duplicates.ANNOTATION
        assert table.num_rows == given_.num_rows, name
    for i, j in itertools.combinations(range(len(texts)), 2):
        if normal[i] == normal[j]:
            assert found[i, j] == 1
        elif (i, j) in found:
            assert found[i, j] == pytest.approx(oracle([texts[i], texts[j]], 0, 2)[0, 1])
            assert found[i, j] >= SMALL.floor


def random_bands(rng: np.random.Generator, rows: int) -> pa.Table:
    """Contents with distinct places, in buckets of a small key space."""
    document = rng.integers(0, max(1, rows // 3), rows)
    columns = [rng.integers(0, 8, rows), document // 2, document // 2, document % 3, document]
    return pairs.table_of(BANDS, *columns)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 60), st.integers(2, 6))
def test_candidates_are_all_pairs_or_star_and_chain(seed: int, rows: int, max_bucket: int) -> None:
    rng = np.random.default_rng(seed)
    bands = random_bands(rng, rows)
    found = candidates(bands, max_bucket)
    assert found.pairs.equals(candidates(bands.take(pa.array(rng.permutation(rows))), max_bucket).pairs)
    expected, overfull = set(), 0
    buckets: dict[int, dict[int, tuple[int, int]]] = {}
    for row in bands.to_pylist():
        place = (row["part"], row["row"])
        bucket = buckets.setdefault(row["band"], {})
        bucket[row["content_high"]] = min(place, bucket.get(row["content_high"], place))
    for bucket in buckets.values():
        members = sorted(bucket.values())
        if len(members) <= max_bucket:
            expected |= set(itertools.combinations(members, 2))
        else:
            overfull += 1
            expected |= {(members[0], m) for m in members[1:]} | set(itertools.pairwise(members))
    rows_found = found.pairs.to_pylist()
    assert [((r["part"], r["row"]), (r["other_part"], r["other_row"])) for r in rows_found] == sorted(expected)
    assert found.overfull == overfull
    assert found.fullest == max(map(len, buckets.values()), default=0)


def one_bucket(count: int, contents: int) -> pa.Table:
    document = np.arange(count)
    return pairs.table_of(BANDS, np.zeros(count), document % contents, document % contents, document % 7, document)


def test_a_bucket_of_ten_thousand_stays_linear() -> None:
    same = candidates(one_bucket(10_000, 1), 32)
    assert (same.pairs.num_rows, same.fullest) == (0, 1)
    near = candidates(one_bucket(10_000, 10_000), 32)
    assert near.pairs.num_rows == 2 * 9_999 - 1  # the chain's first pair is the star's
    assert (near.buckets, near.overfull, near.fullest) == (1, 1, 10_000)


def test_ten_thousand_copies_are_one_group_without_an_edge() -> None:
    text = " ".join(f"word{i}" for i in range(50))
    annotations = annotate_all(in_parts([text] * 10_000, 3), DuplicateOptions())
    first = min((part_key(name), 0) for name in annotations)
    for table in annotations.values():
        assert set(table.column("exact").to_pylist()) == {10_000}
        assert set(table.column("first_part").to_pylist()) == {first[0]}
        assert set(table.column("first_row").to_pylist()) == {0}
        assert len(table.column("edges").combine_chunks().flatten()) == 0


def test_copies_within_a_part_are_sent_once() -> None:
    texts = ["a b c d e f"] * 1000 + ["g h i j k l"]
    s = duplicates.sketch_texts(pa.array(texts), DuplicateOptions().sketch)
    contents = duplicates.part_contents(5, s.content[:, 0], s.content[:, 1])
    assert contents.column("row").to_pylist() == [0, 1000]
    assert contents.column("copies").to_pylist() == [1000, 1]
    args = (5, s.content[:, 0], s.content[:, 1], s.n_words, s.signature, DuplicateOptions())
    assert duplicates.part_bands(*args).num_rows == 2 * 14


def test_short_and_empty_documents_only_ever_match_exactly() -> None:
    texts = ["", "", "one two three", "one two three!", "one two four", "a b c d", "a b c d e", "a b c d e f"]
    found = pairs_of_documents(annotate_all(in_parts(texts, 2), DuplicateOptions(floor=0.1)))
    assert {p for p, s in found.items() if s == 1} == {(0, 1), (2, 3)}
    assert set(found) <= {(0, 1), (2, 3), (6, 7)}
    assert pairs_of_documents(annotate_all({"part-0": pa.table({"text": pa.array([], pa.string())})}, SMALL)) == {}
    assert annotate_all({}, SMALL) == {}


def reader_of(texts: dict[int, list[str]], at_once: int = 2) -> pairs.RowsReader:
    def read(part: int, rows: Any) -> Iterator[tuple[Any, pa.Array]]:
        for begin in range(0, len(rows), at_once):
            some = rows[begin : begin + at_once]
            yield some, pa.array([texts[part][row] for row in some])

    return read


def pairs_table(*rows: tuple[int, int, int, int]) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {"part": a, "row": i, "content": 0, "other_part": b, "other_row": j, "other_content": 0}
            for a, i, b, j in rows
        ],
        schema=PAIRS,
    )


@pytest.mark.parametrize("held", [1, 10, 1 << 20])
def test_verification_counts_exactly_whatever_fits_in_memory(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "SHINGLES_HELD", held)
    rng = np.random.default_rng(1)
    base = [f"w{i}" for i in range(40)]
    texts = {}
    for part in range(3):
        texts[part] = [" ".join(w for w in base if rng.random() < 0.95) for _ in range(5)]
    places = [(part, row) for part in texts for row in range(5)]
    rows = [(*one, *other) for one, other in itertools.combinations(places, 2)]
    flat = [texts[part][row] for part, row in places]
    shuffled = [rows[i] for i in rng.permutation(len(rows))] + rows[:7]
    found = verify(pairs_table(*shuffled), reader_of(texts), 3, 0.4)
    assert found.compared == len(rows)
    expected = {(*places[i], *places[j]): s for (i, j), s in oracle(flat, 0, 3).items() if np.float32(s) >= 0.4}
    edges = [tuple(row.values()) for row in found.edges.to_pylist()]
    assert {edge[:4] for edge in edges} == expected.keys()
    assert all(edge[4] == np.float32(expected[edge[:4]]) for edge in edges)
    assert edges == sorted(edges)


def test_a_similarity_of_exactly_the_floor_is_kept() -> None:
    texts = {0: ["a b c d e f g h", "a b c d e f g"]}  # 7 and 6 of 7 pairs of words
    assert verify(pairs_table((0, 0, 0, 1)), reader_of(texts), 2, 6 / 7).edges.num_rows == 1
    assert verify(pairs_table((0, 0, 0, 1)), reader_of(texts), 2, 0.8572).edges.num_rows == 0


def test_a_row_that_is_not_there_is_an_error() -> None:
    def nothing(part: int, rows: Any) -> Iterator[tuple[Any, pa.Array]]:
        return iter(())

    with pytest.raises(ValueError, match="rows 0 and 1 of the parts with keys 3 and 4"):
        verify(pairs_table((3, 0, 4, 1)), nothing, 2, 0.5)


@given(st.lists(st.integers(0, 20)), st.lists(st.integers(0, 20)))
def test_jaccard_is_the_sets(one: list[int], other: list[int]) -> None:
    union = set(one) | set(other)
    expected = len(set(one) & set(other)) / len(union) if union else 0
    assert jaccard(shingle_set(np.array(one, np.uint64)), shingle_set(np.array(other, np.uint64))) == expected


def test_cells_cover_all_pairs_of_ranges_once() -> None:
    rng = np.random.default_rng(2)
    keys = np.sort(rng.integers(0, 1 << 64, (500, 2), dtype=np.uint64), axis=1)
    table = pairs.table_of(PAIRS, keys[:, 0], np.arange(500), keys[:, 0], keys[:, 1], np.arange(500), keys[:, 1])
    for bits in (0, 1, 3):
        names = pairs.cell_names(bits)
        assert len(names) == (1 << bits) * ((1 << bits) + 1) // 2
        routed = pairs.in_cells(table, bits, part_key)
        assert set(routed.column("cell").to_pylist()) <= {part_key(name) for name in names}
        assert routed.drop_columns("cell").equals(table)
    assert [pairs.cell_bits(n * pairs.PAIRS_PER_CELL) for n in (0, 1, 2, 3, 4, 10, 11)] == [0, 0, 1, 1, 2, 2, 3]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"bands": 13}, "bands"),
        ({"floor": 0.0}, "floor"),
        ({"max_bucket": 1}, "max_bucket"),
        ({"seed": -1}, "seed"),
    ],
)
def test_options_name_the_field(options: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        DuplicateOptions(**options)


# The same through the engine.


def write_documents(task: Any, context: Any) -> None:
    schema = pa.schema([pa.field("text", pa.string(), nullable=False)])
    context.write("", task.key, pa.table({"text": task.inputs["texts"]}, schema), schema)


def test_a_workspace_gives_the_same_evidence(
    reuters: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.runner import RunnerOptions
    from pipelines.stages import Stage, Task, read_annotation, run_stage
    from pipelines.workspace import read_manifest

    workspace = Workspace.open(tmp_path / "ws", create=True)
    documents = in_parts(reuters[:120], 3)
    tasks = [Task(name, {"texts": table.column("text").to_pylist()}) for name, table in documents.items()]
    runner = RunnerOptions(workers=1)
    stage = Stage("documents", 1, write_documents)
    options = DuplicateOptions()

    def evidence(count: int) -> dict[str, pa.Table]:
        written = run_stage(workspace, stage, None, tasks[:count], runner)
        annotations = duplicates.annotate_duplicates(workspace, written, options, runner)
        assert annotations.ledgers["documents"]["kept"] == sum(file.rows for file in written.parts())
        return {file.part: read_annotation(workspace, annotations, file) for file in written.parts()}

    for count, pairs_per_cell in ((2, 1 << 17), (3, 1 << 17), (3, 9)):  # an input is added; then cells are smaller
        monkeypatch.setattr(pairs, "PAIRS_PER_CELL", pairs_per_cell)
        expected = annotate_all(dict(list(documents.items())[:count]), options)
        found = evidence(count)
        assert found.keys() == expected.keys()
        assert all(found[name].equals(expected[name]) for name in found)
    cells = read_manifest(workspace, "annotations/duplicates/edges")
    assert cells is not None
    assert len(cells.parts()) > 1
    assert cells.ledgers["candidate pairs"]["kept"] > 0


def test_rows_of_a_part_are_read_by_row_groups(tmp_path: Path) -> None:
    from pipelines.workspace import write_part

    workspace = Workspace.open(tmp_path / "ws", create=True)
    texts = [f"text {i}" for i in range(9000)]  # three row groups
    schema = pa.schema([pa.field("text", pa.string(), nullable=False)])
    file: PartFile = write_part(workspace, "documents", "p", pa.table({"text": texts}, schema), schema)
    wanted = np.array([0, 4095, 4096, 8999], np.uint32)
    read = list(duplicates.read_rows(workspace, {7: file}, 7, wanted))
    assert [rows.tolist() for rows, _ in read] == [[0, 4095], [4096], [8999]]
    assert [text for _, some in read for text in some.to_pylist()] == [texts[i] for i in wanted]
    with pytest.raises(ValueError, match="the part with key 8"):
        list(duplicates.read_rows(workspace, {7: file}, 8, wanted))
