"""Evaluation sets of a recipe: read into examples with their place in the file, and indexed by their n-grams.

Three uses meet here: the contamination scan, the report's drill-down and the evaluator all name an example by its
set and number. A file may be plain or packed (gz, bz2, xz, zst; decided by its first bytes). Formats:

* `lines`: one example a line, n-grams stay inside it (sentences drawn independently);
* `stream`: one example a line, but n-grams run on over line ends, as the GPT-2 paper counts over a test file
  (PTB, WikiText: running text of which a line is an arbitrary piece);
* `jsonl`: one JSON object a line, the example is the text in `field` (a list of texts is joined by new lines);
* `text`: the whole file is one example (a book).

Lines end at LF or CR LF; in `lines` and `stream` at CR where the first megabyte has no LF (old Mac files). Elsewhere
a lone CR is text, so that a record has the number that other readers of lines give it.

Records that give no example are counted under a reason: blank, not UTF-8, not JSON, no field, field is not text,
too long. A file of which no record gives an example is refused: then the recipe is wrong, not the file; at once if
the file is small, and when it is read otherwise.

The stage `evaluation` writes three tables: examples, their distinct n-grams, and where each n-gram occurs. An n-gram
is n words in the normalisation of ngrams.py.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.compression import BrokenStream, Stream, open_stream
from pipelines.inputs import InputFile
from pipelines.ngrams import (
    I64,
    LONGEST_GRAM,
    U64,
    UNICODE_VERSION,
    Index,
    Words,
    find_grams,
    find_words,
    gram_texts,
    pieces,
)
from pipelines.options import RecipeError
from pipelines.stages import Context, Stage, Task
from pipelines.workspace import Manifest, PartFile, Workspace, WorkspaceError, read_part

LONGEST_RECORD = 1 << 26
LONGEST_SET = 1 << 30
READ = 1 << 20
ELSEWHERE = {"shapes_bytes": False}


@dataclass(frozen=True)
class EvaluationSet:
    """One evaluation set of a recipe. `train` may name the set's own training text, read the same way: then the
    share of test n-grams found there stands beside the share found in the corpus (GPT-2, Table 6)."""

    name: str
    path: str = dataclasses.field(metadata=ELSEWHERE)
    format: Literal["lines", "stream", "jsonl", "text"] = "lines"
    field: str = "text"
    id_field: str = ""
    train: str = dataclasses.field(default="", metadata=ELSEWHERE)

    def __post_init__(self) -> None:
        if not self.name or not all(c.isalnum() or c in "-_." for c in self.name):
            raise ValueError(f"name must be letters, digits, '-', '_' or '.', not {self.name!r}")
        if not self.path:
            raise ValueError(f"path of evaluation set {self.name} is empty: name its file")
        if self.format == "jsonl" and not self.field:
            raise ValueError(f"field of evaluation set {self.name} is empty: name the JSON field that holds the text")


@dataclass(frozen=True)
class IndexOptions:
    """Which n-grams are indexed.

    ngrams: sizes reported for every set. The size N at which a set's examples are dirty or clean is the length in
    words of its example at the `percentile`, but within least..most (GPT-3, section 4); it is indexed too.
    """

    ngrams: tuple[int, ...] = (8, 13)
    percentile: float = 5.0
    least: int = 8
    most: int = 13
    most_grams: int = dataclasses.field(default=20_000_000, metadata=ELSEWHERE)

    def __post_init__(self) -> None:
        if not self.ngrams or any(not 1 <= n <= LONGEST_GRAM for n in self.ngrams):
            raise ValueError(f"ngrams must be numbers of words in 1..{LONGEST_GRAM}, not {list(self.ngrams)}")
        if not 0 <= self.percentile <= 100:
            raise ValueError(f"percentile must be in 0..100, not {self.percentile}")
        if not 1 <= self.least <= self.most <= LONGEST_GRAM:
            raise ValueError(f"least and most must be 1 <= least <= most <= {LONGEST_GRAM}")
        if self.most_grams < 1:
            raise ValueError(f"most_grams must be positive, not {self.most_grams}")


EXAMPLES = pa.schema(
    [
        pa.field("set", pa.string(), False),
        pa.field("id", pa.string(), False),
        pa.field("record", pa.uint32(), False),
        pa.field("start", pa.int64(), False),
        pa.field("end", pa.int64(), False),
        pa.field("words", pa.uint32(), False),
        pa.field("n", pa.uint8(), False),
        pa.field("text", pa.string(), False),
    ]
)
"""evaluation/: a row per example, by set and record. start, end: bytes of the record in the unpacked file. n: the
set's N, at which its examples are dirty or clean."""

