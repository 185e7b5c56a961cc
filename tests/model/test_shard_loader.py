"""Shards to batches, against a plain oracle; damage of every kind is noticed and named."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.loader import (
    Loader,
    ShardError,
    StateError,
    key_of,
    open_stream,
    permute,
    validation_windows,
)

EOT = 199
MakeShards = Callable[..., Path]


def random_documents(n: int, seed: int, vocab_size: int = 200) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [[*rng.integers(0, vocab_size - 1, rng.integers(0, 30)).tolist(), vocab_size - 1] for _ in range(n)]


@pytest.fixture
def shards(tmp_path: Path, make_shards: MakeShards) -> Path:
    splits = {"train": [random_documents(40, 1), random_documents(25, 2)], "validation": [random_documents(9, 3)]}
    return make_shards(tmp_path / "shards", splits, 200, EOT)


def all_tokens(shards: Sequence[Sequence[Sequence[int]]]) -> list[int]:
    return [token for shard in shards for document in shard for token in document]


def test_stream_is_the_concatenated_documents(shards: Path) -> None:
    tokens = all_tokens([random_documents(40, 1), random_documents(25, 2)])
    stream = open_stream(shards, "train", verify=True)
    assert stream.n_tokens == len(tokens)
    assert stream.n_documents == 65
    assert stream.read(0, len(tokens)).tolist() == tokens
    assert stream.read(len(tokens) - 3, 8).tolist() == (tokens + tokens)[len(tokens) - 3 : len(tokens) + 5]
    assert all(not segment.tokens.flags.owndata for segment in stream.segments)  # views of the mapped file


def test_wide_vocabularies_use_uint32(tmp_path: Path, make_shards: MakeShards) -> None:
    documents = [[70_000, 5, 65_536], [1, 65_536]]
    stream = open_stream(make_shards(tmp_path / "s", {"train": [documents]}, 70_001, 65_536), "train")
    assert stream.read(0, 5).tolist() == [70_000, 5, 65_536, 1, 65_536]
    assert open_stream(tmp_path / "s", "validation").n_tokens == 0


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_permutation_is_one(n: int, key: int) -> None:
    assert sorted(permute(np.arange(n), n, key).tolist()) == list(range(n))


def test_permutation_scatters() -> None:
    n = 10_007
    order = permute(np.arange(n), n, key_of(0, 0, "order"))
    other = permute(np.arange(n), n, key_of(0, 1, "order"))
    assert abs(np.corrcoef(np.arange(n), order)[0, 1]) < 0.05
    assert abs(np.corrcoef(order, other)[0, 1]) < 0.05
    assert (np.abs(np.diff(order)) == 1).mean() < 0.002


def test_large_ranges_are_permuted_without_a_table() -> None:
    n = 3 * 10**11
    index = np.arange(n - 1000, n)
    out = permute(index, n, 7)
    assert len(set(out.tolist())) == 1000
    assert out.min() >= 0
    assert out.max() < n


@settings(max_examples=25, deadline=None)
@given(window=st.integers(1, 40), batch=st.integers(1, 9), seed=st.integers(0, 5))
def test_batches_equal_a_plain_oracle(corpus_of_documents: Path, window: int, batch: int, seed: int) -> None:
    """Two epochs: every window is a slice of the ring at the epoch's phase, each taken once, targets one further."""
    stream = open_stream(corpus_of_documents, "train")
    ring = stream.read(0, stream.n_tokens)
    loader = Loader(stream, window, batch, seed)
    n = len(ring) // window
    expected: dict[int, set[int]] = {}
    for epoch in (0, 1):
        phase = key_of(seed, epoch, "phase") % len(ring)
        expected[epoch] = {(phase + i * window) % len(ring) for i in range(n)}
    seen: dict[int, list[int]] = {0: [], 1: []}
    for sample in range(2 * n):
        step, row = divmod(sample, batch)
        if row == 0:
            starts = loader.starts(step)
            inputs, targets = loader.batch_at(step)
        start = int(starts[row])
        seen[sample // n].append(start)
        places = (start + np.arange(window + 1)) % len(ring)
        assert inputs[row].tolist() == ring[places[:-1]].tolist()
        assert targets[row].tolist() == ring[places[1:]].tolist()
    for epoch in (0, 1):
        assert len(seen[epoch]) == n
        assert set(seen[epoch]) == expected[epoch]


@pytest.fixture(scope="module")
def corpus_of_documents(tmp_path_factory: pytest.TempPathFactory, make_shards: MakeShards) -> Path:
    splits = {"train": [random_documents(30, 4), [], random_documents(8, 5)]}
    return make_shards(tmp_path_factory.mktemp("ring") / "shards", splits, 200, EOT, per_batch=5)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6, 12])
def test_every_world_size_sees_the_same_global_batches(shards: Path, world: int) -> None:
    stream = open_stream(shards, "train")
    whole = Loader(stream, 16, 12, seed=3)
    ranks = [Loader(stream, 16, 12, seed=3, rank=rank, world=world) for rank in range(world)]
    for _ in range(8):
        inputs, targets = whole.next()
        parts = [rank.next() for rank in ranks]
        assert np.array_equal(np.concatenate([part[0] for part in parts]), inputs)
        assert np.array_equal(np.concatenate([part[1] for part in parts]), targets)
    assert {rank.state() for rank in ranks} == {whole.state()}


