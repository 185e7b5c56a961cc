"""Scores against values worked out by hand or token by token; generation against GPT-2's sampling rules."""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from model.checkpoint import load_model, load_tokenizer, open_checkpoint, tokenizer_from
from model.evaluate import (
    evaluate,
    lambada,
    lambada_rows,
    lines_of,
    loglikelihood,
    perplexity,
    split_last_word,
    text_rows,
    text_summary,
)
from model.generate import choose, continue_ids, generate, keep_top_k, keep_top_p
from model.gpt import GPT, GPTConfig
from model.options import EvaluateOptions, GenerateOptions, TrainOptions
from model.train import train

SMALL = GPTConfig(vocab_size=50, n_ctx=8, n_layer=2, n_head=2, n_embd=16)


@pytest.fixture(scope="module")
def tokenizer(corpus: Path) -> Tokenizer:
    path = corpus.parent / "tokenizer" / "tokenizer.json"
    return tokenizer_from(path.read_bytes(), str(path))


def lively(config: GPTConfig, seed: int = 0) -> GPT:
    """A random model whose predictions differ enough to be told apart."""
    model = GPT(config, seed).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return model


def uniform(vocab_size: int, n_ctx: int = 8) -> GPT:
    """Every token equally likely everywhere: all embeddings zero."""
    model = GPT(GPTConfig(vocab_size=vocab_size, n_ctx=n_ctx, n_layer=1, n_head=1, n_embd=8)).eval()
    torch.nn.init.zeros_(model.wte.weight)
    return model


def one_by_one(model: GPT, context: list[int], continuation: list[int]) -> tuple[list[float], bool]:
    """The definition: a forward pass per token, each seeing the last n_ctx tokens of one fixed window."""
    n_ctx = model.config.n_ctx
    window = (context + continuation)[-(n_ctx + 1) :]
    logps, greedy = [], True
    for i in range(len(window) - len(continuation), len(window)):
        with torch.no_grad():
            logits = model(torch.tensor([window[:i]]))[0, -1].double()
        logps.append(float(logits.log_softmax(-1)[window[i]]))
        greedy &= int(logits.argmax()) == window[i]
    return logps, greedy


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 49), min_size=1, max_size=20),
            st.lists(st.integers(0, 49), min_size=1, max_size=8),
        ),
        min_size=1,
        max_size=7,
    ),
    st.sampled_from([1, 9, 1000]),
)
def test_loglikelihood_is_its_definition_in_any_batch(
    requests: list[tuple[list[int], list[int]]], batch_tokens: int
) -> None:
    model = lively(SMALL)
    for (context, continuation), score in zip(requests, loglikelihood(model, requests, batch_tokens), strict=True):
        logps, greedy = one_by_one(model, context, continuation)
        assert np.allclose(score.token_logps, logps, atol=1e-4)
        assert math.isclose(score.logp, sum(logps), abs_tol=1e-3)
        assert score.greedy == greedy


def test_greedy_is_recognised() -> None:
    model = lively(SMALL)
    with torch.no_grad():
        best = int(model(torch.tensor([[3, 4]]))[0, -1].argmax())
    scores = loglikelihood(model, [([3, 4], [best]), ([3, 4], [(best + 1) % 50])])
    assert [score.greedy for score in scores] == [True, False]


def test_impossible_requests_are_refused() -> None:
    for request in (([], [1]), ([1], []), ([1], [1] * 9)):
        with pytest.raises(ValueError, match="request 0"):
            loglikelihood(uniform(50), [request])


@pytest.mark.parametrize("stride", [None, 1, 3, 8])
def test_perplexity_of_a_uniform_model_is_the_vocabulary(tokenizer: Tokenizer, stride: int | None) -> None:
    vocab_size = tokenizer.get_vocab_size()
    text = " the cat sat \n on a mat \n\n and looked \n"
    summary = text_summary(text_rows(uniform(vocab_size), tokenizer, text, stride))
    n = len(tokenizer.encode(text).ids)
    assert summary["ppl_per_token"] == pytest.approx(vocab_size)
    assert summary["nll"] == pytest.approx(n * math.log(vocab_size))
    assert (summary["tokens"], summary["words"], summary["lines"]) == (n, 8, 4)
    assert summary["ppl_per_word"] == pytest.approx(math.exp(n * math.log(vocab_size) / 8))
    assert summary["ppl_per_word_and_line"] == pytest.approx(math.exp(n * math.log(vocab_size) / 12))
    assert summary["bits_per_byte"] == pytest.approx(n * math.log2(vocab_size) / len(text))


