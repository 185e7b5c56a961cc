"""Evidence of duplicates: which documents are exact copies, and which pairs share how many of their word n-grams.

Five steps, each a plain function over one table, so that one process can run them (`annotate_all`) as well as a
cluster (`annotate_duplicates`), with the same bytes:

1. sketches: per document part, a 128-bit content hash and a MinHash signature per document (minhash.py);
2. groups: rows meet by content hash; a group of exact copies is named by its smallest (part, row);
3. pairs: rows meet by band key; who shares a bucket is a candidate (pairs.py);
4. edges: each candidate's similarity is counted from the texts; pairs below `floor` are dropped (pairs.py);
5. annotations: groups and edges return to the parts of their rows.

Similarity is the Jaccard similarity of the documents' sets of word n-grams. A pair is found with the chance
`match_probability` of its similarity (the S-curve: 0.92 at 0.8 for 14 bands of 8); an edge that is there is true.
Nothing is decided here: clusters.py decides over these columns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from pipelines.minhash import I64, U32, U64, SketchOptions, band_keys, sketch_texts, work_sketches
from pipelines.ngrams import UNICODE_VERSION
from pipelines.pairs import (
    BANDS,
    EDGES,
    PAIRS,
    ROUTED,
    candidates,
    cell_bits,
    cell_names,
    changes,
    columns_of,
    in_cells,
    schema_of,
    table_of,
    verify,
)

if TYPE_CHECKING:
    from pipelines.runner import RunnerOptions
    from pipelines.stages import Context, Stage, Task
    from pipelines.workspace import Manifest, PartFile, Workspace

STAGE = "annotations/duplicates"


@dataclass(frozen=True)
class DuplicateOptions:
    """How duplicates are looked for. `floor` is the least similarity kept as evidence; deciding comes later."""

    permutations: int = 112
    bands: int = 14
    rows: int = 8
    shingle: int = 5  # words
    seed: int = 1
    floor: float = 0.5
    max_bucket: int = 32

    def __post_init__(self) -> None:
        _ = self.sketch
        if self.bands < 1 or self.rows < 1 or self.bands * self.rows != self.permutations:
            raise ValueError(f"bands * rows must be permutations: {self.bands} * {self.rows} != {self.permutations}")
        if not 0 < self.floor <= 1:
            raise ValueError(f"floor: {self.floor} is not in 0..1 (0 excluded)")
        if not 2 <= self.max_bucket <= 1000:
            raise ValueError(f"max_bucket: {self.max_bucket} is not in 2..1000")

    @property
    def sketch(self) -> SketchOptions:
        return SketchOptions(self.permutations, self.shingle, self.seed)


_u64, _u32, _i32, _f32 = pa.uint64(), pa.uint32(), pa.int32(), pa.float32()

CONTENTS = schema_of(content_high=_u64, content_low=_u64, part=_u64, row=_u32, copies=_i32)
"""A content of a part: its first row there and how many of the part's rows have it."""
GROUPS = schema_of(part=_u64, row=_u32, first_part=_u64, first_row=_u32, exact=_i32)
"""Contents with more than one document: what a part's first row of that content must know."""
EVIDENCE = schema_of(part=_u64, row=_u32, other_part=_u64, other_row=_u32, exact=_i32, similarity=_f32)
"""What a part is told about its rows: an edge (exact 0), or its group (exact > 1, other = the group's first)."""
EDGE = pa.struct(schema_of(part=_u64, row=_u32, similarity=_f32))
ANNOTATION = schema_of(
    content=pa.string(),
    first_part=_u64,
    first_row=_u32,
    exact=_i32,
    edges=pa.list_(pa.field("item", EDGE, nullable=False)),
)
"""Table `annotations/duplicates`, version 1: the rows and order of its document part.

`content`: 32 hex digits, equal for exact copies (same sequence of normalised words; without words, same bytes).
`first_part`, `first_row`: smallest (part key, row) with that content, itself if alone. `exact`: documents with that
content. `edges`: verified word n-gram Jaccard similarity to other contents, between their first documents only, at
both ends, sorted by (part, row).
"""


# Exact copies.


def first_of_equal(high: U64, low: U64) -> tuple[I64, I64]:
    """For each of n contents the index of its first occurrence, and how often it occurs: int64[n], int64[n]."""
    order = np.lexsort((low, high))  # stable: equal contents stay in row order
    new = changes(high[order], low[order])
    sizes = np.diff(np.append(new, len(order)))
    first = np.empty(len(order), np.int64)
    size = np.empty(len(order), np.int64)
    first[order] = np.repeat(order[new], sizes)
    size[order] = np.repeat(sizes, sizes)
    return first, size


