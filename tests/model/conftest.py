"""Shards as the contract of `shards/` has them, written here with plain pyarrow, and a small tokenizer for them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

EOT = "<|endoftext|>"
TEXT = "the cat sat on a mat and looked at one bird that sang in its old tree while rain fell softly"
WORDS = TEXT.split(" ")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def sentences(n: int, seed: int) -> list[str]:
    """Documents with some order in them, so that a model has something to learn."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n):
        start = int(rng.integers(len(WORDS)))
        length = int(rng.integers(5, 40))
        out.append(" ".join(WORDS[(start + i * (1 + start % 3)) % len(WORDS)] for i in range(length)) + ".")
    return out


def make_tokenizer(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE without prefix space, <|endoftext|> last, as GPT-2 has it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([EOT])
    return tokenizer


def write_shard(path: Path, documents: Sequence[dict[str, Any]], per_batch: int, dtype: str) -> dict[str, Any]:
    """One Arrow IPC stream file of {input_ids, doc_id, part, row, n_bytes}; its entry in the manifest."""
    schema = pa.schema(
        [
            ("input_ids", pa.list_(pa.uint16() if dtype == "uint16" else pa.uint32())),
            ("doc_id", pa.string()),
            ("part", pa.uint64()),
            ("row", pa.uint32()),
            ("n_bytes", pa.uint32()),
        ]
    )
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for i in range(0, len(documents), per_batch):
            writer.write_batch(pa.RecordBatch.from_pylist(list(documents[i : i + per_batch]), schema))
    data = path.read_bytes()
    whole = pa.py_buffer(data)
    batches = []
    for batch in pa.ipc.open_stream(whole):
        ids = batch.column("input_ids")
        offset = ids.values.buffers()[1].address - whole.address
        batches.append({"values_offset": offset, "tokens": len(ids.values), "documents": batch.num_rows})
    return {
        "file": path.name,
        "tokens": sum(b["tokens"] for b in batches),
        "documents": len(documents),
        "n_bytes": sum(d["n_bytes"] for d in documents),
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "batches": batches,
    }


def write_manifest(folder: Path, rest: dict[str, Any]) -> None:
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    fingerprint = hashlib.sha256(text.encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps({**rest, "fingerprint": fingerprint}))


def write_shards(
    folder: Path,
    splits: dict[str, Sequence[Sequence[Sequence[int]]]],
    vocab_size: int,
    eot_id: int,
    tokenizer_sha256: str = "0" * 64,
    per_batch: int = 7,
    n_bytes: dict[str, Sequence[Sequence[int]]] | None = None,
) -> Path:
    """A shards folder. `splits[split][shard]` is a list of documents, each a list of ids ending with end-of-text."""
    folder.mkdir(parents=True, exist_ok=True)
    dtype = "uint16" if vocab_size <= 65536 else "uint32"
    entries: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    for split, shards in splits.items():
        for s, shard in enumerate(shards):
            documents = [
                {
                    "input_ids": list(ids),
                    "doc_id": f"{split[0]}{s:03d}{row:028d}",
                    "part": 2**63 + s,
                    "row": row,
                    "n_bytes": n_bytes[split][s][row] if n_bytes else 3 * (len(ids) - 1),
                }
                for row, ids in enumerate(shard)
            ]
            entries[split].append(write_shard(folder / f"{split}-{s:04d}.arrow", documents, per_batch, dtype))
    rest = {"format": "webtext-shards", "version": 1, "dtype": dtype, "vocab_size": vocab_size, "eot_id": eot_id}
    write_manifest(folder, {**rest, "tokenizer_sha256": tokenizer_sha256, "splits": entries})
    return folder


def write_corpus(
    root: Path, train: Sequence[str], validation: Sequence[str], vocab_size: int, per_batch: int = 50
) -> Path:
    """shards/ and tokenizer/ of a text corpus under root; returns the shards folder."""
    tokenizer = make_tokenizer(train, vocab_size)
    (root / "tokenizer").mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(root / "tokenizer" / "tokenizer.json"))
    sha256 = hashlib.sha256((root / "tokenizer" / "tokenizer.json").read_bytes()).hexdigest()
    eot_id = tokenizer.token_to_id(EOT)
    texts = {"train": train, "validation": validation}
    splits = {k: [[[*e.ids, eot_id] for e in tokenizer.encode_batch(list(v))]] for k, v in texts.items()}
    n_bytes = {k: [[len(text.encode()) for text in v]] for k, v in texts.items()}
    return write_shards(
        root / "shards", splits, tokenizer.get_vocab_size(), eot_id, sha256, per_batch=per_batch, n_bytes=n_bytes
    )


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards folder of a small synthetic corpus, its tokenizer beside it."""
    root = tmp_path_factory.mktemp("corpus")
    return write_corpus(root, sentences(400, 1), sentences(40, 2), vocab_size=320)


@pytest.fixture(scope="session")
def make_shards() -> Callable[..., Path]:
    return write_shards


@pytest.fixture(scope="session")
def seal_manifest() -> Callable[[Path, dict[str, Any]], None]:
    return write_manifest
