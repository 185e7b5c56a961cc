"""One page's bytes to its main text, in a child process that a bad page can kill and nothing else.

The extractor is trafilatura (Barbaresi 2021, ACL demo): fast mode first, its standard mode (readability and jusText
as second opinions) only where fast mode's text is short and a small part of what the page shows. On the
article-extraction benchmark that scores what fast mode scores; on mixed page types more than either mode alone (WCXB
sample of 140 pages: word F1 0.759, against 0.724 fast and 0.741 standard).

Guards, in this order: payload bytes; tags, counted before the page is parsed; nesting, where the parser stops; CPU
seconds of the child (ITIMER_PROF with the default action, so that a regular expression or C code is stopped too);
address space (RLIMIT_AS); and wall clock, as a last resort for a child that sleeps. Each ends the page with a reason,
and a child that it killed is started anew.

A page's result depends on the page, its URL, charset label and capture time, and on the options alone:

* the child runs in a fixed environment (hash seed, time zone, locale, one thread) and its caches are emptied between
  pages; `deduplicate`, which compares a page with those before it, is off;
* dates are bounded by the day of capture; parsers that fill gaps from today's date, or learn from earlier pages, are
  out of use (`_prepared_parser`, `extensive_search=False`);
* a page that failed for lack of memory, or whose child died without a reason of its own (killed by an operator or by
  the system), is tried once more in a new child, and that verdict stands.

The child is `python -m pipelines.extract`; it imports no pyarrow and no Beam. Frames on its pipes are two lengths, a
JSON header and raw bytes.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import logging
import os
import re
import resource
import select
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

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
    recycle_pages: int = 5000

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


class ExtractorError(Exception):
    """The extraction worker cannot be started: the run must end, for no page is to blame."""


MIN_TEXT = 250
"""Characters under which fast mode's text is checked by standard mode (trafilatura's MIN_EXTRACTED_SIZE)."""
SHORT_TEXT = 3000
SHORT_SHARE = 0.2
"""Fast mode's text is doubted when it is shorter than this and a smaller share of the page's visible text."""
MAX_TITLE = 1000


# One page, in the process that calls. The child does exactly this.


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
        deduplicate=False,
        date_extraction_params={"max_date": "2000-01-01"},
    )
    if document is None:
        return ""
    return "\n".join(part for part in (document.text, document.comments) if part)


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

    htmldate.extractors.dateutil_parse = partial(  # type: ignore[attr-defined]  # a name it imported
        parse, default=datetime(1, 1, 1)
    )
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


# The child.

MAX_REPLY = 64 << 20
"""Bytes of text a page may give."""

_SAMPLE = b"""<html lang="en"><head><title>A page</title></head><body><nav><a href="/">Home</a></nav><article>
<h1>A page</h1><p>%s</p><p>Published on 3 May 2015.</p></article><footer>All rights reserved.</footer></body>""" % (
    b"Water boils at a hundred degrees where the air is as heavy as at the sea. " * 12
)


def write_frame(stream: BinaryIO, header: dict[str, Any], body: bytes) -> None:
    stream.write(pack_frame(header, body))
    stream.flush()


def pack_frame(header: dict[str, Any], body: bytes) -> bytes:
    """Two lengths (big-endian uint32), a JSON object, bytes."""
    encoded = json.dumps(header).encode("ascii")
    return struct.pack(">II", len(encoded), len(body)) + encoded + body


def read_frame(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """The next frame, or None at the end of the stream."""
    head = stream.read(8)
    if len(head) < 8:
        return None
    header_size, body_size = struct.unpack(">II", head)
    header = stream.read(header_size)
    body = stream.read(body_size)
    return (json.loads(header), body) if len(body) == body_size else None


def serve() -> None:
    """The child's life: options, a warm-up that proves the extractor works, then a page per frame until the end."""
    requests = open(0, "rb", closefd=False)  # noqa: SIM115
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing a library prints may stand between frames
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    logging.disable(logging.CRITICAL)
    first = read_frame(requests)
    if first is None:
        return
    options = ExtractOptions(**first[0])
    _warm_up(options)
    _limit_memory(options)
    usual = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    write_frame(replies, {"ready": True}, b"")
    while (frame := read_frame(requests)) is not None:
        header, body = _answer(*frame, options)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - usual
        write_frame(replies, {**header, "worn": grown > options.memory_mib * 512}, body)


