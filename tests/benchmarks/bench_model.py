"""Speed of the model's parts on one CPU thread: batches from shards, a training step, scoring, a checkpoint.

The limit of a step is the rate of the same process's float32 matrix product over the operations a token costs
(6N + 12·L·C·T); of the loader, copying the same windows out of an array in memory. Processor time, so that a busy
machine shows less. Run alone: `python tests/benchmarks/bench_model.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

QUICK = bool(os.environ.get("WEBTEXT_BENCH_QUICK"))
TOKENS = 1 << (22 if QUICK else 26)
WINDOW = 1024
VOCAB = 4096


def timed(work: Callable[[], object], repeats: int = 3) -> float:
    """Least processor seconds of one call."""
    best = float("inf")
    for _ in range(1 if QUICK else repeats):
        begin = time.process_time()
        work()
        best = min(best, time.process_time() - begin)
    return best


def make_shards(folder: Path) -> None:
    """TOKENS random tokens in one shard of 16 record batches, documents of 1,024 tokens."""
    import numpy as np
    import pyarrow as pa

    rng = np.random.default_rng(0)
    per_batch = TOKENS // 16
    documents = per_batch // 1024
    path = folder / "train-0000.arrow"
    batches = []
    schema = pa.schema(
        {"input_ids": pa.list_(pa.uint16()), "doc_id": pa.string(), "part": pa.uint64(), "row": pa.uint32()}
    )
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for i in range(16):
            values = pa.array(rng.integers(0, VOCAB, per_batch, np.uint16))
            borders = pa.array(np.arange(documents + 1, dtype=np.int32) * 1024)
            rows = np.arange(documents)
            columns = [
                pa.ListArray.from_arrays(borders, values),
                pa.array([f"{i:04x}{row:028x}" for row in rows]),
                pa.array(np.zeros(documents, np.uint64)),
                pa.array(rows.astype(np.uint32)),
            ]
            writer.write_batch(pa.record_batch(columns, schema=schema))
    whole = pa.memory_map(str(path)).read_buffer()
    for batch in pa.ipc.open_stream(pa.BufferReader(whole)):
        address = batch.column("input_ids").values.buffers()[1].address
        batches.append({"values_offset": address - whole.address, "tokens": per_batch, "documents": documents})
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    entry = {"file": path.name, "tokens": TOKENS, "documents": documents * 16, "n_bytes": 4 * TOKENS}
    entry |= {"size": path.stat().st_size, "sha256": sha256, "batches": batches}
    rest: dict[str, object] = {"format": "webtext-shards", "version": 1, "dtype": "uint16", "vocab_size": VOCAB}
    rest |= {"eot_id": VOCAB - 1, "tokenizer_sha256": "0" * 64, "splits": {"train": [entry], "validation": []}}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    rest["fingerprint"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(rest))


def open_shards(folder: Path) -> tuple[float, int]:
    from model.loader import open_stream

    return timed(lambda: open_stream(folder, "train", verify=False)), TOKENS


def batches(folder: Path) -> tuple[float, int]:
    """Random windows as int64 inputs and targets, 64 windows a batch."""
    from model.loader import Loader, open_stream

    loader = Loader(open_stream(folder, "train", verify=False), WINDOW, 64, seed=0)

    def work() -> None:
        for _ in range(100):
            loader.next()

    work()  # the file's pages are in memory from here on
    return timed(work), 100 * 64 * WINDOW


def copied_windows(folder: Path) -> tuple[float, int]:
    """The floor of `batches`: the same number of windows out of an array, widened into a batch."""
    import numpy as np

    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCAB, TOKENS, np.uint16)
    starts = rng.integers(0, TOKENS - WINDOW - 1, (100, 64))
    batch = np.empty((64, WINDOW + 1), np.int64)

    def work() -> None:
        for row in starts:
            for i, start in enumerate(row):
                batch[i] = tokens[start : start + WINDOW + 1]

    work()
    return timed(work), 100 * 64 * WINDOW


def training(folder: Path) -> tuple[float, int]:
    import torch

    from model.gpt import GPT
    from model.loader import Loader, open_stream
    from model.options import TrainOptions
    from model.train import make_optimizer, plan_of, train_step

    stream = open_stream(folder, "train")
    plan = plan_of(TrainOptions(str(folder), "", preset="demo", seed=0), stream, torch.device("cpu"))
    loader, model = Loader(stream, plan.config.n_ctx, plan.batch, 0), GPT(plan.config)
    optimizer = make_optimizer(model, plan)

    def work() -> None:
        for _ in range(4):
            train_step(model, model.loss, optimizer, plan, loader)

    work()
    return timed(work, 5), 4 * plan.batch_tokens


def scoring(folder: Path) -> tuple[float, int]:
    from dataclasses import replace

    from model.evaluate import loglikelihood
    from model.gpt import GPT, PRESETS
    from model.loader import open_stream

    model = GPT(replace(PRESETS["demo"], vocab_size=VOCAB))
    ids = open_stream(folder, "train").read(0, 128 * 64 + 1).tolist()
    requests = [(ids[i : i + 1], ids[i + 1 : i + 129]) for i in range(0, 128 * 64, 128)]
    loglikelihood(model, requests)
    return timed(lambda: loglikelihood(model, requests)), 128 * 64


def products(folder: Path) -> tuple[float, int]:
    """Operations of the demo model's widest layers as bare matrix products, forward and backward, per token."""
    import torch

    x, w, v = torch.randn(1024, 128), torch.randn(512, 128), torch.randn(VOCAB, 128)

    def work() -> None:
        for _ in range(10):
            for weight in (w, v):
                y = x @ weight.T
                _ = y @ weight
                _ = y.T @ x

    work()
    return timed(work), 10 * 6 * 1024 * 128 * (512 + VOCAB)


