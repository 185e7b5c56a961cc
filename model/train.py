"""Training: AdamW, warm-up and cosine, gradient accumulation, checkpoints to go on from bit for bit.

The recipe is GPT-3's appendix B, because GPT-2's was never published: betas 0.9 and 0.95, decoupled weight decay 0.1
on matrices and embeddings, gradient norm clipped to 1 once the whole batch is accumulated, linear warm-up, then a
cosine to a tenth.

The same command again continues an unfinished run from its newest checkpoint, and on a CPU ends in the same bytes as
a run that was never stopped. One process and one device; `Loader` already serves any number of equal workers.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from model.checkpoint import (
    Checkpoint,
    keep_checkpoints,
    list_checkpoints,
    load_tensors,
    open_checkpoint,
    restore_training,
    save_checkpoint,
    tokenizer_from,
    training_tensors,
)
from model.evaluate import validate
from model.gpt import GPT, PRESETS, GPTConfig, choose_device, count_parameters
from model.loader import Loader, ShardError, State, Stream, open_stream
from model.log import Log, Progress
from model.options import TrainOptions
from model.verified import VERIFIED

CPU_LOGITS = 1 << 25  # numbers of one micro-batch's logits
GPU_LOGITS = 1 << 32


class TrainingDiverged(ArithmeticError):
    """The loss or the gradient stopped being a number."""


@dataclass(frozen=True)
class Recipe:
    """What a preset trains with unless told otherwise. tokens None: one pass over the training split."""

    batch_tokens: int
    learning_rate: float
    tokens: int | None = None
    warmup_share: float = 0.1
    warmup_tokens: int = 375_000_000


# demo is for about a minute of two cores: 400,000 tokens bring WikiText-2 in a vocabulary of 4,096 from 8.33 to 5.44
# nats a token. Four layers are worse for the same time (5.64 after 55 s of one core, two layers 5.47), and with four
# layers twice the batch (5.67), half the rate (5.69) and twice the rate (5.94) were no better; one seed each.
# GPT-2 sizes: rates of GPT-3's table 2.1 for the nearest size, the batch of GPT-2 (512 x 1,024).
RECIPES: dict[str, Recipe] = {
    "tiny": Recipe(batch_tokens=1024, learning_rate=3e-3, tokens=200_000),
    "demo": Recipe(batch_tokens=512, learning_rate=4e-3, tokens=400_000),
    "gpt2": Recipe(batch_tokens=524_288, learning_rate=6e-4),
    "gpt2-medium": Recipe(batch_tokens=524_288, learning_rate=3e-4),
    "gpt2-large": Recipe(batch_tokens=524_288, learning_rate=2.5e-4),
    "gpt2-xl": Recipe(batch_tokens=524_288, learning_rate=2e-4),
}


@dataclass(frozen=True)
class Plan:
    """Everything that shapes the weights, resolved. A continued run must have the same one."""

    config: GPTConfig
    batch: int  # windows per step
    micro_batch: int
    steps: int
    warmup_steps: int
    learning_rate: float
    final_lr: float
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    clip: float
    seed: int
    dtype: str

    @property
    def batch_tokens(self) -> int:
        return self.batch * self.config.n_ctx


def plan_of(options: TrainOptions, stream: Stream, device: torch.device) -> Plan:
    """Fill in what the options leave open. Raises ValueError where they contradict each other."""
    recipe, preset = RECIPES[options.preset], PRESETS[options.preset]
    own = {name: getattr(options, name) for name in ("n_layer", "n_head", "n_embd", "n_ctx")}
    shape = {name: value for name, value in own.items() if value is not None}
    config = replace(preset, vocab_size=stream.vocab_size, dropout=options.dropout, **shape)
    batch_tokens = options.batch_tokens or max(1, recipe.batch_tokens // config.n_ctx) * config.n_ctx
    if batch_tokens % config.n_ctx:
        raise ValueError(f"batch_tokens ({batch_tokens}) must be a multiple of n_ctx ({config.n_ctx})")
    batch = batch_tokens // config.n_ctx
    limit = (GPU_LOGITS if device.type == "cuda" else CPU_LOGITS) // (config.n_ctx * config.padded_vocab_size)
    micro_batch = options.micro_batch or max(d for d in range(1, max(1, min(limit, batch)) + 1) if batch % d == 0)
    if batch % micro_batch:
        raise ValueError(f"micro_batch ({micro_batch}) must divide the batch of {batch} sequences")
    if options.steps is not None:
        steps = options.steps
    elif options.epochs is not None:
        steps = math.ceil(options.epochs * stream.n_tokens / batch_tokens)
    else:
        steps = math.ceil((options.tokens or recipe.tokens or stream.n_tokens) / batch_tokens)
    warmup = options.warmup_tokens
    if warmup is None:
        warmup = min(recipe.warmup_tokens, int(recipe.warmup_share * steps * batch_tokens))
    dtype = options.dtype if options.dtype != "auto" else "bfloat16" if device.type == "cuda" else "float32"
    return Plan(
        config=config,
        batch=batch,
        micro_batch=micro_batch,
        steps=steps,
        warmup_steps=min(steps, math.ceil(warmup / batch_tokens)),
        learning_rate=options.learning_rate or recipe.learning_rate,
        final_lr=options.final_lr,
        beta1=options.beta1,
        beta2=options.beta2,
        epsilon=options.epsilon,
        weight_decay=options.weight_decay,
        clip=options.clip,
        seed=options.seed,
        dtype=dtype,
    )


def learning_rate(plan: Plan, step: int) -> float:
    """Of step 0 … steps-1: linear up to the peak, then half a cosine that would reach final_lr·peak at `steps`."""
    if step < plan.warmup_steps:
        return plan.learning_rate * (step + 1) / plan.warmup_steps
    done = (step - plan.warmup_steps) / max(1, plan.steps - plan.warmup_steps)
    share = plan.final_lr + (1 - plan.final_lr) * 0.5 * (1 + math.cos(math.pi * done))
    return plan.learning_rate * share


def make_optimizer(model: GPT, plan: Plan) -> torch.optim.AdamW:
    """AdamW with two groups: what has two dimensions decays (embeddings too), gains and biases do not."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": plan.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        groups, lr=plan.learning_rate, betas=(plan.beta1, plan.beta2), eps=plan.epsilon, fused=True
    )


