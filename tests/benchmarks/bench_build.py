"""Every step of a build, and the loader's windows out of its shards, each beside what it cannot do without.

The texts are the sentences of Python's own documentation (the demo's articles), drawn anew into 24 MB of documents;
the link dump names each document and holds 100,000 submissions in all. A step runs in one worker inside the process:
CPU seconds over all its threads, medians of three workspaces, each step in a process of its own. A whole build is
wall time. `python -m tests.benchmarks build`.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.measuring import QUICK, ROUNDS, Figures, cpu, measure, row, wall

if TYPE_CHECKING:
    from pipelines.workspace import Manifest

TEXT_BYTES = 200_000 if QUICK else 24_000_000
TEXT_FILES = 4
SUBMISSIONS = 2_000 if QUICK else 100_000
WINDOW, BATCH = 256, 16
STEPS = ("links", "documents", "annotations", "corpus", "tokenizer", "shards")
RECIPE = """\
name: bench
inputs: {links: [inputs/RS_bench.zst], texts: ["inputs/texts-*.jsonl"]}
corpus: {rules: [language, quality, duplicates]}
tokenizer: {bpe: {vocab_size: 8192}}
"""


def make_inputs(folder: Path) -> Figures:
    """The recipe, its texts and its link dump; bytes of text and of the unpacked dump."""
    import random

    from pipelines.demo_web import SmallWeb, documented_modules, reference_topics

    draw = random.Random(1)
    articles = [*reference_topics(), *([] if QUICK else documented_modules())]
    pool = sorted({s for _, paragraphs in articles for p in paragraphs for s in p.split(". ") if len(s) >= 40})
    inputs, web = folder / "inputs", SmallWeb()
    inputs.mkdir()
    total = number = 0
    for at in range(TEXT_FILES):
        with (inputs / f"texts-{at}.jsonl").open("w", encoding="utf-8") as file:
            while total < TEXT_BYTES * (at + 1) // TEXT_FILES:
                paragraphs = (". ".join(draw.choices(pool, k=5)) + "." for _ in range(draw.randint(2, 9)))
                url, text = f"http://site{number % 500}.example/page/{number}", "\n".join(paragraphs)
                row = {"url": url, "title": f"Page {number}", "language": "en", "text": text}
                file.write(json.dumps(row) + "\n")
                web.link(url, draw.randint(1, 200))
                total += len(text.encode())
                number += 1
    for i in range(max(0, SUBMISSIONS - number)):
        web.link(
            f"https://www.elsewhere{i % 3000}.example/2016/{i // 2}?utm_source=x&id={i // 2}", draw.randint(0, 50)
        )
    dump = web.dump()
    (inputs / "RS_bench.zst").write_bytes(dump)
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return {"text": total, "dump": sum(len(line) for line in lines_of(folder)), "documents": number}


def lines_of(folder: Path) -> Iterator[bytes]:
    from pipelines.compression import open_stream

    with (folder / "inputs/RS_bench.zst").open("rb") as raw, open_stream(raw, "RS_bench.zst") as stream:
        data = b"".join(iter(lambda: stream.read(1 << 20), b""))
    return iter(data.splitlines(keepends=True))


def texts_of(folder: Path) -> list[str]:
    files = sorted((folder / "inputs").glob("texts-*.jsonl"))
    return [json.loads(line)["text"] for file in files for line in file.read_bytes().splitlines()]


def step(folder: Path, name: str, workspace: str) -> Figures:
    """CPU seconds of one step of a build in one worker, and of its stages; the steps before it are done already."""
    from pipelines.build import STEPS, Build
    from pipelines.inputs import digest_inputs
    from pipelines.progress import set_verbosity
    from pipelines.recipe import read_recipe
    from pipelines.runner import RunnerOptions, quiet_beam
    from pipelines.workspace import Workspace

    set_verbosity(-1)
    quiet_beam()
    recipe, inputs = read_recipe(folder / "recipe.yaml")
    opened = Workspace.open(folder / workspace, create=True)
    build = Build(opened, recipe, inputs, folder, digest_inputs(opened, inputs.all()), RunnerOptions(workers=1))
    for earlier in STEPS[: STEPS.index(name)]:
        getattr(build, earlier)()
    parts: Figures = {}
    began, note = time.process_time(), build._note

    def noted(manifest: Manifest) -> Manifest:
        parts[manifest.stage] = time.process_time() - began - sum(parts.values())
        return note(manifest)

    build._note = noted  # type: ignore[method-assign]
    getattr(build, name)()
    return {**parts, "seconds": time.process_time() - began}


def floors(folder: Path) -> Figures:
    """CPU seconds of what the steps cannot do without, over the same inputs, in memory."""
    import pyarrow as pa

    from pipelines.ngrams import find_words
    from pipelines.workspace import Workspace, need_manifest, read_part
    from tokenizer.counts import count_pretokens
    from tokenizer.encode import Encoder

    dump = [line for line in lines_of(folder) if line.rstrip().endswith(b"}")]  # one line is broken
    files = [file.read_bytes() for file in sorted((folder / "inputs").glob("texts-*.jsonl"))]
    texts = pa.array(texts_of(folder))
    batches = [texts.slice(start, 256) for start in range(0, len(texts), 256)]
    workspace = Workspace.open(folder / "built-0")
    judged = (f"annotations/{name}" for name in ("language", "quality", "duplicates"))
    evidence = [file for name in judged for file in need_manifest(workspace, name).parts()]

    def encode() -> None:
        Encoder.open(workspace.local_path("tokenizer")).encode(texts, end_of_text=True)

    return {
        "links": cpu(lambda: [json.loads(line) for line in dump]),
        "documents": cpu(lambda: [json.loads(line) for file in files for line in file.splitlines()]),
        "annotations": cpu(lambda: [find_words(batch) for batch in batches]),
        "corpus": cpu(lambda: [read_part(workspace, file) for file in evidence]),
        "tokenizer": cpu(lambda: count_pretokens(iter(batches))),
        "shards": cpu(encode),
    }


def windows(folder: Path) -> Figures:
    """Tokens a CPU second out of the shards by the loader, and out of an array by copying; bytes of text a token."""
    import numpy as np

    from model.loader import Loader, open_stream

    stream = open_stream(folder / "built-0/shards", "train")
    loader, count = Loader(stream, WINDOW, BATCH, seed=0), 50 if QUICK else 1000
    tokens = stream.read(0, stream.n_tokens).astype(np.uint16)
    starts = np.random.default_rng(0).integers(0, len(tokens) - WINDOW - 1, (count, BATCH))
    batch = np.empty((BATCH, WINDOW + 1), np.int64)

    def copy() -> None:
        for some in starts:
            for i, start in enumerate(some):
                batch[i] = tokens[start : start + WINDOW + 1]

    done = count * BATCH * WINDOW
    found = {"loader": done / cpu(lambda: [loader.next() for _ in range(count)]), "copy": done / cpu(copy)}
    return {**found, "bytes_per_token": stream.n_bytes / stream.n_tokens}


def whole_build(folder: Path, workers: int) -> Figures:
    """Wall seconds of `webtext build` into a new workspace, as a command."""
    said = f"build {folder / 'recipe.yaml'} --workspace {folder / f'whole-{workers}'} --workers {workers} --quiet"
    command = [sys.executable, "-m", "pipelines.cli", *said.split()]
    return {"seconds": wall(lambda: subprocess.run(command, check=True, capture_output=True), 1)}


def build_rows(folder: str) -> Iterator[dict[str, Any]]:
    size = measure(make_inputs, folder)
    runs = [{name: measure(step, folder, name, f"built-{i}") for name in STEPS} for i in range(ROUNDS)]
    floor, kept = measure(floors, folder), kept_bytes(Path(folder))
    parsed, encoded = "json.loads of every line {}", "the bare encoder, over all texts {}"
    for name, amount, over, limit in (
        ("links", size["dump"], size["dump"], parsed),
        ("documents", size["text"], size["text"], parsed),
        ("annotations", size["text"], size["text"], "finding words and their keys {}"),
        ("corpus", size["text"], size["text"], "reading the evidence {}"),
        ("tokenizer", kept, size["text"], "counting pretokens, over all texts {}"),
        ("shards", kept, size["text"], encoded),
    ):
        figure = amount / statistics.median(run[name]["seconds"] for run in runs) / 1e6
        peak = max(run[name]["peak_mib"] for run in runs)
        what = f"build: {name}" + (", of the dump unpacked" if name == "links" else "")
        yield row(what, figure, "MB/core-s", limit, over / floor[name] / 1e6, peak)
        for part in sorted(runs[0][name].keys() if name == "annotations" else []):
            if part.startswith("annotations/"):
                figure = amount / statistics.median(run[name][part] for run in runs) / 1e6
                yield row(f"build: {part}", figure, "MB/core-s", limit, over / floor[name] / 1e6, peak)
    w = measure(windows, folder)
    text = w["bytes_per_token"] / 1e6
    copied = f"copying windows of {WINDOW} out of memory {{}}"
    yield row("loader: windows, in text", w["loader"] * text, "MB/core-s", copied, w["copy"] * text, w["peak_mib"])
    if QUICK:
        return
    one, two = (measure(whole_build, folder, workers, watched=True) for workers in (1, 2))
    speed = [size["text"] / build["seconds"] / 1e6 for build in (one, two)]
    steps = sum(statistics.median(run[name]["seconds"] for run in runs) for name in STEPS)
    added = "its steps' CPU seconds {}"
    yield row("webtext build, 1 worker, wall", speed[0], "MB/s", added, size["text"] / steps / 1e6, one["peak_mib"])
    yield row(
        "webtext build, 2 workers, wall", speed[1], "MB/s", "twice one worker {}", 2 * speed[0], two["peak_mib"]
    )


def kept_bytes(folder: Path) -> int:
    """Bytes of the text that the corpus keeps, as the shards count them."""
    splits = json.loads((folder / "built-0/shards/manifest.json").read_text("utf-8"))["splits"]
    return sum(int(shard["n_bytes"]) for shards in splits.values() for shard in shards)


def rows() -> list[dict[str, Any]]:
    """{"what", "figure", "unit", "limit", "limit_figure", "peak_mib"} per measurement."""
    with tempfile.TemporaryDirectory() as folder:
        return list(build_rows(folder))
