"""The corpus is a view: documents + evidence + the recipe's rules in their order → keep, or drop with one reason.

Evidence says what is true of a document; only here is it decided what follows. So a changed threshold reads small
columns again, never text. The rules run in the recipe's order and the first that fails names the reason. Two need to
know other documents' fate:

* `duplicates`: a document's keeper is chosen among those that survive the rules before it;
* `contamination`: n-grams are counted over the documents that all other rules keep, so it stands last.

Four small stages: survivors (per part), keepers (one task over the rows that have duplicates), frequencies (one task
over the rows that have hits), and the decisions themselves (per part).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.clusters import DROPPED, choose_keepers
from pipelines.contamination import (
    ContaminationOptions,
    counted_hits,
    cut_spans,
    decisive_inputs,
    document_frequency,
    read_decisive,
)
from pipelines.evaluation_sets import only_part
from pipelines.options import build_options
from pipelines.quality import QualityRule
from pipelines.quality import judge as judge_quality
from pipelines.runner import RunnerOptions
from pipelines.stages import Context, Stage, Task, read_annotation, run_stage
from pipelines.workspace import (
    Manifest,
    OtherDocuments,
    PartFile,
    Workspace,
    WorkspaceError,
    iter_part,
    need_manifest,
    part_key,
    part_metadata,
    read_part,
)

Rule = Literal["linked", "language", "quality", "wikipedia", "duplicates", "contamination"]
RULES: tuple[Rule, ...] = get_args(Rule)


@dataclass(frozen=True)
class LanguageRule:
    """Keep documents in these languages (ISO 639-1), detected with at least this confidence."""

    keep: tuple[str, ...] = ("en",)
    confidence: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.confidence <= 1:
            raise ValueError(f"confidence must be between 0 and 1, not {self.confidence}")
        if not self.keep:
            raise ValueError("keep must name at least one language, such as en")


@dataclass(frozen=True)
class WikipediaRule:
    """Drop pages on a Wikipedia domain, and mirrors: pages of whose word 8-grams the dump holds this share."""

    domain: bool = True
    share: float = 0.4

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be more than 0 and at most 1, not {self.share}")


@dataclass(frozen=True)
class DuplicatesRule:
    """Keep one of exact copies, and one of near copies whose verified n-gram Jaccard is at least `similarity`."""

    exact: bool = True
    similarity: float = 0.8

    def __post_init__(self) -> None:
        if not 0 < self.similarity <= 1:
            raise ValueError(f"similarity must be more than 0 and at most 1, not {self.similarity}")


@dataclass(frozen=True)
class CorpusOptions:
    """The rules, in the order they are applied, and what each asks for."""

    rules: tuple[Rule, ...] = RULES
    language: LanguageRule = field(default_factory=LanguageRule)
    quality: QualityRule = field(default_factory=QualityRule)
    wikipedia: WikipediaRule = field(default_factory=WikipediaRule)
    duplicates: DuplicatesRule = field(default_factory=DuplicatesRule)
    contamination: Literal["report", "cut", "drop"] = "report"
    """What happens to a document that holds n-grams of an evaluation set: nothing but the report, GPT-3's cut
    (section `contamination` has its numbers), or the whole document goes."""

    def __post_init__(self) -> None:
        if len(set(self.rules)) != len(self.rules):
            raise ValueError(f"rules names a rule twice: {', '.join(self.rules)}")
        if "contamination" in self.rules and self.rules[-1] != "contamination":
            raise ValueError("rules: contamination counts over the documents kept, so it must stand last")

    def before_duplicates(self) -> tuple[Rule, ...]:
        return self.rules[: self.rules.index("duplicates")] if "duplicates" in self.rules else self.rules


SURVIVORS_SCHEMA = pa.schema(
    [
        pa.field("reason", pa.string(), nullable=False),  # first failed rule before duplicates, "" if none
        pa.field("later", pa.string(), nullable=False),  # first failed rule after duplicates, "" if none
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("score", pa.int64(), nullable=False),
        pa.field("n_words", pa.int32(), nullable=False),
    ]
)
FREQUENCY_SCHEMA = pa.schema(
    [
        pa.field("gram", pa.uint32(), nullable=False),
        pa.field("documents", pa.int64(), nullable=False),
        pa.field("decisive", pa.bool_(), nullable=False),  # has the N words of a set that holds it
    ]
)
SPAN = pa.struct([pa.field("start", pa.uint32(), nullable=False), pa.field("end", pa.uint32(), nullable=False)])
SCHEMA = pa.schema(
    [
        pa.field("keep", pa.bool_(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("cuts", pa.list_(pa.field("item", SPAN, nullable=False)), nullable=False),
    ]
)
"""corpus/, version 1: the rows and order of the document part. `detail`: for a duplicate the survivor's doc_id and
the similarity, for others what the rule saw. `cuts`: UTF-8 byte spans to leave out, on character boundaries."""


# One document's evidence against one rule: pure functions over columns.


def _labelled(failed: np.ndarray, label: str) -> np.ndarray:
    return np.where(failed, label, "").astype(object)


def judge_language(evidence: pa.Table, rule: LanguageRule) -> np.ndarray:
    """ "other_language", "unsure_language" or "" for each row of annotations/language."""
    known = pc.is_in(evidence.column("language"), pa.array(rule.keep)).to_numpy(zero_copy_only=False)
    sure = evidence.column("confidence").to_numpy() >= np.float32(rule.confidence)
    return np.where(known, np.where(sure, "", "unsure_language"), "other_language").astype(object)


def judge_wikipedia(evidence: pa.Table, rule: WikipediaRule) -> np.ndarray:
    """ "wikipedia", "wikipedia_mirror" or "" for each row of annotations/wikipedia."""
    domain = evidence.column("domain").to_numpy(zero_copy_only=False) & rule.domain
    mirror = evidence.column("share").to_numpy() >= np.float32(rule.share)
    return np.where(domain, "wikipedia", np.where(mirror, "wikipedia_mirror", "")).astype(object)


def judge(rule: Rule, evidence: pa.Table, options: CorpusOptions) -> np.ndarray:
    """The reason (object array of str, "" for none) that a rule gives for each row of its evidence."""
    if rule == "linked":
        return _labelled(~evidence.column("linked").to_numpy(zero_copy_only=False), "not_linked")
    if rule == "language":
        return judge_language(evidence, options.language)
    if rule == "quality":
        return judge_quality(evidence, options.quality)
    if rule == "wikipedia":
        return judge_wikipedia(evidence, options.wikipedia)
    raise AssertionError(f"{rule} is not decided row by row")


EVIDENCE: dict[Rule, str] = {
    "linked": "annotations/links",
    "language": "annotations/language",
    "quality": "annotations/quality",
    "wikipedia": "annotations/wikipedia",
    "duplicates": "annotations/duplicates",
    "contamination": "annotations/contamination",
}


def _annotation(task: Task, context: Context, name: str, columns: list[str] | None = None) -> pa.Table:
    """The annotation of the task's documents that its inputs name. Raises WorkspaceError when it is another's."""
    documents = PartFile.of(task.inputs["documents"])
    file = PartFile.of(task.inputs[name])
    manifest = Manifest(name, 0, "", {}, {}, {"": (file,)})
    return read_annotation(context.workspace, manifest, documents, columns)


# Survivors.


def work_survivors(task: Task, context: Context) -> None:
    """First failed rule of each document of a part, duplicates and contamination aside."""
    options: CorpusOptions = context.options
    documents = PartFile.of(task.inputs["documents"])
    before = np.full(documents.rows, "", object)
    later = np.full(documents.rows, "", object)
    first = options.before_duplicates()
    for rule in options.rules:
        if rule in ("duplicates", "contamination"):
            continue
        reason = judge(rule, _annotation(task, context, EVIDENCE[rule]), options)
        target = before if rule in first else later
        unset = target == ""
        target[unset] = reason[unset]
    score = np.zeros(documents.rows, np.int64)
    if EVIDENCE["linked"] in task.inputs:
        score = _annotation(task, context, EVIDENCE["linked"], ["score"]).column("score").to_numpy()
    words = _annotation(task, context, EVIDENCE["quality"], ["n_words"]).column("n_words")
    ids = read_part(context.workspace, PartFile.of(task.inputs["positions"]), ["doc_id"]).column("doc_id")
    table = pa.table(
        {"reason": before.tolist(), "later": later.tolist(), "doc_id": ids, "score": score, "n_words": words},
        SURVIVORS_SCHEMA,
    )
    context.write("", documents.part, table, SURVIVORS_SCHEMA)


SURVIVORS = Stage("corpus/survivors", 1, work_survivors)


# Keepers.


def work_keepers(task: Task, context: Context) -> None:
    """Choose whom to keep of each group of duplicates: one task, over the rows that have any."""
    options: CorpusOptions = context.options
    evidence = []
    for pair in task.inputs["parts"]:
        survivors = read_part(context.workspace, PartFile.of(pair["survivors"]))
        duplicates = read_part(context.workspace, PartFile.of(pair["duplicates"]))
        evidence.append((part_key(pair["part"]), survivors, duplicates))
    rule = options.duplicates
    dropped, statistics = choose_keepers(evidence, exact=rule.exact, similarity=rule.similarity)
    for pair in task.inputs["parts"]:
        context.write("", pair["part"], dropped[part_key(pair["part"])], DROPPED)
    context.figure("duplicates", statistics)


KEEPERS = Stage("corpus/keepers", 1, work_keepers)


# Frequencies.


def surviving(survivors: pa.Table, dropped: pa.Table | None) -> np.ndarray:
    """Which rows every rule but contamination keeps: bool[rows]."""
    keep: np.ndarray = pc.and_(pc.equal(survivors["reason"], ""), pc.equal(survivors["later"], "")).to_numpy().copy()
    if dropped is not None:
        keep[dropped.column("row").to_numpy()] = False
    return keep


def work_frequencies(task: Task, context: Context) -> None:
    """In how many surviving documents each evaluation n-gram stands, and whether it makes an example of its set
    dirty: one task, over the rows that have hits and the index."""

    def parts() -> Iterator[tuple[pa.ChunkedArray, np.ndarray]]:
        for pair in task.inputs["parts"]:
            survivors = read_part(context.workspace, PartFile.of(pair["survivors"]), ["reason", "later"])
            dropped = read_part(context.workspace, PartFile.of(pair["dropped"])) if "dropped" in pair else None
            hits = read_part(context.workspace, PartFile.of(pair["contamination"]), ["hits"]).column("hits")
            yield hits, surviving(survivors, dropped)

    frequency = document_frequency(parts(), int(task.inputs["grams"]))
    found = np.flatnonzero(frequency)
    decisive = read_decisive(context.workspace, task.inputs["index"])[found]
    table = pa.table({"gram": found, "documents": frequency[found], "decisive": decisive}).cast(FREQUENCY_SCHEMA)
    context.write("", "frequencies", table, FREQUENCY_SCHEMA)


FREQUENCIES = Stage("corpus/frequencies", 2, work_frequencies)


# Decisions.


def work_decisions(task: Task, context: Context) -> None:
    """Keep or drop each document of a part, with one reason, and the spans to cut."""
    options: CorpusOptions = context.options
    documents = PartFile.of(task.inputs["documents"])
    survivors = read_part(context.workspace, PartFile.of(task.inputs["survivors"]))
    reason = np.array(survivors.column("reason").to_pylist(), object)
    later = np.array(survivors.column("later").to_pylist(), object)
    detail = np.full(documents.rows, "", object)
    cuts: list[list[tuple[int, int]]] = [[] for _ in range(documents.rows)]
    if "dropped" in task.inputs:
        for row in read_part(context.workspace, PartFile.of(task.inputs["dropped"])).to_pylist():
            if reason[row["row"]] == "":
                reason[row["row"]] = row["reason"]
                detail[row["row"]] = f"{row['survivor']} {row['similarity']:.4f}"
    unset = reason == ""
    reason[unset] = later[unset]
    if "frequencies" in task.inputs and options.contamination != "report":
        _apply_contamination(task, context, reason, detail, cuts)
    keep = reason == ""
    spans = [[{"start": a, "end": b} for a, b in found] for found in cuts]
    table = pa.table({"keep": keep, "reason": reason.tolist(), "detail": detail.tolist(), "cuts": spans}, SCHEMA)
    context.write("", documents.part, table, SCHEMA, {"documents.sha256": documents.sha256})
    context.count("documents", "in", documents.rows)
    context.count("documents", "kept", int(keep.sum()))
    for name, count in zip(*np.unique(reason[~keep].astype(str), return_counts=True), strict=True):
        context.count("documents", str(name), int(count))


def _apply_contamination(
    task: Task, context: Context, reason: np.ndarray, detail: np.ndarray, cuts: list[list[tuple[int, int]]]
) -> None:
    """Cut or drop, in place, among the documents that all other rules keep, for the n-grams of `cut_ngram` words and
    those of their set's own N: else no document would ever go for a set of shorter examples."""
    rule = build_options(ContaminationOptions, task.inputs["rule"], "contamination")
    counted = read_part(context.workspace, PartFile.of(task.inputs["frequencies"]))
    frequency = np.zeros(int(task.inputs["grams"]), np.int64)
    frequency[counted.column("gram").to_numpy()] = counted.column("documents").to_numpy()
    decisive = np.zeros(len(frequency), bool)
    decisive[counted.column("gram").to_numpy()] = counted.column("decisive").to_numpy()
    hits = _annotation(task, context, EVIDENCE["contamination"]).column("hits").combine_chunks()
    wanted = np.flatnonzero((reason == "") & (pc.list_value_length(hits).to_numpy(zero_copy_only=False) > 0))
    if not len(wanted):
        return
    texts = read_part(context.workspace, PartFile.of(task.inputs["documents"]), ["text"]).column("text")
    for row in wanted.tolist():
        starts, ends = counted_hits(hits, row, frequency, decisive, rule)
        if not len(starts):
            continue
        cut = cut_spans(texts[row].as_py(), starts.tolist(), ends.tolist(), rule)
        if context.options.contamination == "drop" or cut.reason:
            reason[row], detail[row] = "contamination", cut.reason or f"{len(starts)} n-grams of evaluation sets"
        else:
            cuts[row] = list(cut.spans)