LossFunction = Callable[[Tensor, Tensor, str], Tensor]


def train_step(
    model: GPT, loss_of: LossFunction, optimizer: torch.optim.Optimizer, plan: Plan, loader: Loader
) -> tuple[Tensor, Tensor]:
    """One update from the loader's next batch: its mean loss in nats per token, and the norm before clipping.

    Each micro-batch adds its summed loss over the number of targets of the whole batch, so cutting it otherwise
    changes rounding only.
    """
    lr = learning_rate(plan, loader.step)
    for group in optimizer.param_groups:
        group["lr"] = lr
    device = model.wte.weight.device
    ids, targets = (torch.from_numpy(part).to(device) for part in loader.next())
    total = torch.zeros((), device=device)
    for x, y in zip(*(torch.split(part, plan.micro_batch) for part in (ids, targets)), strict=True):
        with torch.autocast(device.type, torch.bfloat16, enabled=plan.dtype == "bfloat16"):
            loss = loss_of(x, y, "sum") / targets.numel()
        torch.autograd.backward(loss)
        total += loss.detach()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), plan.clip or math.inf)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total, norm


# ---------------------------------------------------------------------------------------------------------- the run


@dataclass(frozen=True)
class TrainResult:
    """How a call of `train` ended. Losses in nats per token; `finished` is False after stop_after."""

    run: str
    checkpoint: str
    step: int
    steps: int
    tokens: int
    parameters: int
    train_loss: float | None
    validation_loss: float | None
    bits_per_byte: float | None
    tokens_per_second: float | None
    seconds: float
    finished: bool


def train(options: TrainOptions, out: TextIO | None = sys.stderr) -> TrainResult:
    """Train, or go on training, one model; progress goes to `out` (None for none).

    The run's first call hashes every shard (1 to 2 GB/s) and remembers that in the run's folder; later ones hash what
    changed since. Raises ValueError (ShardError, StateError, CheckpointError) for input that does not fit, and
    TrainingDiverged.
    """
    run = Path(options.run)
    run.mkdir(parents=True, exist_ok=True)
    with only_one(run):
        device = choose_device(options.device, options.threads)
        verified = run / VERIFIED
        stream = open_stream(options.shards, "train", verified=verified, again=options.verify)
        held_out = open_stream(options.shards, "validation", verified=verified, again=options.verify)
        tokenizer = read_tokenizer(options, stream)
        plan = plan_of(options, stream, device)
        loader = Loader(stream, plan.config.n_ctx, plan.batch, plan.seed)
        model = GPT(plan.config, plan.seed).to(device)
        optimizer = make_optimizer(model, plan)
        torch.manual_seed(plan.seed)
        before = restore(options, plan, loader, model, optimizer)
        return run_steps(options, plan, loader, held_out, model, optimizer, tokenizer, before, out)


