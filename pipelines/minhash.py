"""MinHash sketches of documents, in bulk: what finds near duplicates without comparing everything with everything.

A document is the set of its word n-grams ("shingles"). The share of equal places in two documents' signatures
estimates the Jaccard similarity of their sets (Broder, "On the resemblance and containment of documents", 1997);
cutting the signature into bands makes similar documents meet in a bucket (Leskovec, Rajaraman, Ullman, "Mining of
Massive Datasets", section 3.4).

The scheme is datasketch's "affine32" (its default since 2.0.0): a shingle's 32-bit hash, the upper half of its n-gram
key, goes once through MurmurHash3's finaliser and then through h -> a·h + b mod 2^32 with odd a, one (a, b) for each
permutation, drawn by datasketch from the seed. Signatures equal those of `datasketch.MinHash` fed the same hashes.
A document with fewer words than a shingle has no shingle and gets no bands: only its content hash can match.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.ngrams import Words, find_grams, find_words

if TYPE_CHECKING:
    from pipelines.stages import Context, Task

U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

EMPTY = np.uint32(0xFFFFFFFF)  # the minimum over no shingle
TEXT_AT_ONCE = 1 << 20  # bytes of text per pass: its arrays stay in cache
SHINGLES_AT_ONCE = 1 << 16  # hashes per pass over the permutations: input and result fit a 1 MiB cache


@dataclass(frozen=True)
class SketchOptions:
    """What shapes a sketch, and nothing else, so that sketches outlive changes of the rules that use them."""

    permutations: int = 112
    shingle: int = 5  # words
    seed: int = 1
    scheme: Literal["affine32"] = "affine32"  # the only one; stored with the sketches, which mean nothing without it

    def __post_init__(self) -> None:
        if not 1 <= self.permutations <= 1024:
            raise ValueError(f"permutations: {self.permutations} is not in 1..1024")
        if not 1 <= self.shingle <= 100:
            raise ValueError(f"shingle: {self.shingle} words is not in 1..100")
        if not 0 <= self.seed < 1 << 32:
            raise ValueError(f"seed: {self.seed} is not in 0..{(1 << 32) - 1}")
        if self.scheme != "affine32":
            raise ValueError(f"scheme: {self.scheme!r} is not known; it must be 'affine32'")


def sketch_schema(options: SketchOptions) -> pa.Schema:
    """Table `annotations/duplicates/sketches`, version 1: the rows and order of its document part.

    `content_high`, `content_low`: 128-bit hash that exact copies share (`content_hashes`); `n_words`; `signature`:
    the minima, all 2^32 - 1 where the document has fewer words than a shingle.
    """
    return pa.schema(
        [
            pa.field("content_high", pa.uint64(), nullable=False),
            pa.field("content_low", pa.uint64(), nullable=False),
            pa.field("n_words", pa.int32(), nullable=False),
            pa.field("signature", signature_type(options.permutations), nullable=False),
        ],
    )


def signature_type(count: int) -> pa.DataType:
    """fixed_size_list<uint32>[count], as it stands in the sketch table."""
    return pa.list_(pa.field("item", pa.uint32(), nullable=False), count)


class Sketches(NamedTuple):
    """Sketches of d documents: content hashes uint64[d, 2], words int64[d], signatures uint32[d, permutations]."""

    content: U64
    n_words: I64
    signature: U32


def sketch_texts(texts: pa.Array | pa.ChunkedArray, options: SketchOptions) -> Sketches:
    """Sketch documents given as one string array; works through it a megabyte at a time."""
    parts = [sketch_words(find_words(piece), options) for piece in slices_of_text(texts)]
    if not parts:
        parts = [sketch_words(find_words(pa.array([], pa.string())), options)]
    return Sketches(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def sketch_words(words: Words, options: SketchOptions) -> Sketches:
    """Sketch the documents of one batch of words."""
    grams = find_grams(words, options.shingle)
    hashes = (grams.keys >> np.uint64(32)).astype(np.uint32)
    signature = signatures(hashes, grams.documents, options.permutations, options.seed)
    return Sketches(content_hashes(words), np.diff(words.documents), signature)


def slices_of_text(texts: pa.Array | pa.ChunkedArray, limit: int = TEXT_AT_ONCE) -> Iterator[pa.Array]:
    """Cut a string array into runs of whole documents of at most `limit` bytes (one document may exceed it)."""
    for chunk in texts.chunks if isinstance(texts, pa.ChunkedArray) else [texts]:
        ends = np.cumsum(pc.binary_length(chunk).to_numpy(zero_copy_only=False), dtype=np.int64)
        start = 0
        while start < len(chunk):
            before = int(ends[start - 1]) if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, before + limit, "right")))
            yield chunk.slice(start, stop - start)
            start = stop


def content_hashes(words: Words) -> U64:
    """128 bits that two documents share iff they are exact copies: uint64[d, 2] (high, low).

    Exact copies have the same sequence of normalised words; documents without a word, the same bytes. BLAKE2b over
    the sequence of 64-bit word keys, so two different documents meet by chance only where two words share a key:
    2^-64 for each pair of documents that agree elsewhere.
    """
    keys = np.ascontiguousarray(words.keys.astype("<u8", copy=False)).data.cast("B")
    text = np.ascontiguousarray(words.text).data
    borders = (words.documents * 8).tolist()
    text_borders = words.text_offsets.tolist()
    digests = bytearray()
    for document in range(len(borders) - 1):
        start, end = borders[document], borders[document + 1]
        if end > start:
            digests += hashlib.blake2b(keys[start:end], digest_size=16, person=b"words").digest()
        else:
            raw = text[text_borders[document] : text_borders[document + 1]]
            digests += hashlib.blake2b(raw, digest_size=16, person=b"no words").digest()
    return np.frombuffer(bytes(digests), ">u8").astype(np.uint64).reshape(-1, 2)


@lru_cache(maxsize=8)
def permutations(count: int, seed: int) -> tuple[U32, U32]:
    """The factors a (odd) and summands b of `count` permutations h -> a·h + b mod 2^32, as datasketch draws them."""
    from datasketch import MinHash

    a, b = MinHash(num_perm=count, seed=seed, scheme="affine32").permutations
    return a, b


def signatures(hashes: U32, documents: I64, count: int, seed: int) -> U32:
    """MinHash signatures of d documents: uint32[d, count].

    `hashes` uint32[g] are the shingles' hashes (repetitions do no harm), `documents` int64[d+1] their borders. Memory
    beside the result is bounded by `SHINGLES_AT_ONCE`, however long a document is.
    """
    factors, summands = permutations(count, seed)
    minima = np.full((count, len(documents) - 1), EMPTY, np.uint32)
    buffer = np.empty(min(len(hashes), SHINGLES_AT_ONCE), np.uint32)
    filled = np.flatnonzero(np.diff(documents))  # reduceat has no empty segments
    starts = documents[filled]
    for begin in range(0, len(hashes), SHINGLES_AT_ONCE):
        mixed = mix32(hashes[begin : begin + SHINGLES_AT_ONCE])
        permuted = buffer[: len(mixed)]
        first = int(np.searchsorted(starts, begin, "right")) - 1  # the document that the slice begins in
        last = int(np.searchsorted(starts, begin + len(mixed), "left"))
        segments = np.maximum(starts[first:last] - begin, 0)
        columns = filled[first:last]
        for k in range(count):
            np.multiply(mixed, factors[k], out=permuted)
            np.add(permuted, summands[k], out=permuted)
            least = np.minimum.reduceat(permuted, segments)
            minima[k, columns] = np.minimum(minima[k, columns], least)
    return np.ascontiguousarray(minima.T)


def mix32(hashes: U32) -> U32:
    """MurmurHash3's 32-bit finaliser, a fixed bijection (Appleby, 2010)."""
    mixed = hashes ^ (hashes >> np.uint32(16))
    mixed *= np.uint32(0x85EBCA6B)
    mixed ^= mixed >> np.uint32(13)
    mixed *= np.uint32(0xC2B2AE35)
    mixed ^= mixed >> np.uint32(16)
    return mixed


