"""Documents: the text of every page and every own text, written once.

A task is one input (an archive or a file of texts), read start to end: records → pages → bytes decoded and main
text extracted in a guarded child → a document part, and beside it where each document came from. A part is closed
when it holds `slice_mib` of text; its rows are sorted by (url, doc_id). Every record is counted: records = pages +
other kinds by reason, pages = documents + reasons why there is no text (ledgers "records" and "pages"; "rows" for own
texts).

doc_id is 128 bits (BLAKE2b) over the canonical URL, the payload's SHA-1 and an ordinal, which tells equal payloads
under one URL within an input apart; it depends on nothing else, so it stays when inputs or options change.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.fs as pafs

from pipelines.archives import ArchiveOptions, Page, Rejected, read_pages
from pipelines.decode import decode
from pipelines.extract import Extractor, shared_extractor
from pipelines.main_text import Extracted, ExtractOptions, tidy
from pipelines.options import build_options
from pipelines.runner import RunnerOptions
from pipelines.stages import Context, Stage, Task, plain_options, run_stage
from pipelines.texts import Text, TextOptions, read_texts
from pipelines.urls import identify
from pipelines.workspace import Manifest, Problem, Workspace, part_id


@dataclass(frozen=True)
class DocumentOptions:
    """How archives become documents. slice_mib: text a part holds before it is closed."""

    archives: ArchiveOptions = field(default_factory=ArchiveOptions)
    extract: ExtractOptions = field(default_factory=ExtractOptions)
    slice_mib: int = 64

    def __post_init__(self) -> None:
        if not 1 <= self.slice_mib <= 512:
            raise ValueError(f"documents.slice_mib must be between 1 and 512, not {self.slice_mib}")


def _schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])


SCHEMA = _schema(
    doc_id=pa.string(), url=pa.string(), title=pa.string(), date=pa.string(), language=pa.string(), text=pa.string()
)
"""documents/: doc_id 32 hex digits; url canonical, or `text:…` for a text without one; title; date ISO day or "";
language as the page declares it ("en") or ""; text."""

POSITIONS_SCHEMA = _schema(
    doc_id=pa.string(),
    source=pa.string(),
    offset=pa.int64(),
    record_id=pa.string(),
    fetched_at=pa.int64(),
    status=pa.int32(),
    mime=pa.string(),
    charset=pa.string(),
    payload_sha1=pa.string(),
    extractor=pa.string(),
    n_payload=pa.int64(),
)
"""pages/positions/: the same rows in the same order. source: the input's name; offset: of the record or line, -1
where there is none; fetched_at: unix seconds, 0 unknown; charset: the codec the bytes were read with; extractor:
which mode made the text, "+truncated" where the page was cut; n_payload: bytes."""

REJECTED_SCHEMA = _schema(
    url=pa.string(), source=pa.string(), offset=pa.int64(), reason=pa.string(), detail=pa.string()
)
"""pages/rejected/: responses that look like pages, and own texts, that gave no document; in the input's order. url:
canonical, as a reader looks it up; as the record has it where it has no canonical form."""

MAX_REJECTED = 50_000
"""Rows of a pages/rejected part."""

ROW_BYTES = 256
"""What a row counts toward a slice beside its text, so that a part of very short texts is bounded too."""


def doc_id(url: str, payload_sha1: str, ordinal: int) -> str:
    """The document's id: 32 hex digits over (canonical URL, payload SHA-1, ordinal among equals in its input)."""
    key = f"{payload_sha1} {ordinal} {url}".encode()
    return hashlib.blake2b(key, digest_size=16, person=b"webtext-document").hexdigest()


# One input's rows, written as they fill.