def run_steps(
    options: TrainOptions,
    plan: Plan,
    loader: Loader,
    held_out: Stream,
    model: GPT,
    optimizer: torch.optim.AdamW,
    tokenizer: bytes,
    before: Checkpoint | None,
    out: TextIO | None,
) -> TrainResult:
    """The loop: from the loader's step to the plan's last, or to stop_after."""
    run, device = Path(options.run), model.wte.weight.device
    begun = time.monotonic()
    first = loader.step
    stop = plan.steps if options.stop_after is None else min(plan.steps, options.stop_after)
    log_every = options.log_every or max(1, min(10, plan.steps // 100))
    evaluate_every = options.evaluate_every or math.ceil(plan.steps / evaluations(plan, held_out))
    checkpoint_every = options.checkpoint_every or math.ceil(plan.steps / 10)
    best: dict[str, Any] | None = before.record["best"] if before else None
    last_score: dict[str, Any] = before.record["validation"] if before and before.record["validation"] else {}
    path, loss_value, speed = (before.path if before else run), None, None
    log = Log(run, first, options.tensorboard)
    progress = Progress(out, plan.steps, first)
    loss_of: LossFunction = model.loss
    if options.compile if options.compile is not None else device.type == "cuda":
        loss_of = torch.compile(model.loss, dynamic=False)
    try:
        log.write("resume" if before else "start", first, **facts(plan, loader, held_out, device))
        progress.say(opening(plan, loader, before, device))
        trained_tokens, trained_seconds = 0, 0.0
        model.train()
        if not before and held_out.n_tokens:
            score = validate(model, held_out)
            log.write("evaluation", 0, **asdict(score))
            progress.validated(0, score.loss, score.bits_per_byte)
        while loader.step < stop:
            stamp = time.monotonic()
            loss, norm = train_step(model, loss_of, optimizer, plan, loader)
            step = loader.step
            due_checkpoint = step % checkpoint_every == 0 or step == stop
            due_evaluation = (step % evaluate_every == 0 or step == plan.steps) and held_out.n_tokens > 0
            due_log = step % log_every == 0 or step == plan.steps
            if device.type == "cpu" or due_log or due_checkpoint or due_evaluation:
                loss_value = check_finite(float(loss), float(norm), step, plan, run)
            trained_seconds += time.monotonic() - stamp
            trained_tokens += plan.batch_tokens
            if due_log and loss_value is not None:
                speed = trained_tokens / trained_seconds
                rate = learning_rate(plan, step - 1)
                where = {"tokens": step * plan.batch_tokens, "seconds": round(time.monotonic() - begun, 3)}
                log.write(
                    "step", step, loss=loss_value, lr=rate, grad_norm=float(norm), tokens_per_second=speed, **where
                )
                progress.step(step, loss_value, speed)
            improved = False
            if due_evaluation:
                score = validate(model, held_out)
                last_score = {"step": step, **asdict(score)}
                log.write("evaluation", step, **asdict(score))
                progress.validated(step, score.loss, score.bits_per_byte)
                improved = best is None or score.loss < best["loss"]
                if improved:
                    best = {"step": step, "loss": score.loss}
            if due_checkpoint or improved:
                place = {"data": loader.state().to_json(), "shards": options.shards, "best": best}
                record: dict[str, Any] = {
                    "step": step,
                    "tokens": step * plan.batch_tokens,
                    "plan": asdict(plan),
                    **place,
                }
                record |= {"validation": last_score or None, "train_loss": loss_value}
                record |= {"tokenizer_sha256": loader.stream.tokenizer_sha256}
                path = save_checkpoint(run, record, model, training_tensors(model, optimizer), tokenizer)
                keep_checkpoints(run, options.keep_last, best["step"] if best else None)
                log.write("checkpoint", step, path=path.relative_to(run).as_posix(), improved=improved)
        result = TrainResult(
            run=str(run),
            checkpoint=str(path),
            step=loader.step,
            steps=plan.steps,
            tokens=loader.step * plan.batch_tokens,
            parameters=count_parameters(plan.config),
            train_loss=loss_value if loss_value is not None else before.record["train_loss"] if before else None,
            validation_loss=last_score.get("loss"),
            bits_per_byte=last_score.get("bits_per_byte"),
            tokens_per_second=speed,
            seconds=round(time.monotonic() - begun, 3),
            finished=loader.step >= plan.steps,
        )
        log.write("end", loader.step, finished=result.finished, seconds=result.seconds)
        progress.say(closing(result))
        return result
    finally:
        log.close()


def evaluations(plan: Plan, held_out: Stream) -> int:
    """How many validations are worth it: at most ten, and at most about a fifth of the time training takes."""
    worth = 0.6 * plan.steps * plan.batch_tokens / max(1, held_out.n_tokens)
    return max(1, min(10, int(worth)))


def restore(
    options: TrainOptions, plan: Plan, loader: Loader, model: GPT, optimizer: torch.optim.Optimizer
) -> Checkpoint | None:
    """Load the newest (or the named) checkpoint of the run into everything that has state; None if there is none.

    Raises ValueError naming each part of the plan that is not as it was.
    """
    if not options.resume_from and not list_checkpoints(options.run):
        return None
    checkpoint = open_checkpoint(options.resume_from or options.run)
    was, now = checkpoint.record["plan"], json.loads(json.dumps(asdict(plan)))
    if was != now:
        changed = [f"{name} was {was.get(name)!r}, is {now[name]!r}" for name in now if was.get(name) != now[name]]
        raise ValueError(
            f"{options.run} holds a run made otherwise ({'; '.join(changed)}): give it the same options to continue, "
            "or name another folder for a new run"
        )
    loader.resume(State(**checkpoint.record["data"]))
    model.load_state_dict(load_tensors(checkpoint, "model.safetensors"))
    restore_training(checkpoint, model, optimizer)
    return checkpoint


def read_tokenizer(options: TrainOptions, stream: Stream) -> bytes:
    """tokenizer.json of the shards, checked against the sha256 in their manifest. Raises ValueError naming it."""
    path = Path(options.tokenizer or Path(options.shards).parent / "tokenizer" / "tokenizer.json")
    if not path.is_file():
        raise ValueError(f"{path}: no tokenizer there; name the tokenizer.json that the shards were made with")
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != stream.tokenizer_sha256:
        raise ShardError(
            f"{path}: sha256 {found[:16]}… is not the tokenizer these shards were made with "
            f"({stream.tokenizer_sha256[:16]}…)"
        )
    tokenizer_from(data, str(path))
    return data


def check_finite(loss: float, norm: float, step: int, plan: Plan, run: Path) -> float:
    """The loss, if it and the gradient norm are numbers; raises TrainingDiverged if not."""
    if math.isfinite(loss) and math.isfinite(norm):
        return loss
    kept = list_checkpoints(run)
    raise TrainingDiverged(
        f"step {step}: loss {loss}, gradient norm {norm}, learning rate {learning_rate(plan, step - 1):.3g}. "
        f"Nothing of it was saved; {f'the last checkpoint is {kept[-1]}' if kept else 'there is no checkpoint yet'}. "
        f"Lower the learning rate or lengthen the warm-up; `info {run} --step {step}` lists what this step read"
    )


@contextlib.contextmanager
def only_one(run: Path) -> Iterator[None]:
    """Hold the run's folder against a second trainer; the lock dies with the process. Raises ValueError if held."""
    with (run / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{run}: another process is training this run") from None
        yield


def facts(plan: Plan, loader: Loader, held_out: Stream, device: torch.device) -> dict[str, object]:
    return {
        "plan": asdict(plan),
        "parameters": count_parameters(plan.config),
        "train_tokens": loader.stream.n_tokens,
        "validation_tokens": held_out.n_tokens,
        "fingerprint": loader.stream.fingerprint,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "pid": os.getpid(),
    }


def opening(plan: Plan, loader: Loader, before: Checkpoint | None, device: torch.device) -> str:
    c = plan.config
    shape = f"{c.n_layer} layers x {c.n_embd}, context {c.n_ctx}, vocabulary {c.vocab_size:,}"
    epochs = plan.steps * plan.batch_tokens / loader.stream.n_tokens
    data = f"{plan.steps:,} steps of {plan.batch_tokens:,} tokens ({epochs:.2f} epochs of {loader.stream.n_tokens:,})"
    going_on = f"; going on from {before.path.name}" if before else ""
    return f"{count_parameters(c):,} parameters ({shape}) on {device.type} in {plan.dtype}; {data}{going_on}"


def closing(result: TrainResult) -> str:
    scores = "" if result.validation_loss is None else f", validation loss {result.validation_loss:.4f}"
    if result.bits_per_byte is not None:
        scores += f" ({result.bits_per_byte:.3f} bits/byte)"
    state = "finished" if result.finished else "stopped, to be continued"
    return f"{state} at step {result.step:,}/{result.steps:,} in {result.seconds:.1f} s{scores}: {result.checkpoint}"
