"""A small web out of text that every machine has: the documentation strings of Python's own library.

Each module's documentation becomes an article on one of a few sites, with navigation, adverts and a footer around it.
Among the articles stand the things a corpus pipeline must catch; each is planted once, with what must become of it.
Everything follows from the installed Python, so two runs make the same web.
"""

from __future__ import annotations

import ast
import bz2
import hashlib
import html
import json
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.loopback import Reply

SITES = (
    "fieldnotes.example", "morning-reader.example", "the-long-page.example", "workshop-log.example",
    "quietmargin.example", "lanternpress.example", "paperboat.example", "northwindow.example",
    "secondshelf.example", "plainhand.example", "slowletters.example", "greenruler.example",
)  # fmt: skip
"""RFC 2606 reserves `.example`: none of these can exist."""

NAVIGATION = "Home Archive Subscribe to our weekly newsletter About this site"
ADVERT = "ADVERTISEMENT: nine garden sheds you will not believe, number four is cheaper than lunch"
FOOTER = "All rights reserved. Cookie settings. Follow us on every network there is."
BOILERPLATE = ("Subscribe to our weekly newsletter", "nine garden sheds", "Cookie settings")
"""Phrases that stand on every page and must stand in no document."""

FRENCH = """La petite ville s'éveille lentement sous la brume du matin, et les premiers marchands ouvrent déjà leurs
volets de bois. On entend au loin la cloche de l'église, puis le bruit régulier d'une charrette qui descend la rue
pavée. Les enfants courent vers l'école en riant, leurs cartables trop lourds battant contre leurs épaules. Personne
ne se presse vraiment, car ici le temps semble avoir une autre mesure. Le boulanger raconte toujours la même histoire
à ceux qui veulent bien l'écouter, et chacun fait semblant de l'entendre pour la première fois. Plus tard, quand le
soleil perce enfin les nuages, la place se remplit de couleurs et de voix. Les vieilles personnes s'assoient sur les
bancs, commentent les nouvelles du journal et se souviennent d'une époque où la rivière débordait chaque printemps.
Rien n'a changé, disent-elles, et pourtant tout est différent depuis que le pont neuf relie les deux rives."""

SUBREDDITS = ("programming", "Python", "books", "TrueReddit", "linguistics", "askscience")


@dataclass(frozen=True)
class Plant:
    """One thing to catch: where it lies and what must become of it.

    `fate` is what `life_of(url)` must tell: "kept", a reason of the links, the fetcher, the documents or the corpus.
    """

    name: str
    url: str
    fate: tuple[str, ...]


@dataclass
class SmallWeb:
    """The pages, the link dump (zstd JSON lines), a Wikipedia dump (bz2 XML) and an evaluation set (JSON lines)."""

    pages: dict[str, Reply] = field(default_factory=dict)
    submissions: list[dict[str, Any]] = field(default_factory=list)
    plants: list[Plant] = field(default_factory=list)
    wikipedia: bytes = b""
    evaluation: bytes = b""
    quoted: str = ""
    """The record of the evaluation set that a page quotes."""

    def link(self, url: str, score: int, **fields: Any) -> None:
        """Submit a link to the dump."""
        number = len(self.submissions)
        self.submissions.append(
            {
                "id": f"{number:x}", "url": url, "score": score, "is_self": False, "over_18": False,
                "subreddit": SUBREDDITS[number % len(SUBREDDITS)], "title": f"Submission {number}",
                "created_utc": 1483228800 + 3600 * number, "author": "somebody", **fields,
            }
        )  # fmt: skip

    def dump(self) -> bytes:
        """The submissions as a Pushshift month: JSON lines, compressed with a window of 2^27, one line broken."""
        import zstandard

        lines = [json.dumps(row, separators=(",", ":")) for row in self.submissions]
        lines.insert(7, '{"id": "broken", "url": "http://fieldnotes.exam')
        parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=27)
        return zstandard.ZstdCompressor(compression_params=parameters).compress("\n".join(lines).encode())