def part_contents(part: int, high: U64, low: U64) -> pa.Table:
    """The distinct contents of a part's documents, as CONTENTS: copies within a part are counted, not sent."""
    first, size = first_of_equal(high, low)
    rows = np.flatnonzero(first == np.arange(len(first)))
    return table_of(CONTENTS, high[rows], low[rows], np.full(len(rows), part, np.uint64), rows, size[rows])


def exact_groups(contents: pa.Table) -> pa.Table:
    """CONTENTS of all parts (of some contents), in any order -> GROUPS."""
    high, low, part, row, copies = columns_of(contents, CONTENTS)
    order = np.lexsort((row, part, low, high))
    high, low, part, row, copies = high[order], low[order], part[order], row[order], copies[order]
    new = changes(high, low)
    sizes = np.diff(np.append(new, len(order)))
    exact = np.repeat(np.add.reduceat(copies, new) if len(new) else copies, sizes)
    first = np.repeat(new, sizes)
    some = np.flatnonzero(exact > 1)
    return table_of(GROUPS, part[some], row[some], part[first[some]], row[first[some]], exact[some])


def part_bands(part: int, high: U64, low: U64, n_words: I64, signature: U32, options: DuplicateOptions) -> pa.Table:
    """The buckets of a part's distinct contents that have a shingle, as BANDS (`bands` rows each)."""
    first, _ = first_of_equal(high, low)
    rows = np.flatnonzero((first == np.arange(len(first))) & (n_words >= options.shingle))
    keys = band_keys(signature[rows], options.bands, options.rows)
    rows = np.repeat(rows, options.bands)
    return table_of(BANDS, keys.ravel(), high[rows], low[rows], np.full(len(rows), part, np.uint64), rows)


# Annotations.


def evidence_of_groups(groups: pa.Table) -> pa.Table:
    """GROUPS -> EVIDENCE for the parts of its rows."""
    part, row, first_part, first_row, exact = columns_of(groups, GROUPS)
    return table_of(EVIDENCE, part, row, first_part, first_row, exact, np.ones(len(part), np.float32))


def evidence_of_edges(edges: pa.Table) -> pa.Table:
    """EDGES -> EVIDENCE for the parts of both ends."""
    part, row, other_part, other_row, similarity = columns_of(edges, EDGES)
    return table_of(
        EVIDENCE,
        np.concatenate((part, other_part)),
        np.concatenate((row, other_row)),
        np.concatenate((other_part, part)),
        np.concatenate((other_row, row)),
        np.zeros(2 * len(part), np.int32),
        np.tile(similarity, 2),
    )


def annotate(part: int, high: U64, low: U64, evidence: pa.Table) -> pa.Table:
    """A part's annotation from its documents' contents and the EVIDENCE about its rows, in any order."""
    _, row, other_part, other_row, exact, similarity = columns_of(evidence, EVIDENCE)
    first, _ = first_of_equal(high, low)
    first_part = np.full(len(high), part, np.uint64)
    first_row = np.arange(len(high), dtype=np.uint32)
    size = np.ones(len(high), np.int32)
    group = np.flatnonzero(exact)
    first_part[row[group]], first_row[row[group]] = other_part[group], other_row[group]
    size[row[group]] = exact[group]

    edge = np.flatnonzero(exact == 0)
    edge = edge[np.lexsort((other_row[edge], other_part[edge], row[edge]))]
    offsets = np.searchsorted(row[edge], np.arange(len(high) + 1)).astype(np.int32)
    columns = [pa.array(values[edge]) for values in (other_part, other_row, similarity)]
    edges = pa.StructArray.from_arrays(columns, fields=list(EDGE))
    lists = pa.ListArray.from_arrays(pa.array(offsets), edges, type=ANNOTATION.field("edges").type)
    return pa.Table.from_arrays(
        [
            pa.array(content_names(high, low), pa.string()),
            pa.array(first_part[first]),
            pa.array(first_row[first]),
            pa.array(size[first]),
            lists,
        ],
        schema=ANNOTATION,
    )


def content_names(high: U64, low: U64) -> list[str]:
    """Content hashes as 32 hex digits."""
    raw = np.stack([high, low], axis=1).astype(">u8").tobytes().hex()
    return [raw[i : i + 32] for i in range(0, len(raw), 32)]