def mix64(keys: U64) -> U64:
    """MurmurHash3's 64-bit finaliser, a fixed bijection."""
    mixed = keys ^ (keys >> np.uint64(33))
    mixed *= np.uint64(0xFF51AFD7ED558CCD)
    mixed ^= mixed >> np.uint64(33)
    mixed *= np.uint64(0xC4CEB9FE1A85EC53)
    mixed ^= mixed >> np.uint64(33)
    return mixed


def band_keys(signature: U32, bands: int, rows: int) -> U64:
    """Bucket keys: uint64[d, bands], equal where two documents agree in all `rows` places of a band.

    Different bands never mean the same bucket. Keys of different buckets may collide (2^-64 for each pair): a false
    candidate, which verification removes.
    """
    weights: U64 = mix64(np.arange(1, bands * (rows + 1) + 1).astype(np.uint64)) | np.uint64(1)
    keys: U64 = np.tile(weights[:bands], (len(signature), 1))
    for row in range(rows):
        column = signature[:, row : bands * rows : rows].astype(np.uint64)
        keys = mix64(keys ^ column * weights[bands * (row + 1) : bands * (row + 2)])
    return keys


def match_probability(similarity: float, bands: int, rows: int) -> float:
    """The S-curve: chance that documents of this Jaccard similarity meet in at least one bucket, 1 - (1 - j^r)^b."""
    return float(1 - (1 - similarity**rows) ** bands)


def similarity_estimate(one: U32, other: U32) -> npt.NDArray[np.float64]:
    """Share of equal places in signatures [..., permutations]: standard deviation sqrt(j (1 - j) / permutations)."""
    share: npt.NDArray[np.float64] = np.mean(one == other, axis=-1)
    return share


def work_sketches(task: Task, context: Context) -> None:
    """Sketch one document part, a row group at a time."""
    from pipelines.stages import document_part, write_annotation
    from pipelines.workspace import iter_part

    options: SketchOptions = context.options
    schema = sketch_schema(options)

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in iter_part(context.workspace, document_part(task), ["text"]):
            s = sketch_texts(batch.column("text"), options)
            signature = pa.FixedSizeListArray.from_arrays(
                pa.array(s.signature.ravel()), type=signature_type(options.permutations)
            )
            columns = [s.content[:, 0], s.content[:, 1], s.n_words.astype(np.int32)]
            yield pa.RecordBatch.from_arrays([*map(pa.array, columns), signature], schema=schema)

    write_annotation(task, context, batches(), schema)