GRAMS = pa.schema(
    [pa.field("n", pa.uint8(), False), pa.field("key", pa.uint64(), False), pa.field("text", pa.string(), False)]
)
"""evaluation/grams/: a row per distinct n-gram of any set, sorted by (n, key). text: its words, one blank between."""

OCCURRENCES = pa.schema(
    [
        pa.field("gram", pa.uint32(), False),
        pa.field("example", pa.uint32(), False),
        pa.field("last", pa.uint32(), False),
        pa.field("in_train", pa.bool_(), False),
    ]
)
"""evaluation/occurrences/: a row per n-gram occurrence, by (example, gram). gram, example: rows of the other tables;
example holds the first word and last the last word (another example only in a stream). in_train: whether the set's
own training text holds the n-gram."""


@dataclass(frozen=True)
class Example:
    """An example: its id (the JSON id field, or the record's number from 1), the record's number, the bytes
    start:end of the record in the unpacked file, and its text."""

    id: str
    record: int
    start: int
    end: int
    text: str


@dataclass
class Reading:
    """What reading a file came to: records by reason ("in", "kept", and why not), and where it broke off, if so."""

    counts: Counter[str]
    broken: BrokenStream | None = None


def set_files(sets: Sequence[EvaluationSet], base: Path, path: str) -> list[InputFile]:
    """The files of all sets (test and train). Raises RecipeError, naming the place in the recipe, when one is
    missing, two sets share a name, or a small file gives no example. `base` is the recipe's folder, `path` the place
    of the list of sets in the recipe."""
    files: dict[str, InputFile] = {}
    names: set[str] = set()
    for index, one in enumerate(sets):
        if one.name in names:
            raise RecipeError(f"{path}[{index}].name: two evaluation sets are named {one.name}")
        names.add(one.name)
        for key, spelled in (("path", one.path), ("train", one.train)):
            if spelled:
                file = locate(spelled, base)
                if not file.is_file():
                    raise RecipeError(f"{path}[{index}].{key} names no file: {spelled} (looked at {file})")
                if _is_small(file):
                    read_set(one, str(file), f"{path}[{index}].{key}")
                files[str(file)] = InputFile(f"{one.name}/{file.name}", str(file), file.stat().st_size)
    return [files[name] for name in sorted(files)]


def _is_small(file: Path) -> bool:
    """Whether a file unpacks to less than READ bytes (or breaks off before), found by reading no more than that."""
    try:
        with open(file, "rb") as raw, open_stream(raw, file.name) as stream:
            return len(stream.read(READ)) < READ
    except BrokenStream as broken:
        return broken.offset < READ


def locate(spelled: str, base: Path) -> Path:
    """The absolute path of a file as a recipe spells it."""
    return (base / Path(spelled).expanduser()).absolute()


def read_set(one: EvaluationSet, file: str, where: str) -> tuple[list[Example], Reading]:
    """All examples of a set's file, and what became of every record.

    `where` is the set's place in the recipe, for messages. Raises RecipeError when the file unpacks to more than
    LONGEST_SET bytes or gives no example.
    """
    reading = Reading(Counter())
    with open(file, "rb") as raw, open_stream(raw, Path(file).name) as stream:
        records = _whole(stream, reading) if one.format == "text" else _lines(stream, reading, one.format != "jsonl")
        examples = list(_examples(one, records, reading, where))
    if not examples:
        reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(reading.counts.items()) if reason != "in")
        broken = str(reading.broken) if reading.broken else "the file is empty"
        wanted = f" with a text in field {one.field!r}" if one.format == "jsonl" else ""
        raise RecipeError(f"{where}: {file} has no record{wanted} ({reasons or broken})")
    return examples, reading


def _examples(
    one: EvaluationSet, records: Iterator[tuple[int, int, bytes | None]], reading: Reading, where: str
) -> Iterator[Example]:
    for record, (start, end, line) in enumerate(records, 1):
        if end > LONGEST_SET:
            raise RecipeError(f"{where}: the set {one.name} unpacks to more than {LONGEST_SET:,} bytes")
        reading.counts["in"] += 1
        made, reason = _example_text(one, line)
        reading.counts[reason] += 1
        if made is not None:
            yield Example(made[0] or str(record), record, start, end, made[1])


