"""Checkpoints: safetensors and JSON, whole or absent, enough to go on from bit for bit and usable alone.

    runs/<name>/checkpoints/step-00000200/
        model.safetensors       the weights, float32, the tied head once
        training.safetensors    AdamW's moments and steps by parameter name, and the random generators' states
        tokenizer.json          a copy of the tokenizer the shards were made with
        checkpoint.json         configuration, options, place in the data, validation loss; written last:
                                it lists the other files with size and sha256

A checkpoint is written into a hidden folder beside its final name, flushed to the disk, and renamed. Nothing is ever
unpickled. Loading checks every file against the list; one that does not match is named, and the one before offered.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.gpt import GPT, GPTConfig

FORMAT = "webtext-checkpoint"
VERSION = 1
FOLDER = "checkpoints"
INDEX = "checkpoint.json"
WEIGHTS = "model.safetensors"
TRAINING = "training.safetensors"
TOKENIZER = "tokenizer.json"
MAX_INDEX_BYTES = 16 << 20
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class CheckpointError(ValueError):
    """There is no checkpoint where one was named, or it is not whole."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint. `record` is checkpoint.json: step, tokens, config, plan, data, validation, best, …"""

    path: Path
    record: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.record["step"])

    @property
    def config(self) -> GPTConfig:
        return GPTConfig(**self.record["config"])


def name_of(step: int) -> str:
    return f"step-{step:08d}"


def list_checkpoints(run: str | Path) -> list[Path]:
    """The finished checkpoint folders of a run, by step. Not opened, so not verified."""
    return sorted(path for path in (Path(run) / FOLDER).glob("step-*") if (path / INDEX).is_file())


def save_checkpoint(
    run: str | Path, record: dict[str, Any], model: GPT, training: dict[str, Tensor], tokenizer: bytes
) -> Path:
    """Write one checkpoint of `record["step"]`, atomically, and return its folder. An older one of that step goes."""
    folder = Path(run) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".*.partial"):
        shutil.rmtree(leftover)
    final = folder / name_of(record["step"])
    partial = folder / f".{final.name}.partial"
    partial.mkdir()
    save_file(on_cpu(model.state_dict()), partial / WEIGHTS, metadata={"format": "pt"})
    save_file(on_cpu(training), partial / TRAINING)
    (partial / TOKENIZER).write_bytes(tokenizer)
    index = {
        "format": FORMAT,
        "version": VERSION,
        **record,
        "config": model.config.to_json(),
        "files": {name: flushed(partial / name) for name in (WEIGHTS, TRAINING, TOKENIZER)},
    }
    (partial / INDEX).write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")
    flushed(partial / INDEX)
    flush_folder(partial)
    if final.exists():
        aside = folder / f".{final.name}.old.partial"
        final.rename(aside)
        partial.rename(final)
        shutil.rmtree(aside)
    else:
        partial.rename(final)
    flush_folder(folder)
    return final