STAGE = Stage("corpus", 1, work_decisions)


# The whole view.


def _by_part(manifest: Manifest) -> dict[str, PartFile]:
    return {file.part: file for file in manifest.parts()}


def build_corpus(
    workspace: Workspace,
    documents: Manifest,
    annotations: Mapping[str, Manifest],
    options: CorpusOptions,
    contamination: ContaminationOptions,
    runner: RunnerOptions,
) -> Manifest:
    """Bring corpus/ up to date from documents/ and the annotations the rules name.

    `annotations` maps a stage's name to its manifest (and "evaluation", the index of n-grams).

    Raises WorkspaceError when a rule's evidence is missing.
    """
    for rule in options.rules:
        if EVIDENCE[rule] not in annotations:
            raise WorkspaceError(
                f"corpus.rules names {rule}, and {EVIDENCE[rule]} was not built; see the recipe's inputs"
            )
    evidence = {name: _by_part(manifest) for name, manifest in annotations.items()}
    files = documents.parts()

    def task(file: PartFile, others: Mapping[str, PartFile], extra: Mapping[str, Any] | None = None) -> Task:
        inputs: dict[str, Any] = {"documents": dataclasses.asdict(file), **(extra or {})}
        return Task(
            file.part, {**inputs, **{n: dataclasses.asdict(f) for n, f in others.items()}}, weight=file.rows + 1
        )

    def needed(file: PartFile, names: Sequence[str]) -> dict[str, PartFile]:
        return {name: evidence[name][file.part] for name in names if name in evidence}

    by_row = [EVIDENCE[rule] for rule in options.rules if rule not in ("duplicates", "contamination")]
    names = sorted({*by_row, EVIDENCE["linked"], EVIDENCE["quality"]})
    # The ids stand in positions/ too, and a part that is opened is hashed: opening documents/ would read all text.
    positions = {file.part: file for file in documents.parts("positions")}
    judging = [task(file, {**needed(file, names), "positions": positions[file.part]}) for file in files]
    survivors = _by_part(run_stage(workspace, SURVIVORS, options, judging, runner))
    single = dataclasses.replace(runner, workers=1)
    dropped: dict[str, PartFile] = {}
    if "duplicates" in options.rules:
        dropped = _keepers(workspace, files, survivors, evidence[EVIDENCE["duplicates"]], options, single)
    frequencies: PartFile | None = None
    counting: dict[str, Any] = {}
    if "contamination" in options.rules:
        hits = evidence[EVIDENCE["contamination"]]
        counting = {"grams": only_part(annotations["evaluation"], "grams").rows}
        asked = {**counting, "index": decisive_inputs(annotations["evaluation"])}
        frequencies = _frequencies(workspace, files, survivors, dropped, hits, asked, options, single)
        counting["rule"] = dataclasses.asdict(contamination)
    tasks = []
    for file in files:
        others = {"survivors": survivors[file.part]}
        if file.part in dropped:
            others["dropped"] = dropped[file.part]
        if frequencies is not None:
            others |= {"frequencies": frequencies, **needed(file, [EVIDENCE["contamination"]])}
        tasks.append(task(file, others, counting))
    return run_stage(workspace, STAGE, options, tasks, runner)


