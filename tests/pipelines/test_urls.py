"""Canonical URLs against the Web Platform Tests, real URLs, and properties over hostile strings."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import urls
from pipelines.urls import (
    MAX_URL,
    Refused,
    canonical,
    extension,
    host,
    identify,
    is_blocked,
    parse,
    registered_domain,
    tracking_keys,
    words,
)


def url_file(shared: Path, name: str) -> bytes:
    data = (shared / "data" / "urls" / name).read_bytes()
    return gzip.decompress(data) if name.endswith(".gz") else data


def web_platform_cases(shared: Path, name: str) -> list[dict]:
    return [case for case in json.loads(url_file(shared, name)) if isinstance(case, dict)]


def test_http_urls_parse_as_browsers_do(shared: Path) -> None:
    seen = 0
    for case in web_platform_cases(shared, "urltestdata.json.gz"):
        spelled = case["input"].strip("".join(map(chr, range(33)))).translate({9: None, 10: None, 13: None}).lower()
        if case.get("base") is not None or not spelled.startswith(("http:", "https:")):
            continue
        seen += 1
        if case.get("failure"):
            with pytest.raises(Refused):
                parse(case["input"])
            continue
        got = parse(case["input"])
        assert f"{got.scheme}:" == case["protocol"], case
        assert (got.host, got.port, got.path) == (case["hostname"], case["port"], case["pathname"]), case
        assert (f"?{got.query}" if got.query else "") == case["search"], case
        assert got.credentials == bool(case["username"] or case["password"]), case
    assert seen == 280


def test_hosts_become_ascii_as_browsers_do(shared: Path) -> None:
    cases = web_platform_cases(shared, "toascii.json")
    assert len(cases) == 87
    for case in cases:
        try:
            got: str | None = parse(f"https://{case['input']}/x").host
        except Refused:
            got = None
        assert got == case["output"], case


def test_percent_encoding_is_utf8(shared: Path) -> None:
    for case in web_platform_cases(shared, "percent-encoding.json"):
        wanted = case["output"]["utf-8"]
        if not case["input"].startswith("\n"):  # line ends vanish from URLs
            assert parse(f"http://x/?{case['input']}").query == wanted, case


def test_result_urls_of_browsers_have_a_stable_identity(shared: Path) -> None:
    refused: list[str] = []
    for case in web_platform_cases(shared, "urltestdata.json.gz"):
        if case.get("href", "").startswith(("http:", "https:")):
            key, reason = identify(case["href"])
            assert bool(key) != bool(reason)
            if key:
                assert identify(key) == (key, "")
            elif reason != "credentials":
                refused.append(case["href"])
    assert sorted(set(refused)) == ["http://../", "http://./", "http://foo.09../"]  # hosts with empty labels


def test_real_urls_are_stable(shared: Path) -> None:
    text = url_file(shared, "kasztp.txt.gz").decode("utf-8-sig")
    spelled = [line for line in text.split("\n") if line.strip()]
    keys = {identify(line) for line in spelled}
    assert len(spelled) == 48_010
    assert [reason for key, reason in keys if not key] == ["no_host"]  # one line is only `https://`
    assert len(keys) == 47_921
    for key, _ in keys:
        if key:
            assert canonical(key) == key
            assert registered_domain(host(key))


def test_news_urls_lose_tracking_and_fragment(shared: Path) -> None:
    text = (shared / "data" / "urls" / "newspaper_fulltext_url_list.txt").read_text("utf-8")
    keys = [canonical(line) for line in text.split()]
    assert all(key and "#" not in key and "utm_" not in key for key in keys)
    assert "http://bandb.about.com/od/illinois/fl/Galena-IL-A-BampB-Kinda-Town.htm" in keys
    assert sum("?" in (key or "") for key in keys) == 3  # slide=1, slide=1, c=tpstream choose content


@pytest.mark.parametrize(
    ("spelling", "key"),
    [
        ("https://Example.COM", "http://example.com/"),
        ("http://www.example.com:80/a/", "http://example.com/a"),
        ("https://example.com:443/a#top", "http://example.com/a"),
        ("http://example.com:8080/", "http://example.com:8080/"),
        ("http://example.com./a/./b/../c", "http://example.com/a/c"),
        ("http://example.com/%7euser/%41%2f", "http://example.com/~user/A%2F"),
        ("http://example.com/Foo_%28bar%29", "http://example.com/Foo_(bar)"),
        ("http://example.com/100%", "http://example.com/100%25"),
        ("http://example.com/a b", "http://example.com/a%20b"),
        ("http://münchen.de/straße", "http://xn--mnchen-3ya.de/stra%C3%9Fe"),
        ("http://XN--MNCHEN-3YA.de/", "http://xn--mnchen-3ya.de/"),
        ("http://e.com/?b=2&a=1&&utm_source=x&fbclid=1", "http://e.com/?a=1&b=2"),
        ("http://e.com/?a=2&a=1", "http://e.com/?a=2&a=1"),
        ("http://e.com/a/?utm_source=x", "http://e.com/a"),
        ("http://e.com/a?", "http://e.com/a"),
        ("http://e.com/?reference=9&ref=1&utm_sourcery=3", "http://e.com/?ref=1&reference=9&utm_sourcery=3"),
        ("http://web.archive.org/web/2010/http://x/", "http://web.archive.org/web/2010/http://x"),
        ("http://www.gov.uk/x", "http://www.gov.uk/x"),  # gov.uk is a public suffix: www. is the name itself
        ("http://www.www.com/", "http://www.com/"),
        ("http://0x7f.1/", "http://127.0.0.1/"),
        ("http://[::0:1]:8080/", "http://[::1]:8080/"),
        ("http://m.example.com/", "http://m.example.com/"),
        ("  http://example.com/a\n", "http://example.com/a"),
        ("http:\\\\example.com\\a", "http://example.com/a"),
    ],
)
def test_what_merges_and_what_does_not(spelling: str, key: str) -> None:
    assert canonical(spelling) == key
    assert canonical(key) == key


@pytest.mark.parametrize(
    ("spelling", "reason"),
    [
        ("", "no_scheme"),
        ("/r/pics/comments/1", "no_scheme"),
        ("www.example.com/a", "no_scheme"),
        ("ftp://example.com/", "not_http"),
        ("javascript:alert(1)", "not_http"),
        ("http://", "no_host"),
        ("http://user:secret@example.com/", "credentials"),
        ("http://exa mple.com/", "bad_host"),
        ("http://a..b/", "bad_host"),
        ("http://example.com:99999/", "bad_port"),
        ("http://example.com/" + "a" * MAX_URL, "too_long"),
        ("http://example.com/" + "é" * (MAX_URL // 2), "too_long"),
    ],
)
def test_what_is_refused(spelling: str, reason: str) -> None:
    assert identify(spelling) == ("", reason)
    assert canonical(spelling) is None


def test_a_lone_surrogate_is_no_error() -> None:
    assert canonical("http://e.com/\ud800") == "http://e.com/%EF%BF%BD"


HOSTILE = st.text(alphabet="ab/.%2eE5AC:?#@&=[]\\ wx-~'()<>é。\ud800\u200d0123456789;+|^\n", max_size=40)


@settings(max_examples=1500, deadline=None)
@given(
    st.one_of(
        HOSTILE.map("http://".__add__),
        HOSTILE.map("https://www.ex.com/".__add__),
        HOSTILE.map("http://x.y/?".__add__),
        st.text(max_size=60),
    )
)
def test_identity_is_total_ascii_and_idempotent(spelling: str) -> None:
    key, reason = identify(spelling)
    assert bool(key) != bool(reason)
    assert isinstance(extension(spelling), str)
    assert host(spelling) == host(key)
    if key:
        assert key.isascii()
        assert identify(key) == (key, "")
        assert key.startswith(f"http://{host(key)}")


def test_registered_domains_follow_the_public_suffix_list(shared: Path) -> None:
    assert registered_domain("news.bbc.co.uk") == "bbc.co.uk"
    assert registered_domain("foo.blogspot.com") == "blogspot.com"
    assert registered_domain("co.uk") == ""
    assert registered_domain("a.b.kobe.jp") == "a.b.kobe.jp"  # *.kobe.jp
    assert registered_domain("x.city.kobe.jp") == "city.kobe.jp"  # !city.kobe.jp
    assert registered_domain("localhost") == ""
    assert registered_domain("127.0.0.1") == "127.0.0.1"
    text = url_file(shared, "public_suffix_list.dat.gz").decode()
    icann = text.partition("===BEGIN ICANN DOMAINS===")[2].partition("===END ICANN")[0]
    listed = {line for line in icann.splitlines() if re.fullmatch(r"[a-z0-9.\-]+", line)}
    ours = urls._suffixes()[0]
    assert len(listed) > 6000
    assert len(listed - ours) < 60  # the two lists are from different years
    for suffix in sorted(listed & ours)[::50]:
        assert registered_domain(f"a.b.{suffix}") == f"b.{suffix}"


def test_blocking_goes_by_whole_labels() -> None:
    domains = frozenset({"imgur.com", "redd.it"})
    assert is_blocked("http://i.imgur.com/x.html", domains)
    assert is_blocked("https://imgur.com", domains)
    assert not is_blocked("http://notimgur.com/", domains)
    assert not is_blocked("http://imgur.com.evil.org/", domains)
    assert not is_blocked("no url", domains)


def test_extensions() -> None:
    assert extension("http://e.com/a/b.PDF?x=1.zip") == "pdf"
    assert extension("http://e.com/a.tar.gz") == "gz"
    assert extension("http://e.com/a.jpg;session=1") == "jpg"
    assert extension("http://e.com/a.b/c") == ""
    assert extension("http://e.com") == ""
    assert extension("http://e.com/.htaccess") == ""
    assert extension("http://e.com/v1.2/the-3.5-inch disk") == ""


def test_tracking_keys_are_known_to_clearurls(shared: Path) -> None:
    rules = json.loads(url_file(shared, "clearurls-data.min.json.gz"))["providers"]["globalRules"]
    patterns = [re.compile(rule) for rule in rules["rules"]]
    unknown = {key for key in tracking_keys() if not any(p.fullmatch(key) for p in patterns)}
    own = {"utm_social-type", "gbraid", "wbraid", "gclsrc", "ttclid", "igsh"}
    own |= {"igshid", "_hsmi", "guccounter", "guce_referrer", "guce_referrer_sig"}
    assert unknown == own  # known from their vendors' documentation


def test_blocked_domains_are_ones_webtext_had_none_of(shared: Path) -> None:
    webtext = {line.split()[-1] for line in (shared / "data/openai-stats/domains.txt").read_text().splitlines()}
    blocked = words("blocked_domains.txt")
    assert "imgur.com" in blocked
    assert "github.com" not in blocked
    assert not {registered_domain(domain).partition(".")[0] for domain in blocked} & webtext
