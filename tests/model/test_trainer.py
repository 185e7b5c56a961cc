"""Training: it learns, repeats itself to the bit, continues to the bit (after SIGKILL too), says what is wrong."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoint import list_checkpoints, load_model, open_checkpoint
from model.evaluate import evaluate, validate
from model.gpt import GPT
from model.info import info
from model.loader import Loader, ShardError, StateError, open_stream
from model.log import read_log
from model.options import EvaluateOptions, InfoOptions, Preset, TrainOptions
from model.train import (
    PRESETS,
    RECIPES,
    Plan,
    TrainingDiverged,
    learning_rate,
    make_optimizer,
    plan_of,
    train,
    train_step,
)
from model.verified import VERIFIED

CPU = torch.device("cpu")


def small(corpus: Path, run: Path, **changes: Any) -> TrainOptions:
    options = TrainOptions(
        shards=str(corpus),
        run=str(run),
        preset="tiny",
        n_layer=2,
        n_head=2,
        n_embd=32,
        n_ctx=16,
        batch_tokens=128,
        steps=20,
        learning_rate=1e-2,
        evaluate_every=5,
        checkpoint_every=5,
        log_every=1,
        device="cpu",
    )
    return replace(options, **changes)


def digests(checkpoint: str | Path) -> dict[str, str]:
    """Hashes of everything in a checkpoint that training shaped."""
    names = ("model.safetensors", "training.safetensors", "tokenizer.json")
    return {name: hashlib.sha256((Path(checkpoint) / name).read_bytes()).hexdigest() for name in names}


def test_loss_falls_below_the_unigram_bound(corpus: Path, tmp_path: Path) -> None:
    stream = open_stream(corpus, "train")
    counts = torch.bincount(torch.from_numpy(stream.read(0, stream.n_tokens))).double()
    shares = counts[counts > 0] / counts.sum()
    unigram = float(-(shares * shares.log()).sum())
    result = train(small(corpus, tmp_path / "run", steps=120, evaluate_every=30, checkpoint_every=120), out=None)
    assert result.finished
    assert result.validation_loss is not None
    assert result.validation_loss < unigram - 1.0
    assert result.bits_per_byte is not None
    log = read_log(tmp_path / "run")
    first = next(line for line in log if line["event"] == "step")
    assert math.isclose(first["loss"], math.log(stream.vocab_size), abs_tol=0.2)
    evaluations = [line["loss"] for line in log if line["event"] == "evaluation"]
    assert evaluations[0] > evaluations[len(evaluations) // 2] > evaluations[-1] - 0.2


def test_two_runs_are_bitwise_equal_and_seeds_differ(corpus: Path, tmp_path: Path) -> None:
    a = train(small(corpus, tmp_path / "a", dropout=0.1), out=None)
    b = train(small(corpus, tmp_path / "b", dropout=0.1), out=None)
    c = train(small(corpus, tmp_path / "c", dropout=0.1, seed=1), out=None)
    assert digests(a.checkpoint) == digests(b.checkpoint)
    assert digests(a.checkpoint)["model.safetensors"] != digests(c.checkpoint)["model.safetensors"]


@pytest.mark.parametrize("stop", [1, 7, 13])
def test_resume_is_bitwise_equal(corpus: Path, tmp_path: Path, stop: int) -> None:
    """Dropout on: the random generators must continue too. The log reads as if nothing had happened."""
    whole = train(small(corpus, tmp_path / "whole", dropout=0.1), out=None)
    half = train(small(corpus, tmp_path / "half", dropout=0.1, stop_after=stop), out=None)
    assert (half.finished, half.step) == (False, stop)
    rest = train(small(corpus, tmp_path / "half", dropout=0.1), out=None)
    assert (rest.finished, rest.step) == (True, 20)
    assert digests(rest.checkpoint) == digests(whole.checkpoint)

    def history(run: str) -> list[tuple[Any, ...]]:
        kinds = ("step", "evaluation")
        return [(x["event"], x["step"], x["loss"]) for x in read_log(tmp_path / run) if x["event"] in kinds]

    assert history("half") == history("whole")
    assert rest.validation_loss == whole.validation_loss


def test_an_altered_shard_stops_a_run_before_it_trains_and_an_evaluation_of_it(corpus: Path, tmp_path: Path) -> None:
    """Of equal size: noticed by the first call of a run and, where the shard changed since, by any later one."""
    shards, run = tmp_path / "shards", tmp_path / "run"
    shutil.copytree(corpus, shards)
    shutil.copytree(corpus.parent / "tokenizer", tmp_path / "tokenizer")
    train(small(shards, run, stop_after=5), out=None)
    assert (run / VERIFIED).is_file()
    for split in ("train", "validation"):
        (path,) = shards.glob(f"{split}-*.arrow")
        whole, status = path.read_bytes(), path.stat()
        entry = json.loads((shards / "manifest.json").read_text())["splits"][split][0]
        data = bytearray(whole)
        data[entry["batches"][0]["values_offset"]] ^= 1
        path.write_bytes(data)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1000))
        for name in ("run", "another"):
            with pytest.raises(ShardError, match=rf"{path.name}: sha256 .* it was altered"):
                train(small(shards, tmp_path / name), out=None)
        if split == "validation":
            with pytest.raises(ShardError, match=rf"{path.name}: sha256"):
                evaluate(EvaluateOptions(str(run), shards=str(shards), device="cpu"))
        else:
            with pytest.raises(ShardError, match=rf"{path.name}: sha256"):
                info(InfoOptions(str(run), step=1))
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # hidden by its time
            assert info(InfoOptions(str(run), step=1))["seen"]
            with pytest.raises(ShardError, match=rf"{path.name}: sha256"):
                train(small(shards, run, verify=True), out=None)
        path.write_bytes(whole)
    assert train(small(shards, run), out=None).finished


def test_a_finished_run_is_not_trained_again(corpus: Path, tmp_path: Path) -> None:
    first = train(small(corpus, tmp_path / "run"), out=None)
    again = train(small(corpus, tmp_path / "run"), out=None)
    assert again.finished
    assert again.checkpoint == first.checkpoint
    assert again.validation_loss == first.validation_loss
    assert again.train_loss == first.train_loss


def test_sigkill_and_the_same_command_again_give_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    options = small(corpus, tmp_path / "whole", steps=60, checkpoint_every=3, dropout=0.1)
    whole = train(options, out=None)
    flags = [
        *["--preset", "tiny", "--n-layer", "2", "--n-head", "2", "--n-embd", "32", "--n-ctx", "16"],
        *["--batch-tokens", "128", "--steps", "60", "--learning-rate", "1e-2", "--evaluate-every", "5"],
        *[
            "--checkpoint-every",
            "3",
            "--log-every",
            "1",
            "--device",
            "cpu",
            "--dropout",
            "0.1",
            "--threads",
            "1",
            "-q",
        ],
    ]
    command = [sys.executable, "-m", "model", "train", str(corpus), str(tmp_path / "killed"), *flags]
    root = Path(__file__).resolve().parents[2]
    kills = 0
    for wanted in (2, 5):
        process = subprocess.Popen(command, cwd=root, start_new_session=True)
        while process.poll() is None:
            done = list_checkpoints(tmp_path / "killed")
            if done and int(done[-1].name.removeprefix("step-")) >= 3 * wanted:
                os.killpg(process.pid, signal.SIGKILL)
                kills += process.wait() == -signal.SIGKILL
                break
            time.sleep(0.002)
    assert kills >= 1
    subprocess.run(command, cwd=root, check=True)
    finished = open_checkpoint(tmp_path / "killed")
    assert finished.step == 60
    assert digests(finished.path) == digests(whole.checkpoint)
    steps = [line["step"] for line in read_log(tmp_path / "killed") if line["event"] == "step"]
    assert steps == list(range(1, 61))


def test_micro_batches_change_rounding_only(corpus: Path) -> None:
    stream = open_stream(corpus, "train")
    models = []
    for micro_batch in (8, 2):
        plan = plan_of(small(corpus, Path("unused"), micro_batch=micro_batch), stream, CPU)
        loader, model = Loader(stream, 16, 8, 0), GPT(plan.config)
        optimizer = make_optimizer(model, plan)
        loss, norm = train_step(model, model.loss, optimizer, plan, loader)
        models.append((model, float(loss), float(norm)))
    (a, loss_a, norm_a), (b, loss_b, norm_b) = models
    assert math.isclose(loss_a, loss_b, rel_tol=1e-5)
    assert math.isclose(norm_a, norm_b, rel_tol=1e-4)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.allclose(p, q, atol=2e-4)


def test_gradient_norm_is_clipped_after_accumulation(corpus: Path) -> None:
    """With plain SGD of rate 1, the step's length is the clipped norm itself."""
    stream = open_stream(corpus, "train")
    plan = plan_of(small(corpus, Path("unused"), micro_batch=2, clip=0.01), stream, CPU)
    plan = replace(plan, learning_rate=1.0, warmup_steps=0)
    model = GPT(plan.config)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    _, norm = train_step(model, model.loss, optimizer, plan, Loader(stream, 16, 8, 0))
    moved = math.sqrt(sum((p - q).square().sum().item() for p, q in zip(model.parameters(), before, strict=True)))
    assert float(norm) > 0.05
    assert math.isclose(moved, 0.01, rel_tol=1e-3)


