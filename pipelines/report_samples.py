"""A few random rows for every reason in the report: drawn by a hash of their place, text read for them alone.

A sample is the k rows with the smallest hash of (part, row) among those with the same reason: a bottom-k sample
(Cohen and Kaplan 2007), so it is uniform, needs memory for k rows, and is the same on every run and in any order.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.workspace import Json, Manifest, PartFile, Workspace, iter_part, part_key, read_part

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Sample = dict[str, str]
"""One example row as the page shows it; "" where there is nothing to show."""


@dataclass(frozen=True)
class Place:
    """A row: its part and its number there."""

    part: PartFile
    row: int

    @property
    def key(self) -> tuple[str, int]:
        return self.part.path, self.row


class Draw:
    """Of all rows offered for a reason, the k with the smallest hash of their place; `kept` of those without one."""

    def __init__(self, size: int, kept: int) -> None:
        self.size, self.kept = size, kept
        self.held: dict[str, list[tuple[int, str, int, PartFile]]] = defaultdict(list)

    def offer(self, reason: str, part: PartFile, keys: U64, rows: I64) -> None:
        """Offer rows of a part; keys[i] is the hash of row rows[i]."""
        size = self.size if reason else self.kept
        least = np.argsort(keys, kind="stable")[:size]
        found = [(int(keys[i]), part.part, int(rows[i]), part) for i in least]
        self.held[reason] = sorted([*self.held[reason], *found], key=lambda f: f[:3])[:size]

    def places(self) -> dict[str, list[Place]]:
        """The rows drawn, by reason ("" is kept), smallest hash first."""
        return {reason: [Place(part, row) for _, _, row, part in held] for reason, held in sorted(self.held.items())}


def place_hashes(part: str, rows: int) -> U64:
    """A hash of each row's place, uint64[rows]: splitmix64 (Steele, Lea and Flood 2014) over part key and row."""
    x = np.arange(1, rows + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(part_key(part))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return x ^ (x >> np.uint64(31))


def offer_reasons(draw: Draw, part: PartFile, reasons: pa.ChunkedArray) -> None:
    """Offer a part's rows under their reasons ("" is kept)."""
    keys = place_hashes(part.part, len(reasons))
    encoded = reasons.combine_chunks().dictionary_encode()
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    for code, reason in enumerate(encoded.dictionary.to_pylist()):
        rows = np.flatnonzero(codes == code)
        draw.offer(reason, part, keys[rows], rows)


def draw_reasons(workspace: Workspace, parts: Iterable[PartFile], size: int, kept: int) -> dict[str, list[Place]]:
    """Random rows of a table for each value of its `reason`; `kept` of those with none."""
    draw = Draw(size, kept)
    for part in parts:
        offer_reasons(draw, part, read_part(workspace, part, ["reason"]).column("reason"))
    return draw.places()


def draw_rows(parts: Iterable[PartFile], size: int) -> list[Place]:
    """Random rows of a table, found without reading it."""
    draw = Draw(0, size)
    for part in parts:
        draw.offer("", part, place_hashes(part.part, part.rows), np.arange(part.rows))
    return draw.places().get("", [])


def read_rows(
    workspace: Workspace, places: Iterable[Place], columns: list[str]
) -> dict[tuple[str, int], dict[str, Any]]:
    """Columns of some rows, by `Place.key`; a part is read only as far as its last wanted row."""
    wanted: dict[str, tuple[PartFile, set[int]]] = {}
    for place in places:
        wanted.setdefault(place.part.path, (place.part, set()))[1].add(place.row)
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for path, (part, rows) in sorted(wanted.items()):
        first = 0
        for batch in iter_part(workspace, part, columns):
            here = sorted(r for r in rows if first <= r < first + batch.num_rows)
            values = batch.take(pa.array([r - first for r in here], pa.int64())).to_pylist()
            found |= {(path, row): value for row, value in zip(here, values, strict=True)}
            first += batch.num_rows
            if first > max(rows):
                break
    return found


def sample(title: str = "", url: str = "", text: str = "", detail: str = "", survivor: str = "") -> Sample:
    return {"title": title, "url": url, "text": text, "detail": detail, "survivor": survivor}


def link_sample(row: Mapping[str, Any]) -> Sample:
    groups = "".join(f", r/{name}" for name in row["subreddits"][:3])
    submissions = f"{row['submissions']} submission{'' if row['submissions'] == 1 else 's'}"
    return sample(url=row["url"], detail=f"score {row['score']}, {submissions}{groups}")


def fetched_sample(row: Mapping[str, Any]) -> Sample:
    status = f"status {row['status']}" if row["status"] > 0 else "no answer"
    moved = f", from {row['final_url']}" if row["final_url"] not in ("", row["url"]) else ""
    return sample(url=row["url"], detail=f"{status} at attempt {row['attempts']}{moved}")


def rejected_sample(row: Mapping[str, Any]) -> Sample:
    place = f"{row['source']}, offset {row['offset']}"
    return sample(url=row["url"], detail=": ".join(text for text in (place, row["detail"]) if text))


ROW_SAMPLES = {
    "links": (link_sample, ["url", "score", "submissions", "subreddits"]),
    "pages/fetched": (fetched_sample, ["url", "final_url", "status", "attempts"]),
    "pages/rejected": (rejected_sample, ["url", "source", "offset", "detail"]),
}
"""Tables, other than the corpus, whose rows carry a reason: how a row is shown, and the columns that takes."""


def table_directory(parts: Sequence[PartFile]) -> str:
    """Where a table lies; "" if it has no parts."""
    return parts[0].path.rpartition("/")[0] if parts else ""


def table_samples(workspace: Workspace, parts: Sequence[PartFile], size: int, kept: int) -> dict[str, list[Sample]]:
    """Example rows by reason ("" is kept) of one of the ROW_SAMPLES tables."""
    shown, columns = ROW_SAMPLES[table_directory(parts)]
    places = draw_reasons(workspace, parts, size, kept)
    rows = read_rows(workspace, itertools.chain.from_iterable(places.values()), columns)
    return {reason: [shown(rows[p.key]) for p in ps] for reason, ps in places.items()}


DOC_ID = re.compile(r"\b[0-9a-f]{32}\b")
OF_DUPLICATE = re.compile(r"[0-9a-f]{32} (\d\.\d+)")
"""The detail of a dropped duplicate: its survivor's doc_id, and the similarity."""


def find_documents(workspace: Workspace, parts: Iterable[PartFile], ids: Iterable[str]) -> dict[str, Place]:
    """Where some documents stand, by doc_id; one pass over one column, ended when all are found."""
    wanted = pa.array(sorted(set(ids)), pa.string())
    found: dict[str, Place] = {}
    for part in parts:
        if len(found) == len(wanted):
            break
        column = read_part(workspace, part, ["doc_id"]).column("doc_id")
        rows = np.flatnonzero(pc.is_in(column, wanted).to_numpy())
        found |= {column[int(row)].as_py(): Place(part, int(row)) for row in rows}
    return found


def document_samples(workspace: Workspace, places: Iterable[Place], letters: int) -> dict[tuple[str, int], Sample]:
    """Title, URL and beginning of some documents, by `Place.key`."""
    rows = read_rows(workspace, places, ["title", "url", "text"])
    return {key: sample(row["title"], row["url"], row["text"][:letters].strip()) for key, row in rows.items()}


def corpus_samples(
    workspace: Workspace, documents: Manifest, corpus: Manifest, size: int, kept: int, letters: int
) -> dict[str, list[Sample]]:
    """Example documents by the reason they were dropped for ("" is kept), with the decision's detail.

    Where the detail names a document, such as the survivor of a duplicate, that document's URL is given too.
    """
    by_part = {part.part: part for part in documents.parts()}
    places = draw_reasons(workspace, corpus.parts(), size, kept)
    flat = [p for ps in places.values() for p in ps]
    details = {key: row["detail"] for key, row in read_rows(workspace, flat, ["detail"]).items()}
    texts = document_samples(workspace, (Place(by_part[p.part.part], p.row) for p in flat), letters)
    ids = {name for detail in details.values() for name in DOC_ID.findall(detail)}
    found = find_documents(workspace, documents.parts(), ids) if ids else {}
    urls = {key: row["url"] for key, row in read_rows(workspace, found.values(), ["url"]).items()}

    def shown(place: Place) -> Sample:
        named = [urls[found[i].key] for i in DOC_ID.findall(details[place.key]) if i in found]
        text = texts[by_part[place.part.part].path, place.row]
        duplicate = OF_DUPLICATE.fullmatch(details[place.key])
        detail = f"similarity {duplicate[1]}" if duplicate and named else details[place.key]
        return {**text, "detail": detail, "survivor": named[0] if named else ""}

    return {reason: [shown(p) for p in ps] for reason, ps in places.items()}


def stage_samples(
    workspace: Workspace, manifests: Mapping[str, Manifest], stage: str, size: int, kept: int, letters: int
) -> dict[str, list[Sample]]:
    """Example rows of a stage by reason ("" is kept), from whichever of its tables remember their drops."""
    if stage == "corpus" and "documents" in manifests:
        return corpus_samples(workspace, manifests["documents"], manifests["corpus"], size, kept, letters)
    found: dict[str, list[Sample]] = {}
    for parts in manifests[stage].tables.values():
        if table_directory(parts) in ROW_SAMPLES:
            found |= table_samples(workspace, parts, size, kept)
    if stage == "documents":
        places = draw_rows(manifests["documents"].parts(), kept)
        texts = document_samples(workspace, places, letters)
        found[""] = [texts[p.key] for p in places]
    return found


def read_drops(
    workspace: Workspace, manifests: Mapping[str, Manifest], steps: Sequence[Json], size: int, letters: int
) -> list[dict[str, Json]]:
    """Every drop of some ledgers with examples of it, and beside them rows that the same stage kept."""
    drops: list[dict[str, Json]] = []
    for stage in dict.fromkeys(s["stage"] for s in steps):
        ledgers = [s for s in steps if s["stage"] == stage]
        reasons = sum(len(s["drops"]) for s in ledgers)
        samples = (
            stage_samples(workspace, manifests, stage, size, size * min(reasons, 50), letters) if reasons else {}
        )
        kept = itertools.cycle(samples.get("", []) or [None])
        for ledger in ledgers:
            for drop in ledger["drops"]:
                beside = [row for row in itertools.islice(kept, min(size, len(samples.get("", [])))) if row]
                about = {"stage": stage, "unit": ledger["unit"], "of": ledger["in"], **drop}
                drops.append({**about, "dropped": samples.get(drop["reason"], []), "kept": beside})
    return drops