def test_resume_continues_exactly_with_another_world_size(shards: Path) -> None:
    stream = open_stream(shards, "train")
    first = Loader(stream, 16, 12, seed=3)
    batches = [first.next() for _ in range(9)]
    early = Loader(stream, 16, 12, seed=3)
    for _ in range(4):
        early.next()
    state = json.loads(json.dumps(early.state().to_json()))
    assert len(state) == 6
    for rank in (0, 1):
        later = Loader(open_stream(shards, "train"), 16, 12, seed=3, rank=rank, world=2)
        later.resume(type(early.state())(**state))
        for i in range(4, 9):
            inputs, _ = later.next()
            assert np.array_equal(inputs, batches[i][0][rank * 6 : rank * 6 + 6])


def test_resume_refuses_other_data_and_other_cuts(shards: Path) -> None:
    loader = Loader(open_stream(shards, "train"), 16, 12, seed=3)
    state = loader.state()
    with pytest.raises(StateError, match="not the ones the run was made from"):
        loader.resume(replace(state, fingerprint="f" * 64))
    for name in ("seed", "window", "batch"):
        with pytest.raises(StateError, match=f"{name} is"):
            loader.resume(replace(state, **{name: 99}))
    with pytest.raises(StateError, match="not the end of a step"):
        loader.resume(replace(state, sample=5))


def test_impossible_loaders_are_refused(shards: Path) -> None:
    stream = open_stream(shards, "train")
    with pytest.raises(ValueError, match="cannot be shared by 5 workers"):
        Loader(stream, 16, 12, seed=0, world=5)
    with pytest.raises(ValueError, match="fewer than one window"):
        Loader(stream, stream.n_tokens, 1, seed=0)


def test_trace_names_the_documents_of_a_step(shards: Path) -> None:
    documents = [random_documents(40, 1), random_documents(25, 2)]
    owners = [(s, row, place) for s in (0, 1) for row, d in enumerate(documents[s]) for place in range(len(d))]
    stream = open_stream(shards, "train")
    loader = Loader(stream, 16, 6, seed=1)
    for step in range(12):
        expected = []
        for sample, start in enumerate(loader.starts(step)):
            for place in range(int(start), int(start) + 17):
                s, row, offset = owners[place % len(owners)]
                key = (sample, f"t{s:03d}{row:028d}", 2**63 + s, row, f"train-{s:04d}.arrow")
                if expected and expected[-1][0] == key and offset == expected[-1][1] + expected[-1][2]:
                    expected[-1] = (key, expected[-1][1], expected[-1][2] + 1)
                else:
                    expected.append((key, offset, 1))
        found = [
            ((r["sample"], r["doc_id"], r["part"], r["row"], r["file"]), r["start"], r["tokens"])
            for r in loader.trace(step).to_pylist()
        ]
        assert found == expected


def test_validation_windows_cover_every_token_once(shards: Path) -> None:
    stream = open_stream(shards, "validation")
    covered = [p for start, count in validation_windows(stream, 16) for p in range(start, start + count)]
    assert covered == list(range(stream.n_tokens))


# ----------------------------------------------------------------------------------------------------------- damage


def test_a_truncated_shard_is_named_with_its_offset(shards: Path) -> None:
    path = shards / "train-0001.arrow"
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    with pytest.raises(ShardError, match=rf"train-0001\.arrow.*cut off at byte {len(data) - 100}"):
        open_stream(shards, "train")
    assert open_stream(shards, "validation").n_tokens > 0


def test_a_cut_inside_the_stream_is_placed_even_if_the_manifest_agrees(shards: Path, seal_manifest: Any) -> None:
    path = shards / "train-0000.arrow"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest.pop("fingerprint")
    manifest["splits"]["train"][0]["size"] = path.stat().st_size
    seal_manifest(shards, manifest)
    with pytest.raises(ShardError, match=r"train-0000\.arrow: (damaged after byte \d+|\d+ record batches where)"):
        open_stream(shards, "train", verify=False)


def test_a_missing_shard_and_a_missing_manifest_are_named(shards: Path) -> None:
    (shards / "train-0001.arrow").unlink()
    with pytest.raises(ShardError, match=r"train-0001\.arrow: listed in manifest\.json but absent"):
        open_stream(shards, "train")
    (shards / "manifest.json").unlink()
    with pytest.raises(ShardError, match=r"manifest\.json: no such file"):
        open_stream(shards, "train")


def flip(path: Path, offset: int, bits: bytes = b"\x01") -> None:
    """Alter bytes without a change of size; the time of the change is later than any before it."""
    data, before = bytearray(path.read_bytes()), path.stat().st_mtime_ns
    for i, bit in enumerate(bits, offset):
        data[i] ^= bit
    path.write_bytes(data)
    os.utime(path, ns=(before + 10**9, before + 10**9))


