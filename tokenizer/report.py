"""What a vocabulary makes of a text: bytes per token, tokens per word, how much falls back to single bytes; at the
sizes that the same training passed through on its way, since stopping it earlier only leaves out the last merges."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokenizer.counts import merge_counts
from tokenizer.encode import Encoder
from tokenizer.pretokens import is_word
from tokenizer.vocabulary import Vocabulary

SIZES = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)


def report(vocabulary: Vocabulary, counts: pa.Table, sizes: Sequence[int] = SIZES) -> dict[str, object]:
    """A JSON-able dict about the text that `counts` (`counts.SCHEMA`) stands for: `pretokens`, `types`, `n_bytes`,
    `words`, and in `sizes` a dict for each of `sizes` below the vocabulary's, and for the whole vocabulary last, with
    `vocab_size`, `tokens`, `bytes_per_token`, `tokens_per_word` (over pretokens of letters; 0 if there are none),
    `single_byte_share` (of tokens), and `unused` (tokens of text that never occur). Raises ValueError if a counted
    pretoken is not UTF-8."""
    table = merge_counts([counts])
    try:
        texts = table["pretoken"].cast(pa.string())
    except pa.ArrowInvalid as error:
        raise ValueError(f"a counted pretoken is not UTF-8: {error}") from error
    number = table["count"].to_numpy()
    words = is_word(table["pretoken"].to_pylist())
    n_bytes = int((pc.binary_length(table["pretoken"]).to_numpy().astype(np.int64) * number).sum())
    made = [size for size in sorted(set(sizes)) if 257 <= size < vocabulary.size and _whole(vocabulary)]
    stages = [*(vocabulary.prefix(size) for size in made), vocabulary]
    return {
        "types": len(table),
        "pretokens": int(number.sum()),
        "words": int(number[words].sum()),
        "n_bytes": n_bytes,
        "sizes": [_compression(each, texts, number, words, n_bytes) for each in stages],
    }


def _whole(vocabulary: Vocabulary) -> bool:
    """Whether every merge made one token, so that sizes and merges correspond."""
    return vocabulary.size == 257 + len(vocabulary.merges)


def _compression(
    vocabulary: Vocabulary,
    texts: pa.ChunkedArray,
    number: np.ndarray[tuple[int], np.dtype[np.int64]],
    words: np.ndarray[tuple[int], np.dtype[np.bool_]],
    n_bytes: int,
) -> dict[str, object]:
    encoded = Encoder(vocabulary).encode(texts)
    sizes = np.diff(encoded.offsets.to_numpy()).astype(np.int64)
    ids, weight = encoded.values.to_numpy(), np.repeat(number, sizes)
    single = np.array([len(token) == 1 for token in vocabulary.tokens], bool)
    tokens, word_tokens = int((sizes * number).sum()), int((sizes * number)[words].sum())
    n_words = int(number[words].sum())
    return {
        "vocab_size": vocabulary.size,
        "tokens": tokens,
        "bytes_per_token": n_bytes / tokens if tokens else 0.0,
        "tokens_per_word": word_tokens / n_words if n_words else 0.0,
        "single_byte_share": int(weight[single[ids]].sum()) / tokens if tokens else 0.0,
        "unused": len(vocabulary.ids) - len(np.unique(ids)),
    }