def _keepers(
    workspace: Workspace,
    files: Sequence[PartFile],
    survivors: Mapping[str, PartFile],
    duplicates: Mapping[str, PartFile],
    options: CorpusOptions,
    runner: RunnerOptions,
) -> dict[str, PartFile]:
    pairs = [
        {
            "part": file.part,
            "survivors": dataclasses.asdict(survivors[file.part]),
            "duplicates": dataclasses.asdict(duplicates[file.part]),
        }
        for file in files
    ]
    return _by_part(run_stage(workspace, KEEPERS, options, [Task("keepers", {"parts": pairs})], runner))


def _frequencies(
    workspace: Workspace,
    files: Sequence[PartFile],
    survivors: Mapping[str, PartFile],
    dropped: Mapping[str, PartFile],
    hits: Mapping[str, PartFile],
    counting: Mapping[str, Any],
    options: CorpusOptions,
    runner: RunnerOptions,
) -> PartFile:
    pairs = []
    for file in files:
        pair = {
            "survivors": dataclasses.asdict(survivors[file.part]),
            "contamination": dataclasses.asdict(hits[file.part]),
        }
        if file.part in dropped:
            pair["dropped"] = dataclasses.asdict(dropped[file.part])
        pairs.append(pair)
    manifest = run_stage(workspace, FREQUENCIES, options, [Task("frequencies", {"parts": pairs, **counting})], runner)
    return manifest.parts()[0]


