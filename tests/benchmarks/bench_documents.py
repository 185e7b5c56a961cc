"""Speed of pages to documents, and of the two annotations that read text: figures beside their floors.

Pages are the 181 articles of the article-extraction benchmark (31 MB); texts the 1,000 documents of the C4 sample
(2.2 MB). Every figure is CPU time of the process and its children, the best of three runs, each taken in a process of
its own. Run alone: `python tests/benchmarks/bench_documents.py`.
"""

from __future__ import annotations

import gzip
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

SHARED = Path(os.environ.get("WEBTEXT_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "data"
QUICK = bool(os.environ.get("WEBTEXT_BENCH_QUICK"))
ROUNDS = 1 if QUICK else 3
FEW = 20 if QUICK else None


def pages() -> list[bytes]:
    return [gzip.decompress(p.read_bytes()) for p in sorted((SHARED / "html/scrapinghub/html").glob("*.gz"))[:FEW]]


def texts() -> list[str]:
    lines = gzip.decompress((SHARED / "c4-sample/c4.jsonl.gz").read_bytes()).splitlines()
    return [json.loads(line)["text"] for line in lines[:FEW]]


def cpu_seconds() -> float:
    """User and system time of this process and of its live and ended children."""
    spent = sum(
        resource.getrusage(who).ru_utime + resource.getrusage(who).ru_stime
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    for children in Path("/proc/self/task").glob("*/children"):
        for pid in children.read_text().split():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            spent += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return spent


def best(work: Callable[[], object]) -> float:
    """CPU seconds of the fastest run, after one that is not counted."""
    work()
    taken = []
    for _ in range(ROUNDS):
        start = cpu_seconds()
        work()
        taken.append(cpu_seconds() - start)
    return min(taken)


Measured = tuple[float, int, int]
"""CPU seconds, things, bytes."""


def parse_floor() -> Measured:
    from lxml.html import fromstring

    work = pages()
    return best(lambda: [fromstring(page) for page in work]), len(work), sum(map(len, work))


def decoding() -> Measured:
    from pipelines.decode import decode

    work = pages()
    return best(lambda: [decode(page) for page in work]), len(work), sum(map(len, work))


def library(fast: bool) -> Measured:
    import logging

    from trafilatura import bare_extraction

    logging.disable(logging.CRITICAL)
    work = pages()
    return (
        best(lambda: [bare_extraction(page, fast=fast, include_comments=False, with_metadata=True) for page in work]),
        len(work),
        sum(map(len, work)),
    )


def unguarded() -> Measured:
    import logging

    from pipelines.extract import ExtractOptions, extract_page

    logging.disable(logging.CRITICAL)
    work, options = pages(), ExtractOptions()
    taken = best(lambda: [extract_page(page, "", "", 1_600_000_000, options) for page in work])
    return taken, len(work), sum(map(len, work))


def guarded() -> Measured:
    from pipelines.extract import Extractor

    work = pages()
    with Extractor() as extractor:
        taken = best(lambda: [extractor.extract(page, captured=1_600_000_000) for page in work])
    return taken, len(work), sum(map(len, work))


def library_languages() -> Measured:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    from pipelines.language import LanguageOptions, excerpt

    known = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    work = [excerpt(text, LanguageOptions().max_chars) for text in texts()]
    return best(lambda: [known.classify(text) for text in work]), len(work), sum(len(t.encode()) for t in texts())


def languages() -> Measured:
    from pipelines.language import LanguageOptions, find_languages

    work = texts()
    return best(lambda: find_languages(work, LanguageOptions())), len(work), sum(len(t.encode()) for t in work)


def split_floor() -> Measured:
    work = texts()
    return best(lambda: [len(text.split()) for text in work]), len(work), sum(len(t.encode()) for t in work)


def qualities() -> Measured:
    from pipelines.quality import measure, pieces

    work = texts()
    return best(lambda: list(map(measure, pieces(work)))), len(work), sum(len(t.encode()) for t in work)


WORK: dict[str, Callable[[], Measured]] = {
    "parse": parse_floor,
    "decode": decoding,
    "library_fast": lambda: library(True),
    "library_standard": lambda: library(False),
    "unguarded": unguarded,
    "guarded": guarded,
    "library_languages": library_languages,
    "languages": languages,
    "split": split_floor,
    "qualities": qualities,
}


def measure_alone(what: str) -> tuple[float, int, int, int]:
    """CPU seconds, things, bytes and peak MiB of one kind of work, in a process of its own."""
    done = subprocess.run([sys.executable, __file__, what], capture_output=True, text=True, check=True)
    taken, things, size, peak = json.loads(done.stdout)
    return taken, things, size, peak


def rows() -> list[dict[str, object]]:
    """{"what", "figure", "unit", "limit", "limit_figure", "peak_mib"} a row; empty without the shared data."""
    if not SHARED.exists():
        return []
    found = {what: measure_alone(what) for what in WORK}

    def per_second(what: str) -> str:
        return f"{found[what][1] / found[what][0]:,.0f}"

    def megabytes(what: str) -> str:
        return f"{found[what][2] / found[what][0] / 1e6:,.1f}"

    def number(what: str, unit: str) -> float:
        taken, things, size, _ = found[what]
        return round((size / 1e6 if unit == "MB/s" else things) / taken, 2)

    parse = f"lxml parses {per_second('parse')} pages/s, {megabytes('parse')} MB/s"
    library = f"trafilatura fast {per_second('library_fast')}, standard {per_second('library_standard')} pages/s"
    table = [
        ("decode", "documents: bytes to clean text", "MB/s", parse, "parse"),
        ("unguarded", "documents: pages to text, unguarded", "pages/s", parse, "parse"),
        (
            "guarded",
            "documents: pages to text, guarded",
            "pages/s",
            f"unguarded {per_second('unguarded')}; {library}",
            "unguarded",
        ),
        ("guarded", "documents: the same in bytes", "MB/s", parse, "parse"),
        (
            *("languages", "language: texts", "documents/s"),
            *(f"py3langid {per_second('library_languages')}", "library_languages"),
        ),
        ("qualities", "quality: texts", "MB/s", f"str.split alone {megabytes('split')} MB/s", "split"),
    ]
    return [
        {
            "what": name,
            "figure": number(what, unit),
            "unit": unit.replace("/s", "/core-s"),
            "limit": limit,
            "limit_figure": number(floor, unit),
            "peak_mib": found[what][3],
        }
        for what, name, unit, limit, floor in table
    ]


if __name__ == "__main__":
    if len(sys.argv) == 2:
        measured = WORK[sys.argv[1]]()
        peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        print(json.dumps([*measured, peak // 1024]))
    else:
        for row in rows():
            print(f"{row['what']:38} {row['figure']:>9} {row['unit']:11} {row['peak_mib']:>4} MiB   {row['limit']}")
