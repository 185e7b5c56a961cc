"""From submissions to links: the karma line, blocking, merging in any order, and ledgers that balance."""

from __future__ import annotations

import gzip
import json
import lzma
import pickle
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import links
from pipelines.compression import open_stream
from pipelines.dumps import Submission, read_submissions
from pipelines.links import (
    MAX_SUBREDDITS,
    SCHEMA,
    SUBMISSIONS_SCHEMA,
    LinkOptions,
    SubmissionOptions,
    combine,
    link_rule,
    merge,
    merge_partition,
    submission_rule,
)
from pipelines.stages import Context, Stage, Task
from pipelines.workspace import Workspace, part_id, read_part

NO_BLOCKS = LinkOptions(use_default_blocklist=False, block_extensions=(), allow_over_18=True)


def post(url: str, score: int = 3, subreddit: str = "a", created: int = 1_400_000_000, **more: object) -> Submission:
    return Submission("", url, subreddit, score, created, False)._replace(**more)  # type: ignore[arg-type]


def numbered(rows: Iterable[Submission | str]) -> list[tuple[int, Submission | str]]:
    return list(enumerate(rows, 1))


def run(rows: Iterable[Submission | str], options: LinkOptions = NO_BLOCKS) -> tuple[pa.Table, Counter[str], dict]:
    """Links, the ledger of submissions and the ledger of links, both checked to balance."""
    counts: Counter[str] = Counter()
    tables = list(combine(numbered(rows), options.submissions(), counts))
    assert counts["in"] == counts.total() - counts["in"]
    table, ledger = merge_partition(pa.concat_tables([SUBMISSIONS_SCHEMA.empty_table(), *tables]), options)
    assert ledger["in"] == counts["kept"] == sum(ledger.values()) - ledger["in"]
    assert table.schema.equals(SCHEMA)
    table.validate(full=True)
    return table, counts, ledger


def real_rows(paths: Iterable[Path]) -> Iterable[Submission | str]:
    for path in paths:
        with open(path, "rb") as file:
            yield from (row for _, row in read_submissions(open_stream(file, path.name)))


def test_whole_month_of_2005(shared: Path) -> None:
    table, counts, ledger = run(real_rows([shared / "data/reddit/RS_v2_2005-06.xz"]), LinkOptions())
    assert counts == {"in": 103, "kept": 103, "merged": 0}
    assert ledger == {"in": 103, "kept": 83, "merged": 0, "low_score": 20}
    assert table.column("url").to_pylist() == sorted(table.column("url").to_pylist())
    assert set(table.column("subreddits").to_pylist()[0]) == {"reddit.com"}


def test_wide_schema_of_2024(shared: Path) -> None:
    _, counts, ledger = run(real_rows([shared / "data/reddit/RS_2024-02_first31.jsonl.gz"]), LinkOptions())
    assert counts == {"in": 31, "self_post": 12, "over_18": 4, "kept": 15, "merged": 0}
    assert ledger == {"in": 15, "kept": 4, "merged": 0, "blocked_domain": 2, "low_score": 9}


def test_thirty_subreddits(shared: Path) -> None:
    paths = sorted((shared / "data/reddit/top-2013").glob("*.csv.gz"))
    table, counts, ledger = run(real_rows(paths))
    assert counts == {"in": 29_750, "self_post": 4_561, "not_http": 2, "kept": 24_718, "merged": 469}
    # 24,599 spellings with 3 karma: 2 are ftp, 85 are another spelling of a link
    assert ledger == {"in": 24_718, "kept": 24_512, "merged": 0, "low_score": 206}
    again, _, _ = run(real_rows(reversed(paths)))
    assert again.equals(table)
    row = table.filter(pc.equal(table.column("url"), "http://amix.dk/blog/post/19588")).to_pylist()[0]
    assert row["fetch_url"] == "http://amix.dk/blog/post/19588"  # the shortest; another had utm_ keys
    assert (row["submissions"], row["subreddits"]) == (3, ["Python", "compsci", "math"])
    _, _, blocked = run(real_rows(paths), LinkOptions())
    assert blocked["blocked_domain"] > 5_000
    assert blocked["blocked_extension"] > 1_000


@pytest.mark.parametrize(("score", "kept"), [(2, False), (3, True), (4, True), (-5, False)])
def test_the_karma_line_is_three(score: int, kept: bool) -> None:
    table, _, _ = run([post("http://e.com/", score)])
    assert table.column("keep").to_pylist() == [kept]
    assert table.column("reason").to_pylist() == ["" if kept else "low_score"]