def place_of_tokens(shards: Path) -> int:
    manifest = json.loads((shards / "manifest.json").read_text())
    return int(manifest["splits"]["train"][0]["batches"][1]["values_offset"])


def test_an_altered_shard_is_found_by_its_hash(shards: Path) -> None:
    flip(shards / "train-0000.arrow", place_of_tokens(shards))
    open_stream(shards, "train", verify=False)
    with pytest.raises(ShardError, match=r"train-0000\.arrow: sha256 .* it was altered"):
        open_stream(shards, "train")


def test_a_shard_is_hashed_once_and_again_when_it_changes(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    digest = hashlib.file_digest

    def counted(file: Any, name: str) -> Any:
        hashed.append(Path(file.name).name)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    verified = tmp_path / "verified.json"
    for _ in range(2):
        open_stream(shards, "train", verified=verified)
    assert hashed == ["train-0000.arrow", "train-0001.arrow"]
    for split in ("validation", "train"):
        open_stream(shards, split, verified=verified)  # what is known of one split survives the other
    assert hashed[2:] == ["validation-0000.arrow"]
    open_stream(shards, "train", verified=verified, again=True)
    assert hashed[3:] == ["train-0000.arrow", "train-0001.arrow"]
    flip(shards / "train-0001.arrow", 0, b"\x00")  # written again with the same bytes
    open_stream(shards, "train", verified=verified)
    assert hashed[5:] == ["train-0001.arrow"]
    flip(shards / "train-0000.arrow", place_of_tokens(shards))
    for _ in range(2):  # what is altered is not remembered
        with pytest.raises(ShardError, match=r"train-0000\.arrow: sha256"):
            open_stream(shards, "train", verified=verified)
    for damage in ("", "[]", '{"format": "webtext-verified", "version": 1, "files": {"a": {"size": 1}}}'):
        flip(shards / "train-0000.arrow", place_of_tokens(shards))
        verified.write_text(damage)
        if damage == "[]":
            with pytest.raises(ShardError, match=r"train-0000\.arrow: sha256"):
                open_stream(shards, "train", verified=verified)
        else:
            open_stream(shards, "train", verified=verified)
            assert str(shards / "train-0001.arrow") in verified.read_text()
    open_stream(shards, "train", verified=tmp_path / "no" / "folder.json")  # a cache that cannot be written


def test_an_impossible_token_is_named_with_its_byte(shards: Path) -> None:
    path = shards / "train-0000.arrow"
    data, offset = bytearray(path.read_bytes()), place_of_tokens(shards)
    data[offset + 4 : offset + 6] = b"\xff\xff"
    path.write_bytes(data)
    stream = open_stream(shards, "train", verify=False)
    with pytest.raises(ShardError, match=rf"train-0000\.arrow: byte {offset + 4} holds token id 65535"):
        stream.read(0, stream.n_tokens)


def test_an_altered_manifest_is_refused(shards: Path, seal_manifest: Any) -> None:
    path = shards / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["vocab_size"] = 300
    path.write_text(json.dumps(manifest))
    with pytest.raises(ShardError, match="fingerprint does not belong"):
        open_stream(shards, "train")
    manifest.pop("fingerprint")
    manifest["splits"]["train"][0]["batches"][0]["values_offset"] += 2
    seal_manifest(shards, manifest)
    with pytest.raises(ShardError, match="record batch 0 has"):
        open_stream(shards, "train")
    manifest["splits"]["train"][0]["file"] = "../elsewhere.arrow"
    seal_manifest(shards, manifest)
    with pytest.raises(ShardError, match="not a plain file name"):
        open_stream(shards, "train")
    path.write_text("[1, 2")
    with pytest.raises(ShardError, match="not JSON"):
        open_stream(shards, "train")
    manifest.pop("splits")
    seal_manifest(shards, manifest)
    with pytest.raises(ShardError, match="field missing"):
        open_stream(shards, "train")


@settings(max_examples=60, deadline=None)
@given(at=st.floats(0, 1), to=st.integers(0, 255))
def test_any_flipped_byte_gives_an_error_or_tokens_never_a_crash(broken_copy: Path, at: float, to: int) -> None:
    path = broken_copy / "train-0000.arrow"
    original = path.read_bytes()
    data = bytearray(original)
    data[min(len(data) - 1, int(at * len(data)))] = to
    path.write_bytes(data)
    error, tokens = None, None
    try:
        stream = open_stream(broken_copy, "train", verify=False)
        tokens = stream.read(0, stream.n_tokens)
        Loader(stream, 8, 4, 0).trace(0)
    except ShardError as found:
        error = str(found)
    finally:
        path.write_bytes(original)
    assert (tokens is not None and tokens.max() < 200) or (error is not None and "train-0000.arrow" in error)


@pytest.fixture(scope="module")
def broken_copy(tmp_path_factory: pytest.TempPathFactory, make_shards: MakeShards) -> Path:
    return make_shards(tmp_path_factory.mktemp("broken") / "shards", {"train": [random_documents(12, 6)]}, 200, EOT)
