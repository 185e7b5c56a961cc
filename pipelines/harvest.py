"""The links stage as a whole: every dump combined by itself, then all dumps regrouped by URL and judged.

`pipelines.links` has the rules; this file only joins its two halves through an exchange.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pyarrow as pa

from pipelines.exchange import Exchange, run_exchange
from pipelines.linked import url_keys
from pipelines.links import SCHEMA, SUBMISSIONS_SCHEMA, LinkOptions, merge_partition, submissions
from pipelines.runner import RunnerOptions
from pipelines.stages import Context, Stage, Task, run_stage
from pipelines.workspace import Manifest, PartFile, Workspace, read_part

KEYED = pa.schema([pa.field("key", pa.uint64(), nullable=False), *SUBMISSIONS_SCHEMA])


def send_submissions(task: Task, context: Context) -> pa.Table:
    table = read_part(context.workspace, PartFile.of(task.inputs["part"]))
    return table.add_column(0, KEYED.field("key"), pa.array(url_keys(table.column("url")), pa.uint64()))


def receive_submissions(task: Task, table: pa.Table, context: Context) -> None:
    links, ledger = merge_partition(table, context.options)
    for reason, count in ledger.items():
        context.count("links", reason, count)
    context.write("", task.key, links, SCHEMA)


def _no_work(task: Task, context: Context) -> None:
    raise AssertionError(f"{task.key}: an exchange has no work of its own")


SUBMISSIONS = Stage("links/submissions", 2, submissions, ("idna", "tld", "zstandard"))
LINKS = Stage("links", 1, _no_work, ("idna", "tld"))
BY_URL = Exchange(
    KEYED,
    "key",
    ("key", "url"),
    send_submissions,
    receive_submissions,
)


def build_links(
    workspace: Workspace, dumps: Sequence[Task], options: LinkOptions, runner: RunnerOptions
) -> tuple[Manifest, Manifest]:
    """Bring links/submissions and links/ up to date; their manifests."""
    combined = run_stage(workspace, SUBMISSIONS, options.submissions(), dumps, runner)
    senders = [Task(file.part, {"part": dataclasses.asdict(file)}, weight=file.size) for file in combined.parts()]
    total = sum(file.rows for file in combined.parts()) * 192
    return combined, run_exchange(workspace, LINKS, options, BY_URL, senders, runner, total_bytes=total)