def test_best_or_sum() -> None:
    rows = [
        post("http://e.com/", 2),
        post("https://www.e.com", 1),
        post("http://f.com/", 5),
        post("http://f.com/", -4),
    ]
    best, _, _ = run(rows, replace(NO_BLOCKS, score="max"))
    total, _, _ = run(rows, replace(NO_BLOCKS, score="sum"))
    assert best.select(["score", "keep", "submissions"]).to_pylist() == [
        {"score": 2, "keep": False, "submissions": 2},
        {"score": 5, "keep": True, "submissions": 2},
    ]
    assert total.select(["score", "keep"]).to_pylist() == [{"score": 3, "keep": True}, {"score": 1, "keep": False}]


def test_a_link_keeps_its_evidence() -> None:
    table, counts, _ = run(
        [
            post("https://www.e.com/a/?utm_source=x", 1, "b", 0),
            post("http://e.com/a#top", 2, "a", 30),
            post("http://e.com/a", 9, "", 20),
            post("http://E.com/a", 1, "a", 40),
        ]
    )
    assert counts == {"in": 4, "kept": 1, "merged": 3}
    assert table.to_pylist() == [
        {
            "url": "http://e.com/a", "fetch_url": "http://E.com/a", "score": 9, "submissions": 4,
            "subreddits": ["a", "b"], "first_seen": 20, "keep": True, "reason": "",
        }
    ]  # fmt: skip


def test_each_submission_has_one_reason() -> None:
    options = SubmissionOptions("2014-01-01", "2018-01-01", False, ("Gonewild",))
    rows: list[Submission | str] = [
        post("http://e.com/1", created=1388534400),
        post("http://e.com/2", created=1388534399),
        post("http://e.com/3", created=1514764799),
        post("http://e.com/4", created=1514764800),
        post("http://e.com/5", created=0),
        post("http://e.com/6", over_18=True),
        post("http://e.com/7", subreddit="gonewild"),
        post("http://user:pw@e.com/"),
        post("http://e.com/8", id="x"),
        post("http://e.com/8", id="x"),
        "malformed",
        "self_post",
    ]
    counts: Counter[str] = Counter()
    (table,) = combine(numbered(rows), options, counts)
    assert table.column("url").to_pylist() == ["http://e.com/1", "http://e.com/3", "http://e.com/8"]
    assert counts == {
        "in": 12, "kept": 3, "merged": 0, "too_early": 1, "too_late": 1, "no_date": 1, "over_18": 1,
        "blocked_subreddit": 1, "credentials": 1, "duplicate_id": 1, "malformed": 1, "self_post": 1,
    }  # fmt: skip
    assert submission_rule(SubmissionOptions(allow_over_18=True))(post("http://e.com", created=0, over_18=True)) == ""


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://i.imgur.com/x", "blocked_domain"),
        ("http://reddit.com/r/pics", "blocked_domain"),
        ("http://shop.example.com/", "blocked_domain"),
        ("http://e.com/a.PDF?x", "blocked_extension"),
        ("http://e.com/song.mp3", "blocked_extension"),
        ("http://en.wikipedia.org/wiki/Node.js", ""),
        ("http://github.com/a/b", ""),
        ("http://notimgur.com/", ""),
    ],
)
def test_blocklists(url: str, reason: str) -> None:
    judge_link = link_rule(LinkOptions(block_domains=("example.com",)))
    assert judge_link(url, 3) == reason
    assert judge_link(url, 2) == (reason or "low_score")
    assert link_rule(NO_BLOCKS)(url, 3) == ""


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"score": "best"}, "score"),
        ({"created_before": "2018"}, "created_before"),
        ({"created_after": "1.1.2018"}, "created_after"),
        ({"created_after": "2018-01-01", "created_before": "2017-01-01"}, "created_after"),
        ({"block_domains": ("http://e.com",)}, "block_domains"),
        ({"block_domains": ("E.com",)}, "block_domains"),
        ({"block_extensions": (".jpg",)}, "block_extensions"),
        ({"block_subreddits": ("r/pics",)}, "block_subreddits"),
    ],
)
def test_wrong_options_are_named(options: dict, field: str) -> None:
    with pytest.raises(ValueError, match=field):
        LinkOptions(**options)


def test_reading_depends_on_its_own_options_only() -> None:
    plain, other = LinkOptions(), LinkOptions(min_score=9, score="sum", block_domains=("e.com",), block_extensions=())
    assert plain.submissions() == other.submissions()
    assert LinkOptions(allow_over_18=True).submissions() != plain.submissions()


