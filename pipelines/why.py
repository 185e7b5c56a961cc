"""The life of one URL: every judgement, from the submissions that named it to the shard its text lies in."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.corpus import EVIDENCE, check_decided
from pipelines.progress import printable
from pipelines.stages import read_annotation
from pipelines.urls import canonical
from pipelines.workspace import Json, Manifest, OtherDocuments, PartFile, Workspace, read_manifest, read_part


def _rows_with(
    workspace: Workspace, manifest: Manifest | None, table: str, column: str, value: str
) -> Iterator[tuple[PartFile, int, dict[str, Json]]]:
    """(part, row, fields) of every row of a table whose column has a value; reads one column until one has it."""
    for file in manifest.parts(table) if manifest else ():
        found = pc.indices_nonzero(pc.equal(read_part(workspace, file, [column]).column(column), value))
        if len(found):
            rows = read_part(workspace, file).take(found).to_pylist()
            yield from ((file, int(i.as_py()), row) for i, row in zip(found, rows, strict=True))


def life_of(workspace: Workspace, url: str) -> dict[str, Any]:
    """Everything the workspace knows of a URL (any spelling), as one JSON-able dict.

    `links`, `fetched`, `rejected`, and `documents`, each with its evidence and the decision. A page reached by a
    redirect is found under the link it came from as well.
    """
    url = url.encode("utf-8", "replace").decode()
    bare = [url, html.unescape(url)]
    spellings = [*bare, *(f"http://{text.lstrip('/')}" for text in bare if "://" not in text)]
    key = next((found for found in map(canonical, spellings) if found), url)
    life: dict[str, Any] = {"url": url, "canonical": key, "links": [], "fetched": [], "rejected": [], "documents": []}
    life["links"] = [row for _, _, row in _rows_with(workspace, read_manifest(workspace, "links"), "", "url", key)]
    pages = read_manifest(workspace, "pages")
    life["fetched"] = [row for _, _, row in _rows_with(workspace, pages, "fetched", "url", key)]
    names = sorted({key, *(row["final_url"] for row in life["fetched"] if row["final_url"])})
    documents = read_manifest(workspace, "documents")
    for name in names:
        life["rejected"] += [row for _, _, row in _rows_with(workspace, documents, "rejected", "url", name)]
        for file, at, row in _rows_with(workspace, documents, "", "url", name):
            text = row.pop("text")
            entry = {**row, "part": file.part, "row": at, "characters": len(text), "begins": text[:200]}
            entry["position"] = _position(workspace, documents, file, at)
            entry["evidence"] = _evidence(workspace, file, at)
            entry["decision"] = _decision(workspace, file, at)
            life["documents"].append(entry)
    life["found"] = any(life[name] for name in ("links", "fetched", "rejected", "documents"))
    life["verdict"] = _verdict(life)
    return life


def _one(table: pa.Table, row: int) -> dict[str, Json]:
    return dict(table.slice(row, 1).to_pylist()[0])


def _position(workspace: Workspace, documents: Manifest | None, file: PartFile, row: int) -> dict[str, Json]:
    for other in documents.parts("positions") if documents else ():
        if other.part == file.part:
            return _one(read_part(workspace, other), row)
    return {}


def _evidence(workspace: Workspace, file: PartFile, row: int) -> dict[str, dict[str, Json]]:
    found = {}
    for name in EVIDENCE.values():
        manifest = read_manifest(workspace, name)
        if manifest is not None:
            try:
                found[name.removeprefix("annotations/")] = _one(read_annotation(workspace, manifest, file), row)
            except OtherDocuments as error:
                found[name.removeprefix("annotations/")] = {"unusable": str(error)}
    return found


def _decision(workspace: Workspace, file: PartFile, row: int) -> dict[str, Json]:
    manifest = read_manifest(workspace, "corpus")
    for other in manifest.parts() if manifest else ():
        if other.part == file.part:
            check_decided(workspace, file, other)
            return _one(read_part(workspace, other), row)
    return {}


def _verdict(life: dict[str, Any]) -> str:
    """One sentence: in the corpus, or where it was lost."""
    if any(entry["decision"].get("keep") for entry in life["documents"]):
        return "in the corpus"
    for entry in life["documents"]:
        if entry["decision"]:
            detail = f" ({entry['decision']['detail']})" if entry["decision"]["detail"] else ""
            return f"not in the corpus: dropped by the rules as {entry['decision']['reason']}{detail}"
        return "its text was extracted; the corpus has not been decided yet"
    if life["rejected"]:
        return f"not in the corpus: its page gave no document, {life['rejected'][0]['reason']}"
    if life["fetched"]:
        reason = life["fetched"][0]["reason"]
        return f"not in the corpus: {f'fetching failed, {reason}' if reason else 'fetched, and not extracted yet'}"
    if life["links"]:
        link = life["links"][0]
        fate = "kept, and no page of it is here" if link["keep"] else f"dropped, {link['reason']}"
        return f"not in the corpus: the link was {fate}"
    return "no link and no page of this URL is in the workspace"


def life_lines(life: dict[str, Any]) -> list[str]:
    """A life for a terminal; control characters from the web are escaped."""
    lines = [printable(life["canonical"]), f"  {printable(life['verdict'])}"]
    for link in life["links"]:
        lines.append(f"  link       score {link['score']}, {link['submissions']} submissions, kept: {link['keep']}")
        lines.append(f"             {printable(', '.join(link['subreddits']))} {printable(link['reason'])}")
    for page in life["fetched"]:
        lines.append(
            f"  fetched    status {page['status']} {printable(page['reason'] or 'stored in ' + page['warc'])}"
        )
    for page in life["rejected"]:
        lines.append(
            f"  rejected   {printable(page['reason'])} {printable(page['detail'])} in {printable(page['source'])}"
        )
    for entry in life["documents"]:
        position = entry["position"]
        lines.append(
            f"  document   {entry['doc_id']}, {entry['characters']:,} characters: {printable(entry['title'])}"
        )
        if position:
            lines.append(f"             from {printable(position['source'])} at byte {position['offset']:,}")
        for name, evidence in entry["evidence"].items():
            lines.append(f"  {name:10} {printable(_short(evidence))}")
        if entry["decision"]:
            decision = entry["decision"]
            kept = "kept" if decision["keep"] else f"dropped: {decision['reason']} {decision['detail']}"
            lines.append(f"  decision   {printable(kept)}")
    return lines


def _short(evidence: dict[str, Json]) -> str:
    """Evidence in a line: long lists by their length."""
    shown = []
    for name, value in evidence.items():
        if isinstance(value, list):
            value = f"{len(value)} entries" if len(value) > 2 else value
        elif isinstance(value, float):
            value = f"{value:.3g}"
        shown.append(f"{name} {value}")
    return ", ".join(shown)
