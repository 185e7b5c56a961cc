"""Scores of a model: validation loss, perplexity of plain texts, LAMBADA, each split into clean and dirty on request.

Everything on texts stands on one pure function, `loglikelihood`: how probable is each continuation after its context.
Arithmetic is float32 over the true vocabulary, sums are float64, and every metric's name says what it divides by or
counts, because most irreproducible figures are two variants of one name.

Perplexity follows GPT-2 section 3.1: the total log-probability of the text over the number of units of the *original*
text, whatever the tokenizer makes of it. The text is scored as one stream that begins after an end-of-text token.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.checkpoint import WEIGHTS, Checkpoint, load_model, load_tokenizer, open_checkpoint, run_of
from model.gpt import GPT, choose_device
from model.loader import ShardError, Stream, open_stream, validation_windows
from model.options import EvaluateOptions, named_file
from model.verified import VERIFIED

FORMAT = "webtext-evaluation"
VERSION = 1
END_OF_TEXT = "<|endoftext|>"
MAX_TEXT_BYTES = 1 << 30
HEAD_NUMBERS = 1 << 25  # logits held at a time

Row: TypeAlias = dict[str, Any]
Request: TypeAlias = tuple[Sequence[int], Sequence[int]]


@dataclass(frozen=True)
class Score:
    """One continuation: `logp` in nats, `greedy` if every token was the likeliest, `token_logps` float64[n]."""

    logp: float
    greedy: bool
    token_logps: npt.NDArray[np.float64]


def loglikelihood(model: GPT, requests: Sequence[Request], batch_tokens: int = 8192) -> list[Score]:
    """log P(continuation | context) for each (context ids, continuation ids), in the order asked.

    A context too long for the model loses its beginning. Requests are computed longest first, padded on the right,
    which a causal model does not see. Raises ValueError for an empty context or continuation, or a continuation
    longer than n_ctx.
    """
    n_ctx = model.config.n_ctx
    rows: list[tuple[list[int], int]] = []
    for i, (context, continuation) in enumerate(requests):
        if not len(context) or not 1 <= len(continuation) <= n_ctx:
            raise ValueError(
                f"request {i}: context of {len(context)} and continuation of {len(continuation)} tokens; "
                f"both need one, and the continuation has at most n_ctx = {n_ctx}"
            )
        kept = min(len(context), n_ctx + 1 - len(continuation))
        rows.append(([*context[len(context) - kept :], *continuation], len(continuation)))
    out: list[Score | None] = [None] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i][0]), i))
    device = model.wte.weight.device
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            while order:
                longest = len(rows[order[0]][0]) - 1
                taken, order = order[: max(1, batch_tokens // longest)], order[max(1, batch_tokens // longest) :]
                ids = np.zeros((len(taken), longest + 1), np.int64)
                scored = np.zeros((len(taken), longest), bool)
                for row, i in enumerate(taken):
                    tokens, n = rows[i]
                    ids[row, : len(tokens)] = tokens
                    scored[row, len(tokens) - 1 - n : len(tokens) - 1] = True
                tensor = torch.from_numpy(ids).to(device)
                mask = torch.from_numpy(scored).to(device)
                nll, greedy = head_nll(model, model.hidden(tensor[:, :-1])[mask], tensor[:, 1:][mask])
                end = 0
                for i in taken:
                    start, end = end, end + rows[i][1]
                    logps = -nll[start:end]
                    out[i] = Score(float(logps.sum()), bool(greedy[start:end].all()), logps)
    finally:
        model.train(training)
    return [score for score in out if score is not None]


def head_nll(model: GPT, x: Tensor, targets: Tensor) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """From hidden states (K, C) and targets (K): nats of each target float64[K], and whether it was the likeliest."""
    step = max(1, HEAD_NUMBERS // model.config.padded_vocab_size)
    nll, greedy = [], []
    for rows, wanted in zip(torch.split(x, step), torch.split(targets, step), strict=True):
        logits = model.head(rows).float()
        nll.append(torch.nn.functional.cross_entropy(logits, wanted, reduction="none").cpu().numpy())
        greedy.append((logits.argmax(1) == wanted).cpu().numpy())
    return np.concatenate(nll, dtype=np.float64), np.concatenate(greedy)


# ----------------------------------------------------------------------------------------------- validation split


@dataclass(frozen=True)
class Validation:
    """Loss over a whole split: nats per token, end-of-text included; bits per UTF-8 byte, end-of-text left out."""

    loss: float
    bits_per_byte: float | None
    tokens: int
    bytes: int


def validate(model: GPT, stream: Stream, batch_tokens: int = 8192) -> Validation:
    """Score every token of a split once, in windows of n_ctx that do not overlap.

    A window's first token is predicted from the token before it (the very first from end-of-text), so the same tokens
    are scored whatever the window. Raises ShardError for an empty split.
    """
    if stream.n_tokens == 0:
        raise ShardError(
            "the validation split is empty: nothing to measure; give the corpus a larger validation share"
        )
    n_ctx, device = model.config.n_ctx, model.wte.weight.device
    windows = validation_windows(stream, n_ctx)
    total = text_total = 0.0
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for group in groups_of_equal_length(windows, max(1, batch_tokens // n_ctx)):
                ids = np.stack([preceded(stream, start, count) for start, count in group])
                tensor = torch.from_numpy(ids).to(device)
                targets = tensor[:, 1:].flatten()
                nll, _ = head_nll(model, model.hidden(tensor[:, :-1]).flatten(0, 1), targets)
                total += float(nll.sum())
                text_total += float(nll[ids[:, 1:].flatten() != stream.eot_id].sum())
    finally:
        model.train(training)
    bits = text_total / math.log(2) / stream.n_bytes if stream.n_bytes else None
    return Validation(total / stream.n_tokens, bits, stream.n_tokens, stream.n_bytes)


def preceded(stream: Stream, start: int, count: int) -> npt.NDArray[np.int64]:
    """Tokens start-1 … start+count; before the first token of the split stands end-of-text."""
    if start > 0:
        return stream.read(start - 1, count + 1)
    return np.concatenate([np.array([stream.eot_id], np.int64), stream.read(0, count)])


def groups_of_equal_length(windows: Sequence[tuple[int, int]], size: int) -> Iterator[Sequence[tuple[int, int]]]:
    for i in range(0, len(windows), size):
        group = windows[i : i + size]
        whole = [w for w in group if w[1] == group[0][1]]
        yield whole
        if len(whole) < len(group):
            yield group[len(whole) :]


# --------------------------------------------------------------------------------------------------------- texts


def read_text(path: str | Path) -> str:
    """A UTF-8 file, gunzipped if its first bytes say so. Raises ValueError naming the file, and the bad byte."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
        if len(data) > MAX_TEXT_BYTES:
            raise ValueError(f"{path}: more than {MAX_TEXT_BYTES} bytes of text; cut it into several sets")
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}") from None
    except (OSError, EOFError) as error:
        raise ValueError(f"{path}: {error}") from None


