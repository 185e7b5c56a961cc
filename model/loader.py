"""Training batches straight out of the token shards: mapped into memory, never decoded, never copied but once.

A shard is an Arrow IPC stream whose `input_ids` values buffer is the training stream itself, with end-of-text at the
end of every document (DESIGN, decision 5). `shards/manifest.json` says where in each file those buffers lie:

    {"format": "webtext-shards", "version": 1, "dtype": "uint16" or "uint32", "vocab_size", "eot_id",
     "tokenizer_sha256", "fingerprint": sha256 of the rest, "splits": {"train": [{"file", "tokens", "documents",
     "n_bytes", "size", "sha256", "batches": [{"values_offset", "tokens", "documents"}]}], "validation": […]}}

The split is read as one ring of N tokens. An epoch cuts it, from a phase of its own, into n = N // window windows
that run across document borders as in GPT-2, and takes each window once, in the order of a pseudo-random permutation
that is computed rather than stored: a Feistel network with cycle walking, the idea of grain's `index_shuffle` (Black
and Rogaway, "Ciphers with arbitrary finite domains", 2002). The fewer than `window` tokens left over are other ones
in every epoch.

Sample s of a run is window permute(s % n) of epoch s // n, whoever asks. So the state is six numbers, any step can be
computed without those before it, and every world size that divides the batch sees the same global batches.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from model.verified import Known, digest_of, read_known, write_known

Split: TypeAlias = Literal["train", "validation"]
Ids: TypeAlias = npt.NDArray[np.int64]

FORMAT = "webtext-shards"
VERSION = 1
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 30
ROUNDS = 8
DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
LOCATOR = {"doc_id": pa.string(), "part": pa.uint64(), "row": pa.uint32()}

SEEN_SCHEMA = pa.schema(
    [
        pa.field("sample", pa.int32(), nullable=False),  # row of the global batch
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("part", pa.uint64(), nullable=False),
        pa.field("row", pa.uint32(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("start", pa.int64(), nullable=False),  # first token of the document inside the window
        pa.field("tokens", pa.int32(), nullable=False),  # how many of its tokens the window holds
    ]
)


class ShardError(ValueError):
    """A shard or its manifest is damaged, missing or of another kind than this program reads."""


class StateError(ValueError):
    """A saved position belongs to other shards, or to another way of cutting them."""


@dataclass(frozen=True)
class Segment:
    """One record batch: `tokens` is a view of the mapped file, `documents` the batch it belongs to."""

    file: str
    offset: int
    tokens: npt.NDArray[np.unsignedinteger[Any]]
    documents: pa.RecordBatch


@dataclass(frozen=True)
class Stream:
    """One split of a shards folder as a ring of tokens. `starts[i]` is the place of segment i, `starts[-1]` is N."""

    segments: tuple[Segment, ...]
    starts: Ids
    vocab_size: int
    eot_id: int
    tokenizer_sha256: str
    fingerprint: str
    n_documents: int
    n_bytes: int

    @property
    def n_tokens(self) -> int:
        return int(self.starts[-1])

    def read(self, start: int, count: int) -> Ids:
        """Tokens start … start+count of the ring, int64[count]. Raises ShardError on an id outside the vocabulary."""
        window: Ids = self.read_windows(np.array([start]), count)[0]
        return window

    def read_windows(self, starts: Ids, count: int) -> Ids:
        """The `count` tokens of the ring from each start: int64[k] -> int64[k, count]. Raises ShardError likewise."""
        out = np.empty((len(starts), count), np.int64)
        for row, start in zip(out, starts, strict=True):
            filled = 0
            for segment, first, stop in self.pieces(int(start), count):
                row[filled : filled + stop - first] = segment.tokens[first:stop]
                filled += stop - first
        if out.size and out.max() >= self.vocab_size:
            raise ShardError(self.impossible_token(starts, count))
        return out

    def impossible_token(self, starts: Ids, count: int) -> str:
        """Where the first id outside the vocabulary lies."""
        for start in starts:
            for segment, first, stop in self.pieces(int(start), count):
                piece = segment.tokens[first:stop]
                if piece.max() >= self.vocab_size:
                    place = first + int((piece >= self.vocab_size).argmax())
                    return (
                        f"{segment.file}: byte {segment.offset + place * piece.itemsize} holds token id "
                        f"{segment.tokens[place]}, outside the vocabulary of {self.vocab_size}: the file is damaged; "
                        "write the shards again"
                    )
        return "no token outside the vocabulary"

    def pieces(self, start: int, count: int) -> list[tuple[Segment, int, int]]:
        """The segments that hold `count` tokens of the ring from `start`, each with its slice."""
        out = []
        position = start % self.n_tokens
        while count > 0:
            index = int(np.searchsorted(self.starts, position, side="right")) - 1
            segment = self.segments[index]
            first = position - int(self.starts[index])
            stop = min(first + count, len(segment.tokens))
            out.append((segment, first, stop))
            count -= stop - first
            position = (position + stop - first) % self.n_tokens
        return out


def read_manifest(shards: str | Path) -> dict[str, Any]:
    """The manifest of a shards folder, its format and fingerprint checked. Raises ShardError."""
    path = Path(shards) / MANIFEST
    if not path.is_file():
        raise ShardError(f"{path}: no such file; build the shards first, or name the folder that holds {MANIFEST}")
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise ShardError(f"{path}: larger than {MAX_MANIFEST_BYTES} bytes, not a manifest")
    try:
        manifest = json.loads(path.read_bytes())
    except ValueError as error:
        raise ShardError(f"{path}: not JSON ({error}); write the shards again") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ShardError(f"{path}: not a {FORMAT} manifest")
    if manifest.get("version") != VERSION:
        raise ShardError(f"{path}: version {manifest.get('version')!r}; this program reads version {VERSION}")
    if manifest.get("fingerprint") != fingerprint(manifest):
        raise ShardError(
            f"{path}: its fingerprint does not belong to its content: it was altered; write the shards again"
        )
    return manifest


def fingerprint(manifest: dict[str, Any]) -> str:
    """sha256 hex over the manifest without its `fingerprint`, as JSON with sorted keys and no spaces, in UTF-8."""
    rest = {key: value for key, value in manifest.items() if key != "fingerprint"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def open_stream(
    shards: str | Path, split: Split, verify: bool = True, verified: Path | None = None, again: bool = False
) -> Stream:
    """Map every shard of a split. Checks sizes, the place of every buffer and, with `verify`, each file's sha256.

    Hashing reads every byte once, at about 1 to 2 GB/s. With `verified`, a JSON file, digests are remembered there,
    and a shard whose path, size and modification time are as remembered is not read, unless `again`. Without `verify`
    an altered token goes unnoticed. Raises ShardError naming the file and, where one is known, the offset.
    """
    folder = Path(shards)
    manifest = read_manifest(folder)
    remembered = read_known(verified) if verify and verified else {}
    known = {} if again else dict(remembered)
    try:
        dtype = DTYPES[manifest["dtype"]]
        entries = manifest["splits"][split]
        segments = tuple(
            segment for entry in entries for segment in open_shard(folder, entry, dtype, known if verify else None)
        )
        if verify and verified and known != remembered:
            write_known(verified, remembered | known)
        return Stream(
            segments=segments,
            starts=np.concatenate([[0], np.cumsum([len(s.tokens) for s in segments], dtype=np.int64)]).astype(
                np.int64
            ),
            vocab_size=int(manifest["vocab_size"]),
            eot_id=int(manifest["eot_id"]),
            tokenizer_sha256=str(manifest["tokenizer_sha256"]),
            fingerprint=str(manifest["fingerprint"]),
            n_documents=sum(int(entry["documents"]) for entry in entries),
            n_bytes=sum(int(entry["n_bytes"]) for entry in entries),
        )
    except (KeyError, TypeError) as error:
        raise ShardError(f"{folder / MANIFEST}: field missing or of the wrong kind: {error}") from None


def open_shard(folder: Path, entry: dict[str, Any], dtype: np.dtype[Any], known: Known | None) -> list[Segment]:
    """Map one file and take the record batches the manifest lists; the two must agree on every place and length.

    `known` are digests computed before, to which this file's is added; None leaves the file unhashed.
    """
    path = folder / entry["file"]
    if Path(entry["file"]).name != entry["file"]:
        raise ShardError(f"{folder / MANIFEST}: {entry['file']!r} is not a plain file name")
    if not path.is_file():
        raise ShardError(f"{path}: listed in {MANIFEST} but absent; write the shards again")
    size = path.stat().st_size
    if size != entry["size"]:
        how = f"cut off at byte {size}" if size < entry["size"] else f"has bytes after {entry['size']}"
        raise ShardError(
            f"{path}: {size} bytes where {MANIFEST} says {entry['size']}: it {how}; write the shards again"
        )
    if known is not None and (found := digest_of(path, entry["sha256"], known)) != entry["sha256"]:
        raise ShardError(
            f"{path}: sha256 {found} where {MANIFEST} says {entry['sha256']}: it was altered; write the shards again"
        )
    mapped = pa.memory_map(str(path))
    whole = mapped.read_buffer(size)
    segments: list[Segment] = []
    try:
        for batch in pa.ipc.open_stream(pa.BufferReader(whole)):
            segments.append(segment_of(str(path), whole, batch, dtype))
    except (pa.ArrowException, OSError, KeyError, SystemError) as error:  # what pyarrow raises on damaged bytes
        after = segments[-1].offset + segments[-1].tokens.nbytes if segments else 0
        raise ShardError(f"{path}: damaged after byte {after}: {error}; write the shards again") from None
    said = [(b["values_offset"], b["tokens"], b["documents"]) for b in entry["batches"]]
    found_batches = [(s.offset, len(s.tokens), s.documents.num_rows) for s in segments]
    for i, (want, got) in enumerate(zip(said, found_batches, strict=False)):
        if want != got:
            raise ShardError(
                f"{path}: record batch {i} has (offset, tokens, documents) {got} where {MANIFEST} says {want}"
            )
    if len(said) != len(found_batches):
        raise ShardError(f"{path}: {len(found_batches)} record batches where {MANIFEST} says {len(said)}")
    return segments


def segment_of(file: str, whole: pa.Buffer, batch: pa.RecordBatch, dtype: np.dtype[Any]) -> Segment:
    """The tokens of one record batch as a view into the mapped file. Raises ShardError if they are not all there."""
    lists = batch.column("input_ids")
    ids = pa.from_numpy_dtype(dtype)
    if not pa.types.is_list(lists.type) or lists.type.value_type != ids or lists.null_count:
        raise ShardError(f"{file}: input_ids is {lists.type}, not list<{ids}> without nulls")
    for name, kind in LOCATOR.items():
        column = batch.column(name)
        if column.type != kind or column.null_count:
            raise ShardError(f"{file}: {name} is {column.type}, not {kind} without nulls")
    values = lists.values
    offset = values.buffers()[1].address - whole.address if len(values) else 0
    if not 0 <= offset <= whole.size - len(values) * dtype.itemsize:
        raise ShardError(f"{file}: a values buffer lies outside the file: the shard is compressed or damaged")
    tokens = np.frombuffer(whole, dtype, count=len(values), offset=offset)
    batch.validate(full=True)
    borders = lists.offsets.to_numpy()
    if borders[0] != 0 or borders[-1] != len(tokens):
        raise ShardError(
            f"{file}: the document borders before byte {offset} do not fit their tokens: the file is damaged"
        )
    return Segment(file, offset, tokens, batch)


# ---------------------------------------------------------------------------------------------------------- order


def mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014): a bijection of 64-bit words that scatters every bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def key_of(seed: int, epoch: int, use: str) -> int:
    """A 64-bit key from sha256, so that neighbouring seeds and epochs have nothing in common."""
    return int.from_bytes(hashlib.sha256(f"webtext {use} {seed} {epoch}".encode()).digest()[:8], "big")


def permute(index: Ids, n: int, key: int) -> Ids:
    """Where a pseudo-random permutation of 0 … n-1 puts each index: int64[k] -> int64[k], no table of n entries.

    Eight Feistel rounds over the smallest even-sized power of two that holds n; a value that falls outside 0 … n-1 is
    sent round again until it falls inside (at most four times the range, so fewer than four turns on average).
    """
    half = np.uint64(max(1, -(-(n - 1).bit_length() // 2)))
    low = np.uint64((1 << int(half)) - 1)
    keys = mix(np.uint64(key) + np.arange(1, ROUNDS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    out = index.astype(np.uint64)
    outside = np.ones(len(out), bool)
    while outside.any():
        left, right = out[outside] >> half, out[outside] & low
        for round_key in keys:
            left, right = right, left ^ (mix(right ^ round_key) & low)
        out[outside] = (left << half) | right
        outside = out >= np.uint64(n)
    return out.astype(np.int64)


@dataclass(frozen=True)
class State:
    """Where a run stands in its data. `sample` counts the windows already taken in `epoch`."""

    fingerprint: str
    seed: int
    epoch: int
    sample: int
    window: int
    batch: int

    def to_json(self) -> dict[str, str | int]:
        return asdict(self)


@dataclass
class Loader:
    """The batches of one run, for one of `world` equal workers. `batch` counts windows over all workers.

    Raises ValueError for a batch that the workers cannot share or a stream shorter than a window.
    """

    stream: Stream
    window: int
    batch: int
    seed: int
    rank: int = 0
    world: int = 1
    step: int = 0

    def __post_init__(self) -> None:
        if self.batch < 1 or self.world < 1 or self.batch % self.world or not 0 <= self.rank < self.world:
            raise ValueError(
                f"a batch of {self.batch} windows cannot be shared by {self.world} workers (rank {self.rank})"
            )
        if self.stream.n_tokens <= self.window:
            raise ValueError(
                f"the split holds {self.stream.n_tokens} tokens, fewer than one window of {self.window} "
                "and its target: take a smaller n_ctx or more text"
            )
        self.n_windows = self.stream.n_tokens // self.window

    def starts(self, step: int) -> Ids:
        """First token of each window of a step's global batch: int64[batch]."""
        samples = np.arange(step * self.batch, (step + 1) * self.batch, dtype=np.int64)
        epochs = samples // self.n_windows
        out = np.empty_like(samples)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            phase = key_of(self.seed, int(epoch), "phase") % self.stream.n_tokens
            windows = permute(samples[here] % self.n_windows, self.n_windows, key_of(self.seed, int(epoch), "order"))
            out[here] = (phase + windows * self.window) % self.stream.n_tokens
        return out

    def batch_at(self, step: int) -> tuple[Ids, Ids]:
        """This worker's rows of a step: inputs, and the token that follows each, int64[batch // world, window]."""
        share = self.batch // self.world
        starts = self.starts(step)[self.rank * share : (self.rank + 1) * share]
        tokens = self.stream.read_windows(starts, self.window + 1)
        return tokens[:, :-1], tokens[:, 1:]

    def next(self) -> tuple[Ids, Ids]:
        """The batch at the current step; moves on by one."""
        out = self.batch_at(self.step)
        self.step += 1
        return out

    def state(self) -> State:
        samples = self.step * self.batch
        epoch, sample = divmod(samples, self.n_windows)
        return State(self.stream.fingerprint, self.seed, epoch, sample, self.window, self.batch)

    def resume(self, state: State) -> None:
        """Continue where `state` was taken, with any world size. Raises StateError if anything else differs."""
        if state.fingerprint != self.stream.fingerprint:
            raise StateError(
                f"these shards (fingerprint {self.stream.fingerprint[:16]}…) are not the ones the run was made from "
                f"({state.fingerprint[:16]}…): give it those back, or start a new run"
            )
        for name in ("seed", "window", "batch"):
            if getattr(state, name) != getattr(self, name):
                raise StateError(
                    f"{name} is {getattr(self, name)} where the run was made with {getattr(state, name)}"
                )
        samples = state.epoch * self.n_windows + state.sample
        if samples % self.batch or samples < 0:
            raise StateError(
                f"the saved position (epoch {state.epoch}, sample {state.sample}) is not the end of a step"
            )
        self.step = samples // self.batch

    def trace(self, step: int) -> pa.Table:
        """Which documents a step's global batch was made of, in the order it saw them: a table of SEEN_SCHEMA.

        The last token of a window, only ever a target, counts as seen.
        """
        rows: list[dict[str, object]] = []
        for sample, start in enumerate(self.starts(step)):
            for segment, first, stop in self.stream.pieces(int(start), self.window + 1):
                rows.extend({"sample": sample, **seen} for seen in documents_between(segment, first, stop))
        return pa.Table.from_pylist(rows, schema=SEEN_SCHEMA)


def documents_between(segment: Segment, first: int, stop: int) -> list[dict[str, object]]:
    """The documents that tokens first … stop of a segment belong to, with the slice of each."""
    borders = segment.documents.column("input_ids").offsets.to_numpy()
    low = int(np.searchsorted(borders, first, side="right")) - 1
    high = int(np.searchsorted(borders, stop, side="left"))
    out: list[dict[str, object]] = []
    for i in range(low, high):
        start, end = max(first, int(borders[i])), min(stop, int(borders[i + 1]))
        if start < end:
            columns = {name: segment.documents.column(name)[i].as_py() for name in LOCATOR}
            place = {"file": Path(segment.file).name, "start": start - int(borders[i]), "tokens": end - start}
            out.append({**columns, **place})
    return out


def validation_windows(stream: Stream, window: int) -> Sequence[tuple[int, int]]:
    """Non-overlapping (start, tokens) windows that cover the whole split; the last one may be shorter."""
    n = stream.n_tokens
    return [(start, min(window, n - start)) for start in range(0, n, window)]
