"""GPT-2's shape: a decoder-only Transformer with pre-LN blocks, a final LN and a head tied to the token embedding.

The method is "Language Models are Unsupervised Multitask Learners" (section 2.3) read together with the released
`gpt-2/src/model.py`: tanh GELU, learned positions, biases everywhere, LN epsilon 1e-5, token embedding N(0, 0.02),
position embedding N(0, 0.01), weights N(0, 0.02), and the projections that write into the residual stream scaled by
1/sqrt(2·n_layer), two such projections standing in each block. Letters in shapes: B sequences, T positions,
V vocabulary, C = n_embd.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WEIGHT_STD = 0.02
POSITION_STD = 0.01
LAYER_NORM_EPSILON = 1e-5


@dataclass(frozen=True)
class GPTConfig:
    """The shape of one model. `vocab_multiple` pads the embedding's rows, never what the model can say."""

    vocab_size: int = 50257
    n_ctx: int = 1024
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    vocab_multiple: int = 64

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_ctx", "n_layer", "n_head", "n_embd", "vocab_multiple"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd ({self.n_embd}) must be a multiple of n_head ({self.n_head})")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be at least 0 and below 1, not {self.dropout!r}")

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding: vocab_size rounded up to a multiple of vocab_multiple."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    def to_json(self) -> dict[str, int | float]:
        return asdict(self)


PRESETS: dict[str, GPTConfig] = {
    "tiny": GPTConfig(n_ctx=64, n_layer=2, n_head=2, n_embd=64),
    "demo": GPTConfig(n_ctx=128, n_layer=2, n_head=4, n_embd=128),
    "gpt2": GPTConfig(n_layer=12, n_head=12, n_embd=768),
    "gpt2-medium": GPTConfig(n_layer=24, n_head=16, n_embd=1024),
    "gpt2-large": GPTConfig(n_layer=36, n_head=20, n_embd=1280),
    "gpt2-xl": GPTConfig(n_layer=48, n_head=25, n_embd=1600),
}


def count_parameters(config: GPTConfig) -> int:
    """Trainable numbers of the unpadded model, the tied head counted once: V·C + T·C + L·(12·C² + 13·C) + 2·C."""
    c = config.n_embd
    return (config.vocab_size + config.n_ctx) * c + config.n_layer * (12 * c * c + 13 * c) + 2 * c


def flops_per_token(config: GPTConfig) -> int:
    """Operations of one training step per token, 6N + 12·L·C·T (PaLM, appendix B), N without the positions."""
    n = count_parameters(config) - config.n_ctx * config.n_embd
    return 6 * n + 12 * config.n_layer * config.n_embd * config.n_ctx


class Projection(nn.Linear):
    """A linear layer that says itself whether it writes into the residual stream, so that no name is matched."""

    def __init__(self, n_in: int, n_out: int, writes_residual: bool = False) -> None:
        super().__init__(n_in, n_out)
        self.writes_residual = writes_residual


class Attention(nn.Module):
    """Causal multi-head self-attention, scale 1/sqrt(d_head)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.c_attn = Projection(config.n_embd, 3 * config.n_embd)
        self.c_proj = Projection(config.n_embd, config.n_embd, writes_residual=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)"""
        b, t, c = x.shape
        q, k, v = (
            part.view(b, t, self.n_head, c // self.n_head).transpose(1, 2) for part in self.c_attn(x).split(c, dim=2)
        )
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        out: Tensor = self.c_proj(y.transpose(1, 2).reshape(b, t, c))
        return out


class MLP(nn.Module):
    """Two layers with GELU in its tanh form, as GPT-1 and GPT-2 have it."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = Projection(config.n_embd, 4 * config.n_embd)
        self.c_proj = Projection(4 * config.n_embd, config.n_embd, writes_residual=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)"""
        out: Tensor = self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))
        return out


class Block(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=LAYER_NORM_EPSILON)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=LAYER_NORM_EPSILON)
        self.mlp = MLP(config)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)"""
        x = x + self.drop(self.attn(self.ln_1(x)))
        x = x + self.drop(self.mlp(self.ln_2(x)))
        return x


class GPT(nn.Module):
    """The whole model; parameter names are those of the released checkpoints (`wte`, `wpe`, `h.0.ln_1`, …)."""

    def __init__(self, config: GPTConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.padded_vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_ctx, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=LAYER_NORM_EPSILON)
        initialise(self, seed)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of the next token: int64 (B, T) -> float (B, T, V), over the true vocabulary only.

        Raises ValueError if T is longer than n_ctx.
        """
        b, t = ids.shape
        return self.head(self.hidden(ids)).view(b, t, -1)

    def hidden(self, ids: Tensor) -> Tensor:
        """What the final LN gives: int64 (B, T) -> (B, T, C)."""
        t = ids.shape[1]
        if t > self.config.n_ctx:
            raise ValueError(f"{t} tokens do not fit into this model's context of {self.config.n_ctx}")
        x = self.drop(self.wte(ids) + self.wpe.weight[:t])
        for block in self.h:
            x = block(x)
        out: Tensor = self.ln_f(x)
        return out

    def head(self, x: Tensor) -> Tensor:
        """(…, C) -> (rows, V): the tied head. Padding rows are cut off: they get no probability and no gradient."""
        logits = F.linear(x.flatten(0, -2), self.wte.weight)
        if self.config.padded_vocab_size == self.config.vocab_size:
            return logits
        return logits[:, : self.config.vocab_size]

    def loss(self, ids: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        """Negative log-likelihood in nats of int64 targets (B, T): the mean, the sum, or with "none" each, (B·T)."""
        logits = self.head(self.hidden(ids)).float()
        return F.cross_entropy(logits, targets.flatten(), reduction=reduction)


def initialise(model: GPT, seed: int) -> None:
    """Draw every weight from one generator, in the order of the modules; the padding rows start (and stay) at zero.

    The padding does not move the draws: a padded and an unpadded model of one seed are the same model.
    """
    generator = torch.Generator().manual_seed(seed)
    residual_std = WEIGHT_STD / math.sqrt(2 * model.config.n_layer)
    with torch.no_grad():
        vocab_size = model.config.vocab_size
        model.wte.weight[:vocab_size].normal_(0.0, WEIGHT_STD, generator=generator)
        model.wte.weight[vocab_size:].zero_()
        model.wpe.weight.normal_(0.0, POSITION_STD, generator=generator)
        for module in model.modules():
            if isinstance(module, Projection):
                std = residual_std if module.writes_residual else WEIGHT_STD
                module.weight.normal_(0.0, std, generator=generator)
                nn.init.zeros_(module.bias)


def choose_device(name: str, threads: int = 0) -> torch.device:
    """The device that "auto", "cpu" or "cuda" means here; sets the number of CPU threads unless it is 0.

    Raises ValueError if a GPU is asked for and none is there.
    """
    if threads:
        torch.set_num_threads(threads)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch sees no GPU here; use cpu or auto")
    return torch.device(name)