# All steps in this process.


def annotate_all(
    documents: Mapping[str, pa.Table], options: DuplicateOptions, receivers: int = 1
) -> dict[str, pa.Table]:
    """The annotation of each document part (part id -> table with a `text` column), without an engine.

    The same functions in the same order as `annotate_duplicates`, with `receivers` receivers in every exchange. Holds
    everything in memory: for tests, notebooks and small collections.
    """
    from pipelines.workspace import part_key

    keys = {part_key(name): name for name in documents}
    sketches = {key: sketch_texts(documents[name].column("text"), options.sketch) for key, name in keys.items()}
    contents = [part_contents(key, s.content[:, 0], s.content[:, 1]) for key, s in sketches.items()]
    groups = [exact_groups(received) for received in _regroup(contents, CONTENTS, "content_high", receivers)]
    buckets = [
        part_bands(key, s.content[:, 0], s.content[:, 1], s.n_words, s.signature, options)
        for key, s in sketches.items()
    ]
    found = [candidates(t, options.max_bucket).pairs for t in _regroup(buckets, BANDS, "band", receivers)]

    def read_rows(part: int, rows: U32) -> Iterator[tuple[U32, pa.Array]]:
        yield rows, documents[keys[part]].column("text").combine_chunks().take(pa.array(rows))

    bits = (receivers - 1).bit_length()
    routed = [in_cells(pairs, bits, part_key) for pairs in found]
    edges = [
        verify(cell, read_rows, options.shingle, options.floor).edges
        for cell in _regroup(routed, ROUTED, "cell", receivers)
    ]
    evidence = pa.concat_tables(
        [EVIDENCE.empty_table(), *map(evidence_of_groups, groups), *map(evidence_of_edges, edges)]
    )
    about = evidence.column("part").to_numpy()
    return {
        name: annotate(key, s.content[:, 0], s.content[:, 1], evidence.filter(pa.array(about == np.uint64(key))))
        for (key, name), s in zip(keys.items(), sketches.values(), strict=True)
    }


def _regroup(tables: Iterable[pa.Table], schema: pa.Schema, key: str, receivers: int) -> list[pa.Table]:
    table = pa.concat_tables([schema.empty_table(), *tables])
    owner = table.column(key).to_numpy() % np.uint64(receivers)
    return [table.filter(pa.array(owner == np.uint64(i))) for i in range(receivers)]


# All steps as stages of a workspace.


def annotate_duplicates(
    workspace: Workspace, documents: Manifest, options: DuplicateOptions, runner: RunnerOptions
) -> Manifest:
    """Bring `annotations/duplicates` and the stages it stands on up to date. Raises StageError as they do."""
    from pipelines.exchange import Exchange, run_exchange
    from pipelines.stages import Stage, Task, annotation_tasks, run_stage
    from pipelines.workspace import PartFile

    def tasks(table: Manifest, name: str) -> list[Task]:
        return [
            Task(f"{name}-{file.part}", {name: dataclasses.asdict(file)}, weight=file.size) for file in table.parts()
        ]

    def rows(table: Manifest) -> int:
        return sum(file.rows for file in table.parts())

    def stage(name: str) -> Stage:
        return Stage(f"{STAGE}/{name}" if name else STAGE, 1, work_sketches, ("datasketch", "numpy"))

    unicode = {"unicode": UNICODE_VERSION}
    sketches = run_stage(workspace, stage("sketches"), options.sketch, annotation_tasks(documents, unicode), runner)
    by_content = Exchange(CONTENTS, "content_high", ("content_high", "part", "row"), send_contents, receive_contents)
    groups = run_exchange(
        workspace, stage("groups"), options, by_content, tasks(sketches, "sketches"), runner, 32 * rows(sketches)
    )
    by_band = Exchange(BANDS, "band", ("band", "part", "row"), send_bands, receive_bands)
    size = 36 * options.bands * rows(sketches)
    pairs = run_exchange(workspace, stage("pairs"), options, by_band, tasks(sketches, "sketches"), runner, size)
    bits = cell_bits(rows(pairs))
    cells = [Task(name, {"bits": bits}) for name in cell_names(bits)]
    senders = [dataclasses.replace(t, inputs={**t.inputs, "bits": bits}) for t in tasks(pairs, "pairs")]
    by_cell = Exchange(ROUTED, "cell", ("part", "row", "other_part", "other_row"), send_pairs, receive_pairs)
    edges = run_exchange(workspace, stage("edges"), options, by_cell, senders, runner, targets=cells)
    by_part = Exchange(
        EVIDENCE, "part", ("part", "row", "other_part", "other_row", "exact"), send_evidence, receive_evidence
    )
    parts = {PartFile.of(t.inputs["sketches"]).part: t.inputs for t in tasks(sketches, "sketches")}
    targets = [dataclasses.replace(t, inputs={**t.inputs, **parts[t.key]}) for t in annotation_tasks(documents)]
    tellers = tasks(groups, "groups") + tasks(edges, "edges")
    return run_exchange(workspace, stage(""), options, by_part, tellers, runner, targets=targets)


