"""What the view adds up to: the contamination table and the duplicate clusters, for the report and for papers."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contamination import ContaminationOptions, Overlap, contamination_table, example_overlap
from pipelines.evaluation_sets import read_index
from pipelines.options import build_options
from pipelines.runner import RunnerOptions
from pipelines.stages import Context, Stage, Task, run_stage
from pipelines.workspace import Json, Manifest, PartFile, Workspace, read_manifest, read_part


def work_contamination(task: Task, context: Context) -> None:
    """Count every evaluation set's n-grams in the documents the corpus keeps, and write the table."""
    workspace = context.workspace
    evaluation = read_manifest(workspace, "evaluation")
    assert evaluation is not None
    rule = build_options(ContaminationOptions, task.inputs["rule"], "contamination")
    overlap = Overlap(int(task.inputs["grams"]))
    for pair in task.inputs["parts"]:
        decisions = PartFile.of(pair["decisions"])
        decided = read_part(workspace, decisions, ["keep", "cuts"]).combine_chunks()
        hits = read_part(workspace, PartFile.of(pair["contamination"]), ["hits"]).column("hits").combine_chunks()
        left = hits_left(hits, decided.column("cuts").combine_chunks())
        overlap.add(decisions.part, left, decided.column("keep").to_numpy())
    index = read_index(workspace, evaluation)
    table = contamination_table(index, overlap, rule)
    _publish(context, "contamination.json", {"format": "webtext-contamination", "version": 1, "sets": table})
    for name, records in dirty_records(example_overlap(index, overlap.documents)).items():
        _publish(context, f"contamination/dirty-{name}.json", records, "dirty")


def dirty_records(examples: pa.Table) -> dict[str, list[int]]:
    """For each set the record numbers (from 1) of its dirty examples: what `evaluate --dirty` splits scores by."""
    found: dict[str, list[int]] = {name: [] for name in pc.unique(examples.column("set")).to_pylist()}
    dirty = examples.filter(pc.equal(examples.column("status"), "dirty"))
    for name, record in zip(dirty.column("set").to_pylist(), dirty.column("record").to_pylist(), strict=True):
        found[name].append(record)
    return found


def hits_left(hits: pa.ListArray, cuts: pa.ListArray) -> pa.ListArray:
    """The hits of each document that its cut spans leave: those that overlap no cut."""
    values, spans = hits.flatten(), cuts.flatten()
    if not len(values) or not len(spans):
        return hits
    lengths = hits.value_lengths().to_numpy(zero_copy_only=False)
    row = np.repeat(np.arange(len(hits)), lengths)
    owner = np.repeat(np.arange(len(cuts)), cuts.value_lengths().to_numpy(zero_copy_only=False))
    start, end = (values.field(name).to_numpy().astype(np.int64) for name in ("start", "end"))
    begin, stop = (spans.field(name).to_numpy().astype(np.int64) for name in ("start", "end"))
    # Cuts are sorted and disjoint within a document: only the last that begins before a hit's end can overlap it.
    scale = np.int64(1) << 32
    at = np.searchsorted(owner * scale + begin, row * scale + end) - 1
    last = np.maximum(at, 0)
    overlaps = (at >= 0) & (owner[last] == row) & (stop[last] > start)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(row[~overlaps], minlength=len(hits)))])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values.filter(pa.array(~overlaps)), type=hits.type)


def work_duplicates(task: Task, context: Context) -> None:
    """Put the figures that choosing keepers left into a file of their own."""
    body = {"format": "webtext-duplicates", "version": 1, **dict(task.inputs["figures"])}
    _publish(context, "duplicates.json", body)


def _publish(context: Context, name: str, body: Json, table: str = "files") -> None:
    data = json.dumps(body, sort_keys=True, ensure_ascii=False, indent=1).encode() + b"\n"
    sha256 = hashlib.sha256(data).hexdigest()
    context.workspace.write(f"corpus/{name}", data)
    context.keep(table, PartFile(name, f"corpus/{name}", 0, len(data), sha256, sha256))


# contamination.json and duplicates.json stand in corpus/ itself, which is swept with the decisions it belongs to.
FILES = {"files": "corpus/files"}
CONTAMINATION = Stage(
    "corpus/contamination", 4, work_contamination, ("numpy",), FILES | {"dirty": "corpus/contamination"}
)
DUPLICATES = Stage("corpus/duplicates", 1, work_duplicates, (), FILES)


def summarise(
    workspace: Workspace, made: dict[str, Manifest], contamination: ContaminationOptions, runner: RunnerOptions
) -> None:
    """Bring corpus/contamination.json and corpus/duplicates.json up to date with corpus/."""
    single = dataclasses.replace(runner, workers=1)
    keepers = read_manifest(workspace, "corpus/keepers")
    if keepers is not None:
        figures = keepers.figures["keepers"]["duplicates"]
        run_stage(workspace, DUPLICATES, None, [Task("duplicates", {"figures": figures})], single)
    if "annotations/contamination" not in made:
        return
    hits = {file.part: dataclasses.asdict(file) for file in made["annotations/contamination"].parts()}
    pairs = [
        {"decisions": dataclasses.asdict(file), "contamination": hits[file.part]} for file in made["corpus"].parts()
    ]
    grams = made["evaluation"].parts("grams")[0]
    inputs = {
        "parts": pairs,
        "rule": dataclasses.asdict(contamination),
        "grams": grams.rows,
        "index": made["evaluation"].fingerprint,
    }
    run_stage(workspace, CONTAMINATION, None, [Task("contamination", inputs)], single)
