"""Which links a corpus starts from: Reddit submissions, combined to one row per canonical URL, then judged.

WebText took every outbound link of a submission with at least 3 karma, up to December 2017, without blocked
subreddits (GPT-2 paper §2.1 and model card). How several submissions of one URL count is not published, and the
re-creations differ: the best score (jcpeterson/openwebtext: any submission with 3 karma) or the sum
(EleutherAI/openwebtext2); the option `score` says which.

Two steps. `submissions` reads one dump and combines its rows per URL; what it leaves is evidence, whatever the karma
line. `merge_partition` receives the rows of many dumps for a share of all URLs, merges them and judges each link.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, BinaryIO, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from pipelines.compression import BrokenStream, open_stream
from pipelines.dumps import NotADump, Submission, read_submissions
from pipelines.urls import extension, identify, is_blocked, trimmed, words
from pipelines.workspace import part_id

if TYPE_CHECKING:
    from pipelines.stages import Context, Task

MAX_SUBREDDITS = 32
SLICE_ROWS = 1 << 19
"""Submissions combined in memory before a slice is written (about 150 MB)."""
_BATCH_ROWS = 1 << 16

MEDIA_EXTENSIONS = tuple(sorted(words("media_extensions.txt")))
"""Endings of paths that are no web page: images, sound, video, office documents, archives, programs, plain data."""


def _time(field: str, value: str) -> int:
    """Unix seconds of the start of an ISO day, UTC; 0 for ""."""
    try:
        day = date.fromisoformat(value) if value else None
    except ValueError:
        raise ValueError(f"{field} must be a day such as 2017-12-31, or empty; it is {value!r}") from None
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) if day else 0


@dataclass(frozen=True)
class SubmissionOptions:
    """Which submissions count: judged row by row while a dump is read."""

    created_after: str = ""
    """First day that counts (ISO, UTC); a submission without a date does not count when a day is given."""
    created_before: str = ""
    """First day that no longer counts (ISO, UTC); WebText's cut-off is 2018-01-01."""
    allow_over_18: bool = False
    block_subreddits: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        after, before = _time("created_after", self.created_after), _time("created_before", self.created_before)
        if after and before and after >= before:
            raise ValueError(
                f"created_after ({self.created_after}) must lie before created_before ({self.created_before})"
            )
        for name in self.block_subreddits:
            if not name or "/" in name:
                raise ValueError(f"block_subreddits holds names without r/, such as 'gonewild'; it holds {name!r}")


@dataclass(frozen=True)
class LinkOptions(SubmissionOptions):
    """Which links are kept."""

    min_score: int = 3
    """Karma a link needs; 3 is WebText's."""
    score: Literal["max", "sum"] = "max"
    """The karma of a link with several submissions: its best one's, or all of them together."""
    use_default_blocklist: bool = True
    """Block the hosts in blocked_domains.txt: Reddit itself, media, files, social networks, pornography."""
    block_domains: tuple[str, ...] = ()
    """More hosts to block, each with everything under it."""
    block_extensions: tuple[str, ...] = MEDIA_EXTENSIONS

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.score not in ("max", "sum"):
            raise ValueError(f"score must be 'max' or 'sum', not {self.score!r}")
        for domain in self.block_domains:
            if not domain or domain != domain.lower().strip(".") or set(domain) & set("/: "):
                raise ValueError(f"block_domains holds lower-case host names, such as 'example.com', not {domain!r}")
        for ending in self.block_extensions:
            if not ending.isalnum() or ending != ending.lower():
                raise ValueError(f"block_extensions holds lower-case endings without a dot, not {ending!r}")

    def submissions(self) -> SubmissionOptions:
        """The part that reading dumps depends on, so that a new karma line reads none of them again."""
        return SubmissionOptions(self.created_after, self.created_before, self.allow_over_18, self.block_subreddits)


def _schema(*fields: tuple[str, pa.DataType]) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields])


SUBMISSIONS_SCHEMA = _schema(
    ("url", pa.string()),
    ("fetch_url", pa.string()),
    ("best", pa.int64()),
    ("total", pa.int64()),
    ("submissions", pa.int32()),
    ("subreddits", pa.list_(pa.field("item", pa.string(), nullable=False))),
    ("first_seen", pa.int64()),
)
"""links/submissions, version 2: one row per canonical URL of a slice of a dump, sorted by url. best and total: the
highest score and the sum; submissions: how many; fetch_url: the shortest original spelling, the first of these in
byte order; subreddits: the first 32 names in byte order; first_seen: Unix seconds, 0 if no submission has a date."""

SCHEMA = _schema(
    ("url", pa.string()),
    ("fetch_url", pa.string()),
    ("score", pa.int64()),
    ("submissions", pa.int32()),
    ("subreddits", pa.list_(pa.field("item", pa.string(), nullable=False))),
    ("first_seen", pa.int64()),
    ("keep", pa.bool_()),
    ("reason", pa.string()),
)
"""links, version 1: one row per canonical URL, sorted by url; score by the option; reason "" if kept, else
blocked_domain, blocked_extension or low_score, the first that holds."""


