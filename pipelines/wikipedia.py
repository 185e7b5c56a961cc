"""Wikipedia: which documents come from it, by their address or by what they say.

GPT-2 removed all Wikipedia documents. The clones block the domain only; mirrors, answer sites and copies under other
names stay in. Here the share of a document's word 8-grams that stand in a Wikipedia dump is measured as well, with
the article that most of them come from. A mirror shows the article's text with other references, tables and
navigation around it, so the share is well below 1 and well above that of any page that is not one.

Two stages. `wikipedia` turns each dump into the sorted 64-bit keys of its articles' n-grams. For a large dump it
keeps one key in `sample`, chosen by the key itself, and of a document the same ones are looked up: the share stays
unbiased, memory falls by the factor. `annotations/wikipedia` looks the documents up. A key of other words is taken
for one of the dump with a chance of keys / 2^64, about 10^-11 for each n-gram: a share over many never depends on it.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, cast
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.compression import BrokenStream, open_stream
from pipelines.inputs import InputFile
from pipelines.ngrams import (
    I64,
    LONGEST_GRAM,
    U64,
    UNICODE_VERSION,
    Index,
    Texts,
    find_grams,
    find_words,
    pieces,
)
from pipelines.stages import Context, Stage, Task, annotation_tasks, document_part, write_annotation
from pipelines.wikitext_dump import BrokenDump, Page, Site, read_dump, strip_markup
from pipelines.workspace import Manifest, PartFile, Workspace, iter_part, part_id

HELD = 1 << 22


@dataclass(frozen=True)
class WikipediaOptions:
    """domains: a document of one of these hosts, or a host below one, is on Wikipedia. n: words of an n-gram. sample:
    one n-gram in `sample` is kept (a power of two). most_grams: limit of n-grams kept for all dumps together; each
    takes about 60 bytes of memory while documents are looked up, so the default stands for 3 GB; a whole English
    dump has about 4 * 10^9, for which `sample: 128` does."""

    domains: tuple[str, ...] = ("wikipedia.org",)
    n: int = 8
    sample: int = 1
    most_grams: int = field(default=50_000_000, metadata={"shapes_bytes": False})

    def __post_init__(self) -> None:
        if not 1 <= self.n <= LONGEST_GRAM:
            raise ValueError(f"n must be in 1..{LONGEST_GRAM}, not {self.n}")
        if self.sample < 1 or self.sample & (self.sample - 1):
            raise ValueError(f"sample must be a power of two (1, 2, 4, …), not {self.sample}")
        if self.most_grams < 1:
            raise ValueError(f"most_grams must be positive, not {self.most_grams}")
        for domain in self.domains:
            if not domain or domain != domain.lower() or domain.startswith("."):
                raise ValueError(f"domains must be lower-case host names such as wikipedia.org, not {domain!r}")


KEYS = pa.schema([pa.field("key", pa.uint64(), False), pa.field("article", pa.uint32(), False)])
"""wikipedia/: a row per distinct n-gram kept of one dump, sorted by key. article: row of wikipedia/articles, the
first that holds it."""

ARTICLES = pa.schema([pa.field("title", pa.string(), False), pa.field("grams", pa.uint32(), False)])
"""wikipedia/articles/: a row per article of the dump, in its order. grams: distinct n-grams kept."""

OVERLAPS = pa.schema(
    [
        pa.field("domain", pa.bool_(), False),
        pa.field("share", pa.float32(), False),
        pa.field("article", pa.string(), False),
        pa.field("matched", pa.int32(), False),
    ]
)
"""annotations/wikipedia/. domain: the URL's host is one of `domains` or below. share: of the document's n-grams
looked up (each occurrence counts), those in the dump, 0 if it has none. matched: how many those are. article: the
title that most of them come from, the first by title among equals."""


# --- the index -----------------------------------------------------------------------------------------------


def article_keys(page: Page, site: Site, options: WikipediaOptions) -> U64:
    """The distinct keys kept of an article: running text and each aside on its own, sorted."""
    plain = strip_markup(page.text, site)
    grams = find_grams(find_words([plain.text, *plain.asides]), options.n)
    return np.unique(grams.keys[_sampled(grams.keys, options)])


def page_reason(page: Page) -> str:
    """Why a page is no article, or "kept"."""
    if page.namespace != 0:
        return "other namespace"
    if page.redirect:
        return "redirect"
    if page.model != "wikitext":
        return "not wikitext"
    if not page.text.strip():
        return "empty"
    return "kept" if page.whole else "too large"


def _sampled(keys: U64, options: WikipediaOptions) -> npt.NDArray[np.bool_]:
    chosen: npt.NDArray[np.bool_] = (keys & np.uint64(options.sample - 1)) == 0
    return chosen


def merge_keys(runs: Sequence[tuple[U64, npt.NDArray[np.uint32]]]) -> tuple[U64, npt.NDArray[np.uint32]]:
    """Distinct keys, sorted, each with the smallest of its articles; runs come in the articles' order."""
    if not runs:
        return np.empty(0, np.uint64), np.empty(0, np.uint32)
    keys, first = np.unique(np.concatenate([key for key, _ in runs]), return_index=True)
    return keys, np.concatenate([article for _, article in runs])[first]


