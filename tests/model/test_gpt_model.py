"""The model's shape: sizes of the paper, equality with transformers, causality, initial spread, padding."""

from __future__ import annotations

import math
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.gpt import GPT, PRESETS, GPTConfig, Projection, count_parameters

SMALL = GPTConfig(vocab_size=101, n_ctx=16, n_layer=3, n_head=4, n_embd=32, vocab_multiple=64)


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [("gpt2", 124_439_808), ("gpt2-medium", 354_823_168), ("gpt2-large", 774_030_080), ("gpt2-xl", 1_557_611_200)],
)
def test_presets_have_the_true_gpt2_parameter_counts(preset: str, parameters: int) -> None:
    assert count_parameters(PRESETS[preset]) == parameters
    with torch.device("meta"), patch("model.gpt.initialise"):  # shapes only, no memory
        model = GPT(PRESETS[preset])
    padding = (PRESETS[preset].padded_vocab_size - 50257) * PRESETS[preset].n_embd
    assert sum(p.numel() for p in model.parameters()) == parameters + padding


def test_head_and_embedding_are_one_parameter_with_gradient_from_both_uses() -> None:
    model = GPT(SMALL)
    assert not any("head" in name for name, _ in model.named_parameters())
    ids = torch.tensor([[1, 2, 3]])
    model.loss(ids, torch.tensor([[2, 3, 4]])).backward()
    gradient = model.wte.weight.grad
    assert gradient is not None
    assert gradient[1].abs().sum() > 0  # used as input
    assert gradient[77].abs().sum() > 0  # used by the softmax only


def test_logits_equal_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=101, n_positions=16, n_embd=32, n_layer=3, n_head=4, activation_function="gelu_new"
        )
    ).eval()
    ours = GPT(SMALL, seed=3).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)  # biases and gains off their initial values too
        target = theirs.transformer
        target.wte.weight.copy_(ours.wte.weight[:101])
        target.wpe.weight.copy_(ours.wpe.weight)
        for name, value in ours.named_parameters():
            if name.startswith(("h.", "ln_f")):
                other = target.get_parameter(name)
                is_conv = value.ndim == 2 and name.startswith("h.")
                other.copy_(value.T if is_conv else value)
        ids = torch.randint(0, 101, (5, 16), generator=torch.Generator().manual_seed(0))
        assert torch.allclose(ours(ids), theirs(ids).logits, atol=1e-4, rtol=0)
        loss = theirs(ids, labels=ids).loss
        assert math.isclose(float(ours.loss(ids[:, :-1], ids[:, 1:])), float(loss), abs_tol=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 14), st.integers(0, 100), st.integers(0, 2**31))
def test_no_position_sees_a_later_token(changed: int, token: int, seed: int) -> None:
    model = GPT(SMALL, seed=1).eval()
    ids = torch.randint(0, 101, (1, 16), generator=torch.Generator().manual_seed(seed))
    other = ids.clone()
    other[0, changed + 1] = token
    with torch.no_grad():
        assert torch.equal(model(ids)[:, : changed + 1], model(other)[:, : changed + 1])
        if ids[0, changed + 1] != token:
            assert not torch.equal(model(ids)[:, changed + 1 :], model(other)[:, changed + 1 :])


def test_initial_spread_of_every_group() -> None:
    config = GPTConfig(vocab_size=4000, n_ctx=500, n_layer=6, n_head=4, n_embd=128)
    model = GPT(config)
    assert math.isclose(model.wte.weight[:4000].std().item(), 0.02, rel_tol=0.02)
    assert math.isclose(model.wpe.weight.std().item(), 0.01, rel_tol=0.02)
    projections = [m for m in model.modules() if isinstance(m, Projection)]
    writing = [m for m in projections if m.writes_residual]
    assert len(writing) == 2 * config.n_layer
    for module in projections:
        expected = 0.02 / math.sqrt(2 * config.n_layer) if module.writes_residual else 0.02
        assert math.isclose(module.weight.std().item(), expected, rel_tol=0.03)
        assert not module.bias.any()
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            assert module.weight.eq(1).all()
            assert not module.bias.any()
            assert module.eps == 1e-5


def test_padding_rows_change_nothing_and_learn_nothing() -> None:
    plain = GPT(GPTConfig(vocab_size=101, n_ctx=16, n_layer=2, n_head=2, n_embd=32, vocab_multiple=1), seed=5)
    padded = GPT(GPTConfig(vocab_size=101, n_ctx=16, n_layer=2, n_head=2, n_embd=32, vocab_multiple=128), seed=5)
    ids = torch.randint(0, 101, (2, 16), generator=torch.Generator().manual_seed(0))
    assert padded.wte.weight.shape == (128, 32)
    assert padded(ids).shape == (2, 16, 101)
    assert torch.allclose(padded(ids), plain(ids), atol=1e-6)
    padded.loss(ids, ids).backward()
    assert padded.wte.weight.grad is not None
    assert not padded.wte.weight.grad[101:].any()


def test_context_and_configuration_are_checked() -> None:
    with pytest.raises(ValueError, match="17 tokens do not fit into this model's context of 16"):
        GPT(SMALL)(torch.zeros((1, 17), dtype=torch.int64))
    with pytest.raises(ValueError, match="n_embd"):
        GPTConfig(n_embd=30, n_head=4)
    with pytest.raises(ValueError, match="n_layer"):
        GPTConfig(n_layer=0)
    with pytest.raises(ValueError, match="dropout"):
        GPTConfig(dropout=1.0)


def test_dropout_acts_in_training_only() -> None:
    model = GPT(GPTConfig(vocab_size=101, n_ctx=16, n_layer=2, n_head=2, n_embd=32, dropout=0.5))
    ids = torch.zeros((1, 8), dtype=torch.int64)
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))
