"""One page's bytes to its main text, title, date and language, in the process that calls.

The extractor is trafilatura (Barbaresi 2021, ACL demo): fast mode first, its standard mode (readability and jusText
as second opinions) only where fast mode's text is short and a small part of what the page shows. On the
article-extraction benchmark that scores what fast mode scores; on mixed page types more than either mode alone (WCXB
sample of 140 pages: word F1 0.759, against 0.724 fast and 0.741 standard).

A page's result depends on the page, its URL, charset label and capture time, and on the options alone:
`deduplicate`, which compares a page with those before it, is off; dates are bounded by the day of capture; parsers
that fill gaps from today's date, or learn from earlier pages, are out of use (`_prepared_parser`,
`extensive_search=False`). What nothing here can bound, time and memory, `pipelines.extract` does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from itertools import islice
from typing import Any, Literal

from pipelines.decode import clean_text, decode


@dataclass(frozen=True)
class ExtractOptions:
    """How text is taken from a page.

    mode: "auto" as above, or one mode always. precision, recall: trafilatura's leanings (at most one). comments,
    tables: whether reader comments and tables are text. min_year: the earliest year a date is believed.
    max_bytes: of payload. max_tags: start tags. cpu_seconds, memory_mib (beyond what the idle child holds),
    wall_seconds: per page. recycle_pages: a child is replaced after so many.
    """

    mode: Literal["auto", "fast", "standard"] = "auto"
    precision: bool = False
    recall: bool = False
    comments: bool = False
    tables: bool = True
    min_year: int = 1995
    max_bytes: int = 8 << 20
    max_tags: int = 150_000
    cpu_seconds: float = 20.0
    memory_mib: int = 1024
    wall_seconds: float = 180.0
    recycle_pages: int = field(default=5000, metadata={"shapes_bytes": False})

    def __post_init__(self) -> None:
        if self.mode not in ("auto", "fast", "standard"):
            raise ValueError(f"extract.mode must be auto, fast or standard, not {self.mode!r}")
        if self.precision and self.recall:
            raise ValueError("extract.precision and extract.recall exclude each other")
        for name in ("max_bytes", "max_tags", "memory_mib", "recycle_pages"):
            if getattr(self, name) < 1:
                raise ValueError(f"extract.{name} must be at least 1, not {getattr(self, name)}")
        if not 0.1 <= self.cpu_seconds <= self.wall_seconds:
            raise ValueError("extract.cpu_seconds must be at least 0.1 and at most extract.wall_seconds")
        if not 1 <= self.min_year <= 2100:
            raise ValueError(f"extract.min_year must be between 1 and 2100, not {self.min_year}")


@dataclass(frozen=True, slots=True)
class Extracted:
    """What a page gave. `reason` is "" for a page with text, else why it has none:

    too_large, too_many_nodes, too_deep, cpu_limit, memory_limit, crashed, wall_clock, no_text, error:<exception>.
    `detail` says more in words. `date` is an ISO day or "", `language` the language the page declares ("en") or "",
    `charset` the Python codec it was read with, `extractor` which mode made the text.
    """

    text: str = ""
    title: str = ""
    date: str = ""
    language: str = ""
    charset: str = ""
    extractor: str = ""
    reason: str = ""
    detail: str = ""


MIN_TEXT = 250
"""Characters under which fast mode's text is checked by standard mode (trafilatura's MIN_EXTRACTED_SIZE)."""
SHORT_TEXT = 3000
SHORT_SHARE = 0.2
"""Fast mode's text is doubted when it is shorter than this and a smaller share of the page's visible text."""
MAX_TITLE = 1000


def extract_page(payload: bytes, url: str, charset: str, captured: int, options: ExtractOptions) -> Extracted:
    """The text of one page, without the guards that need a process of its own.

    payload: the body without codings. url: for dates and relative links, "" unknown. charset: HTTP label or "".
    captured: unix seconds, 0 unknown. Never raises but for MemoryError: an exception of the extractor is a reason.
    """
    if len(payload) > options.max_bytes:
        return Extracted(reason="too_large", detail=f"{len(payload)} bytes")
    html, codec = decode(payload, charset)
    if too_many_tags(html, options):
        return Extracted(charset=codec, reason="too_many_nodes", detail=f"more than {options.max_tags} tags")
    try:
        return replace(_extract_tree(html, url, captured, options), charset=codec)
    except MemoryError:
        raise
    except Exception as error:
        return Extracted(charset=codec, reason=f"error:{type(error).__name__}", detail=str(error)[:300])


_START_TAG = re.compile(r"<[A-Za-z]")


def too_many_tags(html: str, options: ExtractOptions) -> bool:
    """Whether a page has more start tags than `max_tags`; reads no further than that, builds nothing."""
    return next(islice(_START_TAG.finditer(html), options.max_tags, None), None) is not None


def _extract_tree(html: str, url: str, captured: int, options: ExtractOptions) -> Extracted:
    from trafilatura.utils import load_html

    parser = _prepared_parser()
    tree = load_html(html)
    if tree is None:
        return Extracted(reason="no_text", detail="not HTML")
    stopped = next((e for e in parser.error_log if e.type_name == "ERR_RESOURCE_LIMIT"), None)
    if stopped is not None:
        return Extracted(reason="too_deep", detail=str(stopped.message))
    title, date, problem = _metadata(tree, url, captured, options)
    text, extractor = _main_text(tree, url, options)
    text = tidy(text)
    found = Extracted(text, title, date, declared_language(tree), "", extractor + problem)
    return found if text else replace(found, reason="no_text", detail="no main text found")


def _main_text(tree: Any, url: str, options: ExtractOptions) -> tuple[str, str]:
    """Text and the mode that made it."""
    if options.mode != "standard":
        text = _run(tree, url, options, fast=True)
        if options.mode == "fast" or not _doubtful(text, tree):
            return text, "fast"
    return _run(tree, url, options, fast=False), "standard"


def _run(tree: Any, url: str, options: ExtractOptions, fast: bool) -> str:
    from trafilatura import bare_extraction

    document = bare_extraction(
        tree,
        url=url or None,
        fast=fast,
        favor_precision=options.precision,
        favor_recall=options.recall,
        include_comments=options.comments,
        include_tables=options.tables,
        output_format="txt",
        deduplicate=False,
        date_extraction_params={"max_date": "2000-01-01"},
    )
    if document is None:
        return ""
    bodies = [document.body, document.commentsbody] if options.comments else [document.body]
    return "\n".join(text for text in map(_plain, bodies) if text)


_INDENTED = re.compile(r"[ \t\r]*\n[ \t\r\n]+|[ \t\r]+\n")
_BREAKS = frozenset(["p", "lb", "list", "item", "head", "quote", "table", "row", "code"])


def _plain(body: Any) -> str:
    """trafilatura's tree as plain text, without the marks of its Markdown: a table row is a line with tabs between
    its cells, unless a cell has several lines or stands alone (a layout table), then each of its lines is one. Line
    breaks of the page's source that end in indentation are blanks, but for code."""
    from trafilatura.xml import xmltotxt

    for element in body.iter("*"):
        if element.text and "\n" in element.text and not _is_code(element):
            element.text = _INDENTED.sub(" ", element.text)
        if element.tail and "\n" in element.tail and not _is_code(element.getparent()):
            element.tail = _INDENTED.sub(" ", element.tail)
    for table in body.xpath(".//table[not(ancestor::table)]"):
        lines = [line for row in table.iter("row") for line in _row_lines(row)]
        tail = table.tail
        table.clear()
        table.tag, table.tail = "list", tail
        for line in lines:
            child = table.makeelement("p")
            child.text = line
            table.append(child)
    return str(xmltotxt(body, False))


