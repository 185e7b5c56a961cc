"""The corpus as files to hand on: kept text with its provenance, as Parquet or JSON lines."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.corpus import decided_parts, kept_documents
from pipelines.stages import read_annotation
from pipelines.workspace import (
    Json,
    Manifest,
    PartFile,
    Workspace,
    WorkspaceError,
    need_manifest,
    read_manifest,
    read_part,
)

LISTING = "_export.json"
"""What an export wrote. Readers of Parquet folders pass over names that begin with an underscore."""

SCHEMA = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("url", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("date", pa.string(), nullable=False),
        pa.field("language", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("fetched_at", pa.int64(), nullable=False),
        pa.field("score", pa.int64(), nullable=False),
        pa.field("link", pa.string(), nullable=False),
        pa.field("part", pa.string(), nullable=False),
        pa.field("row", pa.uint32(), nullable=False),
    ]
)
"""An exported document: its text after cuts, where it was read (input, byte offset, time), who linked to it, and its
place in the workspace."""


def exported_batches(
    workspace: Workspace, documents: PartFile, decisions: PartFile, positions: PartFile | None, links: Manifest | None
) -> Iterator[pa.Table]:
    """The kept documents of a part with provenance, a row group at a time."""
    where = read_part(workspace, positions, ["source", "offset", "fetched_at"]) if positions else None
    linked = read_annotation(workspace, links, documents, ["score", "link"]) if links else None
    columns = ["doc_id", "url", "title", "date", "language", "text"]
    for batch in kept_documents(workspace, documents, decisions, columns):
        rows = batch.column("row")
        fields = {name: batch.column(name) for name in columns}
        count = batch.num_rows
        place = where.take(rows) if where is not None else None
        link = linked.take(rows) if linked is not None else None
        fields["source"] = place.column("source") if place is not None else [""] * count
        fields["offset"] = place.column("offset") if place is not None else [-1] * count
        fields["fetched_at"] = place.column("fetched_at") if place is not None else [0] * count
        fields["score"] = link.column("score") if link is not None else [0] * count
        fields["link"] = link.column("link") if link is not None else [""] * count
        fields["part"] = [documents.part] * count
        fields["row"] = rows
        yield pa.table(fields, SCHEMA)


def export_corpus(workspace: Workspace, out: Path, format: Literal["parquet", "jsonl"]) -> dict[str, Json]:
    """Write the kept documents to `out`, a file per part that keeps any; counts of files and documents.

    `_export.json` lists the files; those of an earlier export that this one does not write are removed. Raises
    WorkspaceError when the corpus has not been decided, or for other documents. Each file is whole or absent.
    """
    pairs = decided_parts(workspace)
    positions = {file.part: file for file in need_manifest(workspace, "documents").parts("positions")}
    links = read_manifest(workspace, "annotations/links")
    out.mkdir(parents=True, exist_ok=True)
    former = _exported_before(out)
    written: dict[str, int] = {}
    for file, decisions in pairs:
        tables = exported_batches(workspace, file, decisions, positions.get(file.part), links)
        name = f"{file.part}.{format}"
        rows = _write(tables, out / name, format)
        if rows:
            written[name] = rows
    for name in former - written.keys():
        (out / name).unlink(missing_ok=True)
    listing = {"format": "webtext-export", "version": 1, "files": written}
    temporary = out / f".{LISTING}.{os.getpid()}"
    temporary.write_text(json.dumps(listing, sort_keys=True, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, out / LISTING)
    return {"documents": sum(written.values()), "files": len(written)}


def _exported_before(out: Path) -> set[str]:
    """The files an earlier export left here. Raises WorkspaceError where Parquet or JSON lines lie unlisted."""
    listing = out / LISTING
    found = {path.name for path in out.iterdir() if path.suffix in (".parquet", ".jsonl")}
    listed: set[str] = set()
    if listing.exists():
        try:
            listed = {str(name) for name in json.loads(listing.read_text(encoding="utf-8"))["files"]}
        except (ValueError, KeyError, TypeError) as error:
            raise WorkspaceError(f"{listing} is no list of an export ({error}); name another folder") from error
    if found - listed:
        raise WorkspaceError(f"{out} holds {sorted(found - listed)[0]}, which no export wrote: name another folder")
    return listed & found


def _write(tables: Iterator[pa.Table], target: Path, format: str) -> int:
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    rows = 0
    try:
        if format == "parquet":
            with pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
                for table in tables:
                    writer.write_table(table)
                    rows += table.num_rows
        else:
            with temporary.open("w", encoding="utf-8") as stream:
                for table in tables:
                    for row in table.to_pylist():
                        stream.write(json.dumps(row, ensure_ascii=False) + "\n")
                    rows += table.num_rows
        if rows:
            os.replace(temporary, target)
        return rows
    finally:
        temporary.unlink(missing_ok=True)
