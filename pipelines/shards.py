"""Token shards: the corpus as one Arrow IPC stream per group of parts, which serves three masters.

Its values buffer is the training stream (zero copy, memory-mapped), its offsets are the document boundaries, and
`datasets.Dataset.from_file` opens it. `<|endoftext|>` ends every document's list, so the concatenated values are what
GPT-2 was trained on. `part` and `row` lead from any token back to its document and URL.

A shard holds consecutive parts. Where one ends depends on the parts' own ids and sizes, so new inputs add shards and
change at most the one they fall into.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.corpus import kept_documents
from pipelines.runner import RunnerOptions
from pipelines.stages import Context, Stage, StageError, Task, run_stage
from pipelines.workspace import (
    Json,
    Manifest,
    PartFile,
    Workspace,
    canonical_json,
    digest,
    part_key,
)

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")
SHARD_BYTES = 256 << 20
"""Document-part bytes after which a shard ends at the latest: compressed text, about 200 M tokens."""

BATCH_TOKENS = 1 << 22
"""Tokens of a record batch: 8 MiB of uint16, large enough that a random window rarely crosses a border."""

SHARDS_MANIFEST = "shards/manifest.json"


@dataclass(frozen=True)
class ShardOptions:
    """How the corpus is cut into shards.

    `validation` is the share of documents held out, chosen by a hash of their id: a document stays on its side
    whatever else the corpus holds. GPT-2 held out 5 % of WebText, OpenWebText's users 0.05 %.
    """

    validation: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation must be at least 0 and less than 1, not {self.validation}")


def shard_schema(vocab_size: int, metadata: dict[str, str] | None = None) -> pa.Schema:
    """The schema of a shard; ids are uint16 up to 65,536 entries, uint32 beyond."""
    ids = pa.uint16() if vocab_size <= 1 << 16 else pa.uint32()
    fields = [
        pa.field("input_ids", pa.list_(ids), nullable=False),
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("part", pa.uint64(), nullable=False),
        pa.field("row", pa.uint32(), nullable=False),
        pa.field("n_bytes", pa.uint32(), nullable=False),
    ]
    return pa.schema(fields, metadata=metadata)


def in_validation(doc_ids: Sequence[str], share: float) -> np.ndarray:
    """Which documents are held out: those whose id, hashed again, falls below the share.

    >>> bool(in_validation(["00" * 16], 0.0)[0]), bool(in_validation(["00" * 16], 0.999999)[0])
    (False, True)
    """
    hashes = b"".join(hashlib.blake2b(i.encode(), digest_size=8, person=b"validation").digest() for i in doc_ids)
    return np.frombuffer(hashes, ">u8").astype(np.float64) < share * 2.0**64


def group_parts(documents: Sequence[PartFile]) -> list[list[PartFile]]:
    """Consecutive parts, grouped into shards: a group ends behind a part whose id's hash says so, or when full."""
    groups: list[list[PartFile]] = []
    room = 0
    for file in sorted(documents, key=lambda f: f.part):
        if not groups or room <= 0:
            groups.append([])
            room = SHARD_BYTES
        groups[-1].append(file)
        room = 0 if part_key(file.part) % 8 == 0 else room - file.size
    return groups