def lines_of(text: str) -> list[str]:
    """Lines with their ends; only a line feed ends a line."""
    lines = text.split("\n")
    return [line + "\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])


def read_lines(path: str | Path) -> list[str]:
    return lines_of(read_text(path))


def encode(tokenizer: Any, text: str, vocab_size: int) -> Any:
    """The `tokenizers.Encoding` of a text, no special tokens. Raises ValueError on an id the model has no row for."""
    encoding = tokenizer.encode(text, add_special_tokens=False)
    if encoding.ids and max(encoding.ids) >= vocab_size:
        raise ValueError(f"the tokenizer gave id {max(encoding.ids)}, outside the model's vocabulary of {vocab_size}")
    return encoding


def end_of_text(tokenizer: Any) -> int:
    """The id of <|endoftext|>. Raises ValueError if the tokenizer has none."""
    found = tokenizer.token_to_id(END_OF_TEXT)
    if found is None:
        raise ValueError(f"the tokenizer has no {END_OF_TEXT}")
    return int(found)


def text_rows(
    model: GPT, tokenizer: Any, text: str, stride: int | None = None, batch_tokens: int = 8192
) -> list[Row]:
    """Score a text as one stream; a row per line: id (from 1), nll in nats, tokens, words, bytes, characters.

    Each window scores its last `stride` tokens (default n_ctx: windows that do not overlap) after as much of what
    stands before them as the context holds. A token belongs to the line its first character lies in. Words are runs
    of characters that are not white space.
    """
    n_ctx = model.config.n_ctx
    stride = n_ctx if stride is None else stride
    if not 1 <= stride <= n_ctx:
        raise ValueError(f"stride must be between 1 and n_ctx = {n_ctx}, not {stride}")
    encoding = encode(tokenizer, text, model.config.vocab_size)
    stream = [end_of_text(tokenizer), *encoding.ids]
    requests = [
        (stream[max(0, start + stride - n_ctx - 1) : start], stream[start : start + stride])
        for start in range(1, len(stream), stride)
    ]
    scores = loglikelihood(model, requests, batch_tokens)
    nll = -np.concatenate([score.token_logps for score in scores]) if scores else np.zeros(0)
    lines = lines_of(text)
    starts = np.cumsum([0, *(len(line) for line in lines)])
    firsts = np.array([first for first, _ in encoding.offsets], np.int64)
    owner = np.clip(np.searchsorted(starts, firsts, side="right") - 1, 0, max(0, len(lines) - 1))
    sums = np.bincount(owner, nll, len(lines))
    counts = np.bincount(owner, minlength=len(lines))
    return [
        {
            "id": i,
            "nll": float(sums[i - 1]),
            "tokens": int(counts[i - 1]),
            "words": len(line.split()),
            "bytes": len(line.encode()),
            "characters": len(line),
        }
        for i, line in enumerate(lines, 1)
    ]


def text_summary(rows: Sequence[Row]) -> Row:
    """Perplexity per token, per word, and per word and line end; bits per byte and per character.

    The last of the perplexities is the usual one of PTB and WikiText, whose totals count a line end for each line. A
    figure that does not exist (no units, or beyond the range of a float) is None; `nll` always stands beside it.
    """
    nll = math.fsum(row["nll"] for row in rows)
    tokens, words, n_bytes, characters = (
        sum(row[key] for row in rows) for key in ("tokens", "words", "bytes", "characters")
    )
    return {
        "lines": len(rows),
        "tokens": tokens,
        "words": words,
        "bytes": n_bytes,
        "characters": characters,
        "nll": nll,
        "ppl_per_token": exp_of(nll, tokens),
        "ppl_per_word": exp_of(nll, words),
        "ppl_per_word_and_line": exp_of(nll, words + len(rows)),
        "bits_per_byte": nll / math.log(2) / n_bytes if n_bytes else None,
        "bits_per_character": nll / math.log(2) / characters if characters else None,
    }


def exp_of(nll: float, units: int) -> float | None:
    return math.exp(nll / units) if units and nll / units < 700 else None


def perplexity(
    model: GPT,
    tokenizer: Any,
    path: str | Path,
    stride: int | None = None,
    limit: int | None = None,
    batch_tokens: int = 8192,
) -> Row:
    """`text_summary` of a plain text file (.gz too) under the model; `text_rows` says how it is cut into windows."""
    return text_summary(text_rows(model, tokenizer, "".join(read_lines(path)[:limit]), stride, batch_tokens))


# ------------------------------------------------------------------------------------------------------- LAMBADA


def read_lambada(path: str | Path) -> list[str]:
    """The passages of a JSON-lines file with a field `text`. Raises ValueError naming file and line."""
    texts = []
    for i, line in enumerate(read_lines(path)):
        try:
            text = json.loads(line)["text"]
            if not isinstance(text, str) or not text.strip():
                raise ValueError("no text")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path}: line {i + 1} is not an object with a text ({type(error).__name__})") from None
        texts.append(text)
    return texts


