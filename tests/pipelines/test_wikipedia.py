"""Wikipedia: dumps stream and break safely, markup becomes text in linear time, mirrors are told from other pages."""

import bz2
import functools
import gzip
import html
import io
import json
import random
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import ngrams, wikipedia, wikitext_dump
from pipelines.inputs import InputFile
from pipelines.ngrams import find_grams, find_words
from pipelines.stages import Stage, Task, assemble, commit, perform, read_annotation, read_record
from pipelines.wikipedia import (
    OVERLAP,
    OVERLAPS,
    WIKIPEDIA,
    WikipediaIndex,
    WikipediaOptions,
    annotate_batch,
    article_keys,
    merge_keys,
    on_domain,
    overlap_tasks,
    wikipedia_tasks,
)
from pipelines.wikitext_dump import BrokenDump, Page, PlainText, Site, read_dump, strip_markup
from pipelines.workspace import Manifest, Workspace, part_id, read_part, write_part

OPTIONS = WikipediaOptions()
HEAD = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" xml:lang="de"><siteinfo><namespaces>'
HEAD += '<namespace key="6" case="first-letter">Datei</namespace><namespace key="14">Kategorie</namespace>'
HEAD += "</namespaces></siteinfo>"


def page(title: str, text: str, extra: str = "", namespace: str = "0") -> str:
    return (
        f"<page><title>{title}</title><ns>{namespace}</ns><id>1</id>{extra}<revision><id>2</id>"
        f"<text xml:space='preserve'>{html.escape(text)}</text></revision></page>"
    )


def pages_of(xml: str | bytes) -> list[Page]:
    return list(read_dump(io.BytesIO(xml.encode() if isinstance(xml, str) else xml), "dump", Site()))


def test_pages_of_a_dump() -> None:
    site = Site()
    body = page("A & B".replace("&", "&amp;"), "Text <ref>x</ref> é") + page(
        "R", "#REDIRECT [[A]]", '<redirect title="A"/>'
    )
    body += page("Old", "#WEITERLEITUNG [[A]]") + page("Talk:A", "hello", namespace="1")
    pages = list(read_dump(io.BytesIO(f"{HEAD}{body}</mediawiki>".encode()), "dump", site))
    assert [(p.title, p.namespace, p.redirect) for p in pages] == [
        ("A & B", 0, False),
        ("R", 0, True),
        ("Old", 0, True),
        ("Talk:A", 1, False),
    ]
    assert pages[0].text == "Text <ref>x</ref> é"
    assert site.files == {"file", "image", "datei"}
    assert site.categories == {"category", "kategorie"}


def test_a_dump_that_breaks_gives_its_pages_and_says_where() -> None:
    whole = f"{HEAD}{page('A', 'one')}{page('B', 'two')}</mediawiki>"
    for broken in (whole[:-30], whole.replace("<title>B", "<title>B&nbsp;"), whole.replace("<title>B", "<tit<le>B")):
        found = []
        with pytest.raises(BrokenDump, match=r"^dump: .* at unpacked byte [1-9]"):
            found.extend(read_dump(io.BytesIO(broken.encode()), "dump", Site()))
        got: list[Page] = []
        try:
            for one in read_dump(io.BytesIO(broken.encode()), "dump", Site()):
                got.append(one)
        except BrokenDump:
            pass
        assert [p.title for p in got] == ["A"]


def test_entity_bombs_and_deep_nesting_are_refused() -> None:
    bomb = '<!DOCTYPE m [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>' + f"{HEAD}{page('A', 'x')}</mediawiki>"
    with pytest.raises(BrokenDump, match="document type"):
        pages_of(bomb)
    with pytest.raises(BrokenDump, match="too deep"):
        pages_of("<a>" * 10_000)
    with pytest.raises(BrokenDump):
        pages_of(b"BZh not a dump at all")


def test_a_page_is_cut_off_at_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wikitext_dump, "LONGEST_PAGE", 1000)
    found = pages_of(f"{HEAD}{page('Big', 'x&' * 5000)}{page('Fits', 'y' * 1000)}</mediawiki>")
    assert [(p.whole, len(p.text)) for p in found] == [(False, 1000), (True, 1000)]
    assert wikipedia.page_reason(found[0]) == "too large"


