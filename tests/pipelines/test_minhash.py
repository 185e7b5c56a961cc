"""Sketches: the same as datasketch's, as good as the theory says, bounded, and never empty ones that match."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
from datasketch import MinHash
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import minhash
from pipelines.minhash import SketchOptions, band_keys, match_probability, signatures, sketch_texts
from pipelines.ngrams import find_grams, find_words
from pipelines.stages import plain_options

OPTIONS = SketchOptions()
SIMILARITIES = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)


def datasketch_signature(hashes: np.ndarray, permutations: int = 112, seed: int = 1) -> np.ndarray:
    reference = MinHash(permutations, seed=seed, hashfunc=int)
    for begin in range(0, len(hashes), 50_000):  # it makes a matrix of hashes by permutations
        reference.update_batch(hashes[begin : begin + 50_000].tolist())
    return reference.digest()


def pairs_of_similarity(similarity: float, count: int, size: int = 400) -> tuple[np.ndarray, np.ndarray, float]:
    """Signatures of `count` pairs of random sets with exactly this Jaccard similarity (as near as `size` allows)."""
    rng = np.random.default_rng(round(similarity * 1000))
    shared = round(2 * size * similarity / (1 + similarity))
    own = size - shared
    hashes = rng.integers(0, 1 << 32, (count, shared + 2 * own), dtype=np.uint32)
    one = hashes[:, : shared + own].ravel()
    other = np.concatenate([hashes[:, :shared], hashes[:, shared + own :]], axis=1).ravel()
    borders = np.arange(count + 1) * size
    exact = shared / (shared + 2 * own)
    return signatures(one, borders, 112, 1), signatures(other, borders, 112, 1), exact


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(["a", "bb", "Ccc", "čau", "7"]), max_size=40).map(" ".join), max_size=8),
    st.integers(1, 50),
    st.integers(0, 5),
)
def test_equals_datasketch_fed_the_same_shingle_hashes(texts: list[str], at_once: int, seed: int) -> None:
    options = SketchOptions(permutations=16, shingle=3, seed=seed)
    before, minhash.SHINGLES_AT_ONCE = minhash.SHINGLES_AT_ONCE, at_once  # documents cross passes
    try:
        sketches = sketch_texts(pa.array(texts, pa.string()), options)
    finally:
        minhash.SHINGLES_AT_ONCE = before
    grams = find_grams(find_words(texts), 3)
    assert sketches.signature.shape == (len(texts), 16)
    for i in range(len(texts)):
        hashes = (grams.keys[grams.documents[i] : grams.documents[i + 1]] >> np.uint64(32)).astype(np.uint32)
        assert np.array_equal(sketches.signature[i], datasketch_signature(hashes, 16, seed))


def test_a_page_of_a_million_words_is_the_same_and_bounded() -> None:
    hashes: np.ndarray = np.random.default_rng(0).integers(0, 1 << 32, 1_000_000, dtype=np.uint32)
    borders = np.array([0, 0, 1_000_000, 1_000_000])
    signatures(hashes[:5], np.array([0, 5]), 112, 1)
    tracemalloc.start()
    found = signatures(hashes, borders, 112, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20
    assert np.array_equal(found[1], datasketch_signature(hashes))
    assert (found[[0, 2]] == minhash.EMPTY).all()


def test_batches_do_not_matter() -> None:
    rng = np.random.default_rng(3)
    texts = [" ".join(rng.choice(["x", "yy", "zzz", "w"], rng.integers(0, 300))) for _ in range(60)]
    whole = sketch_texts(pa.array(texts), OPTIONS)
    chunked = pa.chunked_array([texts[:1], texts[1:1], texts[1:40], texts[40:]], pa.string())
    for other in (chunked, pa.concat_arrays([pa.array(["head"]), pa.array(texts)]).slice(1)):
        for one, two in zip(whole, sketch_texts(other, OPTIONS), strict=True):
            assert np.array_equal(one, two)
    pieces = [len(piece) for piece in minhash.slices_of_text(pa.array(["aaa", "b", "", "cc", "dddddd", ""]), 4)]
    assert pieces == [3, 1, 1, 1]


def test_exact_copies_are_the_same_normalised_words_or_without_words_the_same_bytes() -> None:
    texts = [
        "Hello, World!",
        "hello  world",
        "hello worlds",
        "helloworld",
        "",
        "",
        "...",
        "…",
        "Ünï code",
        "ünï-CODE",
    ]
    content = [tuple(row) for row in sketch_texts(pa.array(texts), OPTIONS).content.tolist()]
    same = {(i, j) for i in range(len(texts)) for j in range(i) if content[i] == content[j]}
    assert same == {(1, 0), (5, 4), (9, 8)}


def test_documents_shorter_than_a_shingle_have_a_content_hash_and_no_sketch() -> None:
    sketches = sketch_texts(pa.array(["", "one two three four", "one two three four five"]), OPTIONS)
    assert (sketches.signature[:2] == minhash.EMPTY).all()
    assert (sketches.signature[2] != minhash.EMPTY).any()
    assert sketches.n_words.tolist() == [0, 4, 5]
    assert len({tuple(row) for row in sketches.content.tolist()}) == 3


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_estimate_is_within_three_standard_deviations(similarity: float) -> None:
    one, other, exact = pairs_of_similarity(similarity, 500)
    estimates = minhash.similarity_estimate(one, other)
    sigma = (exact * (1 - exact) / 112) ** 0.5
    assert abs(estimates.mean() - exact) < 3 * sigma / 500**0.5
    assert np.quantile(abs(estimates - exact), 0.99) < 3 * sigma


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_s_curve_is_the_formula(similarity: float) -> None:
    one, other, exact = pairs_of_similarity(similarity, 1000)
    met = (band_keys(one, 14, 8) == band_keys(other, 14, 8)).any(axis=1).mean()
    expected = match_probability(exact, 14, 8)
    assert abs(met - expected) <= 3 * (expected * (1 - expected) / 1000) ** 0.5 + 1e-3


def test_match_probability_of_known_shapes() -> None:
    # datasketch's MinHashLSH(threshold=0.8, num_perm=128) is 9 bands of 13; OpenWebText2's is 3 of 3.
    assert match_probability(0.8, 9, 13) == pytest.approx(0.40, abs=0.005)
    assert match_probability(0.3, 3, 3) == pytest.approx(0.08, abs=0.005)
    assert match_probability(0.8, 3, 3) == pytest.approx(0.88, abs=0.005)
    assert match_probability(0.8, 14, 8) == pytest.approx(0.924, abs=0.001)
    assert (match_probability(0, 14, 8), match_probability(1, 14, 8)) == (0, 1)


def test_band_keys_are_equal_exactly_where_bands_are() -> None:
    one = np.arange(12, dtype=np.uint32).reshape(1, 12)
    other = one.copy()
    other[0, 7] += 1
    assert (band_keys(one, 3, 4) == band_keys(other, 3, 4)).tolist() == [[True, False, True]]
    alike = np.tile(np.arange(4, dtype=np.uint32), (1, 3))
    assert len(set(band_keys(alike, 3, 4)[0].tolist())) == 3
    swapped = band_keys(np.array([[1, 2], [2, 1]], np.uint32), 1, 2)
    assert swapped[0, 0] != swapped[1, 0]
    assert band_keys(np.empty((0, 12), np.uint32), 3, 4).shape == (0, 3)


def test_scheme_and_seed_are_options_and_so_stand_in_the_manifest() -> None:
    assert plain_options(SketchOptions()) == {"permutations": 112, "shingle": 5, "seed": 1, "scheme": "affine32"}
    with pytest.raises(ValueError, match="scheme"):
        SketchOptions(scheme="legacy")  # type: ignore[arg-type]  # what a recipe may say
    one, other = (sketch_texts(pa.array(["a b c d e f g"]), SketchOptions(seed=s)).signature for s in (1, 2))
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(("field", "value"), [("permutations", 0), ("shingle", 0), ("seed", -1)])
def test_options_name_the_field(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=field):
        SketchOptions(**{field: value})