def checkpoint(folder: Path) -> tuple[float, int]:
    """124 M parameters and their moments, hashed and flushed, in wall time; counted in bytes."""
    import torch

    from model.checkpoint import save_checkpoint
    from model.gpt import GPT, PRESETS

    model = GPT(PRESETS["demo" if QUICK else "gpt2"])
    training = {f"{kind}.{n}": torch.zeros_like(p) for kind in ("a", "b") for n, p in model.named_parameters()}
    begin = time.perf_counter()
    path = save_checkpoint(folder, {"step": 1}, model, training, b"{}")
    return time.perf_counter() - begin, sum(file.stat().st_size for file in path.iterdir())


def written_bytes(folder: Path) -> tuple[float, int]:
    """The floor of `checkpoint`: 500 MB written and flushed, in wall time."""
    data = bytes(5_000_000 if QUICK else 500_000_000)
    begin = time.perf_counter()
    with (folder / "plain").open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - begin, len(data)


MEASURED = (open_shards, batches, copied_windows, training, scoring, products, checkpoint, written_bytes)
WORK: dict[str, Callable[[Path], tuple[float, int]]] = {function.__name__: function for function in MEASURED}


def measure(what: str, folder: Path) -> tuple[float, int, int]:
    """In a process of its own, on one thread: seconds, how much was done, peak MiB."""
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    command = [sys.executable, __file__, what, str(folder)]
    seconds, count, peak = json.loads(
        subprocess.run(command, check=True, capture_output=True, env=environment).stdout
    )
    return seconds, count, peak


def rows() -> list[dict[str, object]]:
    """{"what", "figure", "unit", "limit", "limit_figure", "peak_mib"} per measurement."""
    from dataclasses import replace

    from model.gpt import PRESETS, flops_per_token

    with tempfile.TemporaryDirectory() as name:
        make_shards(Path(name))
        found = {what: measure(what, Path(name)) for what in WORK}
    rate = {what: count / seconds for what, (seconds, count, _) in found.items()}
    operations = flops_per_token(replace(PRESETS["demo"], vocab_size=VOCAB))
    floor = rate["products"] / operations
    table: list[tuple[str, str, float, str, str, float | None]] = [
        (
            "open_shards",
            "model: open 64 M tokens",
            1000 * found["open_shards"][0],
            "ms",
            "documents' borders checked",
            None,
        ),
        (
            *("batches", "model: shards to batches", rate["batches"] / 1e6, "Mtoken/core-s"),
            f"copying the windows: {rate['copied_windows'] / 1e6:.0f} Mtoken/s",
            rate["copied_windows"] / 1e6,
        ),
        (
            *("training", "model: training step, demo preset", rate["training"], "token/core-s"),
            f"its matrix products at {rate['products'] / 1e9:.0f} GFLOP/s: {floor:.0f} token/s",
            floor,
        ),
        (
            *("scoring", "model: log-likelihoods, demo preset", rate["scoring"], "token/core-s"),
            f"its matrix products: {3 * floor:.0f} token/s",
            3 * floor,
        ),
        (
            *("checkpoint", "model: save GPT-2 124M with moments", rate["checkpoint"] / 1e6, "MB/s"),
            f"write and flush: {rate['written_bytes'] / 1e6:.0f} MB/s",
            rate["written_bytes"] / 1e6,
        ),
    ]
    return [
        {
            "what": name,
            "figure": round(figure, 1),
            "unit": unit,
            "limit": limit,
            "limit_figure": None if beside is None else round(beside, 1),
            "peak_mib": found[what][2],
        }
        for what, name, figure, unit, limit, beside in table
    ]


if __name__ == "__main__":
    if len(sys.argv) == 3:
        taken, number = WORK[sys.argv[1]](Path(sys.argv[2]))
        # Not `ru_maxrss`: a new process inherits its parent's there, up to the fork, and the parent made the shards.
        status = Path("/proc/self/status").read_text()
        print(json.dumps([taken, number, int(status.partition("VmHWM:")[2].split()[0]) // 1024]))
    else:
        sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
        for row in rows():
            measured = f"{row['figure']:>10} {row['unit']:9} {row['peak_mib']:>5} MiB"
            print(f"{row['what']:40} {measured}   limit: {row['limit']}")