class _Parts:
    """Collects rows of one input and writes them as parts: documents with their positions, and what was rejected."""

    def __init__(self, context: Context, source: str, slice_bytes: int) -> None:
        self._context, self._source, self._slice_bytes = context, source, slice_bytes
        self._rows: list[dict[str, Any]] = []
        self._rejected: list[dict[str, Any]] = []
        self._held = self._slices = self._rejected_slices = 0
        self._ordinals: Counter[bytes] = Counter()

    def next_id(self, url: str, payload_sha1: str, unique: bool = False) -> str:
        """The doc_id of the next payload of this digest under this URL. unique: the URL names one place alone."""
        if unique:
            return doc_id(url, payload_sha1, 0)
        key = hashlib.blake2b(f"{payload_sha1} {url}".encode(), digest_size=16).digest()
        self._ordinals[key] += 1
        return doc_id(url, payload_sha1, self._ordinals[key] - 1)

    def keep(self, row: dict[str, Any]) -> None:
        self._rows.append({**row, "source": self._source})
        self._held += len(row["text"].encode("utf-8")) + ROW_BYTES
        if self._held >= self._slice_bytes:
            self._write_rows()

    def reject(self, url: str, offset: int, reason: str, detail: str) -> None:
        row = {
            "url": identify(url)[0] or url,
            "source": self._source,
            "offset": offset,
            "reason": reason,
            "detail": detail[:500],
        }
        self._rejected.append({k: _storable(v) for k, v in row.items()})
        if len(self._rejected) >= MAX_REJECTED:
            self._write_rejected()

    def close(self) -> None:
        self._write_rows()
        self._write_rejected()

    def _write_rows(self) -> None:
        if not self._rows:
            return
        self._rows.sort(key=lambda row: (row["url"], row["doc_id"]))
        part = part_id(self._source, self._slices)
        for table, schema in (("", SCHEMA), ("positions", POSITIONS_SCHEMA)):
            columns = {name: [row[name] for row in self._rows] for name in schema.names}
            self._context.write(table, part, pa.table(columns, schema=schema), schema)
        self._rows, self._held, self._slices = [], 0, self._slices + 1

    def _write_rejected(self) -> None:
        if self._rejected:
            part = part_id(self._source, self._rejected_slices)
            table = pa.Table.from_pylist(self._rejected, schema=REJECTED_SCHEMA)
            self._context.write("rejected", part, table, REJECTED_SCHEMA)
            self._rejected, self._rejected_slices = [], self._rejected_slices + 1


def _storable(value: Any) -> Any:
    """Text from headers may hold what UTF-8 cannot."""
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else value


# Pages.


def page_document(page: Page, extractor: Extractor) -> tuple[str, Extracted]:
    """A page's canonical URL and what its bytes gave. Plain text is decoded and tidied, not extracted."""
    url, why = identify(page.url)
    if not url:
        return "", Extracted(reason="bad_url", detail=why)
    if page.mime == "text/plain":
        text, codec = decode(page.payload, page.charset)
        text = tidy(text)
        return url, Extracted(text=text, charset=codec, extractor="plain", reason="" if text else "no_text")
    return url, extractor.extract(page.payload, page.url, page.charset, page.fetched_at)


def _page_row(page: Page, url: str, found: Extracted, key: str) -> dict[str, Any]:
    return {
        "doc_id": key,
        "url": url,
        "title": found.title,
        "date": found.date,
        "language": found.language,
        "text": found.text,
        "offset": page.offset,
        "record_id": _storable(page.record_id),
        "fetched_at": page.fetched_at,
        "status": page.status,
        "mime": _storable(page.mime),
        "charset": found.charset,
        "payload_sha1": page.payload_sha1,
        "extractor": found.extractor + ("+truncated" if page.truncated else ""),
        "n_payload": len(page.payload),
    }


def _read_archive(task: Task, context: Context, stream: BinaryIO, parts: _Parts) -> None:
    options: DocumentOptions = context.options
    extractor = shared_extractor(options.extract)
    pages = 0
    for item in read_pages(stream, str(task.inputs["name"]), options.archives):
        if isinstance(item, Problem):
            context.problem(item.input, item.reason, item.offset, item.detail)
            continue
        context.count("records", "in")
        context.progress(task.key, stream.tell())
        if isinstance(item, Rejected):
            context.count("records", item.reason)
            if item.listed:
                parts.reject(item.url, item.offset, item.reason, item.detail)
            continue
        context.count("records", "kept")
        context.count("pages", "in")
        url, found = page_document(item, extractor)
        context.count("pages", found.reason or "kept")
        if found.reason:
            parts.reject(url or item.url, item.offset, found.reason, found.detail)
        else:
            parts.keep(_page_row(item, url, found, parts.next_id(url, item.payload_sha1)))
        pages += 1
        if pages == task.inputs.get("limit"):
            break


# Own texts.