def _warm_up(options: ExtractOptions) -> None:
    from trafilatura.meta import reset_caches

    for mode in ("fast", "standard", options.mode):
        found = extract_page(_SAMPLE, "", "", 0, replace(options, mode=mode, max_bytes=1 << 20))
        if "Water boils" not in found.text:
            raise RuntimeError(f"the extractor finds no text in a plain page ({mode}: {found.reason} {found.detail})")
    reset_caches()
    gc.freeze()


def _limit_memory(options: ExtractOptions) -> None:
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = held + (options.memory_mib << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _answer(request: dict[str, Any], payload: bytes, options: ExtractOptions) -> tuple[dict[str, Any], bytes]:
    """A page's reply. The CPU timer runs from here to here; when it fires the process ends."""
    from trafilatura.meta import reset_caches

    signal.setitimer(signal.ITIMER_PROF, options.cpu_seconds)
    try:
        found = extract_page(payload, request["url"], request["charset"], request["captured"], options)
        text = found.text.encode("utf-8")
        if len(text) > MAX_REPLY:
            found, text = (
                Extracted(charset=found.charset, reason="too_large", detail=f"{len(text)} bytes of text"),
                b"",
            )
    except MemoryError:
        found, text = Extracted(reason="memory_limit", detail=f"more than {options.memory_mib} MiB"), b""
    reset_caches()
    signal.setitimer(signal.ITIMER_PROF, 0)
    return asdict(replace(found, text="")), text


# The parent.

START_SECONDS = 180
_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    "TZ": "UTC",
    "LC_ALL": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


class Extractor:
    """A guarded extractor: holds one child, starts it anew when a page has killed it. One page at a time, any thread.

    A context manager; `close` ends the child. A child whose parent dies ends by itself, at the end of its pipe.
    """

    def __init__(self, options: ExtractOptions | None = None) -> None:
        self.options = options or ExtractOptions()
        self.starts = 0
        self._child: subprocess.Popen[bytes] | None = None
        self._pages = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Extractor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The child's process id while there is one."""
        return self._child.pid if self._child else None

    def extract(self, payload: bytes, url: str = "", charset: str = "", captured: int = 0) -> Extracted:
        """The text of one page, or the reason why not; see `extract_page` for the arguments.

        Raises ExtractorError when a child cannot be started.
        """
        if len(payload) > self.options.max_bytes:
            return Extracted(reason="too_large", detail=f"{len(payload)} bytes")
        request = pack_frame({"url": url, "charset": charset, "captured": captured}, payload)
        with self._lock:
            fresh = self._child is None
            found = self._ask(request)
            if found.reason == "crashed" or (found.reason == "memory_limit" and not fresh):
                self._end()
                found = self._ask(request)
            if found.reason == "memory_limit" or self._pages >= self.options.recycle_pages:
                self._end()
            return found

    def close(self) -> None:
        """End the child. The extractor can be used again and then starts another."""
        with self._lock:
            self._end()

    def _ask(self, request: bytes) -> Extracted:
        child = self._child or self._start()
        self._pages += 1
        try:
            header, body = _exchange(child, request, self.options.wall_seconds)
            worn = bool(header.pop("worn"))
            found = Extracted(**{**header, "text": body.decode("utf-8")})
        except TimeoutError:
            self._end()
            return Extracted(reason="wall_clock", detail=f"no answer in {self.options.wall_seconds:g} s")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            code = self._end(grace=5)
            if code == -signal.SIGPROF:
                return Extracted(reason="cpu_limit", detail=f"more than {self.options.cpu_seconds:g} CPU seconds")
            return Extracted(reason="crashed", detail=f"exit status {code}: {type(error).__name__} {error}"[:300])
        if worn:
            self._end()
        return found

    def _start(self) -> subprocess.Popen[bytes]:
        root = str(Path(__file__).resolve().parents[1])
        paths = [root, *(p for p in sys.path if p and p != root)]
        environment = {**os.environ, **_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(paths)}
        command = [sys.executable, "-P", "-m", "pipelines.extract"]
        with tempfile.TemporaryFile() as errors:
            try:
                self._child = child = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment, bufsize=0
                )
                self._pages = 0
                self.starts += 1
                header, _ = _exchange(child, pack_frame(asdict(self.options), b""), START_SECONDS)
                if header.get("ready") is not True:
                    raise ValueError(f"its first words were {str(header)[:200]}")
            except (OSError, ValueError) as error:
                code = self._end(grace=5)
                errors.seek(0)
                said = errors.read().decode("utf-8", "replace").strip()[-1500:]
                raise ExtractorError(
                    f"the extraction worker ({' '.join(command)}) did not start: {error}, exit status {code}. "
                    f"No page was judged. It said: {said or 'nothing'}"
                ) from error
        return child

    def _end(self, grace: float = 0.0) -> int | None:
        """End the child and return its exit status; a child that is ending by itself has `grace` seconds."""
        child, self._child = self._child, None
        if child is None:
            return None
        assert child.stdin is not None
        assert child.stdout is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(grace)
        if child.poll() is None:
            child.kill()
        code = child.wait()
        child.stdin.close()
        child.stdout.close()
        return code