@pytest.mark.parametrize(
    ("markup", "text", "asides"),
    [
        ("'''Bold''' and ''it'' [[a|b]] [[c]]s [[:Category:X]]", "Bold and it b cs Category:X", ()),
        ("== Head ==\n* one\n# two\n:: three", "Head\none\ntwo\nthree", ()),
        ("a<ref>Some ref, [[x|y]]</ref> b<ref name=q /> c<ref name='q'>Two {{n|w v}}</ref>.", "a b c.",
         ("Some ref, y", "Two", "w v")),
        ("a <!-- no [[ {{ --> b <!-- rest", "a  b", ()),
        ("x{{tpl|one two|k=v w|short}}y {{lang|fr|mot juste}} z", "xy mot juste z", ("one two", "v w")),
        ("{{a|{{b|inner text {{c}} }}|[[l|m n]] o}}z", "z", ("inner text", "m n o")),
        ("[[File:A.jpg|thumb|200px|A [[cat|tom cat]] sits]]x", "x", ("A tom cat sits",)),
        ("[[Datei:A.jpg|mini|Ein Kater]] [[Kategorie:K]] [[fr:Chat]]y", "y", ("Ein Kater",)),
        ("[http://a.b/c label text] [//x.y z] [http://a.b/c]", "label text z", ()),
        ("{| class=x\n|+ Cap\n|-\n! H1 !! H2\n|-\n| style=\"c\" | a || b\n|}\nafter", "after",
         ("Cap\n\nH1\nH2\n\na\nb",)),
        ("a<br/>b <b>c</b> x<sup>2</sup> <math>\\frac [[</math>d<nowiki/>e &amp; &lt;i&gt; &#65;",
         "a\nb c x2 de & <i> A", ()),
        ("<gallery>\nFile:A.jpg|First cat\nImage:B.png|Second\n</gallery>", "First cat\nSecond", ()),
        ("__NOTOC__ a {{unclosed [[ b }", "a   unclosed   b }", ()),
        ("", "", ()),
    ],
)  # fmt: skip
def test_markup_becomes_text(markup: str, text: str, asides: tuple[str, ...]) -> None:
    site = Site({"file", "datei"}, {"category", "kategorie"})
    plain = strip_markup(markup, site)

    def close(value: str) -> str:
        return re.sub(r"\s+", " ", value).strip()

    assert close(plain.text) == close(text)
    assert sorted(map(close, plain.asides)) == sorted(map(close, asides))


MARKS = "{{ }} [[ ]] {| |} |- | !! <ref> </ref> <!-- --> '' == <math> = a é İ [http:// ] &# ; &amp; __TOC__ < >"
PIECES = [*MARKS.split(), "1" * 5000, "\n", " ", "\x01", "\x07"]  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=60))
def test_any_markup_gives_text(pieces: list[str]) -> None:
    plain = strip_markup("".join(pieces))
    assert isinstance(plain, PlainText)
    assert not re.search("[\x00-\x08]", plain.text + "".join(plain.asides))


def test_no_markup_is_quadratic() -> None:
    """Work is counted in time only by comparing sizes: eight times the markup within thirty times the work."""
    import time

    units = ["{{", "[[", "<ref>", "<!--", "<math>", "{|\n", "[http://", "<a ", "{{a|", " ", "'", "=", "= ", "\n \t"]
    units += ["aa=b", "&#1", "\n=\n", "<ref "]

    def work(count: int) -> float:
        least = []
        for _ in range(2):
            start = time.process_time()
            for unit in units:
                strip_markup(unit * count + "x")
            least.append(time.process_time() - start)
        return min(least)

    assert work(24_000) < 30 * work(3_000)


def dump_pages(shared: Path, name: str = "enwiki-latest*") -> list[Page]:
    file = next((shared / "data" / "wikipedia").glob(name))
    return pages_of(bz2.decompress(file.read_bytes()))


def rendered(article: Page, number: int) -> str:
    """An article as a mirror shows it, made by another parser: reference numbers, no templates, a frame around it."""
    import mwparserfromhell

    code = mwparserfromhell.parse(article.text, skip_style_tags=True)
    notes = []
    for ref in code.filter_tags(matches=lambda tag: str(tag.tag).lower() == "ref"):
        notes.append(
            f"<li>^ Archived from the original. {html.escape(ref.contents.strip_code() if ref.contents else '')}</li>"
        )
        if len(notes) % 3:
            code.replace(ref, f"[{len(notes)}]")
    body = "".join(
        f"<p>{html.escape(paragraph)}</p>" for paragraph in code.strip_code().split("\n") if len(paragraph) > 20
    )
    menu = "".join(f"<li><a href='/{i}'>Menu entry {i}</a></li>" for i in range(30))
    return (
        f"<html><head><title>{number} - The Free Dictionary</title></head><body><nav><ul>{menu}</ul></nav>"
        f"<article><h1>{html.escape(article.title)}</h1>{body}<ol>{''.join(notes)}</ol></article>"
        "<footer>Copyright 2016. All rights reserved by the owner of this site.</footer></body></html>"
    )