def split_last_word(text: str) -> tuple[str, str]:
    """("He said", " yes") of "He said yes": the last word keeps the white space before it; a lone word has ""."""
    text = text.rstrip()
    word = text.split()[-1]
    context = text[: -len(word)].rstrip()
    return context, text[len(context) :]


def lambada_rows(model: GPT, tokenizer: Any, texts: Sequence[str], batch_tokens: int = 8192) -> list[Row]:
    """Score the last word, and the last BPE token, of each passage; a row per passage, its id the line number from 1.

    last_word: context and word are encoded apart, as in lm-evaluation-harness; correct if every token of the word is
    the likeliest. last_bpe: the passage is encoded whole and its last token predicted, the variant that reproduces
    the accuracies of GPT-2's table 3 (huggingface/transformers#13761). No stop-word filter.
    """
    eot, vocab_size = end_of_text(tokenizer), model.config.vocab_size
    by_word: list[Request] = []
    by_token: list[Request] = []
    for text in texts:
        context, word = split_last_word(text)
        whole = encode(tokenizer, text.rstrip(), vocab_size).ids
        by_word.append((encode(tokenizer, context, vocab_size).ids or [eot], encode(tokenizer, word, vocab_size).ids))
        by_token.append((whole[:-1] or [eot], whole[-1:]))
    scores = loglikelihood(model, [*by_word, *by_token], batch_tokens)
    return [
        {
            "id": i,
            "logp_last_word": word.logp,
            "correct_last_word": word.greedy,
            "tokens_last_word": len(word.token_logps),
            "logp_last_bpe": token.logp,
            "correct_last_bpe": token.greedy,
        }
        for i, (word, token) in enumerate(zip(scores[: len(texts)], scores[len(texts) :], strict=True), 1)
    ]


def lambada_summary(rows: Sequence[Row]) -> Row:
    """Accuracies as shares of the examples; perplexities exp(-mean log P) per last word and per last BPE token."""
    n = len(rows)
    out: Row = {"examples": n}
    for unit in ("last_word", "last_bpe"):
        out[f"acc_{unit}"] = sum(row[f"correct_{unit}"] for row in rows) / n if n else None
        out[f"ppl_{unit}"] = exp_of(-math.fsum(row[f"logp_{unit}"] for row in rows), n)
    return out


