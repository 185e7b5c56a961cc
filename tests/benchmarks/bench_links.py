"""Speed of reading link dumps: MB/s and lines/s of a .zst dump, beside what unpacking and parsing alone cost.

The dump is made of real rows: the 29,750 submissions of 2013 in the wide schema of 2024. Run alone:
`python tests/benchmarks/bench_links.py`.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

SHARED = Path(os.environ.get("WEBTEXT_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "data"
QUICK = bool(os.environ.get("WEBTEXT_BENCH_QUICK"))
COPIES, SOURCES, ROUNDS = (1, 1, 1) if QUICK else (2, None, 3)


def make_dump(path: Path) -> tuple[int, int]:
    """Write the dump; (bytes unpacked, lines)."""
    import zstandard

    with gzip.open(SHARED / "reddit/RS_2024-02_first31.jsonl.gz") as text:
        wide = [json.loads(line) for line in text]
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=27)
    size = lines = 0
    with (
        open(path, "wb") as file,
        zstandard.ZstdCompressor(compression_params=parameters).stream_writer(file) as sink,
    ):
        for copy in range(COPIES):
            for source in sorted((SHARED / "reddit/top-2013").glob("*.csv.gz"))[:SOURCES]:
                with gzip.open(source, "rt", encoding="utf-8", newline="") as text:
                    for row in csv.DictReader(text):
                        shape = wide[lines % len(wide)]
                        numbers = {"score": int(row["score"]), "created_utc": float(row["created_utc"])}
                        flags = {"is_self": row["is_self"] == "True", "over_18": row["over_18"] == "True"}
                        name = {"id": f"{row['id']}{copy}", "subreddit": source.name.split(".")[0]}
                        line = json.dumps({**shape, **row, **numbers, **flags, **name}).encode() + b"\n"
                        sink.write(line)
                        size += len(line)
                        lines += 1
    return size, lines


def unpack(path: str) -> None:
    from pipelines.compression import open_stream

    with open(path, "rb") as raw, open_stream(raw, "dump") as stream:
        while stream.read(1 << 20):
            pass


def parse_json(path: str) -> None:
    from pipelines.compression import open_stream

    decode = json.JSONDecoder().decode
    with open(path, "rb") as raw, open_stream(raw, "dump") as stream:
        rest = b""
        while data := stream.read(1 << 20):
            *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                decode(line.decode())


def read(path: str) -> None:
    from pipelines.compression import open_stream
    from pipelines.dumps import read_submissions

    with open(path, "rb") as raw, open_stream(raw, "dump") as stream:
        for _ in read_submissions(stream):
            pass


def harvest(path: str) -> None:
    from pipelines.compression import open_stream
    from pipelines.dumps import read_submissions
    from pipelines.links import LinkOptions, combine, merge_partition

    options = LinkOptions()
    with open(path, "rb") as raw, open_stream(raw, "dump") as stream:
        for table in combine(read_submissions(stream), options.submissions(), Counter()):
            merge_partition(table, options)


def canonical_urls(path: str) -> None:
    from pipelines.urls import identify

    with gzip.open(path, "rt", encoding="utf-8-sig") as text:
        for line in text:
            identify(line)


def split_urls(path: str) -> None:
    """The floor of `canonical_urls`: the standard library's parser alone."""
    from urllib.parse import urlsplit

    with gzip.open(path, "rt", encoding="utf-8-sig") as text:
        for line in text:
            with contextlib.suppress(ValueError):
                urlsplit(line)


def bandwidth() -> float:
    """MB/s of copying memory, the best of five."""
    data, best = bytearray(1 << 26), float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        _ = bytes(data)
        best = min(best, time.perf_counter() - begin)
    return len(data) / best / 1e6


WORK: dict[str, Callable[[str], None]] = {
    function.__name__: function for function in (unpack, parse_json, read, harvest, canonical_urls, split_urls)
}


def measure(what: str, path: Path) -> tuple[float, int]:
    """Best of three runs, each in a process of its own: (CPU seconds, peak MiB); all of it runs on one core."""
    runs = [
        json.loads(
            subprocess.run([sys.executable, __file__, what, str(path)], check=True, capture_output=True).stdout
        )
        for _ in range(ROUNDS)
    ]
    return min(seconds for seconds, _ in runs), max(peak for _, peak in runs)


def rows() -> list[dict[str, object]]:
    """{"what", "figure", "unit", "limit", "limit_figure", "peak_mib"} a row; empty without the shared data."""
    if not SHARED.exists():
        return []
    out: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        dump = Path(folder) / "RS.zst"
        size, lines = make_dump(dump)
        times = {what: measure(what, dump) for what in ("unpack", "parse_json", "read", "harvest")}

        def add(what: str, name: str, limit: str, beside: float) -> None:
            seconds, peak = times[what]
            figure = {"figure": round(size / seconds / 1e6, 1), "unit": "MB/core-s", "peak_mib": peak}
            out.append({"what": name, **figure, "limit": limit, "limit_figure": round(beside, 1)})

        memory, floor, parser = bandwidth(), *(size / times[what][0] / 1e6 for what in ("unpack", "parse_json"))
        parsed = f"json.loads of every line {parser:.0f} MB/core-s; unpack only {floor:.0f}"
        add("unpack", "links: unpack .zst only", f"memory copied {memory:.0f} MB/s", memory)
        add("parse_json", "links: unpack and json.loads every line", f"unpack only {floor:.0f} MB/core-s", floor)
        add("read", "links: dump to submissions", parsed, parser)
        add("harvest", "links: dump to judged links", parsed, parser)
        speeds = [round(lines / times[what][0]) for what in ("harvest", "parse_json")]
        limit = f"json.loads of every line {speeds[1]} lines/core-s"
        speed = {"figure": speeds[0], "unit": "lines/core-s", "limit": limit, "limit_figure": speeds[1]}
        out.append({"what": "links: dump to judged links", **speed, "peak_mib": times["harvest"][1]})
    urls = SHARED / "urls/kasztp.txt.gz"
    (seconds, peak), (parsing, _) = (measure(what, urls) for what in ("canonical_urls", "split_urls"))
    limit = f"urllib.parse.urlsplit alone {48_010 / parsing:.0f}"
    speed = {"figure": round(48_010 / seconds), "unit": "URLs/core-s", "limit": limit, "peak_mib": peak}
    speed["limit_figure"] = round(48_010 / parsing)
    out.append({"what": "links: canonical form of real URLs", **speed})
    return out


if __name__ == "__main__":
    if len(sys.argv) == 3:
        __import__("pipelines.links")  # what every run loads is not measured
        begin = time.process_time()
        WORK[sys.argv[1]](sys.argv[2])
        taken = time.process_time() - begin
        # Not `ru_maxrss`: a new process inherits its parent's there, up to the fork, and the parent made the dump.
        status = Path("/proc/self/status").read_text()
        print(json.dumps([taken, int(status.partition("VmHWM:")[2].split()[0]) // 1024]))
    else:
        for row in rows():
            figure = f"{row['what']:45} {row['figure']:>10} {row['unit']:8} {row['peak_mib']:>5} MiB"
            print(f"{figure}   limit: {row['limit']}")
