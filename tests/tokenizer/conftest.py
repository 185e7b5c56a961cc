"""What the tokenizer's tests compare with: GPT-2's own files, its pattern, and `tokenizers`."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from tokenizer.pretokens import WINDOW, find_pretokens
from tokenizer.vocabulary import read_token

PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
Split = Callable[..., list[list[bytes]]]


@pytest.fixture(scope="session")
def gpt2(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with GPT-2's released `encoder.json` and `vocab.bpe`."""
    folder = tmp_path_factory.mktemp("gpt2")
    for name in ("encoder.json", "vocab.bpe"):
        (folder / name).write_bytes(gzip.decompress((shared / "data" / "vocab" / "gpt2" / f"{name}.gz").read_bytes()))
    return folder


@pytest.fixture(scope="session")
def c4(shared: Path) -> list[str]:
    """A thousand web documents."""
    lines = gzip.decompress((shared / "data" / "c4-sample" / "c4.jsonl.gz").read_bytes()).splitlines()
    return [json.loads(line)["text"] for line in lines]


@pytest.fixture(scope="session")
def split() -> Split:
    """Our pretokens of each text, as bytes."""

    def split(texts: Sequence[str] | pa.Array, window: int = WINDOW) -> list[list[bytes]]:
        documents: list[list[bytes]] = [[]]
        for found in find_pretokens(texts, window):
            data, borders, done = found.text.tobytes(), found.borders.tolist(), 0
            tokens = [data[low:high] for low, high in itertools.pairwise(borders)]
            for end in found.ends.tolist():
                documents[-1] += tokens[done:end]
                documents.append([])
                done = end
            documents[-1] += tokens[done:]
        assert documents.pop() == []  # every document has ended
        return documents

    return split


@pytest.fixture(scope="session")
def pattern_split() -> Split:
    """The same by GPT-2's pattern in the module it was written for."""
    import regex

    find = regex.compile(PATTERN).findall
    return lambda texts: [[token.encode() for token in find(text)] for text in texts]


@pytest.fixture(scope="session")
def reference_split() -> Split:
    """The same by `tokenizers`, whose ids ours must equal."""
    from tokenizers import pre_tokenizers

    find = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
    return lambda texts: [[read_token(token) for token, _ in find(text)] for text in texts]


@pytest.fixture(scope="session")
def reference_merges() -> Callable[..., list[tuple[bytes, bytes]]]:
    """The merges that `tokenizers` learns from texts, splitting them itself."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    def merges(
        texts: Sequence[str], vocab_size: int, min_count: int = 2, longest: int = 0
    ) -> list[tuple[bytes, bytes]]:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - 1,
            min_frequency=min_count,
            max_token_length=longest + 1 if longest else None,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        found = json.loads(tokenizer.to_str())["model"]["merges"]
        return [(read_token(left), read_token(right)) for left, right in found]

    return merges