def _example_text(one: EvaluationSet, line: bytes | None) -> tuple[tuple[str, str] | None, str]:
    """(id, text) of a record and "kept", or None and why not."""
    if line is None:
        return None, "too long"
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None, "not UTF-8"
    if not text.strip():
        return None, "blank"
    if one.format != "jsonl":
        return ("", text), "kept"
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None, "not JSON"
    if not isinstance(record, dict) or one.field not in record:
        return None, f"no field {one.field}"
    value = record[one.field]
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = "\n".join(value)
    if not isinstance(value, str):
        return None, f"field {one.field} is not text"
    clean = value.encode("utf-8", "replace").decode()
    return ((str(record.get(one.id_field, "")), clean), "kept") if clean.strip() else (None, "blank")


def _whole(stream: Stream, reading: Reading) -> Iterator[tuple[int, int, bytes | None]]:
    parts: list[bytes] = []
    size = 0
    for part in _reads(stream, reading):
        parts.append(part)
        size += len(part)
        if size > LONGEST_SET:
            break
    if size:
        yield 0, size, b"".join(parts)


def _lines(stream: Stream, reading: Reading, old_mac: bool) -> Iterator[tuple[int, int, bytes | None]]:
    """(start, end, line without its end) for each line; None for a line of more than LONGEST_RECORD bytes.
    old_mac: whether CR ends lines where no LF does (in JSON it is a blank)."""
    start, held, size, ending = 0, b"", 0, b""
    for part in _reads(stream, reading):
        if not ending:
            ending = b"\r" if old_mac and b"\r" in part[:-1] and b"\n" not in part else b"\n"
        *whole, rest = part.split(ending)
        for line in whole:
            size += len(line)
            joined = (held + line).removesuffix(b"\r") if size <= LONGEST_RECORD else None
            yield start, start + size, joined
            start, held, size = start + size + 1, b"", 0
        size += len(rest)
        held = held + rest if size <= LONGEST_RECORD else b""
    if size:
        yield start, start + size, held if size <= LONGEST_RECORD else None


def _reads(stream: Stream, reading: Reading) -> Iterator[bytes]:
    try:
        while part := stream.read(READ):
            yield part
    except BrokenStream as broken:
        reading.broken = broken


@dataclass(frozen=True)
class IndexTables:
    """The three tables of the stage `evaluation`."""

    examples: pa.Table
    grams: pa.Table
    occurrences: pa.Table


@dataclass(frozen=True)
class _SetWords:
    words: Words
    example: I64  # the example of each word
    lengths: I64  # words of each example


def index_examples(
    sets: Sequence[tuple[EvaluationSet, Sequence[Example], Sequence[str]]], options: IndexOptions
) -> IndexTables:
    """The tables of some sets, each with its examples and the texts of its own training split (may be empty).

    Raises ValueError when there are more than `most_grams` n-grams, or two different words or n-grams share a key
    (chance about 10^-9 for a million words).
    """
    rows = [_set_words(one, examples) for one, examples, _ in sets]
    _check_words([found.words for found in rows])
    sizes = [set_n(found.lengths, options) for found in rows]
    parts: dict[str, list[npt.NDArray[Any]]] = {
        k: [] for k in ("n", "key", "example", "last", "train", "set", "first")
    }
    base, total = 0, 0
    for number, ((_, examples, train), found, own) in enumerate(zip(sets, rows, sizes, strict=True)):
        for n in sorted({*options.ngrams, own}):
            grams = find_grams(found.words, n)
            total += len(grams.keys)
            if total > options.most_grams:
                raise ValueError(f"the sets hold more than most_grams = {options.most_grams:,} n-grams")
            count = len(grams.keys)
            parts["n"].append(np.full(count, n, np.uint8))
            parts["key"].append(grams.keys)
            parts["example"].append(found.example[grams.first] + base)
            parts["last"].append(found.example[grams.first + n - 1] + base)
            parts["train"].append(_in_train(found.words, grams.keys, grams.first, n, train))
            parts["set"].append(np.full(count, number))
            parts["first"].append(grams.first)
        base += len(examples)
    columns = {name: np.concatenate(values) if values else np.empty(0, np.int64) for name, values in parts.items()}
    return IndexTables(_examples_table(sets, rows, sizes), *_gram_tables(columns, [found.words for found in rows]))


