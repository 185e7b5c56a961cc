"""The fetcher on a loopback web: what is stored, what is refused and why, politeness, and going on after a kill."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.archives import Page, read_pages
from pipelines.fetch import STAGE, FetchOptions, buckets, fetch_links, fetch_tasks
from pipelines.http_get import Failed, is_public, spell
from pipelines.links import SCHEMA as LINKS
from pipelines.loopback import LoopbackWeb, Reply, Site
from pipelines.robots import ALLOW_ALL, DISALLOW_ALL, normalise, parse_robots, rules_for_status
from pipelines.stages import assemble, commit, perform
from pipelines.urls import canonical
from pipelines.workspace import Manifest, Workspace, WorkspaceError, digest, read_part, write_part

PAGE = b"<!doctype html><title>A page</title><p>" + b"words " * 200


def links(workspace: Workspace, urls: Sequence[str]) -> Manifest:
    """A links/ stage with these URLs kept, and one that is not."""
    rows: dict[str, str] = {}
    for url in [*urls, "http://unwanted.test/"]:
        rows.setdefault(canonical(url) or url, url)
    table = pa.Table.from_pylist(
        [
            {
                "url": url,
                "fetch_url": rows[url],
                "score": 3,
                "submissions": 1,
                "subreddits": [],
                "first_seen": 0,
                "keep": "unwanted" not in url,
                "reason": "low_score" if "unwanted" in url else "",
            }
            for url in sorted(rows)
        ],
        LINKS,
    )
    part = write_part(workspace, "links", "links-0", table, LINKS, {})
    return Manifest("links", 1, digest(sorted(rows)), {}, {}, {"": (part,)})


def options(web: LoopbackWeb | None = None, **changes: Any) -> FetchOptions:
    fields: dict[str, Any] = {"contact": "a@b.test", "delay_seconds": 0.0, "timeout_seconds": 10.0, "retries": 0}
    if web is not None:
        fields |= {"proxy": web.proxy, "ca_file": web.ca_file}
    return FetchOptions(**fields | changes)


def fetch(workspace: Workspace, urls: Sequence[str], fetch_options: FetchOptions) -> Manifest:
    """What `build_pages` does, in this process."""
    tasks = fetch_tasks(workspace, links(workspace, urls), fetch_options)
    records, paths = {}, []
    for task in tasks:
        paths.append(
            perform(STAGE, fetch_options, workspace.url, task, lambda context, t=task: fetch_links(t, context))
        )
        records[task.key] = json.loads(workspace.read(paths[-1]))
    fingerprint = digest([sorted(records), paths])
    manifest = assemble(workspace, STAGE, fetch_options, fingerprint, records)
    commit(workspace, STAGE, manifest, paths)
    return manifest


def ledger(workspace: Workspace, manifest: Manifest) -> dict[str, dict[str, Any]]:
    return {
        row["fetch_url"]: row for part in manifest.parts("fetched") for row in read_part(workspace, part).to_pylist()
    }


def stored(workspace: Workspace, manifest: Manifest) -> dict[str, Page]:
    found = {}
    for part in manifest.parts("warc"):
        with workspace.open_input(part.path) as stream:
            found |= {item.url: item for item in read_pages(stream, part.path) if isinstance(item, Page)}
    return found


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "workspace", create=True)


def outcome(workspace: Workspace, site: Site, url: str, **changes: Any) -> dict[str, Any]:
    with LoopbackWeb(site) as web:
        return ledger(workspace, fetch(workspace, [url], options(web, **changes)))[url]


# Real pages.


def test_real_pages_under_their_own_urls_are_all_stored_byte_for_byte(shared: Path, workspace: Workspace) -> None:
    folder = shared / "data/html/scrapinghub"
    truth = json.loads((folder / "ground-truth.json").read_text())
    site = {
        spell(entry["url"]): gzip.decompress((folder / f"html/{name}.html.gz").read_bytes())
        for name, entry in truth.items()
    }
    assert len(site) == 181
    assert sum(url.startswith("https:") for url in site) == 162
    with LoopbackWeb(site) as web:
        manifest = fetch(workspace, list(site), options(web))
        pages = [url for url in web.urls() if not url.endswith("/robots.txt")]
    assert sorted(pages) == sorted(site)
    assert manifest.ledgers == {"links": {"in": 181, "kept": 181}}
    found = stored(workspace, manifest)
    assert {url: page.payload for url, page in found.items()} == site
    rows = ledger(workspace, manifest)
    for url, page in found.items():
        assert rows[url]["offset"] == page.offset
        assert rows[url]["final_url"] == canonical(url)
        assert (rows[url]["status"], rows[url]["reason"], rows[url]["attempts"]) == (200, "", 1)


def test_two_fetches_differ_in_dates_only(tmp_path: Path) -> None:
    site = {f"http://{name}.test/{i}": PAGE + name.encode() for name in "abc" for i in range(3)}
    archives = []
    for run in ("one", "two"):
        workspace = Workspace.open(tmp_path / run, create=True)
        with LoopbackWeb(site) as web:
            manifest = fetch(workspace, list(site), options(web))
        (part,) = manifest.parts("warc")
        with workspace.open_input(part.path) as stream:
            archives.append([(item.url, item.payload) for item in read_pages(stream, "x") if isinstance(item, Page)])
        assert part.rows == 9
    assert archives[0] == archives[1]
    assert [url for url, _ in archives[0]] == sorted(site)


# What becomes of a link.

A = "http://a.test/page"


@pytest.mark.parametrize(
    ("reply", "reason", "status"),
    [
        (Reply(404, PAGE), "status_404", 404),
        (Reply(503, PAGE), "status_503", 503),
        (Reply(200, PAGE, "application/pdf"), "not_html", 200),
        (Reply(200, b"plain", ""), "not_html", 200),
        (Reply(200, b""), "empty", 200),
        (Reply(200, PAGE * 9), "too_large", 200),
        (Reply(200, PAGE, fault="endless"), "too_large", 0),
        (Reply(200, PAGE, fault="bad_chunks"), "bad_http", 0),
        (Reply(200, PAGE, fault="reset"), "connection", 0),
        (Reply(200, PAGE, fault="cut"), "connection", 0),
        (Reply(200, PAGE, fault="silent"), "timeout", 0),
        (Reply(200, PAGE, fault="drip"), "timeout", 0),
        (Reply(200, PAGE, fault="drip_head"), "timeout", 0),
        (Reply(200, PAGE, headers=(("Location", "x"), ("A", "b" * 500)), fault="drip_head"), "timeout", 0),
        (Reply(302, headers=(("Location", A),)), "redirect_loop", 302),
        (Reply(302), "redirect_bad_url", 302),
        (Reply(302, headers=(("Location", "file:///etc/passwd"),)), "redirect_bad_url", 302),
        (Reply(302, headers=(("Location", "http://127.0.0.1:1/"),)), "private_address", 0),
        (Reply(302, headers=(("Location", "http://[::ffff:10.0.0.1]/"),)), "private_address", 0),
        (Reply(302, headers=(("Location", "http://2130706433/"),)), "private_address", 0),
        (Reply(302, headers=(("Location", "http://localhost/"),)), "private_address", 0),
    ],
)
def test_a_link_without_a_page_says_why(workspace: Workspace, reply: Reply, reason: str, status: int) -> None:
    site = {A: reply, "http://a.test/robots.txt": b""}
    row = outcome(workspace, site, A, max_bytes=4096, timeout_seconds=1.0)
    assert (row["reason"], row["status"]) == (reason, status)
    assert (row["warc"], row["offset"], row["n_bytes"]) == ("", -1, 0)


def test_a_drip_of_bytes_meets_the_deadline_over_tls_too(workspace: Workspace) -> None:
    url = "https://a.test/page"
    began = time.monotonic()
    row = outcome(workspace, {url: Reply(200, PAGE, fault="drip")}, url, timeout_seconds=1.0)
    assert row["reason"] == "timeout"
    assert time.monotonic() - began < 8


def test_a_certificate_of_an_unknown_authority_is_refused(workspace: Workspace) -> None:
    url = "https://a.test/page"
    with LoopbackWeb({url: PAGE}) as web:
        row = ledger(workspace, fetch(workspace, [url], options(web, ca_file="")))[url]
    assert row["reason"] == "tls"


def test_nothing_listens_and_names_that_do_not_resolve(workspace: Workspace) -> None:
    urls = ["http://127.0.0.1:9/", "http://no-such-host.invalid/", "http://10.0.0.1/"]
    rows = ledger(workspace, fetch(workspace, urls, options(respect_robots=False, timeout_seconds=5.0)))
    assert rows[urls[0]]["reason"] == "private_address"
    assert rows[urls[1]]["reason"] in ("dns", "private_address")
    assert rows[urls[2]]["reason"] == "private_address"
    other = Workspace.open(Path(workspace.url).parent / "other", create=True)
    rows = ledger(other, fetch(other, urls[:1], options(respect_robots=False, allow_private=True)))
    assert rows[urls[0]]["reason"] == "connection"


def test_redirects_are_followed_across_hosts_and_the_page_is_stored_once(workspace: Workspace) -> None:
    site = {
        A: Reply(301, headers=(("Location", "https://b.test/next"),)),
        "https://b.test/next": Reply(307, headers=(("Location", "../final?x=1#part"),)),
        "https://b.test/final?x=1": PAGE,
        "http://c.test/": Reply(302, headers=(("Location", "https://b.test/final?x=1"),)),
    }
    with LoopbackWeb(site) as web:
        manifest = fetch(workspace, [A, "http://c.test/", "https://b.test/final?x=1"], options(web))
        assert web.urls().count("https://b.test/final?x=1") == 1
    rows = ledger(workspace, manifest)
    assert {row["final_url"] for row in rows.values()} == {canonical("https://b.test/final?x=1")}
    assert {row["page_url"] for row in rows.values()} == {"https://b.test/final?x=1"}
    assert len({(row["warc"], row["offset"]) for row in rows.values()}) == 1
    assert manifest.ledgers["links"] == {"in": 3, "kept": 3}
    assert rows[A]["attempts"] in (2, 3)


def test_too_many_redirects(workspace: Workspace) -> None:
    site = {f"http://a.test/{i}": Reply(302, headers=(("Location", f"/{i + 1}"),)) for i in range(9)}
    row = outcome(workspace, site, "http://a.test/0", max_redirects=3)
    assert (row["reason"], row["attempts"], row["page_url"]) == ("too_many_redirects", 4, "http://a.test/3")


def test_a_busy_server_is_tried_again_after_the_time_it_asks_for(workspace: Workspace) -> None:
    asked: list[float] = []

    def site(url: str) -> Reply | None:
        if url != A:
            return None
        asked.append(time.monotonic())
        return Reply(200, PAGE) if len(asked) == 3 else Reply(429, headers=(("Retry-After", "1"),))

    row = outcome(workspace, site, A, retries=2)
    assert (row["reason"], row["attempts"]) == ("", 3)
    assert all(later - earlier >= 1 for earlier, later in pairwise(asked))


def test_a_retry_after_of_a_year_is_bounded(workspace: Workspace) -> None:
    site = {A: Reply(503, headers=(("Retry-After", "31536000"),))}
    began = time.monotonic()
    row = outcome(workspace, site, A, retries=1, max_delay_seconds=0.5)
    assert (row["reason"], row["attempts"]) == ("status_503", 2)
    assert time.monotonic() - began < 20


def test_bodies_are_stored_without_chunks_and_with_their_coding(workspace: Workspace) -> None:
    packed = Reply(200, gzip.compress(PAGE), headers=(("Content-Encoding", "gzip"), ("X-Two", "1"), ("X-Two", "2")))
    site = {"http://a.test/gzip": packed, "http://a.test/chunked": Reply(200, PAGE, fault="chunked")}
    with LoopbackWeb(site) as web:
        manifest = fetch(workspace, list(site), options(web))
        (sent,) = [seen.headers for seen in web.seen if seen.url.endswith("/gzip")]
    assert sent["user-agent"] == "webtext (+a@b.test)"
    assert {url: page.payload for url, page in stored(workspace, manifest).items()} == dict.fromkeys(site, PAGE)
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    data = io.BytesIO(workspace.read(manifest.parts("warc")[0].path))
    raw = {r.headers["WARC-Target-URI"]: r for r in ArchiveIterator(data, record_types=WarcRecordType.response)}
    assert "transfer-encoding" not in {k.lower() for k, _ in raw["http://a.test/chunked"].http_headers.to_tuples()}
    assert [v for k, v in raw["http://a.test/gzip"].http_headers.to_tuples() if k == "X-Two"] == ["1", "2"]


# Politeness.


def test_one_host_is_asked_once_at_a_time_with_a_pause_while_others_go_on(workspace: Workspace) -> None:
    urls = [f"http://{sub}a.test/{i}" for sub in ("", "y.", "x.") for i in range(2)]
    urls += [f"http://{name}.test/" for name in "bcdefg"]
    with LoopbackWeb(dict.fromkeys(urls, Reply(200, PAGE, delay_seconds=0.1))) as web:
        fetch(workspace, urls, options(web, delay_seconds=0.3))
        seen = [s for s in web.seen if not s.url.endswith("robots.txt")]
    host = sorted((s for s in seen if "a.test" in s.url), key=lambda s: s.began)
    assert len(host) == 6
    assert all(later.began - earlier.ended >= 0.29 for earlier, later in pairwise(host))
    others = [s for s in seen if "a.test" not in s.url]
    assert max(s.began for s in others) < host[2].began


def test_robots_txt_is_asked_for_once_per_origin_and_obeyed(workspace: Workspace) -> None:
    rules = b"User-agent: *\nAllow: /\n\nUser-agent: WebText\nDisallow: /private\nAllow: /private/open\n"
    site = {f"http://a.test/{path}": PAGE for path in ("1", "2", "private/3", "private/open")}
    with LoopbackWeb({**site, "http://a.test/robots.txt": Reply(200, rules, "text/plain")}) as web:
        manifest = fetch(workspace, list(site), options(web))
        assert web.urls().count("http://a.test/robots.txt") == 1
        assert "http://a.test/private/3" not in web.urls()
        assert web.urls()[0] == "http://a.test/robots.txt"
    assert manifest.ledgers["links"] == {"in": 4, "kept": 3, "robots": 1}
    other = Workspace.open(Path(workspace.url).parent / "other", create=True)
    with LoopbackWeb({**site, "http://a.test/robots.txt": Reply(200, rules)}) as web:
        manifest = fetch(other, list(site), options(web, respect_robots=False))
    assert manifest.ledgers["links"] == {"in": 4, "kept": 4}


@pytest.mark.parametrize(
    ("robots", "reason"),
    [
        (Reply(404), ""),
        (Reply(403), ""),
        (Reply(500), "robots_unreachable"),
        (Reply(200, b"User-agent: *\nDisallow: /", fault="reset"), "connection"),
        (Reply(302, headers=(("Location", "/other.txt"),)), "robots"),
        (Reply(302, headers=(("Location", "/robots.txt"),)), ""),
    ],
)
def test_a_robots_txt_that_is_missing_broken_or_elsewhere(workspace: Workspace, robots: Reply, reason: str) -> None:
    site = {A: PAGE, "http://a.test/robots.txt": robots, "http://a.test/other.txt": b"User-agent: *\nDisallow: /page"}
    with LoopbackWeb(site) as web:
        row = ledger(workspace, fetch(workspace, [A], options(web)))[A]
        assert row["reason"] == reason
        assert (A in web.urls()) == (reason == "")


def test_a_crawl_delay_is_kept_up_to_the_bound(workspace: Workspace) -> None:
    urls = [f"http://a.test/{i}" for i in range(3)]
    site: Mapping[str, Reply | bytes] = {
        **dict.fromkeys(urls, PAGE),
        "http://a.test/robots.txt": b"User-agent: *\nCrawl-delay: 90\n",
    }
    with LoopbackWeb(site) as web:
        fetch(workspace, urls, options(web, max_delay_seconds=0.4))
        seen = sorted((s for s in web.seen if s.url in urls), key=lambda s: s.began)
    gaps = [later.began - earlier.ended for earlier, later in pairwise(seen)]
    assert all(0.39 <= gap < 20 for gap in gaps)


# robots.txt, by the examples of RFC 9309 and Google's specification.


@pytest.mark.parametrize(
    ("rules", "path", "allowed"),
    [
        ("Allow: /p\nDisallow: /", "/page", True),
        ("Allow: /folder\nDisallow: /folder", "/folder/page", True),
        ("Allow: /page\nDisallow: /*.htm", "/page.htm", False),
        ("Allow: /page\nDisallow: /*.ph", "/page.php5", True),
        ("Allow: /$\nDisallow: /", "/", True),
        ("Allow: /$\nDisallow: /", "/page.htm", False),
        ("Disallow: /*.php$", "/folder/filename.php", False),
        ("Disallow: /*.php$", "/filename.php?parameters", True),
        ("Disallow: /fish*.php", "/fishheads/catfish.php?parameters", False),
        ("Disallow: /fish*.php", "/Fish.PHP", True),
        ("Disallow:", "/x", True),
        ("Disallow: /a%3cd.html", "/a%3Cd.html", False),
        ("Disallow: /%7ejoe/", "/~joe/index.html", False),
        ("Disallow: /ツ", "/%E3%83%84", False),
        ("Disallow: /", "/robots.txt", True),
        ("Dis allow: /x # comment", "/x", False),
    ],
)
def test_the_longest_rule_decides_and_allow_wins_ties(rules: str, path: str, allowed: bool) -> None:
    assert (
        parse_robots(f"User-agent: webtext\n{rules}\n".encode(), "webtext").allows(f"http://a.test{path}") == allowed
    )


def test_groups_for_our_name_are_merged_and_go_before_those_for_all() -> None:
    text = (
        b"\xef\xbb\xbfUser-agent: other\nUser-agent: WebText/2.0\r\nDisallow: /a\rCrawl-delay: 2.5\n"
        b"\nUser-agent: *\nDisallow: /\n\nuser-agent: webtext\nDisallow: /b\nSitemap: http://x\n"
    )
    rules = parse_robots(text, "webtext")
    assert rules.crawl_delay == 2.5
    assert [rules.allows(f"http://h.test/{path}") for path in ("a", "b", "c")] == [False, False, True]
    assert not parse_robots(text, "someone").allows("http://h.test/c")


def test_only_the_first_500_kib_count() -> None:
    text = b"User-agent: *\n" + b"#" * (500 * 1024) + b"\nDisallow: /\n"
    assert parse_robots(text, "webtext").allows("http://h.test/x")


def test_statuses_without_rules() -> None:
    assert [rules_for_status(s) for s in (200, 301, 404, 429, 503)] == [
        None,
        ALLOW_ALL,
        ALLOW_ALL,
        DISALLOW_ALL,
        DISALLOW_ALL,
    ]


@settings(max_examples=200, deadline=None)
@given(
    body=st.binary(max_size=300),
    pattern=st.text(alphabet="ab*/$", max_size=30),
    path=st.text(alphabet="ab/", max_size=40),
)
def test_robots_never_raises_and_globs_match_as_a_regex_does(body: bytes, pattern: str, path: str) -> None:
    import re

    parse_robots(body, "webtext").allows("http://h.test/x?y=%zz")
    parsed = parse_robots(f"User-agent: *\nDisallow: /{pattern}".encode(), "webtext")
    anchored, bare = pattern.endswith("$"), pattern.removesuffix("$")
    regex = "".join(".*" if c == "*" else re.escape(c) for c in "/" + bare) + ("$" if anchored else "")
    assert parsed.allows(f"http://h.test/{path}") == (re.match(regex, "/" + path) is None)
    assert normalise(normalise(pattern)) == normalise(pattern)


# Going on.


def test_a_killed_fetch_goes_on_and_asks_for_nothing_twice(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "workspace", create=True)
    urls = [f"http://h{i % 7}.test/{i}" for i in range(60)]
    gone = "http://h1.test/gone"
    script = textwrap.dedent(
        """
        import json, sys
        from pipelines.fetch import STAGE, FetchOptions, fetch_links, fetch_tasks
        from pipelines.stages import perform
        from pipelines.workspace import Manifest, PartFile, Workspace
        url, part, proxy = sys.argv[1:]
        options = FetchOptions(contact="a@b.test", delay_seconds=0.02, proxy=proxy, retries=0)
        links = Manifest("links", 1, "x", {}, {}, {"": (PartFile.of(json.loads(part)),)})
        for task in fetch_tasks(Workspace(url), links, options):
            perform(STAGE, options, url, task, lambda context: fetch_links(task, context))
        """
    )
    part = json.dumps(dataclasses.asdict(links(workspace, [*urls, gone]).parts()[0]))
    site = {url: Reply(200, PAGE + url.encode(), delay_seconds=0.02) for url in urls}
    with LoopbackWeb(site) as web:
        command = [sys.executable, "-c", script, workspace.url, part, web.proxy]
        for stop_at in (8, 25, 40):
            process = subprocess.Popen(command, start_new_session=True)
            while process.poll() is None and len(set(web.urls()) & set(urls)) < stop_at:
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        subprocess.run(command, check=True)
        asked = [url for url in web.urls() if url in site or url == gone]
    assert set(asked) == {*urls, gone}
    assert len(asked) - len(set(asked)) <= 3 * 7, "at each kill one request per host may be in flight"
    (record,) = [json.loads(workspace.read(p)) for p in workspace.list(".state/stages/pages")]
    assert record["ledgers"]["links"] == {"in": 61, "kept": 60, "status_404": 1}
    with workspace.open_input(record["tables"]["warc"][0]["path"]) as stream:
        found = {item.url: item.payload for item in read_pages(stream, "x") if isinstance(item, Page)}
    assert found == {url: PAGE + url.encode() for url in urls}


def test_what_was_answered_is_not_asked_again_when_links_are_added_or_split(workspace: Workspace) -> None:
    urls = [f"http://h{i}.test/{i}" for i in range(12)]
    site = {**dict.fromkeys(urls, PAGE), "http://h3.test/3": Reply(404)}
    with LoopbackWeb(site) as web:
        first = fetch(workspace, urls[:8], options(web))
        assert first.ledgers["links"] == {"in": 8, "kept": 7, "status_404": 1}
        second = fetch(workspace, urls, options(web))
        split = fetch(workspace, urls, options(web, links_per_task=4))
        pages = [url for url in web.urls() if url in urls]
    assert sorted(pages) == sorted(urls)
    assert second.ledgers["links"] == split.ledgers["links"] == {"in": 12, "kept": 11, "status_404": 1}
    assert len(split.parts("warc")) > 1
    assert sorted(stored(workspace, split)) == sorted(set(urls) - {"http://h3.test/3"})
    assert all(workspace.exists(part.path) for part in split.parts("warc"))


def test_failures_are_tried_again_when_the_rules_for_a_page_change(workspace: Workspace) -> None:
    urls = ["http://a.test/large", "http://a.test/small"]
    site = {urls[0]: PAGE * 9, urls[1]: PAGE}
    with LoopbackWeb(site) as web:
        assert fetch(workspace, urls, options(web, max_bytes=4096)).ledgers["links"] == {
            "in": 2,
            "kept": 1,
            "too_large": 1,
        }
        assert fetch(workspace, urls, options(web, max_bytes=1 << 20)).ledgers["links"] == {"in": 2, "kept": 2}
        assert web.urls().count(urls[1]) == 1


def test_an_altered_warc_is_not_taken_over_silently(workspace: Workspace) -> None:
    with LoopbackWeb({A: PAGE}) as web:
        manifest = fetch(workspace, [A], options(web))
        (part,) = manifest.parts("warc")
        path = workspace.local_path(part.path)
        path.write_bytes(path.read_bytes()[:-30])
        again = fetch(workspace, [A], options(web, max_bytes=1 << 21))
    assert stored(workspace, again)[A].payload == PAGE


# Buckets and options.


def test_a_domain_lies_in_one_bucket_and_a_bucket_splits_in_two() -> None:
    urls = [f"http://{sub}host{i}.co.uk/{p}" for i in range(200) for sub in ("", "a.", "b.c.") for p in "xy"]
    table = pa.table({"url": urls})
    coarse, fine = buckets(table, 3), buckets(table, 4)
    assert (fine >> 1 == coarse).all()
    assert len(set(coarse.tolist())) == 8
    assert all(len({int(b) for b in fine[i : i + 6]}) == 1 for i in range(0, len(urls), 6))
    assert not buckets(table, 0).any()


def test_how_a_page_is_fetched_does_not_change_what_it_is(workspace: Workspace) -> None:
    from pipelines.stages import shaping_options

    plain = shaping_options(options())
    how = options(
        delay_seconds=9.0, concurrency=3, proxy="http://127.0.0.1:1", timeout_seconds=1.0, contact="x@y.z", retries=5
    )
    assert shaping_options(how) == plain
    assert shaping_options(options(max_bytes=4096)) != plain


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("contact", ""),
        ("contact", "a b"),
        ("contact", "a@b\r\nX: y"),
        ("user_agent", "a/b"),
        ("proxy", "ftp://x"),
        ("ca_file", "/no/such/file.pem"),
        ("concurrency", 0),
        ("delay_seconds", -1.0),
        ("timeout_seconds", 0.0),
        ("max_bytes", 1),
    ],
)
def test_options_are_checked_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        options(**{field: value})


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("::ffff:192.168.0.1", False),
        ("64:ff9b::a00:1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_private_addresses_are_known_in_any_wrapping(address: str, public: bool) -> None:
    assert is_public(address) == public


@pytest.mark.parametrize(
    "url", ["ftp://a.test/", "http://u:p@a.test/", "/relative", "http://", "javascript:alert(1)"]
)
def test_urls_that_cannot_be_fetched(url: str) -> None:
    with pytest.raises(Failed, match="bad_url"):
        spell(url)


def test_a_workspace_error_names_the_missing_part(workspace: Workspace) -> None:
    manifest = links(workspace, [A])
    workspace.remove(manifest.parts()[0].path)
    with pytest.raises(WorkspaceError, match="links-0"):
        fetch_tasks(workspace, manifest, options())
