"""What each command may be told: frozen dataclasses of simple types, without torch, so that a command line or a
recipe can be checked at once. The words beside each type are the one place where an option is described.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

Preset = Literal["tiny", "demo", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"]
Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16"]


def check_choice(options: object, name: str, choices: Any) -> None:
    value = getattr(options, name)
    if value not in get_args(choices):
        raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}, not {value!r}")


def check_range(options: object, low: float, high: float, *names: str) -> None:
    """Raise ValueError unless every named number that is not None lies in low … high, both included."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not low <= value <= high:
            raise ValueError(f"{name} must be between {low:g} and {high:g}, not {value!r}")


ENDLESS = 1e18


@dataclass(frozen=True)
class TrainOptions:
    """One training run. What is None comes from the preset (see `RECIPES` in train.py) or from the data."""

    shards: Annotated[str, "folder with the token shards and their manifest.json"]
    run: Annotated[str, "folder of the run: checkpoints, log.jsonl; an unfinished run there is continued"]
    tokenizer: Annotated[
        str, "tokenizer.json the shards were made with (default: ../tokenizer/ beside the shards)"
    ] = ""
    preset: Annotated[Preset, "shape of the model and defaults of its training"] = "demo"
    n_layer: Annotated[int | None, "blocks, instead of the preset's"] = None
    n_head: Annotated[int | None, "attention heads, instead of the preset's"] = None
    n_embd: Annotated[int | None, "width, instead of the preset's"] = None
    n_ctx: Annotated[int | None, "context in tokens, instead of the preset's"] = None
    dropout: Annotated[float, "dropout on embeddings, attention and residuals"] = 0.0
    tokens: Annotated[int | None, "tokens to train on, rounded up to whole steps"] = None
    steps: Annotated[int | None, "optimizer steps, instead of tokens"] = None
    epochs: Annotated[float | None, "passes over the training split, instead of tokens"] = None
    batch_tokens: Annotated[int | None, "tokens per optimizer step, a multiple of n_ctx"] = None
    micro_batch: Annotated[int | None, "sequences computed at a time; divides the batch (default: what is fast)"] = (
        None
    )
    learning_rate: Annotated[float | None, "peak learning rate"] = None
    warmup_tokens: Annotated[int | None, "tokens of linear warm-up"] = None
    final_lr: Annotated[float, "share of the peak that the cosine ends at"] = 0.1
    beta1: Annotated[float, "AdamW beta 1"] = 0.9
    beta2: Annotated[float, "AdamW beta 2"] = 0.95
    epsilon: Annotated[float, "AdamW epsilon"] = 1e-8
    weight_decay: Annotated[float, "decoupled weight decay, on matrices and embeddings only"] = 0.1
    clip: Annotated[float, "largest global gradient norm; 0 for no clipping"] = 1.0
    seed: Annotated[int, "seed of the weights, the order of the data and dropout"] = 0
    device: Annotated[Device, "where to compute"] = "auto"
    dtype: Annotated[Dtype, "matrix arithmetic (auto: bfloat16 on a GPU, float32 on a CPU)"] = "auto"
    compile: Annotated[bool | None, "torch.compile (default: on a GPU yes, on a CPU no)"] = None
    threads: Annotated[int, "CPU threads (0: torch's choice)"] = 0
    evaluate_every: Annotated[int | None, "steps between validations; the last step always has one"] = None
    checkpoint_every: Annotated[int | None, "steps between checkpoints; the last step always has one"] = None
    keep_last: Annotated[int, "newest checkpoints kept, beside the best one"] = 2
    log_every: Annotated[int | None, "steps between lines of log.jsonl"] = None
    stop_after: Annotated[int | None, "stop after this many steps with a checkpoint, to be continued later"] = None
    resume_from: Annotated[str, "checkpoint of this run to continue from, instead of the newest"] = ""
    verify: Annotated[bool, "hash the shards even where this run has hashed them and they look unchanged"] = False
    tensorboard: Annotated[bool, "write TensorBoard events into the run's folder too"] = False

    def __post_init__(self) -> None:
        check_choice(self, "preset", Preset)
        check_choice(self, "device", Device)
        check_choice(self, "dtype", Dtype)
        check_range(self, 1, ENDLESS, "n_layer", "n_head", "n_embd", "n_ctx", "tokens", "steps", "batch_tokens")
        check_range(self, 1, ENDLESS, "micro_batch", "evaluate_every", "checkpoint_every", "keep_last", "log_every")
        check_range(self, 1, ENDLESS, "stop_after")
        check_range(self, 0, ENDLESS, "warmup_tokens", "clip", "weight_decay", "seed", "threads", "epsilon")
        check_range(self, 0, 1, "final_lr")
        check_range(self, 0, 0.999999, "dropout", "beta1", "beta2")
        for name in ("learning_rate", "epochs"):
            value = getattr(self, name)
            if value is not None and not 0 < value < ENDLESS:
                raise ValueError(f"{name} must be above 0, not {value!r}")
        if sum(value is not None for value in (self.tokens, self.steps, self.epochs)) > 1:
            raise ValueError("give only one of tokens, steps and epochs")