def write_wikipedia(task: Task, context: Context) -> None:
    """Work of the stage `wikipedia`: one dump. Ledger "wikipedia pages"; a dump that breaks off is a problem, and its
    pages before the break are used."""
    options: WikipediaOptions = context.options
    titles: list[str] = []
    grams: list[int] = []
    runs: list[tuple[U64, npt.NDArray[np.uint32]]] = []
    held = 0
    site = Site()
    for page in _pages(task, context, site):
        reason = page_reason(page)
        context.count("wikipedia pages", "in")
        context.count("wikipedia pages", reason)
        if reason != "kept":
            continue
        keys = article_keys(page, site, options)
        runs.append((keys, np.full(len(keys), len(titles), np.uint32)))
        titles.append(page.title)
        grams.append(len(keys))
        held += len(keys)
        if held > max(HELD, 2 * len(runs[0][0])):
            runs = [merge_keys(runs)]
            held = len(runs[0][0])
            _check_size(held, options)
    keys, articles = merge_keys(runs)
    _check_size(len(keys), options)
    name = part_id(task.inputs["name"])
    context.write("", name, pa.table([pa.array(keys), pa.array(articles)], KEYS), KEYS)
    columns = [pa.array(titles, pa.string()), pa.array(grams, pa.uint32())]
    context.write("articles", name, pa.table(columns, ARTICLES), ARTICLES)


def _pages(task: Task, context: Context, site: Site) -> Iterator[Page]:
    name = task.inputs["name"]
    with open(task.where["path"], "rb") as raw, open_stream(raw, name) as stream:
        try:
            for page in read_dump(cast(BinaryIO, stream), name, site):
                context.progress(task.key, raw.tell())
                yield page
        except BrokenStream as broken:
            context.problem(name, broken.reason, broken.offset)
        except BrokenDump as broken:
            context.problem(name, broken.reason, broken.offset)


def _check_size(grams: int, options: WikipediaOptions) -> None:
    if grams > options.most_grams:
        raise ValueError(
            f"the Wikipedia dumps have more than most_grams = {options.most_grams:,} n-grams at sample = "
            f"{options.sample}: set a larger sample (a power of two)"
        )


def wikipedia_tasks(dumps: Sequence[InputFile], digests: dict[str, str]) -> list[Task]:
    """One task per dump; `digests`: sha256 by path."""
    return [
        Task(
            key=part_id(dump.name),
            inputs={"name": dump.name, "sha256": digests[dump.path], "unicode": UNICODE_VERSION},
            where={"path": dump.path},
            weight=dump.size,
        )
        for dump in dumps
    ]


WIKIPEDIA = Stage(
    name="wikipedia",
    version=1,
    work=write_wikipedia,
    libraries=("numpy",),
    tables={"articles": "wikipedia/articles"},
)


# --- the look-up ---------------------------------------------------------------------------------------------


class WikipediaIndex:
    """The n-grams of all dumps in memory. `articles` gives the title row of each key."""

    def __init__(self, keys: U64, articles: npt.NDArray[np.uint32], titles: Sequence[str]) -> None:
        self.index, self.articles = Index(keys), articles
        distinct = sorted(set(titles))
        number = {title: i for i, title in enumerate(distinct)}
        self.titles = distinct
        self.rank = np.array([number[title] for title in titles], np.int64)

    def overlaps(self, texts: Texts, options: WikipediaOptions) -> tuple[I64, I64, list[str]]:
        """(n-grams looked up, matched, best article) of each text; how the texts are batched changes nothing."""
        looked = np.zeros(len(texts), np.int64)
        matched = np.zeros(len(texts), np.int64)
        pairs: list[npt.NDArray[np.int64]] = []
        for piece in pieces(texts, options.n):
            grams = find_grams(piece.words, options.n)
            chosen = np.flatnonzero(_sampled(grams.keys, options) & (grams.first < piece.own))
            row = piece.row + np.searchsorted(grams.documents, chosen, "right") - 1
            at = self.index.find(grams.keys[chosen])
            hit = at >= 0
            looked += np.bincount(row, minlength=len(texts))
            matched += np.bincount(row[hit], minlength=len(texts))
            if hit.any():
                pairs.append(row[hit] << 32 | self.rank[self.articles[at[hit]]])
        return looked, matched, self._best(pairs, len(texts))

    def _best(self, pairs: Sequence[npt.NDArray[np.int64]], rows: int) -> list[str]:
        best = [""] * rows
        if pairs:
            values, counts = np.unique(np.concatenate(pairs), return_counts=True)
            row, rank = values >> 32, values & 0xFFFFFFFF
            order = np.lexsort((rank, -counts, row))
            first = order[np.unique(row[order], return_index=True)[1]]
            for i in first.tolist():
                best[int(row[i])] = self.titles[int(rank[i])]
        return best


