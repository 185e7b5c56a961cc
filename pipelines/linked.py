"""Which documents somebody linked to: links and pages meet by canonical URL.

Links and pages are two sources. A page counts as linked when a kept link has its URL, or was redirected to it by the
fetcher. Both misses are counted: kept links without a page, and pages without a link. Two exchanges: by URL, then
back to the document parts, whose annotation has the same rows in the same order.
"""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.exchange import Exchange, run_exchange
from pipelines.runner import RunnerOptions
from pipelines.stages import Context, Stage, Task, annotation_tasks, document_part, write_annotation
from pipelines.workspace import Manifest, PartFile, Workspace, part_key, read_part


def _schema(*fields: tuple[str, pa.DataType]) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields])


SCHEMA = _schema(("linked", pa.bool_()), ("score", pa.int64()), ("link", pa.string()))
"""annotations/links: whether a kept link leads here, the best score of those that do, the smallest of them ("")."""

MEETING = _schema(
    ("key", pa.uint64()),  # hash of url
    ("url", pa.string()),
    ("kind", pa.uint8()),  # LINK or PAGE
    ("link", pa.string()),  # of a LINK: the kept link, which a redirect may have led from
    ("score", pa.int64()),
    ("part", pa.uint64()),  # of a PAGE: its document
    ("row", pa.uint32()),
)
MATCHES = _schema(("part", pa.uint64()), ("row", pa.uint32()), ("score", pa.int64()), ("link", pa.string()))
LINK, PAGE = 0, 1


def url_keys(urls: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """A 64-bit key per URL, uniformly spread: what URLs are partitioned by (they are compared as strings).

    >>> url_keys(pa.array(["http://a.example/"])).dtype
    dtype('uint64')
    """
    digests = b"".join(hashlib.blake2b(url.encode(), digest_size=8).digest() for url in urls.to_pylist())
    return np.frombuffer(digests, ">u8").astype(np.uint64)


def _meeting(
    urls: pa.ChunkedArray, kind: int, link: pa.ChunkedArray | None, score: pa.ChunkedArray | None, part: int
) -> pa.Table:
    count = len(urls)
    empty = pa.array([""] * count, pa.string())
    return pa.table(
        {
            "key": url_keys(urls),
            "url": urls,
            "kind": np.full(count, kind, np.uint8),
            "link": empty if link is None else link,
            "score": np.zeros(count, np.int64) if score is None else score,
            "part": np.full(count, part, np.uint64),
            "row": np.arange(count, dtype=np.uint32),
        }
    ).cast(MEETING)


def send_urls(task: Task, context: Context) -> pa.Table:
    """A part's side of the meeting: kept links, redirects of kept links, or documents."""
    file = PartFile.of(task.inputs["part"])
    source = task.inputs["source"]
    if source == "documents":
        urls = read_part(context.workspace, file, ["url"]).column("url")
        return _meeting(urls, PAGE, None, None, part_key(file.part))
    if source == "links":
        links = read_part(context.workspace, file, ["url", "score", "keep"])
        links = links.filter(links.column("keep"))
        return _meeting(links.column("url"), LINK, links.column("url"), links.column("score"), 0)
    fetched = read_part(context.workspace, file, ["url", "final_url", "score", "reason"])
    moved = pc.and_(pc.equal(fetched.column("reason"), ""), pc.not_equal(fetched.column("final_url"), fetched["url"]))
    fetched = fetched.filter(moved)
    return _meeting(fetched.column("final_url"), LINK, fetched.column("url"), fetched.column("score"), 0)


def meet(table: pa.Table) -> tuple[pa.Table, dict[str, int]]:
    """Match pages with links of equal URL in a table sorted by (url, kind, …): the matches, and what was missed.

    Counts: `links` and `pages` seen, `met` links that found a page, `matched` pages that have a link.
    """
    if table.num_rows == 0:
        return MATCHES.empty_table(), {"links": 0, "pages": 0, "met": 0, "matched": 0}
    url = table.column("url").combine_chunks()
    changes = np.flatnonzero(pc.not_equal(url[1:], url[:-1]).to_numpy(zero_copy_only=False)) + 1
    starts = np.concatenate([[0], changes])
    group = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(url))))
    is_link = table.column("kind").to_numpy() == LINK
    # A redirect's target is a second name of a link, not a second link.
    own = is_link & pc.equal(table.column("link"), table.column("url")).to_numpy()
    lowest = np.iinfo(np.int64).min
    score = np.maximum.reduceat(np.where(is_link, table.column("score").to_numpy(), lowest), starts)
    links = np.add.reduceat(is_link.astype(np.int64), starts)
    pages = np.add.reduceat((~is_link).astype(np.int64), starts)
    rows = np.flatnonzero(~is_link & (links[group] > 0))
    # Rows are sorted by kind within a URL, then by link: the group's first row is its smallest link.
    first = starts[group[rows]]
    matches = pa.table(
        {
            "part": table.column("part").take(rows),
            "row": table.column("row").take(rows),
            "score": score[group[rows]],
            "link": table.column("link").take(first),
        }
    ).cast(MATCHES)
    counts = {
        "links": int(own.sum()),
        "pages": int((~is_link).sum()),
        "met": int((own & (pages[group] > 0)).sum()),
        "matched": len(rows),
    }
    return matches, counts