def _is_code(element: Any) -> bool:
    return element is not None and (element.tag == "code" or next(element.iterancestors("code"), None) is not None)


def _row_lines(row: Any) -> list[str]:
    cells = [lines for cell in row.iterchildren("cell") if (lines := _cell_lines(cell))]
    if len(cells) == 1 or any(len(lines) > 1 for lines in cells):
        return [line for lines in cells for line in lines]
    return ["\t".join(lines[0] for lines in cells)] if cells else []


def _cell_lines(cell: Any) -> list[str]:
    """A cell's lines, without those of a table inside it, whose rows stand for themselves."""
    from lxml.etree import iterwalk

    parts: list[str] = []
    walk = iterwalk(cell, events=("start", "end"))
    for event, element in walk:
        gap = "\n" if element.tag in _BREAKS else ""
        if event == "start":
            if element.tag == "table":
                walk.skip_subtree()
            else:
                parts += (gap, element.text or "")
        else:
            parts += (gap, (element.tail or "") if element is not cell else "")
    return [line for line in (" ".join(line.split()) for line in "".join(parts).split("\n")) if line]


def _doubtful(text: str, tree: Any) -> bool:
    """Whether standard mode should look too: hardly any text, or short and little of what the page shows."""
    from trafilatura.baseline import html2txt

    if len(text) < MIN_TEXT:
        return True
    return len(text) < SHORT_TEXT and len(text) < SHORT_SHARE * len(html2txt(tree))


