"""Speed of near-duplicate evidence: documents to sketches, beside datasketch and the floor; pairs verified.

Documents are runs of 360 words of WikiText-2 (5,700 of them, 11 MB); for pairs, each of 2,500 documents comes with
seven copies in which one word of a hundred is another. Run alone: `python tests/benchmarks/bench_duplicates.py`.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

SHARED = Path(os.environ.get("WEBTEXT_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "data"
QUICK = bool(os.environ.get("WEBTEXT_BENCH_QUICK"))
WORDS = 360
COPIES = 8
FAMILIES = 100 if QUICK else 2500
PEER_DOCUMENTS = 100 if QUICK else 1000  # what the slow peers are measured on
DOCUMENTS = 20_000 if QUICK else 1_000_000  # to judge


def documents() -> list[str]:
    words = gzip.decompress((SHARED / "wikitext-2/train.txt.gz").read_bytes()).decode().split()
    return [" ".join(words[i : i + WORDS]) for i in range(0, 100 * WORDS if QUICK else len(words) - WORDS, WORDS)]


def families() -> list[str]:
    import numpy as np

    rng = np.random.default_rng(1)
    out = []
    for text in documents()[:FAMILIES]:
        words = text.split()
        for copy in range(COPIES):
            changed = list(words)
            for place in np.flatnonzero(rng.random(len(words)) < 0.01) if copy else []:
                changed[place] = f"changed{rng.integers(1 << 30)}"
            out.append(" ".join(changed))
    return out


def timed(work: Callable[[], object]) -> float:
    """CPU seconds of the fastest run."""
    best = float("inf")
    for _ in range(1 if QUICK else 3):
        begin = time.process_time()
        work()
        best = min(best, time.process_time() - begin)
    return best


def shingles() -> tuple[float, int]:
    """Text to n-gram keys, without a signature: the floor."""
    import pyarrow as pa

    from pipelines.minhash import slices_of_text
    from pipelines.ngrams import find_grams, find_words

    texts = pa.array(documents())
    return timed(lambda: [find_grams(find_words(piece), 5) for piece in slices_of_text(texts)]), len(texts)


def sketches() -> tuple[float, int]:
    import pyarrow as pa

    from pipelines.minhash import SketchOptions, sketch_texts

    texts = pa.array(documents())
    sketch_texts(texts[:10], SketchOptions())
    return timed(lambda: sketch_texts(texts, SketchOptions())), len(texts)


def peer_strings() -> tuple[float, int]:
    """The 5-gram strings that datasketch is fed, made the obvious way."""
    texts = documents()[:PEER_DOCUMENTS]
    word = re.compile(r"\w+")

    def work() -> None:
        for text in texts:
            words = word.findall(text.lower())
            _ = [" ".join(words[i : i + 5]).encode() for i in range(len(words) - 4)]

    return timed(work), len(texts)


def peer_datasketch() -> tuple[float, int]:
    from datasketch import MinHash

    texts = documents()[:PEER_DOCUMENTS]
    word = re.compile(r"\w+")

    def work() -> None:
        for text in texts:
            words = word.findall(text.lower())
            sketch = MinHash(112)
            sketch.update_batch([" ".join(words[i : i + 5]).encode() for i in range(len(words) - 4)])

    return timed(work), len(texts)


def candidate_pairs() -> tuple[float, int]:
    """Band rows to distinct candidate pairs; counted in documents."""
    import numpy as np
    import pyarrow as pa

    from pipelines.duplicates import DuplicateOptions, part_bands, sketch_texts
    from pipelines.pairs import candidates

    options = DuplicateOptions()
    s = sketch_texts(pa.array(families()), options.sketch)
    bands = part_bands(1, s.content[:, 0], s.content[:, 1], s.n_words, s.signature, options)
    return timed(lambda: candidates(bands.take(pa.array(np.arange(len(bands)))), options.max_bucket)), len(s.n_words)


def verified_pairs() -> tuple[float, int]:
    """Candidates to counted similarities, from texts; counted in pairs."""
    import pyarrow as pa

    from pipelines.duplicates import DuplicateOptions, part_bands, sketch_texts
    from pipelines.pairs import candidates, verify

    options = DuplicateOptions()
    texts = pa.array(families())
    s = sketch_texts(texts, options.sketch)
    bands = part_bands(1, s.content[:, 0], s.content[:, 1], s.n_words, s.signature, options)
    found = candidates(bands, options.max_bucket).pairs

    def work() -> None:
        verified = verify(found, lambda _, rows: iter([(rows, texts.take(pa.array(rows)))]), options.shingle, 0.5)
        assert verified.compared == found.num_rows

    return timed(work), found.num_rows


def judged_documents() -> tuple[float, int]:
    """Edges to keepers: a million documents, each with three edges to documents near it."""
    import numpy as np

    from pipelines.clusters import ClusterOptions, Evidence, judge_documents

    count = DOCUMENTS
    rng = np.random.default_rng(0)
    left = np.repeat(np.arange(count - 20), 3)
    right = left + rng.integers(1, 20, len(left))
    numbers = np.arange(count)
    similarity = rng.random(len(left), np.float32) / 2 + 0.5
    evidence = Evidence(np.zeros(count, np.int64), numbers, numbers, left, right, similarity.astype(np.float32))
    rank = rng.permutation(count)
    return timed(lambda: judge_documents(evidence, np.ones(count, bool), rank, ClusterOptions())), count


def sorted_edges() -> tuple[float, int]:
    """The floor of `judged_documents`: one sort of as many numbers as there are edges."""
    import numpy as np

    edges = np.random.default_rng(0).integers(0, 1 << 62, 3 * DOCUMENTS)
    return timed(lambda: np.sort(edges)), DOCUMENTS


WORK: dict[str, Callable[[], tuple[float, int]]] = {
    function.__name__: function
    for function in (
        shingles,
        sketches,
        peer_strings,
        peer_datasketch,
        candidate_pairs,
        verified_pairs,
        judged_documents,
        sorted_edges,
    )
}


def measure(what: str) -> tuple[float, int]:
    """In a process of its own: (documents or pairs per CPU second, peak MiB)."""
    found = subprocess.run([sys.executable, __file__, what], check=True, capture_output=True).stdout
    seconds, count, peak = json.loads(found)
    return count / seconds, peak


def rows() -> list[dict[str, object]]:
    """{"what", "figure", "unit", "limit", "limit_figure", "peak_mib"} a row; empty without the shared data."""
    if not SHARED.exists():
        return []
    speed = {what: measure(what) for what in WORK}
    strings = f"making its strings {speed['peer_strings'][0]:.0f}"
    table = [
        ("sketches", "duplicates: 360-word texts to sketches", "documents", "texts to shingles {}", "shingles"),
        (
            *("sketches", "duplicates: the same beside the peer", "documents"),
            *(f"datasketch {{}}, {strings}", "peer_datasketch"),
        ),
        ("candidate_pairs", "duplicates: sketches to candidates", "documents", "texts to sketches {}", "sketches"),
        ("verified_pairs", "duplicates: candidates verified from text", "pairs", "texts to shingles {}", "shingles"),
        ("judged_documents", "duplicates: keepers", "documents", "one sort of their 3 edges each {}", "sorted_edges"),
    ]
    return [
        {
            "what": name,
            "figure": round(speed[what][0]),
            "unit": f"{unit}/core-s",
            "limit": limit.format(f"{speed[floor][0]:.0f}"),
            "limit_figure": round(speed[floor][0]),
            "peak_mib": speed[what][1],
        }
        for what, name, unit, limit, floor in table
    ]


if __name__ == "__main__":
    if len(sys.argv) == 2:
        taken, number = WORK[sys.argv[1]]()
        print(json.dumps([taken, number, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024]))
    else:
        for row in rows():
            measured = f"{row['figure']:>10} {row['unit']:11} {row['peak_mib']:>5} MiB"
            print(f"{row['what']:45} {measured}   limit: {row['limit']}")