def cut_text(text: str, cuts: Sequence[Mapping[str, int]]) -> str:
    """A text without its cut spans; the pieces that remain are joined by a blank line.

    >>> cut_text("naïve reading of a test set", [{"start": 6, "end": 14}])
    'naïve\\n\\nof a test set'
    """
    data = text.encode()
    pieces, at = [], 0
    for cut in cuts:
        pieces.append(data[at : cut["start"]])
        at = cut["end"]
    pieces.append(data[at:])
    return "\n\n".join(piece for piece in (p.decode().strip() for p in pieces) if piece)


def check_decided(workspace: Workspace, documents: PartFile, decisions: PartFile) -> None:
    """Raise WorkspaceError unless the decisions were made for exactly these documents."""
    belongs = part_metadata(workspace, decisions).get("documents.sha256")
    if belongs != documents.sha256 or decisions.rows != documents.rows:
        raise OtherDocuments(
            f"{workspace.url}/{decisions.path} was decided for other documents than {documents.path}: build again"
        )


def decided_parts(workspace: Workspace) -> list[tuple[PartFile, PartFile]]:
    """(documents, decisions) of every part. Raises WorkspaceError when corpus/ was decided for other parts."""
    documents, corpus = need_manifest(workspace, "documents"), need_manifest(workspace, "corpus")
    decisions = {file.part: file for file in corpus.parts()}
    if decisions.keys() != {file.part for file in documents.parts()}:
        raise OtherDocuments(
            f"{workspace.url}/corpus was decided for other inputs than documents/ holds: build again"
        )
    return [(file, decisions[file.part]) for file in documents.parts()]


