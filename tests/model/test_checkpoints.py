"""Checkpoints: whole or absent, usable alone, damage named, the one before offered, newest and best kept."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.checkpoint import (
    CheckpointError,
    keep_checkpoints,
    list_checkpoints,
    load_model,
    load_tokenizer,
    open_checkpoint,
    save_checkpoint,
)
from model.gpt import GPT, GPTConfig
from model.options import TrainOptions
from model.train import train


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    torch.set_num_threads(1)
    options = TrainOptions(
        *(str(corpus), str(run)),
        **{"preset": "tiny", "n_embd": 32, "n_ctx": 16, "batch_tokens": 128, "steps": 12, "device": "cpu"},
        **{"evaluate_every": 4, "checkpoint_every": 4, "keep_last": 3},
    )
    train(options, out=None)
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_a_checkpoint_is_usable_alone(run: Path, tmp_path: Path) -> None:
    newest = open_checkpoint(run)
    assert newest.step == 12
    alone = Path(shutil.copytree(newest.path, tmp_path / "elsewhere" / "mine"))
    shutil.rmtree(run)
    checkpoint = open_checkpoint(alone)
    tokenizer = load_tokenizer(checkpoint)
    ids = tokenizer.encode("the cat sat").ids
    assert load_model(checkpoint)(torch.tensor([ids])).shape == (1, len(ids), tokenizer.get_vocab_size())
    assert "<|endoftext|>" not in tokenizer.encode("<|endoftext|>").tokens  # in a text these are just characters


def test_only_safetensors_and_json_are_written(run: Path) -> None:
    assert {path.name for path in open_checkpoint(run).path.iterdir()} == {
        "checkpoint.json",
        "model.safetensors",
        "tokenizer.json",
        "training.safetensors",
    }


DAMAGES = [(name, how) for name in ("model.safetensors", "training.safetensors") for how in ("cut", "flip", "gone")]
DAMAGES += [("tokenizer.json", "cut"), ("tokenizer.json", "flip"), ("checkpoint.json", "cut")]


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_damage_is_named_and_the_one_before_offered(run: Path, name: str, damage: str) -> None:
    newest = list_checkpoints(run)[-1]
    file = newest / name
    data = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    else:
        data[len(data) // 2] ^= 64
        file.write_bytes(data[: len(data) // 2] if damage == "cut" else data)
    with pytest.raises(CheckpointError, match=rf"step-00000012: {name}.*the one before it is whole: .*step-00000008"):
        open_checkpoint(run)
    assert open_checkpoint(run / "checkpoints" / "step-00000008").step == 8


def test_without_its_index_there_is_no_checkpoint(run: Path) -> None:
    newest = list_checkpoints(run)[-1]
    (newest / "checkpoint.json").unlink()
    assert open_checkpoint(run).step == 8
    with pytest.raises(CheckpointError, match=r"step-00000012: checkpoint\.json is missing; .*step-00000008"):
        open_checkpoint(newest)


def test_training_goes_on_from_the_one_offered(corpus: Path, run: Path, trained: Path) -> None:
    (list_checkpoints(run)[-1] / "model.safetensors").write_bytes(b"")
    options = TrainOptions(
        *(str(corpus), str(run)),
        **{"preset": "tiny", "n_embd": 32, "n_ctx": 16, "batch_tokens": 128, "steps": 12, "device": "cpu"},
        **{"evaluate_every": 4, "checkpoint_every": 4, "keep_last": 3},
    )
    with pytest.raises(CheckpointError, match="step-00000008"):
        train(options, out=None)
    train(replace(options, resume_from=str(run / "checkpoints" / "step-00000008")), out=None)
    again, before = open_checkpoint(run), open_checkpoint(trained)
    assert again.record["files"]["model.safetensors"] == before.record["files"]["model.safetensors"]


def test_no_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither a checkpoint nor a run"):
        open_checkpoint(tmp_path)


def test_a_writer_that_died_leaves_nothing_visible(run: Path) -> None:
    """A partial folder is not a checkpoint, and the next save clears it away."""
    partial = run / "checkpoints" / ".step-00000099.partial"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    assert open_checkpoint(run).step == 12
    model = GPT(GPTConfig(vocab_size=10, n_ctx=4, n_layer=1, n_head=1, n_embd=8))
    save_checkpoint(run, {"step": 13}, model, {"rng.cpu": torch.get_rng_state()}, b"{}")
    assert not partial.exists()
    assert open_checkpoint(run).step == 13


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    config = GPTConfig(vocab_size=10, n_ctx=4, n_layer=1, n_head=1, n_embd=8)
    for seed in (1, 2):
        path = save_checkpoint(tmp_path, {"step": 5}, GPT(config, seed), {"x": torch.zeros(1)}, b"{}")
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000005"]
    assert torch.equal(load_model(open_checkpoint(path)).wte.weight, GPT(config, 2).wte.weight)


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    model = GPT(GPTConfig(vocab_size=10, n_ctx=4, n_layer=1, n_head=1, n_embd=8))
    for step in range(1, 7):
        save_checkpoint(tmp_path, {"step": step}, model, {"x": torch.zeros(1)}, b"{}")
    keep_checkpoints(tmp_path, keep_last=2, best=3)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000003", "step-00000005", "step-00000006"]


def test_the_best_checkpoint_is_found(run: Path) -> None:
    best = open_checkpoint(run, best=True)
    newest = open_checkpoint(run)
    assert best.step == newest.record["best"]["step"]
    losses = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in losses if line["event"] == "evaluation" and line["step"] > 0]
    assert newest.record["best"]["loss"] == min(losses)