def prose(docstring: str) -> list[str]:
    """A docstring's paragraphs that are sentences: no doctests, tables, grammars or argument lists."""
    paragraphs = (" ".join(p.split()) for p in re.split(r"\n\s*\n", docstring))
    return [p for p in paragraphs if len(p) >= 80 and sum(c.isalpha() or c == " " for c in p) >= 0.88 * len(p)]


def _unlike(paragraphs: Iterable[str]) -> list[str]:
    """The paragraphs without those that begin like an earlier one, as the texts of sibling methods do."""
    return list({paragraph[:40]: paragraph for paragraph in reversed(list(paragraphs))}.values())[::-1]


def documented_modules() -> Iterator[tuple[str, list[str]]]:
    """(module, paragraphs of its documentation strings), sorted by module; sources are parsed, never imported."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for name in sorted(sys.stdlib_module_names):
        single, package = root / f"{name}.py", root / name
        files = [single] if single.is_file() else sorted(package.rglob("*.py")) if package.is_dir() else []
        for file in files:
            if {"test", "tests", "idlelib", "lib2to3"} & set(file.parts):
                continue
            paragraphs = _unlike(_documentation(file))
            if sum(map(len, paragraphs)) >= 700:
                yield ".".join(file.relative_to(root).with_suffix("").parts), paragraphs


def _documentation(file: Path) -> Iterator[str]:
    tree = ast.parse(file.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from prose(ast.get_docstring(node) or "")


def reference_topics() -> list[tuple[str, list[str]]]:
    """(topic, paragraphs) of the language reference that ships with Python, sorted by topic."""
    from pydoc_data.topics import topics

    found = [(name, prose(text.replace("*", ""))) for name, text in sorted(topics.items())]
    return [(name, paragraphs) for name, paragraphs in found if sum(map(len, paragraphs)) >= 700]


def render(title: str, paragraphs: Sequence[str], language: str = "en", day: str = "2016-05-14") -> bytes:
    """An article page: the paragraphs, surrounded by what surrounds articles."""
    text = "\n".join(f"<p>{html.escape(p)}</p>" for p in paragraphs)
    menu = "".join(f'<li><a href="/{word.lower()}">{word}</a></li>' for word in NAVIGATION.split())
    return f"""<!DOCTYPE html>