def write_shard(
    workspace: Workspace, path_stem: str, batches: Iterable[pa.RecordBatch], schema: pa.Schema
) -> PartFile:
    """Write one shard file `<path_stem>.<sha256[:16]>.arrow`: an IPC stream, uncompressed.

    Equal batches give equal bytes. Memory stays at one batch.
    """
    rows = 0
    with tempfile.NamedTemporaryFile(dir=workspace.scratch(), suffix=".arrow", delete=False) as temporary:
        local = Path(temporary.name)
    try:
        with pa.OSFile(str(local), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
                rows += batch.num_rows
        with local.open("rb+") as handle:
            sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
            os.fsync(handle.fileno())
        size = local.stat().st_size
        path = f"{path_stem}.{sha256[:16]}.arrow"
        if workspace.size(path) != size:
            workspace.publish(local, path)
        return PartFile(path_stem.rpartition("/")[2], path, rows, size, sha256, sha256)
    finally:
        local.unlink(missing_ok=True)


def describe_shard(data: pa.Buffer) -> list[dict[str, int]]:
    """Where each batch's token values lie in a shard's bytes: `values_offset`, `tokens`, `documents`."""
    batches = []
    with pa.ipc.open_stream(data) as reader:
        for batch in reader:
            ids = batch.column("input_ids")
            values = ids.values.buffers()[1]
            batches.append(
                {"values_offset": values.address - data.address, "tokens": len(ids.values), "documents": len(ids)}
            )
    return batches


def _batched(rows: Iterator[pa.Table], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Tables gathered into record batches of about BATCH_TOKENS tokens."""
    held: list[pa.Table] = []
    tokens = 0
    for table in rows:
        held.append(table)
        tokens += sum(len(chunk.flatten()) for chunk in table.column("input_ids").chunks)
        if tokens >= BATCH_TOKENS:
            yield from _one_batch(held, schema)
            held, tokens = [], 0
    if held:
        yield from _one_batch(held, schema)


def _one_batch(tables: list[pa.Table], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    table = pa.concat_tables(tables).cast(schema.remove_metadata()).replace_schema_metadata(schema.metadata)
    yield from table.combine_chunks().to_batches()


def write_shards(task: Task, context: Context) -> None:
    """Encode the kept documents of a group of parts and write its train and validation shards."""
    from tokenizer.encode import Encoder

    options: ShardOptions = context.options
    workspace = context.workspace
    encoder = Encoder.open(workspace.local_path("tokenizer"))
    vocabulary = encoder.vocabulary
    metadata = {"webtext.tokenizer": str(task.inputs["tokenizer"]), "webtext.eot": str(vocabulary.specials[-1])}
    schema = shard_schema(vocabulary.size, metadata)

    def encoded(split: Split) -> Iterator[pa.Table]:
        for pair in task.inputs["parts"]:
            documents, decisions = PartFile.of(pair["documents"]), PartFile.of(pair["decisions"])
            for batch in kept_documents(workspace, documents, decisions, ["doc_id", "text"]):
                held_out = in_validation(batch.column("doc_id").to_pylist(), options.validation)
                chosen = batch.filter(pa.array(held_out == (split == "validation")))
                if chosen.num_rows:
                    text = chosen.column("text")
                    yield pa.table(
                        {
                            "input_ids": encoder.encode(text, end_of_text=True),
                            "doc_id": chosen.column("doc_id"),
                            "part": np.full(chosen.num_rows, part_key(documents.part), np.uint64),
                            "row": chosen.column("row"),
                            "n_bytes": pc.binary_length(text),
                        }
                    ).cast(schema.remove_metadata())

    for split in SPLITS:
        file = write_shard(workspace, f"shards/{split}-{task.key}", _batched(encoded(split), schema), schema)
        with workspace.open_input(file.path) as stream:
            batches = describe_shard(stream.read_buffer())
        tokens = sum(b["tokens"] for b in batches)
        if not file.rows:
            workspace.remove(file.path)
            continue
        context.keep(split, file)
        context.figure(split, {"batches": batches, "tokens": tokens, "n_bytes": _text_bytes(workspace, file)})
        context.count("documents", "in", file.rows)
        context.count("documents", "kept", file.rows)


def _text_bytes(workspace: Workspace, file: PartFile) -> int:
    with workspace.open_input(file.path) as stream, pa.ipc.open_stream(stream) as reader:
        return sum(int(np.sum(batch.column("n_bytes").to_numpy(), dtype=np.int64)) for batch in reader)


STAGE = Stage("shards/written", 1, write_shards, ("tokenizers",), dict.fromkeys(SPLITS, "shards"))


def shards_manifest(manifest: Manifest, tokenizer: dict[str, Json]) -> dict[str, Json]:
    """shards/manifest.json: everything a trainer needs to open the shards without reading them."""
    figures = {
        f"{split}-{key}": value for key, by_split in manifest.figures.items() for split, value in by_split.items()
    }
    splits = {}
    for split in SPLITS:
        splits[split] = [
            {
                "file": file.path.rpartition("/")[2],
                "documents": file.rows,
                "size": file.size,
                "sha256": file.sha256,
                **figures[file.part],
            }
            for file in manifest.parts(split)
        ]
    vocab_size = int(tokenizer["vocab_size"])
    body = {
        "format": "webtext-shards",
        "version": 1,
        "dtype": "uint16" if vocab_size <= 1 << 16 else "uint32",
        "vocab_size": vocab_size,
        "eot_id": tokenizer["eot_id"],
        "tokenizer_sha256": tokenizer["sha256"],
        "splits": splits,
    }
    return {**body, "fingerprint": digest(body)}


def build_shards(
    workspace: Workspace,
    documents: Manifest,
    corpus: Manifest,
    tokenizer: dict[str, Json],
    options: ShardOptions,
    runner: RunnerOptions,
) -> dict[str, Json]:
    """Bring shards/ up to date and return shards/manifest.json. Raises StageError when no document is kept."""
    decisions = {file.part: file for file in corpus.parts()}
    tasks = []
    for group in group_parts(documents.parts()):
        pairs = [
            {"documents": dataclasses.asdict(file), "decisions": dataclasses.asdict(decisions[file.part])}
            for file in group
        ]
        inputs = {"parts": pairs, "tokenizer": tokenizer["sha256"]}
        tasks.append(Task(group[0].part, inputs, weight=sum(file.size for file in group)))
    manifest = run_stage(workspace, STAGE, options, tasks, runner)
    if not manifest.parts("train"):
        raise StageError("shards: no document of the training split is kept; see the report for what was dropped")
    body = shards_manifest(manifest, tokenizer)
    raw = canonical_json(body) + b"\n"
    if not workspace.exists(SHARDS_MANIFEST) or workspace.read(SHARDS_MANIFEST) != raw:
        workspace.write(SHARDS_MANIFEST, raw)
    return body