def kept_documents(
    workspace: Workspace, documents: PartFile, decisions: PartFile, columns: list[str]
) -> Iterator[pa.RecordBatch]:
    """The documents of a part that the corpus keeps, in row order, with the cuts made.

    Batches hold `columns` of documents/ and `row` uint32. Memory stays at one row group.
    """
    check_decided(workspace, documents, decisions)
    verdict = read_part(workspace, decisions, ["keep", "cuts"])
    keep = verdict.column("keep").combine_chunks()
    cuts = verdict.column("cuts").combine_chunks()
    at = 0
    for batch in iter_part(workspace, documents, columns):
        chosen = keep.slice(at, batch.num_rows)
        rows = pa.array(np.arange(at, at + batch.num_rows, dtype=np.uint32))
        spans = cuts.slice(at, batch.num_rows).filter(chosen)
        at += batch.num_rows
        batch = batch.append_column("row", rows).filter(chosen)
        if "text" in columns and pc.sum(pc.list_value_length(spans)).as_py():
            texts = [
                cut_text(text, found) if found else text
                for text, found in zip(batch.column("text").to_pylist(), spans.to_pylist(), strict=True)
            ]
            batch = batch.set_column(batch.schema.get_field_index("text"), "text", pa.array(texts, pa.string()))
        if batch.num_rows:
            yield batch