def set_n(lengths: I64, options: IndexOptions) -> int:
    """GPT-3's N of a set: the length in words of the example at the percentile (the lower, if between two), within
    least..most."""
    if not len(lengths):
        return options.least
    at = int(np.percentile(lengths, options.percentile, method="lower"))
    return min(max(at, options.least), options.most)


def _set_words(one: EvaluationSet, examples: Sequence[Example]) -> _SetWords:
    texts = [example.text for example in examples]
    if one.format != "stream":
        words = find_words(texts)
        lengths = np.diff(words.documents)
        return _SetWords(words, np.repeat(np.arange(len(texts)), lengths), lengths)
    words = find_words(["\n".join(texts)])
    starts = np.cumsum([0, *(len(text.encode()) + 1 for text in texts)])[:-1]
    example = np.searchsorted(starts, words.start, "right") - 1
    return _SetWords(words, example, np.bincount(example, minlength=len(texts)))


def _check_words(sets: Sequence[Words]) -> None:
    """Equal keys must mean equal words; then runs of keys can stand for runs of words."""
    seen: dict[str, int] = {}
    for words in sets:
        every = gram_texts(words, np.arange(len(words.keys)), 1)
        seen.update(zip(every, words.keys.tolist(), strict=True))
    if len(set(seen.values())) != len(seen):
        raise ValueError("two different words of the evaluation sets share a key: leave one of the sets out")


def _in_train(words: Words, keys: U64, first: I64, n: int, train: Sequence[str]) -> npt.NDArray[np.bool_]:
    found = np.zeros(len(keys), bool)
    index = Index(keys) if train and len(keys) else None
    if index is None:
        return found
    representative = index.find(keys)
    for piece in pieces(train, n):
        grams = find_grams(piece.words, n)
        at = index.find(grams.keys)
        positions, where = np.unique(at[at >= 0], return_index=True)
        where = grams.first[np.flatnonzero(at >= 0)[where]]
        same = zip(gram_texts(piece.words, where, n), gram_texts(words, first[positions], n), strict=True)
        found[positions] |= np.fromiter((one == other for one, other in same), bool, len(positions))
    return found[representative]


def _gram_tables(columns: Mapping[str, npt.NDArray[Any]], sets: Sequence[Words]) -> tuple[pa.Table, pa.Table]:
    order = np.lexsort((columns["first"], columns["set"], columns["key"], columns["n"]))
    n, key = columns["n"][order], columns["key"][order]
    new = np.ones(len(order), bool)
    new[1:] = (n[1:] != n[:-1]) | (key[1:] != key[:-1])
    row = np.cumsum(new) - 1
    model = order[new][row]
    _check_grams(columns, sets, order, model)
    texts = _texts(sets, columns["set"][order[new]], columns["first"][order[new]], n[new])
    distinct = [pa.array(n[new].astype(np.uint8)), pa.array(key[new].astype(np.uint64)), pa.array(texts, pa.string())]
    grams = pa.table(distinct, GRAMS)
    example, last = columns["example"][order], columns["last"][order]
    by = np.lexsort((last, row, example))
    occurrences = pa.table(
        [
            pa.array(row[by].astype(np.uint32)),
            pa.array(example[by].astype(np.uint32)),
            pa.array(last[by].astype(np.uint32)),
            pa.array(columns["train"][order][by].astype(bool)),
        ],
        OCCURRENCES,
    )
    return grams, occurrences


def _texts(sets: Sequence[Words], number: I64, first: I64, n: npt.NDArray[np.uint8]) -> list[str]:
    texts = np.empty(len(n), object)
    for s, words in enumerate(sets):
        for size in np.unique(n).tolist():
            some = np.flatnonzero((number == s) & (n == size))
            texts[some] = gram_texts(words, first[some], size)
    return list(texts)