<html lang="{language}"><head><meta charset="utf-8"><title>{html.escape(title)}</title>
<meta property="article:published_time" content="{day}T08:00:00Z"></head>
<body><header><nav><ul>{menu}</ul></nav><div class="newsletter">{NAVIGATION}</div></header>
<aside class="advert"><p>{ADVERT}</p></aside>
<main><article><h1>{html.escape(title)}</h1>
{text}
</article></main>
<aside class="related advert"><ul><li><a href="/1">Read next</a></li><li><a href="/2">Most read</a></li></ul></aside>
<footer><p>{FOOTER}</p></footer><script>var tracker = "{hashlib.md5(title.encode()).hexdigest()}";</script>
</body></html>""".encode()


def _site(name: str) -> str:
    return SITES[int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % len(SITES)]


def _slightly_changed(paragraphs: Sequence[str]) -> list[str]:
    """The paragraphs with every 120th word replaced: word 5-grams stay alike at a Jaccard of about 0.92."""
    count = 0
    changed = []
    for paragraph in paragraphs:
        words = paragraph.split()
        for i in range(len(words)):
            count += 1
            if count % 120 == 60:
                words[i] = "rewritten"
        changed.append(" ".join(words))
    return changed


def _longest(articles: Sequence[tuple[str, list[str]]], count: int) -> list[tuple[str, list[str]]]:
    return sorted(articles, key=lambda a: (-sum(map(len, a[1])), a[0]))[:count]


def _wikitext(title: str, paragraphs: Sequence[str]) -> str:
    marked = [f"'''{title}''' is described here.<ref>A source.</ref>", *paragraphs]
    return "{{Infobox|name=" + title + "}}\n" + "\n\n".join(marked) + "\n\n== See also ==\n* [[Python]]\n"


def _wikipedia_dump(articles: Sequence[tuple[str, list[str]]]) -> bytes:
    """A MediaWiki export of the articles and a redirect, bz2."""
    pages = []
    for number, (title, paragraphs) in enumerate(articles):
        text = html.escape(_wikitext(title, paragraphs), quote=False)
        pages.append(
            f"<page><title>{html.escape(title)}</title><ns>0</ns><id>{number + 1}</id><revision><id>{number + 1}</id>"
            f'<text xml:space="preserve">{text}</text></revision></page>'
        )
    pages.append(
        '<page><title>Elsewhere</title><ns>0</ns><id>99</id><redirect title="Here"/><revision><id>99</id>'
        '<text xml:space="preserve">#REDIRECT [[Here]]</text></revision></page>'
    )
    body = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" version="0.10">' + "".join(pages)
    return bz2.compress((body + "</mediawiki>").encode())


def make_web() -> SmallWeb:
    """The small web, its link dump, its Wikipedia dump and its evaluation set, with everything that is planted."""
    web = SmallWeb()
    topics = reference_topics()
    reserved = _longest(_presentable(topics), 5)
    first, second, examined, two_essays, moved = reserved
    taken = {paragraph for _, paragraphs in reserved for paragraph in paragraphs}
    modules = list(documented_modules())
    articles = [a for a in topics if not taken & set(a[1])] + modules
    for name, paragraphs in articles:
        url = f"http://{_site(name)}/2016/05/{re.sub(r'[^a-z0-9]+', '-', name.lower())}"
        web.pages[url] = Reply(body=render(name.replace("_", " ").title(), paragraphs))
        web.link(url, 3 + len(web.submissions) % 200)
    _plant_copies(web, _longest(_presentable(articles), 6))
    _plant_wikipedia(web, [first, second])
    _plant_quotation(web, examined, _presentable(modules)[0][1])
    _plant_links(web, two_essays[1], moved[1])
    _plant_broken(web)
    return web


def _presentable(articles: Sequence[tuple[str, list[str]]]) -> list[tuple[str, list[str]]]:
    """The articles that the default quality rule keeps, whole and by halves: what is planted must fail for its own
    reason only."""
    from pipelines.quality import QualityRule, judge, measure

    def kept(texts: Sequence[list[str]]) -> list[bool]:
        measured = pa.Table.from_batches([measure(["\n".join(text) for text in texts])])
        return [reason == "" for reason in judge(measured, QualityRule())]

    halves = (
        kept([text[: len(text) // 2] for _, text in articles]),
        kept([text[len(text) // 2 :] for _, text in articles]),
        kept([text for _, text in articles]),
    )
    return [article for article, *fine in zip(articles, *halves, strict=True) if all(fine)]


def _plant(web: SmallWeb, name: str, url: str, page: Reply, fate: tuple[str, ...], score: int = 50) -> None:
    web.pages[url] = page
    web.link(url, score)
    web.plants.append(Plant(name, url, fate))


def _plant_copies(web: SmallWeb, articles: Sequence[tuple[str, list[str]]]) -> None:
    for i, (name, paragraphs) in enumerate(articles[:3]):
        page = Reply(body=render(name.replace("_", " ").title(), paragraphs))
        _plant(web, "exact copy", f"http://copyshop.example/reposted/{i}", page, ("exact_duplicate",), 3)
    for i, (name, paragraphs) in enumerate(articles[3:]):
        page = Reply(body=render(f"{name} retold".title(), _slightly_changed(paragraphs)))
        _plant(web, "near copy", f"http://retold.example/again/{i}", page, ("near_duplicate",), 3)


def _plant_wikipedia(web: SmallWeb, articles: Sequence[tuple[str, list[str]]]) -> None:
    titled = [(name.replace("-", " ").title(), paragraphs) for name, paragraphs in articles]
    web.wikipedia = _wikipedia_dump(titled)
    (first, first_text), (second, second_text) = titled
    url = f"https://en.wikipedia.org/wiki/{first.replace(' ', '_')}"
    _plant(web, "Wikipedia article", url, Reply(body=render(first, first_text)), ("wikipedia",))
    mirror = f"http://answers-mirror.example/topic/{second.replace(' ', '-')}"
    _plant(web, "mirror of Wikipedia", mirror, Reply(body=render(second, second_text)), ("wikipedia_mirror",))


def _plant_quotation(web: SmallWeb, topic: tuple[str, list[str]], around: list[str]) -> None:
    passages = [p for p in topic[1] if len(p.split()) >= 30][:12]
    web.evaluation = b"".join(json.dumps({"id": f"q{i}", "text": p}).encode() + b"\n" for i, p in enumerate(passages))
    web.quoted = "q0"
    page = Reply(body=render("What the examiners asked", [*around[-12:-6], passages[0], *around[-6:]]))
    _plant(web, "page that quotes a test set", "http://examhall.example/questions", page, ("kept", "quoted"))


def _plant_links(web: SmallWeb, essays: Sequence[str], moved: Sequence[str]) -> None:
    half = len(essays) // 2
    page = Reply(body=render("Two votes", essays[:half]))
    _plant(web, "link with 2 karma", "http://unpopular.example/essay", page, ("low_score", "unrequested"), 2)
    page = Reply(body=render("Three votes", essays[half:]))
    _plant(web, "link with exactly 3 karma", "http://justenough.example/essay", page, ("kept",), 3)
    _plant(web, "picture", "http://pictures.example/cat.jpg", Reply(body=b"\xff\xd8"), ("blocked_extension",))
    _plant(web, "link to Reddit itself", "https://www.reddit.com/r/books", Reply(body=b""), ("blocked_domain",))
    french = Reply(body=render("La petite ville", FRENCH.split("\n\n") * 3, "fr"))
    _plant(web, "page in French", "http://petiteville.example/matin", french, ("other_language",))
    target = "http://newhome.example/here"
    web.pages[target] = Reply(body=render("Moved", moved))
    elsewhere = Reply(301, headers=(("Location", target),))
    _plant(web, "redirect", "http://oldhome.example/there", elsewhere, ("kept",))
    web.link("http://justenough.example/essay?utm_source=reddit#top", 1)
    web.link("/r/books/comments/1/self", 90, is_self=True)
    web.link("http://night.example/", 90, over_18=True)


def _plant_broken(web: SmallWeb) -> None:
    web.pages["http://private.example/robots.txt"] = Reply(
        body=b"User-agent: *\nDisallow: /\n", content_type="text/plain"
    )
    page = Reply(body=render("Private", ["Nobody may read this." * 30]))
    _plant(web, "page that robots may not read", "http://private.example/diary", page, ("robots",))
    _plant(web, "page that never answers", "http://silent.example/", Reply(fault="silent"), ("timeout",))
    gone = Reply(404, b"no such page")
    _plant(web, "missing page", "http://gone.example/", gone, ("status_404",))
    broken = Reply(body=b"\x00this is no gzip" * 40, headers=(("Content-Encoding", "gzip"),))
    _plant(web, "page in a broken encoding", "http://broken.example/", broken, ("bad_encoding", "no_text"))
    half = Reply(body=render("Half", ["This answer ends in the middle." * 40]), fault="cut")
    _plant(web, "answer that breaks off", "http://cut.example/", half, ("connection", "bad_http"))
    empty = Reply(body=render("Nothing", []))
    _plant(web, "page that is all boilerplate", "http://shell.example/", empty, ("no_text", "few_words"))
