"""Speed of words, n-gram scans and wikitext: MB/s beside the obvious Python way and the parser floor.

Texts are WikiText-2's training text (11 MB, some of it not ASCII) in documents of about 3,000 bytes; the index is the
n-grams of PTB, WikiText-2 (test) and LAMBADA; the dump is 206 pages of English Wikipedia (5.9 MB). Every figure is
measured in a process of its own. Run alone: `python tests/benchmarks/bench_ngrams.py`.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.evaluation_sets import EvaluationSet, Example, IndexTables

SHARED = Path(os.environ.get("WEBTEXT_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "data"
QUICK = bool(os.environ.get("WEBTEXT_BENCH_QUICK"))
FEW = 1 if QUICK else None
SETS = (
    ("ptb", "ptb/ptb.test.txt.gz", "stream"),
    ("wikitext-2", "wikitext-2/test.txt.gz", "stream"),
    ("lambada", "lambada/lambada_test.jsonl.gz", "jsonl"),
)
WORD = re.compile(r"[^\W_]+")
DUMP = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"


def documents(ascii_only: bool = False) -> list[str]:
    text = gzip.decompress((SHARED / "wikitext-2/train.txt.gz").read_bytes()).decode()
    text = text.encode("ascii", "ignore").decode() if ascii_only else text
    return [text[i : i + 3000] for i in range(0, 300_000 if QUICK else len(text), 3000)]


def timed(work: Callable[[], object]) -> float:
    """CPU seconds of the fastest run."""
    best = float("inf")
    for _ in range(1 if QUICK else 3):
        begin = time.process_time()
        work()
        best = min(best, time.process_time() - begin)
    return best


def size(texts: list[str]) -> float:
    return sum(len(text.encode()) for text in texts) / 1e6


def words() -> tuple[float, float]:
    return _words(documents())


def ascii_words() -> tuple[float, float]:
    return _words(documents(ascii_only=True))


def _words(texts: list[str]) -> tuple[float, float]:
    import pyarrow as pa

    from pipelines.ngrams import find_words, pieces

    find_words(["é"])
    array = pa.array(texts)
    return timed(lambda: [piece.own for piece in pieces(array, 1)]), size(texts)


def peer_words() -> tuple[float, float]:
    texts = documents()
    return timed(lambda: [WORD.findall(text.lower()) for text in texts]), size(texts)


def _sets() -> list[tuple[EvaluationSet, list[Example], list[str]]]:
    from pipelines.evaluation_sets import EvaluationSet, read_set

    sets = [EvaluationSet(name, str(SHARED / path), shape) for name, path, shape in SETS[:FEW]]  # type: ignore[arg-type]
    return [(one, read_set(one, one.path, one.name)[0], []) for one in sets]


def _index(ngrams: tuple[int, ...]) -> IndexTables:
    from pipelines.evaluation_sets import IndexOptions, index_examples

    return index_examples(_sets(), IndexOptions(ngrams=ngrams, least=13))


def index() -> tuple[float, float]:
    from pipelines.evaluation_sets import IndexOptions, index_examples

    sets = _sets()
    total = size([example.text for _, examples, _ in sets for example in examples])
    return timed(lambda: index_examples(sets, IndexOptions())), total


def scan() -> tuple[float, float]:
    return _scan((13,))


def scan_both() -> tuple[float, float]:
    return _scan((8, 13))


def _scan(ngrams: tuple[int, ...]) -> tuple[float, float]:
    import pyarrow as pa

    from pipelines.contamination import GramIndex

    grams = GramIndex(_index(ngrams).grams)
    texts = documents()
    array = pa.array(texts)
    return timed(lambda: grams.scan(array)), size(texts)


def peer_scan() -> tuple[float, float]:
    """The obvious way: `re`, joined 13-grams, a set."""
    known = set(_index((13,)).grams.column("text").to_pylist())
    texts = documents()

    def work() -> None:
        for text in texts:
            found = WORD.findall(text.lower())
            _ = [gram for i in range(len(found) - 12) if (gram := " ".join(found[i : i + 13])) in known]

    return timed(work), size(texts)


def _dump() -> bytes:
    return bz2.decompress((SHARED / "wikipedia" / DUMP).read_bytes())


def pages() -> tuple[float, float]:
    """XML to pages, unpacked bytes in memory."""
    from pipelines.wikitext_dump import Site, read_dump

    data = _dump()
    return timed(lambda: sum(1 for _ in read_dump(io.BytesIO(data), DUMP, Site()))), len(data) / 1e6


def peer_pages() -> tuple[float, float]:
    """Expat alone, no handlers."""
    from xml.parsers import expat

    data = _dump()
    return timed(lambda: expat.ParserCreate().Parse(data, True)), len(data) / 1e6


def wikitext() -> tuple[float, float]:
    from pipelines.wikitext_dump import Site, read_dump, strip_markup

    texts = [page.text for page in read_dump(io.BytesIO(_dump()), DUMP, Site())]
    return timed(lambda: [strip_markup(text) for text in texts]), size(texts)


def peer_wikitext() -> tuple[float, float]:
    """mwparserfromhell, on the first pages of a megabyte in all."""
    import mwparserfromhell

    from pipelines.wikitext_dump import Site, read_dump

    texts: list[str] = []
    for page in read_dump(io.BytesIO(_dump()), DUMP, Site()):
        if size(texts) < (0.1 if QUICK else 1):
            texts.append(page.text)
    start = time.process_time()
    for text in texts:
        mwparserfromhell.parse(text, skip_style_tags=True).strip_code()
    return time.process_time() - start, size(texts)


def wikipedia_scan() -> tuple[float, float]:
    import numpy as np
    import pyarrow as pa

    from pipelines.wikipedia import WikipediaIndex, WikipediaOptions, article_keys, merge_keys, page_reason
    from pipelines.wikitext_dump import Site, read_dump

    options, site = WikipediaOptions(), Site()
    articles = [page for page in read_dump(io.BytesIO(_dump()), DUMP, site) if page_reason(page) == "kept"]
    keys = [article_keys(page, site, options) for page in articles]
    runs = [(key, np.full(len(key), i, np.uint32)) for i, key in enumerate(keys)]
    found = WikipediaIndex(*merge_keys(runs), [page.title for page in articles])
    texts = documents()
    array = pa.array(texts)
    return timed(lambda: found.overlaps(array, options)), size(texts)


WORK: dict[str, Callable[[], tuple[float, float]]] = {
    function.__name__: function
    for function in (words, ascii_words, peer_words, index, scan, scan_both, peer_scan, pages, peer_pages)
} | {function.__name__: function for function in (wikitext, peer_wikitext, wikipedia_scan)}


def measure(what: str) -> tuple[float, int]:
    """In a process of its own: (MB a CPU second, peak MiB)."""
    found = subprocess.run([sys.executable, __file__, what], check=True, capture_output=True).stdout
    seconds, megabytes, peak = json.loads(found)
    return megabytes / seconds, peak


def rows() -> list[dict[str, object]]:
    """{"what", "figure", "unit", "limit", "limit_figure", "peak_mib"} a row; empty without the shared data."""
    if not SHARED.exists():
        return []
    speed = {what: measure(what) for what in WORK}
    shown = {what: f"{figure:.1f}" for what, (figure, _) in speed.items()}
    table = [
        ("words", "n-grams: words and their keys", "peer_words", "`re` words {}"),
        ("ascii_words", "n-grams: words and their keys, ASCII", "peer_words", "`re` words {}"),
        ("index", "contamination: index of three test sets", "words", "words {}"),
        ("scan", "contamination: 13-gram scan", "words", f"words {{}}; `re` + set {shown['peer_scan']}"),
        ("scan_both", "contamination: 8- and 13-gram scan", "words", "words {}"),
        ("pages", "wikipedia: XML to pages", "peer_pages", "expat alone {}"),
        ("wikitext", "wikipedia: wikitext to text", "peer_wikitext", "mwparserfromhell {}"),
        ("wikipedia_scan", "wikipedia: 8-gram overlap of documents", "words", "words {}"),
    ]
    return [
        {
            "what": name,
            "figure": round(speed[what][0], 2),
            "unit": "MB/core-s",
            "limit": limit.format(shown[floor]) + " MB/core-s",
            "limit_figure": round(speed[floor][0], 2),
            "peak_mib": speed[what][1],
        }
        for what, name, floor, limit in table
    ]


def main() -> None:
    if len(sys.argv) > 1:
        sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
        seconds, megabytes = WORK[sys.argv[1]]()
        print(json.dumps([seconds, megabytes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10]))
        return
    for row in rows():
        print(row)


if __name__ == "__main__":
    main()