def _check_grams(columns: Mapping[str, npt.NDArray[Any]], sets: Sequence[Words], order: I64, model: I64) -> None:
    """Every n-gram has the words of the first n-gram with its key."""
    sizes = np.cumsum([0, *(len(words.keys) for words in sets)])
    keys = np.concatenate([words.keys for words in sets]) if sets else np.empty(0, np.uint64)
    at = sizes[columns["set"]] + columns["first"]
    for n in np.unique(columns["n"]).tolist():
        some = columns["n"][order] == n
        for step in range(n):
            if not np.array_equal(keys[at[order[some]] + step], keys[at[model[some]] + step]):
                raise ValueError(f"two different {n}-grams of the evaluation sets share a key")


def _examples_table(
    sets: Sequence[tuple[EvaluationSet, Sequence[Example], Sequence[str]]],
    rows: Sequence[_SetWords],
    sizes: list[int],
) -> pa.Table:
    flat = [(one.name, example) for one, examples, _ in sets for example in examples]
    lengths = [length for found in rows for length in found.lengths.tolist()]
    own = [n for n, found in zip(sizes, rows, strict=True) for _ in found.lengths]
    return pa.table(
        [
            pa.array([name for name, _ in flat], pa.string()),
            pa.array([example.id for _, example in flat], pa.string()),
            pa.array([example.record for _, example in flat], pa.uint32()),
            pa.array([example.start for _, example in flat], pa.int64()),
            pa.array([example.end for _, example in flat], pa.int64()),
            pa.array(lengths, pa.uint32()),
            pa.array(own, pa.uint8()),
            pa.array([example.text for _, example in flat], pa.string()),
        ],
        EXAMPLES,
    )


def evaluation_task(sets: Sequence[EvaluationSet], base: Path, digests: Mapping[str, str], path: str) -> Task:
    """The one task of the stage `evaluation`. `digests`: sha256 by absolute path, of all `set_files`; `base`: the
    recipe's folder; `path`: the list's place in the recipe, for messages."""
    ordered = sorted(enumerate(sets), key=lambda item: item[1].name)
    files = [[str(locate(p, base)) if p else "" for p in (one.path, one.train)] for _, one in ordered]
    plain = [{k: v for k, v in dataclasses.asdict(one).items() if k not in ("path", "train")} for _, one in ordered]
    hashed = [[digests[file] if file else "" for file in pair] for pair in files]
    return Task(
        key="index",
        inputs={"sets": plain, "sha256": hashed, "unicode": UNICODE_VERSION},
        where={"files": files, "recipe": [f"{path}[{index}]" for index, _ in ordered]},
        weight=sum(Path(file).stat().st_size for pair in files for file in pair if file),
    )


def write_evaluation(task: Task, context: Context) -> None:
    """Work of the stage `evaluation`. Ledger "evaluation records"; broken files are problems."""
    sets = []
    for plain, (file, train), where in zip(
        task.inputs["sets"], task.where["files"], task.where["recipe"], strict=True
    ):
        one = EvaluationSet(**plain, path=file, train=train)
        examples, reading = read_set(one, file, where)
        for reason, number in reading.counts.items():
            context.count("evaluation records", reason, number)
        own: list[str] = []
        if train:
            read, training = read_set(one, train, where)
            own = ["\n".join(e.text for e in read)] if one.format == "stream" else [e.text for e in read]
            if training.broken:
                context.problem(Path(train).name, training.broken.reason, training.broken.offset)
        if reading.broken:
            context.problem(Path(file).name, reading.broken.reason, reading.broken.offset)
        sets.append((one, examples, own))
    tables = index_examples(sets, context.options)
    context.write("", "index", tables.examples, EXAMPLES)
    context.write("grams", "index", tables.grams, GRAMS)
    context.write("occurrences", "index", tables.occurrences, OCCURRENCES)


EVALUATION = Stage(
    name="evaluation",
    version=2,
    work=write_evaluation,
    libraries=("numpy",),
    tables={"grams": "evaluation/grams", "occurrences": "evaluation/occurrences"},
)


def read_index(workspace: Workspace, evaluation: Manifest) -> IndexTables:
    """The tables of a committed stage `evaluation`."""
    tables = [read_part(workspace, only_part(evaluation, table)) for table in ("", "grams", "occurrences")]
    return IndexTables(*tables)


def only_part(manifest: Manifest, table: str) -> PartFile:
    parts = manifest.parts(table)
    if len(parts) != 1:
        raise WorkspaceError(
            f"{manifest.stage} has {len(parts)} parts of table {table!r} instead of one; build again"
        )
    return parts[0]