@pytest.fixture(scope="module")
def articles(shared: Path) -> list[Page]:
    return [p for p in dump_pages(shared) if wikipedia.page_reason(p) == "kept"]


def build(articles: list[Page], options: WikipediaOptions) -> WikipediaIndex:
    runs = []
    for number, article in enumerate(articles):
        keys = article_keys(article, Site(), options)
        runs.append((keys, np.full(len(keys), number, np.uint32)))
    return WikipediaIndex(*merge_keys(runs), [a.title for a in articles])


@pytest.fixture(scope="module")
def index(articles: list[Page]) -> WikipediaIndex:
    return build(articles, OPTIONS)


def test_mirrors_are_found_and_other_pages_are_not(shared: Path, articles: list[Page], index: WikipediaIndex) -> None:
    trafilatura = pytest.importorskip("trafilatura")
    chosen = [a for a in articles if 8_000 < len(a.text) < 60_000][:12]
    assert len(chosen) == 12
    mirrors = [trafilatura.extract(rendered(a, i), include_tables=True) for i, a in enumerate(chosen)]
    batch = annotate_batch(["http://mirror.example/a"] * 12, mirrors, index, OPTIONS).to_pydict()
    assert min(batch["share"]) > 0.6, dict(zip([a.title for a in chosen], batch["share"], strict=True))
    assert sum(batch["share"]) / 12 > 0.8
    assert batch["article"] == [a.title for a in chosen]
    assert not any(batch["domain"])
    lines = gzip.decompress((shared / "data/c4-sample/c4.jsonl.gz").read_bytes()).decode().splitlines()
    web = [json.loads(line)["text"] for line in lines]
    other = annotate_batch(["http://x.example/"] * len(web), web, index, OPTIONS).to_pydict()
    assert max(other["share"]) < 0.1
    assert sum(share > 0.01 for share in other["share"]) <= 5


def test_articles_left_out_of_the_dump_are_not_found(articles: list[Page]) -> None:
    without = build(articles[1::2], OPTIONS)
    texts = [strip_markup(a.text).text for a in articles if len(a.text) > 4000]
    shares = annotate_batch([""] * len(texts), texts, without, OPTIONS).to_pydict()["share"]
    inside = {strip_markup(a.text).text for a in articles[1::2]}
    for text, share in zip(texts, shares, strict=True):
        assert share == 1 if text in inside else share < 0.35


@pytest.mark.parametrize("sample", [4, 16])
def test_sampling_keeps_the_share(articles: list[Page], index: WikipediaIndex, sample: int) -> None:
    options = WikipediaOptions(sample=sample)
    sampled = build(articles, options)
    unknown = " ".join(f"unknown{i}" for i in range(1200))
    texts = [f"{strip_markup(a.text).text[:20_000]} {unknown}" for a in articles[:40]]
    whole = annotate_batch([""] * 40, texts, index, OPTIONS).to_pydict()
    part = annotate_batch([""] * 40, texts, sampled, options).to_pydict()
    assert sum(part["matched"]) == pytest.approx(sum(whole["matched"]) / sample, rel=0.1)
    big = [i for i in range(40) if whole["matched"][i] > 2000]
    assert len(big) > 10
    for i in big:
        assert part["share"][i] == pytest.approx(whole["share"][i], abs=0.1)
        assert part["article"][i] == whole["article"][i]


