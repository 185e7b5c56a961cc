"""What lies in a checkpoint, a run or a shards folder; and which documents a training step read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model.checkpoint import open_checkpoint, run_of
from model.gpt import count_parameters
from model.loader import MANIFEST, Loader, State, Stream, open_stream
from model.options import InfoOptions
from model.verified import VERIFIED


def info(options: InfoOptions) -> dict[str, Any]:
    """Figures as a flat record; with `step` also `seen`, a record per window and document. Raises ValueError."""
    if (Path(options.path) / MANIFEST).is_file():
        return shards_info(options)
    checkpoint = open_checkpoint(options.path)
    record, config = checkpoint.record, checkpoint.config
    out: dict[str, Any] = {"checkpoint": str(checkpoint.path), "parameters": count_parameters(config)}
    out |= {**config.to_json(), "step": record["step"], "steps": record["plan"]["steps"], "tokens": record["tokens"]}
    out |= {"epoch": record["data"]["epoch"], "train_loss": record["train_loss"]}
    if record["validation"]:
        out |= {f"validation_{name}": value for name, value in record["validation"].items()}
    if record["best"]:
        out |= {"best_step": record["best"]["step"], "best_loss": record["best"]["loss"]}
    if options.step is not None:
        verified = run_of(checkpoint) / VERIFIED
        stream = open_stream(options.shards or record["shards"], "train", verified=verified, again=options.verify)
        out["seen"] = seen_by(stream, State(**record["data"]), options.step)
    return out


def seen_by(stream: Stream, state: State, step: int) -> list[dict[str, Any]]:
    """The documents that step `step` (from 1) of the run with this state read or will read, window by window."""
    loader = Loader(stream, state.window, state.batch, state.seed)
    loader.resume(state)
    rows: list[dict[str, Any]] = loader.trace(step - 1).to_pylist()
    return rows


def shards_info(options: InfoOptions) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for split in ("train", "validation"):
        stream = open_stream(options.path, split, verify=options.verify)
        out |= {"fingerprint": stream.fingerprint, "vocab_size": stream.vocab_size}
        out |= {f"{split}_tokens": stream.n_tokens, f"{split}_documents": stream.n_documents}
        out |= {f"{split}_bytes": stream.n_bytes, f"{split}_files": len({s.file for s in stream.segments})}
    return out