def test_only_matrices_decay(corpus: Path) -> None:
    plan = plan_of(small(corpus, Path("unused")), open_stream(corpus, "train"), CPU)
    model = GPT(plan.config)
    decay, plain = make_optimizer(model, plan).param_groups
    assert (decay["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert decay["betas"] == (0.9, 0.95)
    assert {p.ndim for p in decay["params"]} == {2}
    assert {p.ndim for p in plain["params"]} == {1}
    assert any(p is model.wte.weight for p in decay["params"])
    assert len(decay["params"]) + len(plain["params"]) == len(list(model.parameters()))


def test_schedule_is_warm_up_then_cosine_to_a_tenth(corpus: Path) -> None:
    options = small(corpus, Path("unused"), steps=1000, warmup_tokens=100 * 128, learning_rate=1.0)
    plan = plan_of(options, open_stream(corpus, "train"), CPU)
    assert plan.warmup_steps == 100
    assert math.isclose(learning_rate(plan, 0), 0.01)
    assert math.isclose(learning_rate(plan, 99), 1.0)
    assert math.isclose(learning_rate(plan, 550), 0.1 + 0.9 * 0.5, abs_tol=1e-9)
    assert math.isclose(learning_rate(plan, 999), 0.1, abs_tol=1e-4)
    rates = [learning_rate(plan, i) for i in range(1000)]
    assert rates[100:] == sorted(rates[100:], reverse=True)


def test_plan_fills_in_and_refuses(corpus: Path) -> None:
    stream = open_stream(corpus, "train")
    assert set(PRESETS) == set(RECIPES) == set(Preset.__args__)  # type: ignore[attr-defined]  # typing.Literal
    by_tokens = plan_of(small(corpus, Path("x"), steps=None, tokens=1000), stream, CPU)
    assert by_tokens.steps == 8
    by_epochs = plan_of(small(corpus, Path("x"), steps=None, epochs=2.0), stream, CPU)
    assert by_epochs.steps == math.ceil(2 * stream.n_tokens / 128)
    gpt2 = plan_of(TrainOptions("s", "r", preset="gpt2"), stream, CPU)
    assert (gpt2.batch_tokens, gpt2.learning_rate, gpt2.config.vocab_size) == (524_288, 6e-4, stream.vocab_size)
    with pytest.raises(ValueError, match="batch_tokens"):
        plan_of(small(corpus, Path("x"), batch_tokens=100), stream, CPU)
    with pytest.raises(ValueError, match="micro_batch"):
        plan_of(small(corpus, Path("x"), micro_batch=3), stream, CPU)
    with pytest.raises(ValueError, match="only one of tokens, steps and epochs"):
        TrainOptions("s", "r", tokens=1, steps=1)
    for field, value in (("preset", "gpt9"), ("dtype", "float8"), ("dropout", 1.0), ("steps", 0), ("beta2", 2.0)):
        with pytest.raises(ValueError, match=field):
            TrainOptions("s", "r", **{field: value})  # type: ignore[arg-type]  # wrong on purpose


def test_a_run_is_not_continued_with_other_options_or_shards(
    corpus: Path, tmp_path: Path, make_shards: Callable[..., Path]
) -> None:
    train(small(corpus, tmp_path / "run", stop_after=5), out=None)
    with pytest.raises(ValueError, match=r"seed was 0, is 4.*another folder"):
        train(small(corpus, tmp_path / "run", seed=4), out=None)
    manifest = json.loads((corpus / "manifest.json").read_text())
    documents = [[1] * 50 + [manifest["eot_id"]]] * 20
    other = make_shards(
        tmp_path / "other",
        {"train": [documents]},
        manifest["vocab_size"],
        manifest["eot_id"],
        manifest["tokenizer_sha256"],
    )
    tokenizer = str(corpus.parent / "tokenizer" / "tokenizer.json")
    with pytest.raises(StateError, match="not the ones the run was made from"):
        train(small(other, tmp_path / "run", tokenizer=tokenizer), out=None)


def test_the_tokenizer_must_be_the_shards_own(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.json: no tokenizer there"):
        train(small(corpus, tmp_path / "run", tokenizer=str(tmp_path / "tokenizer.json")), out=None)
    (tmp_path / "tokenizer.json").write_bytes((corpus.parent / "tokenizer/tokenizer.json").read_bytes() + b" ")
    with pytest.raises(ShardError, match="not the tokenizer these shards were made with"):
        train(small(corpus, tmp_path / "run", tokenizer=str(tmp_path / "tokenizer.json")), out=None)


def test_divergence_is_a_clear_error_and_nothing_bad_is_saved(corpus: Path, tmp_path: Path) -> None:
    options = small(corpus, tmp_path / "run", learning_rate=1e17, clip=0.0, warmup_tokens=0, checkpoint_every=1)
    with pytest.raises(TrainingDiverged, match=r"step \d+: loss .*Lower the learning rate"):
        train(options, out=None)
    for path in list_checkpoints(tmp_path / "run"):
        assert all(torch.isfinite(p).all() for p in load_model(open_checkpoint(path)).parameters())


def test_two_trainers_of_one_run_are_refused(corpus: Path, tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another process is training this run"):
            train(small(corpus, tmp_path / "run"), out=None)


def test_validation_loss_equals_one_long_sum(corpus: Path, tmp_path: Path) -> None:
    """Every token scored once from end-of-text on; bits per byte without end-of-text, over the texts' bytes."""
    result = train(small(corpus, tmp_path / "run"), out=None)
    model = load_model(open_checkpoint(result.checkpoint))
    stream = open_stream(corpus, "validation")
    ids = [stream.eot_id, *stream.read(0, stream.n_tokens).tolist()]
    nll = []
    with torch.no_grad():
        for start in range(0, len(ids) - 1, 16):
            window = torch.tensor([ids[start : start + 17]])
            logs = model(window[:, :-1]).log_softmax(-1)
            nll += (-logs[0].gather(1, window[0, 1:, None])[:, 0]).tolist()
    assert len(nll) == stream.n_tokens
    assert math.isclose(result.validation_loss or 0, sum(nll) / len(nll), rel_tol=1e-5)
    text_nll = sum(x for x, target in zip(nll, ids[1:], strict=True) if target != stream.eot_id)
    assert math.isclose(result.bits_per_byte or 0, text_nll / math.log(2) / stream.n_bytes, rel_tol=1e-5)
    assert validate(model, stream, batch_tokens=16).loss == pytest.approx(result.validation_loss, rel=1e-6)


def test_an_empty_validation_split_is_allowed(corpus: Path, tmp_path: Path, make_shards: Callable[..., Path]) -> None:
    manifest = json.loads((corpus / "manifest.json").read_text())
    documents = [[1, 2, 3] * 20 + [manifest["eot_id"]]] * 20
    shards = make_shards(
        tmp_path / "shards",
        {"train": [documents]},
        manifest["vocab_size"],
        manifest["eot_id"],
        manifest["tokenizer_sha256"],
    )
    tokenizer = str(corpus.parent / "tokenizer" / "tokenizer.json")
    result = train(small(shards, tmp_path / "run", tokenizer=tokenizer), out=None)
    assert result.finished
    assert result.validation_loss is None


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_one_line_on_a_terminal_and_plain_lines_elsewhere(corpus: Path, tmp_path: Path) -> None:
    terminal, pipe = Terminal(), io.StringIO()
    train(small(corpus, tmp_path / "a"), out=terminal)
    train(small(corpus, tmp_path / "b"), out=pipe)
    assert "\r" in terminal.getvalue()
    assert "tokens/s" in terminal.getvalue()
    assert "left" in terminal.getvalue()
    assert "\r" not in pipe.getvalue()
    assert "step 20/20  validation" in pipe.getvalue()
    assert "finished at step 20/20" in pipe.getvalue()


def test_bfloat16_trains_and_tensorboard_is_written(corpus: Path, tmp_path: Path) -> None:
    result = train(small(corpus, tmp_path / "run", dtype="bfloat16", tensorboard=True), out=None)
    assert result.train_loss is not None
    assert result.train_loss < 5.5
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_the_plan_survives_json(corpus: Path) -> None:
    plan = plan_of(small(corpus, Path("x")), open_stream(corpus, "train"), CPU)
    record = json.loads(json.dumps(asdict(plan)))
    assert set(record) == set(Plan.__dataclass_fields__)


def test_runs_from_another_folder_of_shards_after_a_move(corpus: Path, tmp_path: Path) -> None:
    """Nothing of a run depends on where the shards lie."""
    train(small(corpus, tmp_path / "run", stop_after=5), out=None)
    moved = tmp_path / "moved"
    shutil.copytree(corpus.parent, moved)
    moved_on = train(small(moved / "shards", tmp_path / "run"), out=None)
    whole = train(small(corpus, tmp_path / "whole"), out=None)
    assert digests(moved_on.checkpoint) == digests(whole.checkpoint)