@dataclass(frozen=True)
class EvaluateOptions:
    """Scores of one checkpoint. Every named file is `name=path`; the name is the key in evaluation.json."""

    checkpoint: Annotated[str, "a checkpoint folder, or a run (its newest checkpoint)"]
    best: Annotated[bool, "of a run, take the checkpoint with the lowest validation loss"] = False
    shards: Annotated[str, "shards folder: loss over its whole validation split"] = ""
    verify: Annotated[bool, "hash the shards even where this run has hashed them and they look unchanged"] = False
    text: Annotated[
        tuple[str, ...], "name=file: perplexity of a plain text, one sentence or paragraph per line (.gz too)"
    ] = ()
    lambada: Annotated[tuple[str, ...], "name=file: LAMBADA as JSON lines with a field text (.gz too)"] = ()
    dirty: Annotated[
        tuple[str, ...], "name=file: JSON list of that set's contaminated line numbers, counted from 1"
    ] = ()
    stride: Annotated[
        int | None, "tokens scored per window of a text (default: n_ctx, windows that do not overlap)"
    ] = None
    limit: Annotated[int | None, "only the first so many lines of each file"] = None
    examples: Annotated[str, "folder for one JSON-lines file of scores per example and set"] = ""
    out: Annotated[str, "where to write evaluation.json (default: the run's folder)"] = ""
    batch_tokens: Annotated[int, "tokens computed at a time"] = 8192
    device: Annotated[Device, "where to compute"] = "auto"
    threads: Annotated[int, "CPU threads (0: torch's choice)"] = 0

    def __post_init__(self) -> None:
        check_choice(self, "device", Device)
        check_range(self, 1, ENDLESS, "stride", "limit", "batch_tokens")
        check_range(self, 0, ENDLESS, "threads")
        if not (self.shards or self.text or self.lambada):
            raise ValueError("there is nothing to evaluate: give shards, text or lambada, any number of them")
        sets = [name for name, _ in map(named_file, (*self.text, *self.lambada))]
        if len(set(sets)) < len(sets):
            raise ValueError(f"text and lambada name one set twice: {', '.join(sorted(sets))}")
        for name, _ in map(named_file, self.dirty):
            if name not in sets:
                raise ValueError(
                    f"dirty names {name!r}, which is none of the sets: {', '.join(sorted(sets)) or 'none'}"
                )


@dataclass(frozen=True)
class GenerateOptions:
    """Text from one checkpoint: temperature, then top-k, then top-p, as in GPT-2's sample.py."""

    checkpoint: Annotated[str, "a checkpoint folder, or a run (its newest checkpoint)"]
    best: Annotated[bool, "of a run, take the checkpoint with the lowest validation loss"] = False
    prompt: Annotated[str, "text to continue (default: begin a new document)"] = ""
    tokens: Annotated[int, "most tokens to add; a sample ends earlier at end-of-text"] = 128
    samples: Annotated[int, "how many samples"] = 1
    temperature: Annotated[float, "divides the logits; 0 takes the likeliest token every time"] = 1.0
    top_k: Annotated[int, "keep the k likeliest tokens; 0 keeps all"] = 0
    top_p: Annotated[float, "keep the likeliest tokens up to this much probability"] = 1.0
    seed: Annotated[int, "seed; sample i is drawn with seed + i"] = 0
    device: Annotated[Device, "where to compute"] = "auto"
    threads: Annotated[int, "CPU threads (0: torch's choice)"] = 0

    def __post_init__(self) -> None:
        check_choice(self, "device", Device)
        check_range(self, 1, ENDLESS, "tokens", "samples")
        check_range(self, 0, ENDLESS, "temperature", "top_k", "seed", "threads")
        try:
            self.prompt.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"prompt is not UTF-8 at character {error.start + 1}") from None
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p!r}")


@dataclass(frozen=True)
class InfoOptions:
    """What a checkpoint, a run or a shards folder holds, and which documents a training step saw."""

    path: Annotated[str, "a checkpoint, a run, or a shards folder"]
    step: Annotated[
        int | None,
        "of a run: list the documents that this step read, each by doc_id, part (its key, hexadecimal) and row; "
        "`webtext export` writes the URL of each doc_id (steps count from 1, as in log.jsonl)",
    ] = None
    shards: Annotated[str, "with step: where the shards lie now (default: where they lay in training)"] = ""
    verify: Annotated[
        bool, "hash every shard (of a shards folder none is otherwise, of a run those not hashed before)"
    ] = False

    def __post_init__(self) -> None:
        check_range(self, 1, ENDLESS, "step")


def named_file(text: str) -> tuple[str, str]:
    """("ptb", "a/ptb.txt") of "ptb=a/ptb.txt". Raises ValueError if the name is not letters, digits, - and _."""
    name, equals, path = text.partition("=")
    if not equals or not path or not name.replace("-", "").replace("_", "").isalnum():
        raise ValueError(f"{text!r} is not of the form name=file, the name of letters, digits, - and _")
    return name, path