@pytest.mark.parametrize("stride", [None, 1, 5, 8])
def test_windows_score_every_token_once_with_the_stated_context(tokenizer: Tokenizer, stride: int | None) -> None:
    model = lively(GPTConfig(vocab_size=tokenizer.get_vocab_size(), n_ctx=8, n_layer=2, n_head=2, n_embd=16))
    text = " the cat sat on a mat \n and lookéd at one bird 鳥 \n that sang"
    stream = [tokenizer.token_to_id("<|endoftext|>"), *tokenizer.encode(text).ids]
    step = stride or 8
    expected = 0.0
    for start in range(1, len(stream), step):
        piece = stream[start : start + step]
        window = stream[max(0, start + step - 9) : start]
        assert window
        expected -= sum(one_by_one(model, window, piece)[0])
    rows = text_rows(model, tokenizer, text, stride)
    assert sum(row["nll"] for row in rows) == pytest.approx(expected, rel=1e-4)
    assert sum(row["tokens"] for row in rows) == len(stream) - 1
    assert sum(row["bytes"] for row in rows) == len(text.encode())
    assert [row["words"] for row in rows] == [6, 6, 2]
    first = text_rows(model, tokenizer, lines_of(text)[0], stride)
    assert rows[0]["nll"] == pytest.approx(first[0]["nll"], rel=1e-4)  # the first line does not see the others


def test_more_context_never_means_another_text(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="stride must be between 1 and n_ctx"):
        text_rows(uniform(tokenizer.get_vocab_size()), tokenizer, "the cat", 9)