def lambada(model: GPT, tokenizer: Any, path: str | Path, limit: int | None = None, batch_tokens: int = 8192) -> Row:
    """`lambada_summary` of a LAMBADA file (JSON lines, .gz too)."""
    return lambada_summary(lambada_rows(model, tokenizer, read_lambada(path)[:limit], batch_tokens))


# ------------------------------------------------------------------------------------------------- one evaluation


def read_dirty(path: str | Path) -> set[int]:
    """Line numbers, counted from 1, of a JSON list or of the list under "dirty" in an object. Raises ValueError."""
    try:
        found = json.loads(read_text(path))
        found = found["dirty"] if isinstance(found, dict) else found
        return {int(number) for number in found}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON list of line numbers ({type(error).__name__})") from None


def by_subset(rows: Sequence[Row], dirty: set[int] | None, summary: Any) -> Row:
    """The summary of all rows and, where the dirty ones are known, of clean and dirty ones (GPT-3, appendix C)."""
    out = {"all": summary(rows)}
    if dirty is not None:
        out["clean"] = summary([row for row in rows if row["id"] not in dirty])
        out["dirty"] = summary([row for row in rows if row["id"] in dirty])
    return out


def read_set(path: str, texts: Sequence[str], limit: int | None) -> list[str]:
    """The first `limit` lines or passages of a set. Raises ValueError if there is nothing in them to score."""
    kept = list(texts[:limit])
    if not any(text.strip() for text in kept):
        where = "it is empty" if limit is None else f"its first {limit} lines are empty"
        raise ValueError(f"{path}: {where}, nothing to score; name the file that holds the set")
    return kept


def evaluate(options: EvaluateOptions) -> Row:
    """Score a checkpoint on everything the options name, write evaluation.json, and return what it holds.

    Every set is read before the first is scored, and evaluation.json is written when all are: what fails leaves the
    one that was there. Raises ValueError (CheckpointError, ShardError) naming the file that is missing, empty,
    damaged or not what it should be.
    """
    checkpoint = open_checkpoint(options.checkpoint, options.best)
    model = load_model(checkpoint, str(choose_device(options.device, options.threads)))
    tokenizer = load_tokenizer(checkpoint)
    dirty = {name: read_dirty(path) for name, path in map(named_file, options.dirty)}
    texts, passages = (
        [(name, path, read_set(path, read(path), options.limit)) for name, path in map(named_file, files)]
        for files, read in ((options.text, read_lines), (options.lambada, read_lambada))
    )
    result = heading(checkpoint)
    if options.shards:
        verified = run_of(checkpoint) / VERIFIED
        stream = open_stream(options.shards, "validation", verified=verified, again=options.verify)
        if stream.tokenizer_sha256 != result["tokenizer_sha256"]:
            raise ShardError(f"{options.shards}: made with another tokenizer than {checkpoint.path}")
        result["validation"] = {
            "fingerprint": stream.fingerprint,
            **asdict(validate(model, stream, options.batch_tokens)),
        }
    sets: dict[str, Row] = {}
    result["sets"] = sets
    for name, path, lines in texts:
        rows = text_rows(model, tokenizer, "".join(lines), options.stride, options.batch_tokens)
        stride = options.stride or model.config.n_ctx
        how = {"task": "perplexity", "window": model.config.n_ctx, "stride": stride, **source(path, options.limit)}
        sets[name] = {**how, **by_subset(rows, dirty.get(name), text_summary)}
        write_examples(options.examples, name, rows)
    for name, path, examples in passages:
        rows = lambada_rows(model, tokenizer, examples, options.batch_tokens)
        how = {"task": "lambada", "stop_word_filter": False, **source(path, options.limit)}
        sets[name] = {**how, **by_subset(rows, dirty.get(name), lambada_summary)}
        write_examples(options.examples, name, rows)
    out = Path(options.out) if options.out else run_of(checkpoint) / "evaluation.json"
    write_whole(out, (json.dumps(result, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())
    return result


def heading(checkpoint: Checkpoint) -> Row:
    """What was scored: nothing in it depends on where the files lie."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "step": checkpoint.step,
        "tokens_trained": checkpoint.record["tokens"],
        "model_sha256": checkpoint.record["files"][WEIGHTS]["sha256"],
        "tokenizer_sha256": checkpoint.record["tokenizer_sha256"],
        "config": checkpoint.config.to_json(),
        "arithmetic": "float32",
    }


def source(path: str, limit: int | None) -> Row:
    with Path(path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": Path(path).name, "sha256": digest, "limit": limit}


def write_examples(folder: str, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_whole(Path(folder) / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())


def write_whole(path: Path, data: bytes) -> None:
    """Write beside, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(data)
    partial.replace(path)