def receive_urls(task: Task, table: pa.Table, context: Context) -> None:
    matches, counts = meet(table)
    context.count("links that were kept", "in", counts["links"])
    context.count("links that were kept", "kept", counts["met"])
    context.count("links that were kept", "no_page_at_this_url", counts["links"] - counts["met"])
    context.count("pages", "in", counts["pages"])
    context.count("pages", "kept", counts["matched"])
    context.count("pages", "not_linked", counts["pages"] - counts["matched"])
    context.write("", task.key, matches, MATCHES)


def send_matches(task: Task, context: Context) -> pa.Table:
    return read_part(context.workspace, PartFile.of(task.inputs["part"]))


def receive_matches(task: Task, table: pa.Table, context: Context) -> None:
    rows = document_part(task).rows
    at = table.column("row").to_numpy()
    linked = np.zeros(rows, bool)
    linked[at] = True
    score = np.zeros(rows, np.int64)
    score[at] = table.column("score").to_numpy()
    index = np.full(rows, -1, np.int64)
    index[at] = np.arange(len(at))
    link = pc.fill_null(table.column("link").combine_chunks().take(pa.array(index, mask=index < 0)), "")
    annotation = pa.table({"linked": linked, "score": score, "link": link}).cast(SCHEMA)
    write_annotation(task, context, annotation.to_batches(), SCHEMA)


def _no_work(task: Task, context: Context) -> None:
    raise AssertionError(f"{task.key}: an exchange has no work of its own")


MEET = Stage("annotations/links/matches", 1, _no_work)
ANNOTATE = Stage("annotations/links", 1, _no_work)
BY_URL = Exchange(MEETING, "key", ("key", "url", "kind", "link", "part", "row"), send_urls, receive_urls)
BY_PART = Exchange(MATCHES, "part", ("part", "row"), send_matches, receive_matches)


def annotate_links(
    workspace: Workspace, links: Manifest | None, fetched: Manifest | None, documents: Manifest, runner: RunnerOptions
) -> Manifest:
    """Bring annotations/links up to date from links/, the fetcher's redirects and documents/."""
    sides = [("documents", documents.parts()), ("links", links.parts() if links else ())]
    sides.append(("fetched", fetched.parts("fetched") if fetched else ()))
    senders = [
        Task(f"{source}-{file.part}", {"source": source, "part": dataclasses.asdict(file)}, weight=file.size)
        for source, files in sides
        for file in files
    ]
    rows = sum(file.rows for _, files in sides for file in files)
    met = run_exchange(workspace, MEET, None, BY_URL, senders, runner, total_bytes=rows * 128)
    matches = [Task(file.part, {"part": dataclasses.asdict(file)}, weight=file.size) for file in met.parts()]
    return run_exchange(workspace, ANNOTATE, None, BY_PART, matches, runner, targets=annotation_tasks(documents))
