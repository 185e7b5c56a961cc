"""Fetch the kept links: each politely and once, into WARC files, with one ledger row per link.

A task is a bucket of links, all links of a registered domain together, so that politeness holds within a task and
many domains are in flight at once. While it runs, an open WARC and a journal lie under `pages/open/`; a killed fetch
goes on from them, and nothing stored is requested again. At the end the captures are copied into a closed WARC in the
order of the links. A bucket that gained links, or was split, takes over what was fetched before.

From the closed WARCs on everything is reproducible; what the network answered is not. Each failure is final for the
same options: a link that timed out is tried again only when an option that shapes the result changes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.archives import HTML, UNKNOWN_MIME
from pipelines.bodies import looks_like_html, parse_content_type
from pipelines.crawl import Crawl, Job, Manners, Outcome, host_of
from pipelines.http_get import Answer, Failed, Limits, spell
from pipelines.progress import human_seconds, say
from pipelines.runner import RunnerOptions
from pipelines.stages import Context, Stage, Task, run_stage, shaping_options
from pipelines.urls import canonical
from pipelines.warc_writer import Capture, OpenWarc, warcinfo_record
from pipelines.workspace import Json, Manifest, PartFile, Workspace, digest, iter_part, read_manifest, read_part


def _how(default: Any) -> Any:
    """An option of how pages are fetched, not of which: it changes no result that is there."""
    return field(default=default, metadata={"shapes_bytes": False})


@dataclass(frozen=True)
class FetchOptions:
    """What is fetched and how. Those marked (how) shape no bytes: changing them leaves what was fetched current.

    contact: an address or URL in the User-Agent, for site owners (how). user_agent: the product's name, also looked
    for in robots.txt. respect_robots. plain_text: whether text/plain pages are stored. max_bytes: of a body as sent;
    larger ones are not stored. max_redirects. allow_private: whether addresses outside the public internet may be
    connected to. links_per_task: above it a bucket of links is split in
    two (how: the tasks' keys tell). delay_seconds: between two requests to a
    registered domain (how). max_delay_seconds: the longest Crawl-delay, Retry-After and pause between tries that is
    kept (how). timeout_seconds: for one whole request (how). retries: tries after the first, for network failures and
    status 429, 500, 502, 503, 504 (how). concurrency: domains asked at once by one task (how). proxy: "http://host:port"
    (how). ca_file: PEM file of trusted authorities instead of the system's (how).
    """

    contact: str = _how("")
    user_agent: str = "webtext"
    respect_robots: bool = True
    plain_text: bool = False
    max_bytes: int = 8 << 20
    max_redirects: int = 5
    allow_private: bool = False
    links_per_task: int = _how(50_000)
    delay_seconds: float = _how(1.0)
    max_delay_seconds: float = _how(30.0)
    timeout_seconds: float = _how(30.0)
    retries: int = _how(2)
    concurrency: int = _how(64)
    proxy: str = _how("")
    ca_file: str = _how("")

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z_-]{1,40}", self.user_agent):
            raise ValueError(f"user_agent must be 1 to 40 letters, - or _, not {self.user_agent!r}")
        if not self.contact:
            raise ValueError(
                "contact must name an address or page where site owners reach you; it goes into the User-Agent"
            )
        if not re.fullmatch(r"[!-~]{1,200}", self.contact) or set(self.contact) & set("()\\"):
            raise ValueError(f"contact must be an address or URL without spaces and brackets, not {self.contact!r}")
        if self.proxy and not re.fullmatch(r"http://[A-Za-z0-9.\-\[\]:]+", self.proxy):
            raise ValueError(f"proxy must be http://host:port or empty, not {self.proxy!r}")
        if self.ca_file and not os.path.isfile(self.ca_file):
            raise ValueError(f"ca_file names no file: {self.ca_file}")
        for name, least, most in _RANGES:
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be from {least} to {most}, not {getattr(self, name)}")

    def limits(self) -> Limits:
        return Limits(
            timeout_seconds=self.timeout_seconds,
            max_bytes=self.max_bytes,
            user_agent=self.agent(),
            allow_private=self.allow_private,
            proxy=self.proxy,
            ca_file=self.ca_file,
        )

    def agent(self) -> str:
        return f"{self.user_agent} (+{self.contact})"

    def manners(self) -> Manners:
        return Manners(
            product=self.user_agent,
            delay_seconds=self.delay_seconds,
            max_delay_seconds=self.max_delay_seconds,
            retries=self.retries,
            max_redirects=self.max_redirects,
            respect_robots=self.respect_robots,
            concurrency=self.concurrency,
        )


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("max_bytes", 1 << 10, 1 << 30),
    ("max_redirects", 0, 20),
    ("links_per_task", 1, 10_000_000),
    ("delay_seconds", 0, 3600),
    ("max_delay_seconds", 0, 86400),
    ("timeout_seconds", 0.05, 3600),
    ("retries", 0, 10),
    ("concurrency", 1, 1000),
)

SCHEMA = pa.schema(
    [
        pa.field(name, kind, nullable=False)
        for name, kind in (
            ("url", pa.string()),
            ("fetch_url", pa.string()),
            ("score", pa.int64()),
            ("final_url", pa.string()),
            ("page_url", pa.string()),
            ("status", pa.int32()),
            ("reason", pa.string()),
            ("warc", pa.string()),
            ("offset", pa.int64()),
            ("fetched_at", pa.int64()),
            ("attempts", pa.int32()),
            ("n_bytes", pa.int64()),
        )
    ]
)
"""pages/fetched, version 1: one row per kept link, sorted by url.

url: the link's canonical URL; fetch_url: the spelling requested; score: the link's. page_url: the last URL requested,
which names the WARC record; final_url: its canonical form. status: HTTP, 0 without an answer. reason: "" if stored,
else robots, robots_unreachable, status_<n>, not_html, empty, too_large, timeout, dns, connection, tls,
bad_http, bad_url, private_address, redirect_loop, too_many_redirects, redirect_bad_url. warc, offset: where its
response record lies, "" and -1 if it is not stored. fetched_at: unix seconds, 0 if it was never requested. attempts:
requests made. n_bytes: of the stored HTTP response, head and body, 0 if it is not stored."""

OPEN = "pages/open"


# Buckets: which links make one task.


def buckets(table: pa.Table, depth: int) -> np.ndarray:
    """The bucket, 0 to 2**depth - 1, of each row's registered domain; a bucket of one depth holds two of the next."""
    hosts = pc.extract_regex(table.column("url"), r"^[a-z]+://(?P<host>[^/?#]*)")
    names = pc.struct_field(pc.fill_null(hosts, {"host": ""}), "host").combine_chunks().dictionary_encode()
    keys = np.array([_domain_key(name) for name in names.dictionary.to_pylist()], np.uint64)
    if not len(keys):
        return np.zeros(0, np.int64)
    return (keys[names.indices.to_numpy()] >> np.uint64(64 - depth) if depth else np.zeros(len(names))).astype(
        np.int64
    )


def _domain_key(host: str) -> int:
    return int.from_bytes(hashlib.sha256(host_of(f"http://{host}/").encode()).digest()[:8], "big")


def bucket_key(depth: int, bucket: int) -> str:
    """The task key of a bucket: its bits. One bucket lies within another if the other's bits begin its own."""
    return f"links-{bucket:0{depth}b}" if depth else "links"


def _related(key: str, other: str) -> bool:
    return key.startswith(other) or other.startswith(key)


def fetch_tasks(workspace: Workspace, links: Manifest, options: FetchOptions) -> list[Task]:
    """One task per bucket of kept links that has any. Its inputs say which links, whatever parts they lie in."""
    parts = [dataclasses.asdict(part) for part in links.parts()]
    kept = sum(table.num_rows for table in _kept_links(workspace, parts))
    depth = max(0, (max(kept, 1) - 1) // options.links_per_task).bit_length()
    counts: dict[int, int] = {}
    sums: dict[int, int] = {}
    for table in _kept_links(workspace, parts):
        columns = (table.column(name).to_pylist() for name in ("url", "fetch_url", "score"))
        for bucket, *row in zip(buckets(table, depth).tolist(), *columns, strict=True):
            hashed = hashlib.blake2b(json.dumps(row).encode(), digest_size=16).digest()
            counts[bucket] = counts.get(bucket, 0) + 1
            sums[bucket] = (sums.get(bucket, 0) + int.from_bytes(hashed, "big")) % 2**128
    return [
        Task(
            key=bucket_key(depth, bucket),
            inputs={"links": f"{sums[bucket]:032x}", "count": count},
            where={"parts": parts, "depth": depth, "bucket": bucket},
            weight=count,
        )
        for bucket, count in sorted(counts.items())
    ]


def _kept_links(workspace: Workspace, parts: list[dict[str, Json]]) -> Iterator[pa.Table]:
    for part in parts:
        for batch in iter_part(workspace, PartFile.of(part), ["url", "fetch_url", "score", "keep"]):
            table = pa.Table.from_batches([batch])
            yield table.filter(table.column("keep"))


@dataclass(frozen=True)
class _Link:
    url: str
    fetch_url: str
    score: int


def _bucket_links(workspace: Workspace, task: Task) -> list[_Link]:
    """A task's links, sorted by URL."""
    found: list[_Link] = []
    for table in _kept_links(workspace, task.where["parts"]):
        own = table.filter(pa.array(buckets(table, task.where["depth"]) == task.where["bucket"]))
        found += [_Link(row["url"], row["fetch_url"], row["score"]) for row in own.to_pylist()]
    return sorted(found, key=lambda link: link.url)


# The journal: how each link ended, a line each, beside the open WARC.


@dataclass(frozen=True)
class _Ending:
    """How a link ended. target: the last URL requested, which names the capture if there is one."""

    url: str
    fetch_url: str
    target: str
    status: int
    reason: str
    fetched_at: int
    attempts: int


class _Journal:
    """Endings that survive a kill. Those of failures count only under the options they were met with."""

    def __init__(self, path: Path, options: str) -> None:
        self._lock = threading.Lock()
        self._options = options
        self.endings: dict[str, _Ending] = {}
        if path.exists():
            self.endings = dict(_read_journal(path, options))
        self._file = path.open("ab")
        if self._file.tell() and not path.read_bytes().endswith(b"\n"):
            self._file.write(b"\n")

    def add(self, ending: _Ending) -> None:
        line = json.dumps({"options": self._options, **dataclasses.asdict(ending)}).encode() + b"\n"
        with self._lock:
            self.endings[ending.url] = ending
            self._file.write(line)
            self._file.flush()

    def close(self) -> None:
        self._file.close()


def _read_journal(path: Path, options: str) -> Iterator[tuple[str, _Ending]]:
    for line in path.read_bytes().splitlines():
        try:
            fields = json.loads(line)
            known_under = fields.pop("options")
            ending = _Ending(**fields)
        except (ValueError, TypeError, AttributeError, KeyError):
            continue  # the line a kill cut: its link is looked for in the WARC, else fetched
        if not ending.reason or known_under == options:
            yield ending.url, ending


# The work: one bucket.


def fetch_links(task: Task, context: Context) -> None:
    """Fetch a bucket of links, or what is missing of it, and write its closed WARC and its ledger."""
    options: FetchOptions = context.options
    workspace = context.workspace
    links = _bucket_links(workspace, task)
    folder = _open_folder(workspace)
    folder.mkdir(parents=True, exist_ok=True)
    shaping = digest(shaping_options(options))
    with contextlib.ExitStack() as stack:
        warc = stack.enter_context(OpenWarc(folder / f"{task.key}.warc.gz"))
        journal = _Journal(folder / f"{task.key}.jsonl", shaping)
        stack.callback(journal.close)
        _take_over(workspace, task.key, folder, warc, journal, options)
        _fetch_missing(task, links, warc, journal, options)
        ledger = _write_warc(task, context, links, warc, journal)
    context.write("fetched", task.key, ledger, SCHEMA)
    context.count("links", "in", len(links))
    for reason in ledger.column("reason").to_pylist():
        context.count("links", reason or "kept")


def _open_folder(workspace: Workspace) -> Path:
    return workspace.local_path(OPEN) if workspace.is_local else workspace.scratch() / OPEN


def _take_over(
    workspace: Workspace, key: str, folder: Path, warc: OpenWarc, journal: _Journal, options: FetchOptions
) -> None:
    """Take over what was fetched before: closed WARCs and open ones of buckets that share links with this one."""
    for path in sorted(folder.glob("*.warc.gz")):
        if path != warc.path and _related(key, path.name.removesuffix(".warc.gz")):
            with path.open("rb") as stream:
                warc.adopt(stream)
    for path in sorted(folder.glob("*.jsonl")):
        if path.stem != key and _related(key, path.stem):
            for url, ending in _read_journal(path, digest(shaping_options(options))):
                if url not in journal.endings:
                    journal.add(ending)
    for name in workspace.list("pages/warc"):
        if _related(key, name.rpartition("/")[2].partition(".")[0]):
            with workspace.open_input(name) as stream:
                warc.adopt(stream)
    before = read_manifest(workspace, STAGE.name)
    if before is None:
        return
    same = before.options == shaping_options(options)
    for part in before.parts("fetched"):
        if _related(key, part.part):
            for row in read_part(workspace, part).to_pylist():
                if row["url"] not in journal.endings and (same or not row["reason"]):
                    journal.add(
                        _Ending(
                            url=row["url"],
                            fetch_url=row["fetch_url"],
                            target=row["page_url"],
                            status=row["status"],
                            reason=row["reason"],
                            fetched_at=row["fetched_at"],
                            attempts=row["attempts"],
                        )
                    )


def _fetch_missing(task: Task, links: list[_Link], warc: OpenWarc, journal: _Journal, options: FetchOptions) -> None:
    """Fetch every link that has not ended yet; each ending is in the journal when it is known."""
    jobs, by_url = [], {link.url: link for link in links}
    for link in links:
        ending = journal.endings.get(link.url)
        if ending is not None and (ending.reason or ending.target in warc.stored):
            continue
        try:
            jobs.append(Job(link.url, spell(link.fetch_url)))
        except Failed:
            journal.add(_Ending(link.url, link.fetch_url, link.fetch_url, 0, "bad_url", 0, 0))
    if not jobs:
        return
    tell = _Telling(task.key, len(jobs))

    def done(outcome: Outcome) -> None:
        job, answer, at = outcome.job, outcome.answer, int(time.time())
        if outcome.reason == "" and answer is not None:
            warc.append(Capture(job.url, at, answer.request, answer.head + answer.body))
        if outcome.reason == "":
            at = warc.stored[job.url].fetched_at
        fetch_url = by_url[job.link].fetch_url
        journal.add(
            _Ending(
                job.link,
                fetch_url,
                job.url,
                outcome.status,
                outcome.reason,
                at if job.requests or not outcome.reason else 0,
                job.requests,
            )
        )
        tell.one()

    def wanted(fields: Mapping[str, str]) -> bool:
        return _refusal(fields, options) == ""

    def judge(answer: Answer) -> str:
        refusal = _refusal(answer.fields, options)
        if refusal or not answer.body:
            return refusal or "empty"
        mime, _ = parse_content_type(answer.fields.get("content-type", ""))
        bare = not answer.fields.get("content-encoding")
        return "not_html" if mime in UNKNOWN_MIME and bare and not looks_like_html(answer.body) else ""

    Crawl(options.limits(), options.manners(), warc.stored.__contains__, wanted, judge, done).run(jobs)


def _refusal(fields: Mapping[str, str], options: FetchOptions) -> str:
    """Why a page is not worth reading, by its head; "" if it is."""
    mime, _ = parse_content_type(fields.get("content-type", ""))
    if mime not in HTML and mime not in UNKNOWN_MIME and not (options.plain_text and mime == "text/plain"):
        return "not_html"
    length = fields.get("content-length", "")
    return "too_large" if length.isascii() and length.isdigit() and int(length[:18]) > options.max_bytes else ""


class _Telling:
    """A line every half minute about a long bucket."""

    def __init__(self, key: str, total: int) -> None:
        self._key, self._total, self._done = key, total, 0
        self._started = self._said = time.monotonic()
        self._lock = threading.Lock()

    def one(self) -> None:
        with self._lock:
            self._done += 1
            now = time.monotonic()
            if now - self._said > 30:
                self._said = now
                rate = self._done / (now - self._started)
                left = human_seconds((self._total - self._done) / rate)
                links = f"{self._done:,} of {self._total:,} links"
                say(f"pages {self._key}: {links}, {rate:.1f}/s, about {left} left")


def _write_warc(task: Task, context: Context, links: list[_Link], warc: OpenWarc, journal: _Journal) -> pa.Table:
    """Close the bucket's WARC, its captures in the order of the links, and say where each link's lies."""
    options: FetchOptions = context.options
    endings = [journal.endings[link.url] for link in links]
    pages = list(dict.fromkeys(ending.target for ending in endings if not ending.reason))
    info = warcinfo_record(
        (
            ("format", "WARC File Format 1.1"),
            ("robots", "obeyed (RFC 9309)" if options.respect_robots else "ignored"),
            ("http-header-user-agent", options.agent()),
        ),
        min((warc.stored[page].fetched_at for page in pages), default=0),
    )
    handle, name = tempfile.mkstemp(dir=context.workspace.scratch(), suffix=".warc.gz")
    local = Path(name)
    with os.fdopen(handle, "wb") as file:
        offsets = warc.close_into(file, pages, info)
        file.flush()
        os.fsync(file.fileno())
    with local.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    contents = "".join(f"{page} {warc.stored[page].digest}\n" for page in pages)
    path = f"pages/warc/{task.key}.{sha256[:16]}.warc.gz"
    size = local.stat().st_size
    context.workspace.publish(local, path)
    logical = hashlib.sha256(contents.encode()).hexdigest()
    context.keep("warc", PartFile(task.key, path, len(pages), size, sha256, logical))
    context.figure("pages", len(pages))
    rows = []
    for link, ending in zip(links, endings, strict=True):
        stored = warc.stored[ending.target] if not ending.reason else None
        rows.append(
            {
                "url": link.url,
                "fetch_url": ending.fetch_url,
                "score": link.score,
                "final_url": canonical(ending.target) or "",
                "page_url": ending.target,
                "status": ending.status,
                "reason": ending.reason,
                "warc": path if stored else "",
                "offset": offsets[ending.target] if stored else -1,
                "fetched_at": ending.fetched_at,
                "attempts": ending.attempts,
                "n_bytes": stored.n_bytes if stored else 0,
            }
        )
    return pa.Table.from_pylist(rows, SCHEMA)


STAGE = Stage("pages", 1, fetch_links, tables={"warc": "pages/warc", "fetched": "pages/fetched"})


def build_pages(workspace: Workspace, links: Manifest, options: FetchOptions, runner: RunnerOptions) -> Manifest:
    """Bring pages/ up to date: tables "warc" (closed WARCs, a part per bucket) and "fetched" (the ledger)."""
    manifest = run_stage(workspace, STAGE, options, fetch_tasks(workspace, links, options), runner)
    shutil.rmtree(_open_folder(workspace), ignore_errors=True)
    return manifest
