"""The tokenizer stage: pretokens counted per part of the corpus, then one exact BPE training from the summed counts.

Counting is the only pass over text and runs on every worker; training reads the counts alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from pipelines.corpus import kept_documents
from pipelines.runner import RunnerOptions
from pipelines.stages import Context, Stage, Task, run_stage
from pipelines.workspace import Json, Manifest, PartFile, Workspace, read_part
from tokenizer.train import BpeOptions

COUNTS_SCHEMA = pa.schema(
    [pa.field("pretoken", pa.binary(), nullable=False), pa.field("count", pa.int64(), nullable=False)]
)
"""tokenizer/counts: how often each pretoken (its UTF-8 bytes) stands in the part's kept text, sorted by bytes."""


@dataclass(frozen=True)
class TokenizerOptions:
    """The tokenizer to train; GPT-2's has 50,257 entries."""

    bpe: BpeOptions = field(default_factory=BpeOptions)


def count_part(task: Task, context: Context) -> None:
    """Count the pretokens of one part's kept documents."""
    from tokenizer.counts import count_pretokens

    documents, decisions = PartFile.of(task.inputs["documents"]), PartFile.of(task.inputs["decisions"])
    rows = [0]

    def texts() -> Iterator[pa.Array]:
        for batch in kept_documents(context.workspace, documents, decisions, ["text"]):
            rows[0] += batch.num_rows
            yield batch.column("text")

    table = count_pretokens(texts())
    context.write("", documents.part, table, COUNTS_SCHEMA)
    context.count("documents", "in", documents.rows)
    context.count("documents", "kept", rows[0])
    context.count("documents", "not_in_corpus", documents.rows - rows[0])


COUNT = Stage("tokenizer/counts", 1, count_part)


def train_tokenizer(task: Task, context: Context) -> None:
    """Sum all parts' counts, train, and publish the tokenizer's files beside its report."""
    from tokenizer.counts import merge_counts
    from tokenizer.files import tokenizer_files
    from tokenizer.report import report
    from tokenizer.train import train

    options: BpeOptions = context.options
    counts = merge_counts(read_part(context.workspace, PartFile.of(part)) for part in task.inputs["counts"])
    trained = train(counts, options)
    vocabulary = trained.vocabulary
    files = tokenizer_files(vocabulary)
    summary = {
        **report(vocabulary, counts),
        "vocab_size": vocabulary.size,
        "wanted": trained.wanted,
        "options": dataclasses.asdict(options),
        "merge_counts": list(trained.counts),
    }
    files["report.json"] = json.dumps(summary, sort_keys=True).encode() + b"\n"
    for name, data in files.items():
        sha256 = hashlib.sha256(data).hexdigest()
        context.workspace.write(f"tokenizer/{name}", data)
        context.keep("files", PartFile(name, f"tokenizer/{name}", 0, len(data), sha256, sha256))
    context.figure("vocab_size", vocabulary.size)
    context.figure("eot_id", vocabulary.specials[-1])


TRAIN = Stage("tokenizer", 1, train_tokenizer, ("numpy", "tokenizers"), {"files": "tokenizer"})


def build_tokenizer(
    workspace: Workspace, documents: Manifest, corpus: Manifest, options: TokenizerOptions, runner: RunnerOptions
) -> dict[str, Json]:
    """Bring tokenizer/ up to date; its `vocab_size`, `eot_id` and the sha256 of its tokenizer.json."""
    decisions = {file.part: file for file in corpus.parts()}
    tasks = [
        Task(
            file.part,
            {"documents": dataclasses.asdict(file), "decisions": dataclasses.asdict(decisions[file.part])},
            weight=file.size,
        )
        for file in documents.parts()
    ]
    counted = run_stage(workspace, COUNT, None, tasks, runner)
    inputs = {"counts": [dataclasses.asdict(file) for file in counted.parts()]}
    weight = sum(file.size for file in counted.parts())
    manifest = run_stage(
        workspace,
        TRAIN,
        options.bpe,
        [Task("tokenizer", inputs, weight=weight)],
        dataclasses.replace(runner, workers=1),
    )
    sha256 = next(file.sha256 for file in manifest.parts("files") if file.part == "tokenizer.json")
    return {**manifest.figures["tokenizer"], "sha256": sha256}