def test_batches_and_pieces_change_nothing(
    index: WikipediaIndex, articles: list[Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(1)
    plain = [strip_markup(a.text).text for a in articles[:20]]
    texts = [
        "",
        "too short",
        *(" ".join(rng.sample(plain, 2))[: rng.randrange(9000)] for _ in range(30)),
        "x " * 9000,
    ]
    urls = ["http://en.wikipedia.org/wiki/A"] * len(texts)
    expected = annotate_batch(urls, texts, index, OPTIONS)
    assert expected.schema == OVERLAPS
    assert expected.column("share").to_pylist()[:2] == [0.0, 0.0]
    single = [annotate_batch([u], [t], index, OPTIONS) for u, t in zip(urls, texts, strict=True)]
    assert pa.Table.from_batches(single).combine_chunks().to_batches()[0].equals(expected)
    monkeypatch.setattr("pipelines.wikipedia.pieces", functools.partial(ngrams.pieces, size=700))
    assert annotate_batch(urls, texts, index, OPTIONS).equals(expected)


ON = ["http://en.wikipedia.org/wiki/A", "https://wikipedia.org./", "http://DE.m.Wikipedia.ORG:80/x"]
OFF = ["http://notwikipedia.org/", "http://wikipedia.org.evil.example/", "http://x.example/wikipedia.org", "",
       "http://user@wikipedia.org@x.example/", "http://[broken/", "wikipedia.org/wiki"]  # fmt: skip


@pytest.mark.parametrize("url", [*ON, *OFF])
def test_domains(url: str) -> None:
    assert on_domain(url, OPTIONS.domains) is (url in ON)


FAULTS = [{"n": 0}, {"sample": 3}, {"sample": 0}, {"most_grams": 0}, {"domains": ("Wikipedia.org",)}]


@pytest.mark.parametrize("fault", FAULTS)
def test_options_out_of_range_are_refused(fault: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(fault))):
        WikipediaOptions(**fault)  # type: ignore[arg-type]


def run(workspace: Workspace, stage: Stage, options: object, tasks: list[Task]) -> Manifest:
    records = {}
    for task in tasks:
        path = perform(stage, options, workspace.url, task, functools.partial(stage.work, task))
        records[task.key] = read_record(workspace, path) or {}
    manifest = assemble(workspace, stage, options, "test", records)
    commit(workspace, stage, manifest, [])
    return manifest


def test_stages_from_dumps_to_annotations(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace.open(tmp_path / "workspace", create=True)
    cut = bz2.decompress((shared / "data/wikipedia/testcorpus.xml.bz2").read_bytes())[:-2000]
    (tmp_path / "cut.xml").write_bytes(cut)
    files = sorted((shared / "data" / "wikipedia").glob("*table*.bz2")) + sorted(
        (shared / "data" / "wikipedia").glob("*sample.xml.bz2")
    )
    dumps = [InputFile(f.name, str(f), f.stat().st_size) for f in [*files, tmp_path / "cut.xml"]]
    tasks = wikipedia_tasks(dumps, {dump.path: "0" * 64 for dump in dumps})
    manifest = run(workspace, WIKIPEDIA, OPTIONS, tasks)
    ledger = manifest.ledgers["wikipedia pages"]
    assert ledger["in"] == sum(n for reason, n in ledger.items() if reason != "in") > 10
    assert ledger["redirect"] == 1
    assert [problem.input for problem in manifest.problems] == ["cut.xml"]
    keys = read_part(workspace, manifest.parts()[0]).column("key").to_numpy()
    assert (keys[1:] > keys[:-1]).all()
    monkeypatch.setattr(wikipedia, "HELD", 1000)
    again = Workspace.open(tmp_path / "again", create=True)
    assert run(again, WIKIPEDIA, OPTIONS, tasks).tables == manifest.tables
    known = [strip_markup(p.text).text for p in dump_pages(shared, "*sample.xml.bz2") if not p.redirect]
    schema = pa.schema([pa.field("url", pa.string(), False), pa.field("text", pa.string(), False)])
    table = pa.table(
        [["http://a.example/", "http://en.wikipedia.org/wiki/B"], [known[0].upper(), "some other text " * 9]], schema
    )
    documents = documents_in(workspace, table, schema)
    annotations = run(workspace, OVERLAP, OPTIONS, overlap_tasks(documents, manifest))
    rows = read_annotation(workspace, annotations, documents.parts()[0])
    assert rows.schema.remove_metadata() == OVERLAPS
    assert rows.column("domain").to_pylist() == [False, True]
    assert rows.column("share").to_pylist() == [1.0, 0.0]
    assert rows.column("matched").to_pylist()[0] == len(find_grams(find_words([known[0].upper()]), 8).keys)
    nothing = run(again, OVERLAP, OPTIONS, overlap_tasks(documents_in(again, table, schema), None))
    (part,) = nothing.parts()
    assert read_part(again, part).column("domain").to_pylist() == [False, True]
    assert part_id(dumps[0].name) in {file.part for file in manifest.parts()}
    with pytest.raises(ValueError, match="most_grams = 100 n-grams at sample = 1: set a larger sample"):
        run(Workspace.open(tmp_path / "small", create=True), WIKIPEDIA, WikipediaOptions(most_grams=100), tasks)


def documents_in(workspace: Workspace, table: pa.Table, schema: pa.Schema) -> Manifest:
    return Manifest("documents", 1, "", {}, {}, {"": (write_part(workspace, "documents", "p", table, schema),)})