def _exchange(child: subprocess.Popen[bytes], request: bytes, seconds: float) -> tuple[dict[str, Any], bytes]:
    """Send a frame and receive one. Raises TimeoutError when it takes too long, OSError when the child is gone,
    ValueError when what it says is no frame."""
    assert child.stdin is not None
    assert child.stdout is not None
    os.set_blocking(child.stdin.fileno(), False)
    deadline = time.monotonic() + seconds
    poll = select.poll()
    poll.register(child.stdin, select.POLLOUT)
    poll.register(child.stdout, select.POLLIN)
    unsent, reply = memoryview(request), bytearray()
    while (needed := _frame_size(reply)) is None or len(reply) < needed:
        left = deadline - time.monotonic()
        events = dict(poll.poll(max(0, left) * 1000)) if left > 0 else {}
        if not events:
            raise TimeoutError("no answer in time")
        if child.stdout.fileno() in events:
            block = os.read(child.stdout.fileno(), 1 << 20)
            if not block:
                raise BrokenPipeError("it ended")
            reply += block
        elif child.stdin.fileno() in events:
            with contextlib.suppress(BlockingIOError):
                unsent = unsent[os.write(child.stdin.fileno(), unsent[: 1 << 20]) :]
            if not unsent:
                poll.unregister(child.stdin)
    header_size = struct.unpack_from(">I", reply)[0]
    header = json.loads(bytes(reply[8 : 8 + header_size]))
    if not isinstance(header, dict):
        raise ValueError("no JSON object")
    return header, bytes(reply[8 + header_size : needed])


def _frame_size(reply: bytearray) -> int | None:
    """Bytes of the frame that begins here, None while its lengths are not there yet."""
    if len(reply) < 8:
        return None
    header_size, body_size = struct.unpack_from(">II", reply)
    if header_size > 1 << 20 or body_size > MAX_REPLY:
        raise ValueError("the frame is too large")
    return 8 + int(header_size) + int(body_size)


_shared: dict[tuple[int, ExtractOptions], Extractor] = {}


def shared_extractor(options: ExtractOptions) -> Extractor:
    """This process's extractor for these options: tasks that follow one another share its child."""
    key = (os.getpid(), options)
    if key not in _shared:
        _shared[key] = Extractor(options)
        atexit.register(_shared[key].close)
    return _shared[key]


if __name__ == "__main__":
    serve()