def test_perplexity_reads_gzip_and_names_bad_files(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = uniform(tokenizer.get_vocab_size())
    (tmp_path / "a.txt").write_text(" the cat \n sat \n")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b" the cat \n sat \n"))
    assert perplexity(model, tokenizer, tmp_path / "a.txt") == perplexity(model, tokenizer, tmp_path / "a.txt.gz")
    assert perplexity(model, tokenizer, tmp_path / "a.txt", limit=1)["lines"] == 1
    (tmp_path / "bad.txt").write_bytes(b"abc\xff")
    with pytest.raises(ValueError, match=r"bad\.txt: not UTF-8 at byte 3"):
        perplexity(model, tokenizer, tmp_path / "bad.txt")
    (tmp_path / "bad.gz").write_bytes(gzip.compress(b"abc" * 100)[:-9])
    with pytest.raises(ValueError, match=r"bad\.gz"):
        perplexity(model, tokenizer, tmp_path / "bad.gz")
    with pytest.raises(ValueError, match=r"none\.txt: no such file"):
        perplexity(model, tokenizer, tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text("")
    assert perplexity(model, tokenizer, tmp_path / "empty.txt")["ppl_per_token"] is None


def test_last_words() -> None:
    assert split_last_word("He said yes") == ("He said", " yes")
    assert split_last_word("He said,  “yes”\n") == ("He said,", "  “yes”")
    assert split_last_word("yes") == ("", "yes")
    assert split_last_word("yes yes") == ("yes", " yes")


def test_lambada_is_its_definition(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = lively(GPTConfig(vocab_size=tokenizer.get_vocab_size(), n_ctx=16, n_layer=2, n_head=2, n_embd=16))
    texts = ["the cat sat on a mat and looked at one bird", "rain fell softly while it sang in its xyzzy", "old"]
    eot = tokenizer.token_to_id("<|endoftext|>")
    words, tokens = [], []
    for text in texts:
        context, word = split_last_word(text)
        words.append(one_by_one(model, tokenizer.encode(context).ids or [eot], tokenizer.encode(word).ids))
        whole = tokenizer.encode(text).ids
        tokens.append(one_by_one(model, whole[:-1] or [eot], whole[-1:]))
    (tmp_path / "l.jsonl.gz").write_bytes(
        gzip.compress("".join(json.dumps({"text": t}) + "\n" for t in texts).encode())
    )
    found = lambada(model, tokenizer, tmp_path / "l.jsonl.gz")
    assert found["examples"] == 3
    assert found["ppl_last_word"] == pytest.approx(math.exp(-sum(sum(x) for x, _ in words) / 3), rel=1e-4)
    assert found["ppl_last_bpe"] == pytest.approx(math.exp(-sum(sum(x) for x, _ in tokens) / 3), rel=1e-4)
    assert found["acc_last_word"] == sum(greedy for _, greedy in words) / 3
    assert found["acc_last_bpe"] == sum(greedy for _, greedy in tokens) / 3


def test_lambada_accuracy_counts_what_the_model_would_say(tokenizer: Tokenizer) -> None:
    """A model that always says one token: right exactly where that token is the answer."""
    vocab_size = tokenizer.get_vocab_size()
    model = uniform(vocab_size)
    (bird,) = tokenizer.encode(" bird").ids
    with torch.no_grad():
        model.ln_f.weight.zero_()
        model.ln_f.bias.fill_(1.0)
        model.wte.weight[bird] = 2.0
    rows = lambada_rows(model, tokenizer, ["looked at one bird", "looked at one cat", "that bird\n"])
    assert [row["correct_last_word"] for row in rows] == [True, False, True]
    assert [row["correct_last_bpe"] for row in rows] == [True, False, True]
    expected = math.log(math.exp(16) / (math.exp(16) + vocab_size - 1))
    assert rows[0]["logp_last_word"] == pytest.approx(expected, abs=1e-5)


def test_bad_lambada_lines_are_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for bad in ('{"text": ""}', "{", '{"txt": "a b"}', "[1]"):
        (tmp_path / "l.jsonl").write_text('{"text": "a b"}\n' + bad + "\n")
        with pytest.raises(ValueError, match=r"l\.jsonl: line 2"):
            lambada(uniform(tokenizer.get_vocab_size()), tokenizer, tmp_path / "l.jsonl")


# ------------------------------------------------------------------------------------------ a whole evaluation


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("runs") / "run"
    options: dict[str, Any] = {"preset": "tiny", "n_embd": 32, "n_ctx": 16, "batch_tokens": 128, "steps": 60}
    train(TrainOptions(str(corpus), str(run), device="cpu", learning_rate=1e-2, **options), out=None)
    return run


def test_evaluation_joins_the_dirty_examples(trained: Path, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("".join(f" {w} sat on the mat \n" for w in ("cat", "bird", "tree", "rain")))
    texts = ["the cat sat on a mat", "one bird that sang", "the cat sat on the bird", "in its old tree"]
    (tmp_path / "l.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    (tmp_path / "dt.json").write_text("[2, 4]")
    (tmp_path / "dl.json").write_text('{"dirty": [1, 3]}')
    options = EvaluateOptions(
        checkpoint=str(trained),
        shards=str(corpus),
        text=(f"plain={tmp_path / 't.txt'}",),
        lambada=(f"words={tmp_path / 'l.jsonl'}",),
        dirty=(f"plain={tmp_path / 'dt.json'}", f"words={tmp_path / 'dl.json'}"),
        examples=str(tmp_path / "examples"),
        device="cpu",
    )
    result = evaluate(options)
    written = json.loads((trained / "evaluation.json").read_text())
    assert written == result
    assert str(tmp_path) not in (trained / "evaluation.json").read_text()
    assert result["step"] == 60
    record = open_checkpoint(trained).record
    assert result["validation"]["loss"] == pytest.approx(record["validation"]["loss"], rel=1e-6)
    plain, words = result["sets"]["plain"], result["sets"]["words"]
    rows = [json.loads(line) for line in (tmp_path / "examples" / "plain.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [1, 2, 3, 4]
    assert plain["dirty"]["nll"] == pytest.approx(rows[1]["nll"] + rows[3]["nll"])
    assert plain["clean"]["nll"] + plain["dirty"]["nll"] == pytest.approx(plain["all"]["nll"])
    assert (plain["clean"]["lines"], plain["dirty"]["lines"], plain["all"]["words"]) == (2, 2, 20)
    assert (plain["window"], plain["stride"]) == (16, 16)
    shares = [words[subset]["acc_last_bpe"] for subset in ("all", "clean", "dirty")]
    assert shares[0] == pytest.approx((shares[1] + shares[2]) / 2)
    again = evaluate(options)
    assert again == result


def test_evaluation_refuses_what_does_not_fit(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name=file"):
        EvaluateOptions("c", text=("plain",))
    with pytest.raises(ValueError, match="none of the sets"):
        EvaluateOptions("c", text=("a=b",), dirty=("x=y",))
    with pytest.raises(ValueError, match="name one set twice"):
        EvaluateOptions("c", text=("a=b",), lambada=("a=c",))
    (tmp_path / "d.json").write_text('{"a": 1}')
    (tmp_path / "t.txt").write_text("a\n")
    with pytest.raises(ValueError, match=r"d\.json: not a JSON list of line numbers"):
        evaluate(
            EvaluateOptions(str(trained), text=(f"a={tmp_path / 't.txt'}",), dirty=(f"a={tmp_path / 'd.json'}",))
        )


@pytest.mark.parametrize("out", ["", "elsewhere.json"])
def test_an_evaluation_of_nothing_is_refused_and_leaves_the_last_one(trained: Path, tmp_path: Path, out: str) -> None:
    with pytest.raises(ValueError, match="nothing to evaluate: give shards, text or lambada"):
        EvaluateOptions("c")
    (tmp_path / "good.txt").write_text("the cat\n")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "blank.txt").write_text(" \n\n")
    (tmp_path / "late.txt").write_text("\n\nthe cat\n")
    written = tmp_path / out if out else trained / "evaluation.json"
    options = EvaluateOptions(str(trained), out=str(written), device="cpu", text=(f"good={tmp_path / 'good.txt'}",))
    evaluate(options)
    before = written.read_bytes()
    assert b'"good"' in before
    with pytest.raises(ValueError, match=r"empty\.jsonl: it is empty"):
        evaluate(replace(options, lambada=(f"x={tmp_path / 'empty.jsonl'}",)))
    with pytest.raises(ValueError, match=r"blank\.txt: it is empty"):
        evaluate(replace(options, text=(f"x={tmp_path / 'blank.txt'}",)))
    with pytest.raises(ValueError, match=r"late\.txt: its first 2 lines are empty"):
        evaluate(replace(options, text=(f"x={tmp_path / 'late.txt'}",), limit=2))
    assert written.read_bytes() == before


def test_real_sets_are_scored(trained: Path, shared: Path) -> None:
    """The tiny model on the head of the real files; the words counted are the catalogue's."""
    checkpoint = open_checkpoint(trained)
    model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
    ptb = perplexity(model, tokenizer, shared / "data/ptb/ptb.test.txt.gz", limit=20)
    assert ptb["lines"] == 20
    assert ptb["ppl_per_word"] > ptb["ppl_per_token"] > 1
    found = lambada(model, tokenizer, shared / "data/lambada/lambada_test.jsonl.gz", limit=5)
    assert found["examples"] == 5
    assert 0 <= found["acc_last_word"] <= found["acc_last_bpe"] <= 1


# -------------------------------------------------------------------------------------------------- generation


def test_top_k_and_top_p_keep_what_gpt2_keeps() -> None:
    logits = torch.tensor([0.5, 0.2, 0.2, 0.1]).log()
    kept = lambda x: torch.isfinite(x).tolist()  # noqa: E731
    assert kept(keep_top_k(logits, 1)) == [True, False, False, False]
    assert kept(keep_top_k(logits, 2)) == [True, True, True, False]  # ties stay
    assert kept(keep_top_k(logits, 0)) == [True] * 4
    assert kept(keep_top_p(logits, 0.1)) == [True, False, False, False]
    assert kept(keep_top_p(logits, 0.6)) == [True, False, False, False]
    assert kept(keep_top_p(logits, 0.95)) == [True, True, True, False]
    assert kept(keep_top_p(logits, 1.0)) == [True] * 4


def test_sampling_follows_the_probabilities() -> None:
    logits = torch.tensor([0.6, 0.3, 0.1]).log()
    generator = torch.Generator().manual_seed(0)
    drawn = np.bincount([choose(logits, 1.0, 0, 1.0, generator) for _ in range(4000)], minlength=3) / 4000
    assert np.allclose(drawn, [0.6, 0.3, 0.1], atol=0.03)
    cooled = np.bincount([choose(logits, 0.5, 0, 1.0, generator) for _ in range(4000)], minlength=3) / 4000
    assert np.allclose(cooled, np.array([0.36, 0.09, 0.01]) / 0.46, atol=0.03)
    assert choose(logits, 0.0, 0, 1.0, generator) == 0


def test_generation_is_seeded_stops_at_end_of_text_and_forgets_beyond_the_context() -> None:
    model = lively(SMALL)
    three = continue_ids(model, [1, 2], 30, eot_id=49, seeds=[5, 6, 5])
    assert three[0] == three[2] != three[1]
    greedy = continue_ids(model, [1, 2], 12, eot_id=-1, seeds=[0], temperature=0.0)[0]
    ids = [1, 2]
    with torch.no_grad():
        for _ in range(12):
            ids.append(int(model(torch.tensor([ids[-8:]]))[0, -1].argmax()))
    assert greedy == ids[2:]
    stopped = continue_ids(model, [1, 2], 12, eot_id=greedy[4], seeds=[0], temperature=0.0)[0]
    assert stopped == greedy[: greedy.index(greedy[4])]
    with pytest.raises(ValueError, match="context is empty"):
        continue_ids(model, [], 1, 49, [0])


def test_a_trained_model_writes_its_corpus_words(trained: Path) -> None:
    samples = generate(GenerateOptions(str(trained), prompt="the cat", tokens=20, samples=2, top_k=5, device="cpu"))
    assert [sample["seed"] for sample in samples] == [0, 1]
    assert samples == generate(
        GenerateOptions(str(trained), prompt="the cat", tokens=20, samples=2, top_k=5, device="cpu")
    )
    assert all(0 < sample["tokens"] <= 20 or sample["ended"] for sample in samples)
    free = generate(GenerateOptions(str(trained), tokens=5, device="cpu"))
    assert len(free) == 1