def merge(tables: Iterable[pa.Table]) -> pa.Table:
    """Combine rows of SUBMISSIONS_SCHEMA to one per URL, sorted by URL.

    Associative and independent of order: merging in any grouping, in any order, gives the same table.
    """
    table = pa.concat_tables([SUBMISSIONS_SCHEMA.empty_table(), *tables]).combine_chunks()
    if not table.num_rows:
        return table
    table = table.append_column("length", pc.binary_length(table.column("fetch_url")))
    order = [(name, "ascending") for name in ("url", "length", "fetch_url")]
    table = table.take(pc.sort_indices(table, sort_keys=order)).combine_chunks()
    urls = table.column("url")
    new = np.ones(table.num_rows, bool)
    new[1:] = pc.not_equal(urls[1:], urls[:-1]).to_numpy()
    starts = np.flatnonzero(new)

    def over_groups(combine: np.ufunc, name: str) -> np.ndarray:
        return combine.reduceat(table.column(name).to_numpy(), starts)

    never = np.iinfo(np.int64).max
    seen = table.column("first_seen").to_numpy()
    first_seen = np.minimum.reduceat(np.where(seen == 0, never, seen), starts)
    first = table.take(pa.array(starts))
    return pa.table(
        [
            first.column("url"),
            first.column("fetch_url"),
            over_groups(np.maximum, "best"),
            over_groups(np.add, "total"),
            over_groups(np.add, "submissions"),
            _union(table.column("subreddits").combine_chunks(), np.cumsum(new) - 1, len(starts)),
            np.where(first_seen == never, 0, first_seen),
        ],
        schema=SUBMISSIONS_SCHEMA,
    )


def _union(lists: pa.ListArray, group: np.ndarray, groups: int) -> pa.ListArray:
    """The first 32 distinct values, sorted, of the lists of each group; `group` ascends."""
    values = lists.flatten().dictionary_encode()
    rank = np.empty(len(values.dictionary), np.int64)
    rank[pc.sort_indices(values.dictionary).to_numpy()] = np.arange(len(rank))
    codes = rank[values.indices.to_numpy()]
    owner = group[pc.list_parent_indices(lists).to_numpy()]
    pairs = np.unique(owner * max(1, len(rank)) + codes)
    owner, codes = np.divmod(pairs, max(1, len(rank)))
    place = np.arange(len(owner)) - np.searchsorted(owner, owner)
    owner, codes = owner[place < MAX_SUBREDDITS], codes[place < MAX_SUBREDDITS]
    offsets = np.searchsorted(owner, np.arange(groups + 1)).astype(np.int32)
    names = values.dictionary.take(pc.sort_indices(values.dictionary)).take(pa.array(codes))
    return pa.ListArray.from_arrays(pa.array(offsets), names, type=SUBMISSIONS_SCHEMA.field("subreddits").type)


def submission_rule(options: SubmissionOptions) -> Callable[[Submission], str]:
    """The judgement of one submission: "" or over_18, blocked_subreddit, no_date, too_early, too_late."""
    after, before = _time("created_after", options.created_after), _time("created_before", options.created_before)
    blocked = frozenset(name.lower() for name in options.block_subreddits)

    def judge_submission(row: Submission) -> str:
        if row.over_18 and not options.allow_over_18:
            return "over_18"
        if blocked and row.subreddit.lower() in blocked:
            return "blocked_subreddit"
        if (after or before) and not row.created:
            return "no_date"
        if row.created < after:
            return "too_early"
        return "too_late" if before and row.created >= before else ""

    return judge_submission


def combine(
    rows: Iterable[tuple[int, Submission | str]],
    options: SubmissionOptions,
    counts: Counter[str],
    slice_rows: int = SLICE_ROWS,
) -> Iterator[pa.Table]:
    """The rows of a dump as tables of SUBMISSIONS_SCHEMA, one per `slice_rows` links; adds to `counts` by reason.

    in = kept (a URL new in its slice) + merged (into such a URL) + the reasons of dumps, urls and `submission_rule` +
    duplicate_id (the same submission twice in a slice).
    """
    judge_submission = submission_rule(options)
    batch: list[tuple[str, str, int, str, int]] = []
    tables: list[pa.Table] = []
    known: set[str] = set()

    def finished() -> pa.Table:
        merged = merge([*tables, _single_rows(batch)])
        n = sum(table.num_rows for table in tables) + len(batch)
        counts["kept"] += merged.num_rows
        counts["merged"] += n - merged.num_rows
        for buffer in (batch, tables, known):
            buffer.clear()
        return merged

    for _, row in rows:
        counts["in"] += 1
        if isinstance(row, str):
            counts[row] += 1
            continue
        reason = judge_submission(row)
        if not reason:
            url, reason = identify(row.url)
        if not reason and row.id in known:
            reason = "duplicate_id"
        if reason:
            counts[reason] += 1
            continue
        if row.id:
            known.add(row.id)
        batch.append((url, trimmed(row.url), row.score, row.subreddit, row.created))
        if len(batch) == _BATCH_ROWS:
            tables.append(_single_rows(batch))
            batch.clear()
        if len(tables) * _BATCH_ROWS + len(batch) >= slice_rows:
            yield finished()
    if batch or tables:
        yield finished()