def _text_row(item: Text, key: str, payload: bytes, payload_sha1: str) -> dict[str, Any]:
    return {
        "doc_id": key,
        "url": item.url,
        "title": item.title,
        "date": item.date,
        "language": item.language,
        "text": item.text,
        "offset": item.offset,
        "record_id": _storable(item.record_id),
        "fetched_at": item.fetched_at,
        "status": 0,
        "mime": "text/plain",
        "charset": "utf-8",
        "payload_sha1": payload_sha1,
        "extractor": "",
        "n_payload": len(payload),
    }


def _read_text_file(task: Task, context: Context, stream: BinaryIO, parts: _Parts) -> None:
    options = build_options(TextOptions, task.inputs["texts"], "texts")
    kept = 0
    for item in read_texts(stream, str(task.inputs["name"]), options):
        if isinstance(item, Problem):
            context.problem(item.input, item.reason, item.offset, item.detail)
            continue
        context.count("rows", "in")
        if isinstance(item, Rejected):
            context.count("rows", item.reason)
            if item.listed:
                parts.reject(item.url, item.offset, item.reason, item.detail)
            continue
        context.count("rows", "kept")
        payload = item.text.encode("utf-8")
        sha1 = hashlib.sha1(payload, usedforsecurity=False).hexdigest()
        parts.keep(_text_row(item, parts.next_id(item.url, sha1, unique=item.unnamed), payload, sha1))
        kept += 1
        if kept == task.inputs.get("limit"):
            break


# The stage.


def _open(task: Task, workspace: Workspace) -> BinaryIO:
    """A seekable stream over the task's input: a local path, a URL pyarrow.fs reads, or a file of the workspace."""
    if "workspace_path" in task.where:
        return cast(BinaryIO, workspace.open_input(str(task.where["workspace_path"])))
    path = str(task.where["path"])
    if "://" not in path:
        return open(path, "rb")
    filesystem, inside = pafs.FileSystem.from_uri(path)
    return cast(BinaryIO, filesystem.open_input_file(inside))


def make_documents(task: Task, context: Context) -> None:
    """The stage's work: one input to its parts. inputs: name, sha256, kind ("archive" or "texts"), the text options
    where it is texts, limit (pages or texts, for a first look) where there is one. where: path or workspace_path."""
    parts = _Parts(context, str(task.inputs["name"]), context.options.slice_mib << 20)
    read = {"archive": _read_archive, "texts": _read_text_file}[str(task.inputs["kind"])]
    with _open(task, context.workspace) as stream:
        read(task, context, stream, parts)
    parts.close()


STAGE = Stage(
    "documents",
    2,
    make_documents,
    libraries=(
        "trafilatura",
        "htmldate",
        "jusText",
        "courlan",
        "lxml",
        "charset-normalizer",
        "python-dateutil",
        "FastWARC",
    ),
    tables={"positions": "pages/positions", "rejected": "pages/rejected"},
)


def document_tasks(
    archives: Sequence[Task], pages: Manifest | None, texts: Sequence[Task], text_options: TextOptions
) -> list[Task]:
    """Tasks for this stage: archives and texts as given (inputs: name, sha256), and the WARC files that a fetch left.

    The key is the input's part id without a slice; raises nothing, names that collide are the runner's to refuse.
    """
    fetched = [
        _task(Task("", {"name": f"fetched/{w.part}", "sha256": w.sha256}, {"workspace_path": w.path}, w.size))
        for w in (pages.parts("warc") if pages else ())
    ]
    own = [_task(task, kind="texts", texts=plain_options(text_options)) for task in texts]
    return [*(_task(task) for task in archives), *fetched, *own]


def _task(task: Task, **inputs: Any) -> Task:
    return Task(
        part_id(str(task.inputs["name"])), {"kind": "archive", **task.inputs, **inputs}, task.where, task.weight
    )


def build_documents(
    workspace: Workspace,
    archives: Sequence[Task],
    pages: Manifest | None,
    texts: Sequence[Task],
    options: DocumentOptions,
    text_options: TextOptions,
    runner: RunnerOptions,
) -> Manifest:
    """Bring documents/, pages/positions/ and pages/rejected/ up to date.

    archives, texts: one task per file (inputs: name, sha256; where: path). pages: the fetch stage's manifest.
    """
    return run_stage(workspace, STAGE, options, document_tasks(archives, pages, texts, text_options), runner)
