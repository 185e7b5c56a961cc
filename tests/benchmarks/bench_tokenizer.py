"""Speed and memory of the tokenizer, beside the best compiled tools on the same text and machine.

The text is Python's own standard library, cut into documents of at most 3,000 characters. Every figure is taken in a
process of its own, in seconds of CPU time over all its threads, which a busy machine changes little; `peak_mib` is
what that process needed beyond the text.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from tokenizer.counts import count_pretokens
from tokenizer.encode import Encoder
from tokenizer.pretokens import find_keys, find_pretokens
from tokenizer.train import BpeOptions, train
from tokenizer.vocabulary import END_OF_TEXT, Vocabulary

QUICK = bool(os.environ.get("WEBTEXT_BENCH_QUICK"))
MEGABYTES = 1 if QUICK else 16
SLICE = 200_000 if QUICK else 2_000_000  # bytes shown to the slower tools
DOCUMENT = 3000
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

Measured = tuple[float, Any, float]  # CPU seconds, what the work said, MiB


def sample() -> list[str]:
    documents: list[str] = []
    size = 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" not in path.parts and size < MEGABYTES * 1_000_000:
            text = path.read_text("utf-8", "ignore")
            documents += [text[start : start + DOCUMENT] for start in range(0, len(text), DOCUMENT)]
            size += len(text.encode())
    return documents


def megabytes(documents: list[str]) -> float:
    return sum(len(document.encode()) for document in documents) / 1e6


def few(documents: list[str]) -> list[str]:
    """The first documents, about `SLICE` bytes."""
    return documents[: max(1, SLICE // DOCUMENT)]


def _child(work: Callable[..., Any], arguments: tuple[Any, ...], pipe: Any) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    said = work(*arguments)
    seconds = time.process_time() - start
    if isinstance(said, tuple):  # the work timed its own part
        seconds, said = said
    pipe.send((seconds, said, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))


def measure(work: Callable[..., Any], *arguments: Any) -> Measured:
    """Runs the work in a forked process, which has the text already."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(work, arguments, there))
    process.start()
    there.close()
    try:
        measured: Measured = here.recv()
    finally:
        process.join()
    return measured


def find(texts: pa.Array) -> int:
    return sum(pretokens.count for pretokens in find_pretokens(texts))


def key(texts: pa.Array) -> None:
    for pretokens in find_pretokens(texts):
        find_keys(pretokens)


def count(texts: pa.Array) -> int:
    return len(count_pretokens(texts))


def split_by_reference(documents: list[str]) -> None:
    from tokenizers import pre_tokenizers

    split = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
    for document in documents:
        split(document)


def split_by_regex(documents: list[str]) -> None:
    import regex

    find_all = regex.compile(PATTERN).findall
    for document in documents:
        find_all(document)


def train_counts(table: pa.Table) -> tuple[float, Vocabulary]:
    start = time.process_time()
    vocabulary = train(table, BpeOptions()).vocabulary
    return time.process_time() - start, vocabulary


def train_reference(documents: list[str]) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=50256, min_frequency=2, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(documents, trainer)


def encode(vocabulary: Vocabulary, texts: pa.Array, warm: bool) -> tuple[float, int]:
    encoder = Encoder(vocabulary)
    if warm:
        encoder.encode(texts)
    start = time.process_time()
    found = len(encoder.encode(texts, end_of_text=True).values)
    return time.process_time() - start, found


def encode_by_reference(vocabulary: Vocabulary, documents: list[str]) -> tuple[float, int]:
    from tokenizers import Tokenizer

    from tokenizer.files import tokenizer_files

    tokenizer = Tokenizer.from_str(tokenizer_files(vocabulary)["tokenizer.json"].decode())
    start = time.process_time()
    found = sum(len(each.ids) for each in tokenizer.encode_batch_fast(documents))
    return time.process_time() - start, found


def encode_by_tiktoken(vocabulary: Vocabulary, documents: list[str]) -> tuple[float, int]:
    import tiktoken

    end = {END_OF_TEXT: vocabulary.end_of_text}
    encoding = tiktoken.Encoding("bench", pat_str=PATTERN, mergeable_ranks=vocabulary.ids, special_tokens=end)
    start = time.process_time()
    found = sum(len(encoding.encode_ordinary(document)) for document in documents)
    return time.process_time() - start, found


def row(what: str, figure: float, unit: str, limit: str, beside: float, peak: float) -> dict[str, Any]:
    found = {"what": what, "figure": round(figure, 2), "unit": unit, "limit": limit, "peak_mib": round(peak, 1)}
    return {**found, "limit_figure": round(beside, 2)}


def rows() -> list[dict[str, Any]]:
    """One row a figure; `limit` is what others reach with the same text here."""
    documents = sample()
    some, size = few(documents), megabytes(documents)
    part = megabytes(some)
    texts = pa.array(documents)
    table = count_pretokens(texts)
    found = []

    regex_speed = part / measure(split_by_regex, some)[0]
    reference_speed = part / measure(split_by_reference, some)[0]
    limit = f"regex {regex_speed:.1f}, tokenizers {reference_speed:.1f} MB/core-s"
    for what, work in (("find pretokens", find), ("find and key pretokens", key), ("count pretokens", count)):
        seconds, _, peak = measure(work, texts)
        found.append(row(what, size / seconds, "MB/core-s", limit, regex_speed, peak))

    reference, _, _ = measure(train_reference, documents)
    limit = f"tokenizers {reference:.1f} core-s, counting included"
    seconds, vocabulary, peak = measure(train_counts, table)
    what = f"train {vocabulary.size} tokens from {len(table)} counted"
    found.append(row(what, seconds, "core-s", limit, reference, peak))

    tiktoken_speed = part / measure(encode_by_tiktoken, vocabulary, some)[0]
    reference_speed = part / measure(encode_by_reference, vocabulary, some)[0]
    limit = f"tiktoken {tiktoken_speed:.1f}, encode_batch_fast {reference_speed:.1f} MB/core-s"
    for what, warm in (("encode, first sight", False), ("encode, pretokens known", True)):
        seconds, _, peak = measure(encode, vocabulary, texts, warm)
        found.append(row(what, size / seconds, "MB/core-s", limit, tiktoken_speed, peak))
    return found


if __name__ == "__main__":
    for each in rows():
        print(
            f"{each['what']:42} {each['figure']:9.2f} {each['unit']:9} {each['peak_mib']:8.1f} MiB   {each['limit']}"
        )