def _single_rows(batch: list[tuple[str, str, int, str, int]]) -> pa.Table:
    urls, spellings, scores, subreddits, created = zip(*batch, strict=True) if batch else ((), (), (), (), ())
    score = np.array(scores, np.int64)
    return pa.table(
        [
            pa.array(urls, pa.string()),
            pa.array(spellings, pa.string()),
            score,
            score,
            np.ones(len(batch), np.int32),
            pa.array([[name] if name else [] for name in subreddits], SUBMISSIONS_SCHEMA.field("subreddits").type),
            np.array(created, np.int64),
        ],
        schema=SUBMISSIONS_SCHEMA,
    )


def link_rule(options: LinkOptions) -> Callable[[str, int], str]:
    """The judgement of one link (canonical URL, score): "" or blocked_domain, blocked_extension, low_score."""
    domains = frozenset(options.block_domains)
    if options.use_default_blocklist:
        domains |= words("blocked_domains.txt")
    extensions = frozenset(options.block_extensions)

    def judge_link(url: str, score: int) -> str:
        if is_blocked(url, domains):
            return "blocked_domain"
        if extension(url) in extensions:
            return "blocked_extension"
        return "low_score" if score < options.min_score else ""

    return judge_link


def judge(table: pa.Table, options: LinkOptions) -> pa.Table:
    """Judge merged rows (SUBMISSIONS_SCHEMA, one per URL): the links table (SCHEMA), same rows, same order."""
    judge_link = link_rule(options)
    score = table.column("best" if options.score == "max" else "total")
    urls, scores = table.column("url").to_pylist(), score.to_pylist()
    reasons = pa.array([judge_link(url, n) for url, n in zip(urls, scores, strict=True)], pa.string())
    columns = [table.column(name) for name in ("url", "fetch_url", "submissions", "subreddits", "first_seen")]
    return pa.table([*columns[:2], score, *columns[2:], pc.equal(reasons, ""), reasons], schema=SCHEMA)


def merge_partition(table: pa.Table, options: LinkOptions) -> tuple[pa.Table, dict[str, int]]:
    """Rows of many dumps for a share of all URLs (SUBMISSIONS_SCHEMA, any order) to links (SCHEMA, sorted by url).

    The ledger of unit "links": in (rows given) = kept + merged (rows of a URL that another dump has too) + reasons.
    """
    merged = merge([table.select(SUBMISSIONS_SCHEMA.names).cast(SUBMISSIONS_SCHEMA)])
    links = judge(merged, options)
    counts = Counter(links.column("reason").to_pylist())
    ledger = {"in": table.num_rows, "kept": counts.pop("", 0), "merged": table.num_rows - merged.num_rows}
    return links, {**ledger, **dict(sorted(counts.items()))}


def submissions(task: Task, context: Context) -> None:
    """Combine one dump (task.inputs: name, sha256, limit for a first look; task.where: path or URL).

    options: SubmissionOptions.

    A dump that breaks off keeps every submission before the break; it and one that is no dump at all are problems.
    """
    name, path = str(task.inputs["name"]), str(task.where["path"])
    counts: Counter[str] = Counter()
    broken = False

    def rows() -> Iterator[tuple[int, Submission | str]]:
        nonlocal broken
        with _open(path) as raw, open_stream(raw, name) as stream:
            try:
                for row in itertools.islice(read_submissions(stream), task.inputs.get("limit")):
                    context.progress(task.key, stream.consumed)
                    yield row
            except BrokenStream as error:
                broken = True
                context.problem(name, error.reason, error.offset, str(error))
            except NotADump as error:
                broken = True
                context.problem(name, "not_a_dump", 0, f"{name}: {error}")

    for index, table in enumerate(combine(rows(), context.options, counts)):
        context.write("", part_id(name, index), table, SUBMISSIONS_SCHEMA)
    if not (counts["in"] or broken):
        context.problem(name, "no_submissions", 0, f"{name} holds no submission")
    for reason, n in sorted(counts.items()):
        context.count("submissions", reason, n)


def _open(path: str) -> BinaryIO:
    if "://" not in path:
        return open(path, "rb")
    filesystem, inside = pafs.FileSystem.from_uri(path)
    return cast(BinaryIO, filesystem.open_input_stream(inside, compression=None))
