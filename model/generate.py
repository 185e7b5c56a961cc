"""Text from a model: temperature, then top-k, then top-p, in the order and with the borders of GPT-2's sample.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from model.checkpoint import load_model, load_tokenizer, open_checkpoint
from model.evaluate import encode, end_of_text
from model.gpt import GPT, choose_device
from model.options import GenerateOptions


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """(…, V) with everything below the k-th largest value at -inf; ties with it stay. k = 0 keeps all."""
    if k == 0 or k >= logits.shape[-1]:
        return logits
    lowest = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < lowest, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """(…, V): the likeliest tokens while their probabilities sum to at most p, and always the likeliest one."""
    if p >= 1.0:
        return logits
    sorted_logits = logits.sort(dim=-1, descending=True).values
    sums = sorted_logits.softmax(-1).cumsum(-1)
    last = ((sums <= p).sum(-1, keepdim=True) - 1).clamp(min=0)
    return logits.masked_fill(logits < sorted_logits.gather(-1, last), -torch.inf)


def choose(logits: Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator) -> int:
    """One token id drawn from logits (V) of one position. Temperature 0 takes the largest, the first of equals."""
    if temperature == 0:
        return int(logits.argmax())
    kept = keep_top_p(keep_top_k(logits.float() / temperature, top_k), top_p)
    return int(torch.multinomial(kept.softmax(-1), 1, generator=generator))


def continue_ids(
    model: GPT,
    context: Sequence[int],
    tokens: int,
    eot_id: int,
    seeds: Sequence[int],
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> list[list[int]]:
    """One continuation of the context for each seed, at most `tokens` long, ending before end-of-text.

    A sample depends on its own seed only. What lies further back than n_ctx is forgotten. Raises ValueError for an
    empty context.
    """
    if not context:
        raise ValueError("the context is empty: begin with end-of-text")
    device = model.wte.weight.device
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    out: list[list[int]] = [[] for _ in seeds]
    alive = list(range(len(seeds)))
    model.eval()
    with torch.inference_mode():
        for _ in range(tokens):
            ids = torch.tensor([[*context, *out[i]][-model.config.n_ctx :] for i in alive], device=device)
            logits = model.head(model.hidden(ids)[:, -1]).float().cpu()
            ended = set()
            for row, i in enumerate(alive):
                token = choose(logits[row], temperature, top_k, top_p, generators[i])
                if token == eot_id:
                    ended.add(i)
                else:
                    out[i].append(token)
            alive = [i for i in alive if i not in ended]
            if not alive:
                break
    return out


def generate(options: GenerateOptions) -> list[dict[str, Any]]:
    """Samples of a checkpoint: seed, text (the prompt not repeated), tokens, and whether end-of-text was reached."""
    checkpoint = open_checkpoint(options.checkpoint, options.best)
    model = load_model(checkpoint, str(choose_device(options.device, options.threads)))
    tokenizer = load_tokenizer(checkpoint)
    eot_id = end_of_text(tokenizer)
    context = encode(tokenizer, options.prompt, model.config.vocab_size).ids or [eot_id]
    seeds = [options.seed + i for i in range(options.samples)]
    found = continue_ids(
        model, context, options.tokens, eot_id, seeds, options.temperature, options.top_k, options.top_p
    )
    return [
        {"seed": seed, "text": tokenizer.decode(ids), "tokens": len(ids), "ended": len(ids) < options.tokens}
        for seed, ids in zip(seeds, found, strict=True)
    ]