def on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def flushed(path: Path) -> dict[str, int | str]:
    """Bring a file to the disk; its size and sha256."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def flush_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def keep_checkpoints(run: str | Path, keep_last: int, best: int | None) -> list[Path]:
    """Delete all but the `keep_last` newest checkpoints and the one of step `best`; returns those deleted."""
    paths = list_checkpoints(run)
    spare = set(paths[-keep_last:]) | {p for p in paths if best is not None and p.name == name_of(best)}
    gone = [path for path in paths if path not in spare]
    for path in gone:
        hidden = path.with_name(f".{path.name}.gone.partial")
        path.rename(hidden)
        shutil.rmtree(hidden)
    return gone


def open_checkpoint(path: str | Path, best: bool = False) -> Checkpoint:
    """Open a checkpoint folder, or a run's newest (or best by validation loss) one, and verify its files.

    Raises CheckpointError naming what is damaged and the checkpoint before it, if there is one.
    """
    path = Path(path)
    if (path / INDEX).is_file() or path.name.startswith("step-"):
        return verified(path)
    paths = list_checkpoints(path)
    if not paths:
        raise CheckpointError(f"{path}: neither a checkpoint nor a run with checkpoints")
    newest = verified(paths[-1])
    if not best or newest.record.get("best") is None:
        return newest
    return verified(path / FOLDER / name_of(newest.record["best"]["step"]))


def verified(path: Path) -> Checkpoint:
    """Check a checkpoint folder against its own list. Raises CheckpointError."""
    reason = fault_of(path)
    if reason is None:
        return Checkpoint(path, json.loads((path / INDEX).read_bytes()))
    before = [p for p in list_checkpoints(path.parent.parent) if p.name < path.name and fault_of(p) is None]
    offer = f"the one before it is whole: {before[-1]}" if before else "there is no whole one before it"
    raise CheckpointError(f"{path}: {reason}; {offer}")


def fault_of(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None."""
    index = path / INDEX
    if not index.is_file():
        return f"{INDEX} is missing"
    if index.stat().st_size > MAX_INDEX_BYTES:
        return f"{INDEX} is larger than {MAX_INDEX_BYTES} bytes"
    try:
        record = json.loads(index.read_bytes())
        if record["format"] != FORMAT or record["version"] != VERSION:
            return f"{INDEX} is {record['format']!r} version {record['version']!r}, not {FORMAT} version {VERSION}"
        GPTConfig(**record["config"])
        for name in (WEIGHTS, TRAINING, TOKENIZER):
            said, file = record["files"][name], path / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != said["size"]:
                return f"{name} has {file.stat().st_size} bytes where {said['size']} were written"
            with file.open("rb") as opened:
                if hashlib.file_digest(opened, "sha256").hexdigest() != said["sha256"]:
                    return f"{name} does not have the sha256 it was written with"
    except (ValueError, KeyError, TypeError) as error:
        return f"{INDEX} is damaged ({type(error).__name__}: {error})"
    return None


def run_of(checkpoint: Checkpoint) -> Path:
    """The run's folder, or the checkpoint's own where it stands alone."""
    parent = checkpoint.path.parent
    return parent.parent if parent.name == FOLDER else checkpoint.path


def load_tensors(checkpoint: Checkpoint, name: str) -> dict[str, Tensor]:
    """One safetensors file of a checkpoint, on the CPU. Raises CheckpointError."""
    try:
        return dict(load_file(checkpoint.path / name))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{checkpoint.path / name}: {error}") from None


def load_model(checkpoint: Checkpoint, device: str = "cpu") -> GPT:
    """The model of a checkpoint, in float32, in evaluation mode. Raises CheckpointError if the weights do not fit."""
    model = GPT(checkpoint.config)
    try:
        model.load_state_dict(load_tensors(checkpoint, WEIGHTS), strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{checkpoint.path / WEIGHTS}: {error}") from None
    return model.to(device).eval()


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The checkpoint's own `tokenizers.Tokenizer`. Special tokens in a text are read as the characters they are."""
    return tokenizer_from((checkpoint.path / TOKENIZER).read_bytes(), str(checkpoint.path / TOKENIZER))


def tokenizer_from(data: bytes, name: str) -> Any:
    """A `tokenizers.Tokenizer` from the bytes of a tokenizer.json. Raises ValueError naming the file."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(data.decode())
    except Exception as error:  # tokenizers raises bare Exception for every malformed file
        raise ValueError(f"{name}: not a tokenizer: {error}") from None
    tokenizer.encode_special_tokens = True
    return tokenizer


def training_tensors(model: GPT, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's state by parameter name, and the states of the random generators."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    out = {
        f"{key}.{names[id(parameter)]}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }
    out["rng.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        out |= {f"rng.cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return out


def restore_training(checkpoint: Checkpoint, model: GPT, optimizer: torch.optim.Optimizer) -> None:
    """Put back what `training_tensors` took. Raises CheckpointError if anything is missing."""
    tensors = load_tensors(checkpoint, TRAINING)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    ordered = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    missing = [f"{key}.{name}" for name in ordered for key in MOMENTS if f"{key}.{name}" not in tensors]
    if missing or "rng.cpu" not in tensors:
        raise CheckpointError(f"{checkpoint.path / TRAINING}: no {missing[0] if missing else 'rng.cpu'}")
    state = {i: {key: tensors[f"{key}.{name}"] for key in MOMENTS} for i, name in enumerate(ordered)}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(tensors["rng.cpu"])
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            if f"rng.cuda.{i}" in tensors:
                torch.cuda.set_rng_state(tensors[f"rng.cuda.{i}"], i)