ROWS = st.lists(
    st.builds(
        post,
        st.sampled_from(
            ["http://e.com/", "https://www.e.com", "http://e.com/#x", "http://e.com/b", "http://f.org/é"]
        ),
        st.integers(-(2**31), 2**31 - 1),
        st.sampled_from(["", "a", "b", "B", "ä", *(f"s{i:02}" for i in range(40))]),
        st.integers(0, 5),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(ROWS, st.randoms(use_true_random=False), st.integers(1, 20))
def test_merging_is_associative_and_knows_no_order(rows, chance, slice_rows) -> None:
    whole = merge(combine(numbered(rows), NO_BLOCKS.submissions(), Counter()))
    shuffled = chance.sample(rows, len(rows))
    slices = list(combine(numbered(shuffled), NO_BLOCKS.submissions(), Counter(), slice_rows))
    assert whole.schema.equals(SUBMISSIONS_SCHEMA)
    assert merge(slices).equals(whole)
    assert merge(reversed(slices)).equals(whole)
    assert merge([merge(slices[::2]), merge(slices[1::2])]).equals(whole)
    assert merge([whole]).equals(whole)
    expected: dict[str, list[Submission]] = {}
    for row in rows:
        expected.setdefault(links.identify(row.url)[0], []).append(row)
    assert whole.column("url").to_pylist() == sorted(expected)
    for merged in whole.to_pylist():
        group = expected[merged["url"]]
        assert merged["best"] == max(row.score for row in group)
        assert merged["total"] == sum(row.score for row in group)
        assert merged["submissions"] == len(group)
        assert merged["first_seen"] == min((row.created for row in group if row.created), default=0)
        assert merged["fetch_url"] == min((row.url for row in group), key=lambda url: (len(url.encode()), url))
        assert merged["subreddits"] == sorted({row.subreddit for row in group} - {""})[:MAX_SUBREDDITS]


def test_subreddits_are_bounded() -> None:
    table, _, _ = run([post("http://e.com/", subreddit=f"s{i:03}") for i in range(100)])
    assert table.column("subreddits").to_pylist() == [[f"s{i:03}" for i in range(MAX_SUBREDDITS)]]


def test_a_large_dump_is_written_in_slices() -> None:
    rows = numbered([post(f"http://e.com/{i % 70}") for i in range(100)])
    counts: Counter[str] = Counter()
    sizes = [table.num_rows for table in combine(rows, NO_BLOCKS.submissions(), counts, slice_rows=40)]
    assert sizes == [40, 40, 20]
    assert counts == {"in": 100, "kept": 100, "merged": 0}


def read_dump(
    tmp_path: Path, name: str, data: bytes, options: SubmissionOptions | None = None
) -> tuple[Context, list]:
    source = tmp_path / "input"
    source.write_bytes(data)
    workspace = Workspace.open(tmp_path / "workspace", create=True)
    context = Context(workspace, Stage("links/submissions", 1, links.submissions), options or SubmissionOptions())
    pickle.loads(pickle.dumps(links.submissions))
    links.submissions(Task("t", {"name": name}, {"path": str(source)}), context)
    return context, context._tables[""]


def dump_of(n: int) -> bytes:
    rows = (
        {"id": str(i), "url": f"http://e.com/{i * i}", "score": i % 7, "created_utc": 10**9 + i} for i in range(n)
    )
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def test_the_work_function_writes_parts_and_a_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links.combine, "__defaults__", (400,))
    context, parts = read_dump(tmp_path, "2005/RS.zst", zstandard.compress(dump_of(1000)))
    assert [part.part for part in parts] == [part_id("2005/RS.zst", i) for i in range(3)]
    tables = [read_part(context.workspace, part) for part in parts]
    assert [table.num_rows for table in tables] == [400, 400, 200]
    assert context._ledgers == {"submissions": Counter({"in": 1000, "kept": 1000})}
    assert not context._problems


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, zstandard.compress])
def test_a_truncated_dump_keeps_its_rows_and_is_a_problem(tmp_path: Path, pack) -> None:
    context, parts = read_dump(tmp_path, "RS", pack(dump_of(30_000))[:-20])
    ledger = context._ledgers["submissions"]
    assert ledger["kept"] == sum(part.rows for part in parts) > 20_000
    assert ledger["in"] == ledger.total() - ledger["in"]
    (problem,) = context._problems
    assert (problem.input, problem.reason) == ("RS", "truncated")
    assert problem.offset > 1_000_000


@pytest.mark.parametrize(("data", "reason"), [(b"a,b\n1,2\n", "not_a_dump"), (b"", "no_submissions")])
def test_a_file_that_is_no_dump_is_a_problem(tmp_path: Path, data: bytes, reason: str) -> None:
    context, parts = read_dump(tmp_path, "notes.txt", data)
    assert not parts
    assert [problem.reason for problem in context._problems] == [reason]