def _input(task: Task, context: Context, name: str, columns: list[str] | None = None) -> tuple[PartFile, pa.Table]:
    from pipelines.workspace import PartFile, read_part

    file = PartFile.of(task.inputs[name])
    return file, read_part(context.workspace, file, columns)


def send_contents(task: Task, context: Context) -> pa.Table:
    from pipelines.workspace import part_key

    file, table = _input(task, context, "sketches", ["content_high", "content_low"])
    return part_contents(part_key(file.part), *(column.to_numpy() for column in table.columns))


def receive_contents(task: Task, table: pa.Table, context: Context) -> None:
    context.write("", task.key, exact_groups(table), GROUPS)


def send_bands(task: Task, context: Context) -> pa.Table:
    from pipelines.workspace import part_key

    options: DuplicateOptions = context.options
    file, table = _input(task, context, "sketches")
    high, low, n_words = (table.column(i).to_numpy() for i in range(3))
    signature = table.column("signature").combine_chunks().flatten().to_numpy().reshape(-1, options.permutations)
    return part_bands(part_key(file.part), high, low, n_words, signature, options)


def receive_bands(task: Task, table: pa.Table, context: Context) -> None:
    found = candidates(table, context.options.max_bucket)
    context.figure("buckets", {"shared": found.buckets, "overfull": found.overfull, "fullest": found.fullest})
    context.write("", task.key, found.pairs, PAIRS)


def send_pairs(task: Task, context: Context) -> pa.Table:
    from pipelines.workspace import part_key

    _, table = _input(task, context, "pairs")
    return in_cells(table, int(task.inputs["bits"]), part_key)


def receive_pairs(task: Task, table: pa.Table, context: Context) -> None:
    from pipelines.workspace import need_manifest, part_key

    parts = {part_key(file.part): file for file in need_manifest(context.workspace, "documents").parts()}
    found = verify(
        table, partial(read_rows, context.workspace, parts), context.options.shingle, context.options.floor
    )
    context.count("candidate pairs", "in", table.num_rows)
    context.count("candidate pairs", "found again", table.num_rows - found.compared)
    context.count("candidate pairs", "less similar than the floor", found.compared - found.edges.num_rows)
    context.count("candidate pairs", "kept", found.edges.num_rows)
    context.write("", task.key, found.edges, EDGES)


def read_rows(
    workspace: Workspace, parts: Mapping[int, PartFile], part: int, rows: U32
) -> Iterator[tuple[U32, pa.Array]]:
    """The texts of ascending rows of a document part, one row group in memory at a time.

    Raises ValueError when no document part has that key.
    """
    from pipelines.workspace import iter_part

    if part not in parts:
        raise ValueError(f"a pair names the part with key {part}, which no document part has; build documents again")
    start = 0
    for batch in iter_part(workspace, parts[part], ["text"]):
        low, high = np.searchsorted(rows, [start, start + batch.num_rows])
        if high > low:
            yield rows[low:high], batch.column("text").take(pa.array(rows[low:high] - np.uint32(start)))
        start += batch.num_rows
        if high == len(rows):
            return


def send_evidence(task: Task, context: Context) -> pa.Table:
    if "groups" in task.inputs:
        return evidence_of_groups(_input(task, context, "groups")[1])
    return evidence_of_edges(_input(task, context, "edges")[1])


def receive_evidence(task: Task, table: pa.Table, context: Context) -> None:
    from pipelines.stages import write_annotation
    from pipelines.workspace import part_key

    file, contents = _input(task, context, "sketches", ["content_high", "content_low"])
    high, low = (column.to_numpy() for column in contents.columns)
    write_annotation(task, context, annotate(part_key(file.part), high, low, table).to_batches(), ANNOTATION)