def _metadata(tree: Any, url: str, captured: int, options: ExtractOptions) -> tuple[str, str, str]:
    """Title, ISO day, and "" or "+metadata:<exception>": a page's text is not lost with its title."""
    from htmldate import find_date
    from trafilatura.metadata import examine_meta, extract_meta_json, extract_title

    try:
        found = extract_meta_json(tree, examine_meta(tree))
        title = found.title or extract_title(tree) or ""
        date = find_date(
            tree,
            extensive_search=False,  # the extensive one guesses a year from copyright lines, at twice the text's cost
            original_date=True,
            url=url or None,
            min_date=datetime(options.min_year, 1, 1),
            max_date=date_bound(captured),
        )
    except MemoryError:
        raise
    except Exception as error:
        return "", "", f"+metadata:{type(error).__name__}"
    return " ".join(clean_text(title).split())[:MAX_TITLE], clean_text(date or "")[:10], ""


def date_bound(captured: int) -> datetime:
    """The end of the day of capture (UTC), after which a page cannot be dated; the year 2100 when it is unknown."""
    if captured <= 0:
        return datetime(2100, 1, 1)
    day = datetime.fromtimestamp(min(captured, 4102444800), UTC).replace(hour=0, minute=0, second=0, tzinfo=None)
    return day + timedelta(days=1, seconds=-1)


_SUBTAG = re.compile(r"\s*([A-Za-z]{2,3})(?:[-_][A-Za-z0-9_-]*)?\s*$")


def declared_language(tree: Any) -> str:
    """The primary language subtag a page declares (<html lang>, Content-Language, og:locale), lower-case, or ""."""
    values = [tree.get("lang"), tree.get("xml:lang")] if tree.tag == "html" else []
    for meta in tree.iterfind(".//meta"):
        name = (meta.get("http-equiv") or meta.get("property") or "").lower()
        if name in ("content-language", "og:locale"):
            values.append(meta.get("content"))
    matches = (_SUBTAG.match(value) for value in values if value)
    return next((match.group(1).lower() for match in matches if match), "")


def tidy(text: str) -> str:
    """Extracted text as a document holds it: clean characters, no blanks at line ends, no empty line at the ends, at
    most one empty line in a row. Letters and their normal form are the page's own.

    >>> tidy(" a  \\r\\n\\n\\n\\nb\\x07 \\n")
    ' a\\n\\nb'
    """
    lines = (line.rstrip(" \t\xa0\u3000") for line in clean_text(text).split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


@cache
def _prepared_parser() -> Any:
    """trafilatura made fit for bulk use, once per process; returns its parser.

    Its parser is replaced by one that reads 2,048 levels of nesting, where it would silently drop what comes after
    256. In date parsing, dateutil fills what a date lacks from today: here from 1 January of year 1, which the bounds
    then refuse. (dateparser, which also learns from page to page, is not in use.)
    """
    import htmldate.extractors
    import trafilatura.utils
    from dateutil.parser import parse  # type: ignore[import-untyped]  # no stubs are installed
    from lxml.html import HTMLParser

    htmldate.extractors.dateutil_parse = partial(parse, default=datetime(1, 1, 1))
    parser = HTMLParser(
        collect_ids=False,
        default_doctype=False,
        encoding="utf-8",
        remove_comments=True,
        remove_pis=True,
        huge_tree=True,
    )
    trafilatura.utils.HTML_PARSER = parser
    return parser
