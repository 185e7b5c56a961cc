"""Speed of web archives: reading beside FastWARC and plain unpacking, and fetching from a loopback web.

The archive is `archives-unleashed/example.warc.gz` eight times over (20 MB packed, 90 MB unpacked, 752 pages); the
web is the 181 pages of `html/scrapinghub` under their own URLs, 162 of them https, served from the fetcher's own
process, whose work is counted in. Run alone: `python tests/benchmarks/bench_pages.py`.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHARED = Path(os.environ.get("WEBTEXT_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "data"
QUICK = bool(os.environ.get("WEBTEXT_BENCH_QUICK"))
COPIES = 1 if QUICK else 8


def archive() -> bytes:
    return (SHARED / "warc/archives-unleashed/example.warc.gz").read_bytes() * COPIES


def unpack_only() -> float:
    """Unpacked bytes of the archive through zlib, member by member: the floor of this reader."""
    from pipelines.members import Unpacked

    unpacked = Unpacked(io.BytesIO(archive()))
    while unpacked.fill(unpacked.end + 1):
        unpacked.drop(unpacked.end)
    return unpacked.end


def fastwarc_only() -> float:
    """The same through FastWARC's iterator, response bodies read and nothing done with them."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    size = 0
    for record in ArchiveIterator(io.BytesIO(archive()), record_types=WarcRecordType.response):
        size += len(record.reader.read())
    assert size > (6 << 20) * COPIES
    return unpacked_size()


def unpacked_size() -> float:
    with gzip.open(SHARED / "warc/archives-unleashed/example.warc.gz") as stream:
        size = sum(len(block) for block in iter(lambda: stream.read(1 << 20), b""))
    return size * COPIES


def read_all() -> float:
    from pipelines.archives import Page, read_pages

    pages = sum(isinstance(item, Page) for item in read_pages(io.BytesIO(archive()), "bench"))
    assert pages == 94 * COPIES
    return unpacked_size()


def fetch_all() -> float:
    """The pages of a loopback web, fetched without pauses by the stage's own work function."""
    import pyarrow as pa

    from pipelines.fetch import STAGE, FetchOptions, fetch_links, fetch_tasks
    from pipelines.http_get import spell
    from pipelines.links import SCHEMA
    from pipelines.loopback import LoopbackWeb
    from pipelines.stages import perform
    from pipelines.urls import canonical
    from pipelines.workspace import Manifest, Workspace, write_part

    folder = SHARED / "html/scrapinghub"
    truth = json.loads((folder / "ground-truth.json").read_text())
    site = {
        spell(entry["url"]): gzip.decompress((folder / f"html/{name}.html.gz").read_bytes())
        for name, entry in truth.items()
    }
    empty = {"score": 3, "submissions": 1, "subreddits": [], "first_seen": 0, "keep": True, "reason": ""}
    rows = sorted(({"url": canonical(url), "fetch_url": url, **empty} for url in site), key=lambda row: row["url"])
    with tempfile.TemporaryDirectory() as temporary, LoopbackWeb(site) as web:
        workspace = Workspace.open(temporary, create=True)
        part = write_part(workspace, "links", "links-0", pa.Table.from_pylist(rows, SCHEMA), SCHEMA, {})
        manifest = Manifest("links", 1, "bench", {}, {}, {"": (part,)})
        options = FetchOptions(contact="bench@a.test", delay_seconds=0.0, proxy=web.proxy, ca_file=web.ca_file)
        for task in fetch_tasks(workspace, manifest, options):
            perform(STAGE, options, workspace.url, task, lambda context, task=task: fetch_links(task, context))
        assert len(set(web.urls()) & set(site)) == len(site)
    return len(site)


CASES: dict[str, Callable[[], float]] = {
    "unpack": unpack_only,
    "fastwarc": fastwarc_only,
    "read": read_all,
    "fetch": fetch_all,
}


def measure(case: str) -> dict[str, float]:
    """One case in a process of its own: amount, CPU seconds of the faster of two runs, peak memory."""
    command = [sys.executable, __file__, "--case", case]
    root = str(Path(__file__).resolve().parents[2])
    out = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root).stdout
    result: dict[str, float] = json.loads(out)
    return result


def rows() -> list[dict[str, Any]]:
    """{"what", "figure", "unit", "limit", "limit_figure", "peak_mib"} per figure; empty without the shared data."""
    if not SHARED.exists():
        return []
    found = {case: measure(case) for case in CASES}
    speed = {case: one["amount"] / one["seconds"] for case, one in found.items()}
    floor = f"unpacking alone {speed['unpack'] / 1e6:.0f}, FastWARC alone {speed['fastwarc'] / 1e6:.0f}"
    return [
        {
            "what": "archives: WARC.gz to judged pages",
            "figure": round(speed["read"] / 1e6, 1),
            "unit": "MB/core-s",
            "limit": floor + ", all in unpacked bytes",
            "limit_figure": round(speed["unpack"] / 1e6, 1),
            "peak_mib": round(found["read"]["peak_mib"]),
        },
        {
            "what": "fetch: 181 real pages from a loopback web, 162 by TLS",
            "figure": round(speed["fetch"], 1),
            "unit": "pages/core-s",
            "limit": "the delay per host on the real web",
            "peak_mib": round(found["fetch"]["peak_mib"]),
        },
    ]


def _run_case(case: str) -> None:
    work, best, amount = CASES[case], float("inf"), 0.0
    for _ in range(2):
        began = time.process_time()
        amount = work()
        best = min(best, time.process_time() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"amount": amount, "seconds": best, "peak_mib": peak}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--case"]:
        _run_case(sys.argv[2])
    else:
        for row in rows():
            print(row)