def on_domain(url: str, domains: Sequence[str]) -> bool:
    """Whether a URL's host is one of `domains` or below one; False for what is no URL."""
    try:
        host = (urlsplit(url).hostname or "").rstrip(".").lower()
    except ValueError:
        return False
    return any(host == domain or host.endswith("." + domain) for domain in domains)


def annotate_batch(
    urls: Sequence[str], texts: Texts, index: WikipediaIndex, options: WikipediaOptions
) -> pa.RecordBatch:
    """OVERLAPS for a batch of documents."""
    looked, matched, articles = index.overlaps(texts, options)
    share = np.divide(matched, looked, out=np.zeros(len(looked)), where=looked > 0).astype(np.float32)
    columns = [
        pa.array([on_domain(url, options.domains) for url in urls], pa.bool_()),
        pa.array(share),
        pa.array(articles, pa.string()),
        pa.array(matched.astype(np.int32)),
    ]
    return pa.record_batch(columns, OVERLAPS)


def overlap_tasks(documents: Manifest, wikipedia: Manifest | None) -> list[Task]:
    """One task per document part, depending on all dumps (none: only addresses are judged)."""
    parts = [] if wikipedia is None else [dataclasses.asdict(part) for part in wikipedia.parts()]
    titles = [] if wikipedia is None else [dataclasses.asdict(part) for part in wikipedia.parts("articles")]
    return annotation_tasks(documents, {"wikipedia": parts, "articles": titles, "unicode": UNICODE_VERSION})


def annotate_wikipedia(task: Task, context: Context) -> None:
    """Work of the stage `annotations/wikipedia`: one document part, batch by batch."""
    options: WikipediaOptions = context.options
    keys = tuple(PartFile.of(part) for part in task.inputs["wikipedia"])
    titles = tuple(PartFile.of(part) for part in task.inputs["articles"])
    index = _load(context.workspace, keys, titles, options)
    batches = (
        annotate_batch(batch.column(0).to_pylist(), batch.column(1), index, options)
        for batch in iter_part(context.workspace, document_part(task), ["url", "text"])
    )
    write_annotation(task, context, batches, OVERLAPS)


OVERLAP = Stage(name="annotations/wikipedia", version=1, work=annotate_wikipedia, libraries=("numpy",))

_loaded: OrderedDict[tuple[str, ...], WikipediaIndex] = OrderedDict()


def _load(
    workspace: Workspace, keys: Sequence[PartFile], titles: Sequence[PartFile], options: WikipediaOptions
) -> WikipediaIndex:
    """The index of all dumps; the process keeps the last one."""
    name = (workspace.url, *(part.sha256 for part in (*keys, *titles)))
    if name not in _loaded:
        _check_size(sum(part.rows for part in keys), options)
        _loaded.clear()
        _loaded[name] = _read_index(workspace, keys, titles)
    return _loaded[name]


def _read_index(workspace: Workspace, keys: Sequence[PartFile], titles: Sequence[PartFile]) -> WikipediaIndex:
    total = sum(part.rows for part in keys)
    key, article = np.empty(total, np.uint64), np.empty(total, np.uint32)
    names: list[str] = []
    at = 0
    for part, title in zip(keys, titles, strict=True):
        base = len(names)
        for batch in iter_part(workspace, part):
            key[at : at + batch.num_rows] = batch.column(0).to_numpy()
            article[at : at + batch.num_rows] = batch.column(1).to_numpy() + np.uint32(base)
            at += batch.num_rows
        for batch in iter_part(workspace, title, ["title"]):
            names += batch.column(0).to_pylist()
    return WikipediaIndex(key, article, names)
