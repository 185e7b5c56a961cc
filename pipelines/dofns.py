"""The Beam side of stages and exchanges: three DoFns, each one file's work per element.

They hold no logic of their own: an element is a task or a reference, the work is a plain function, and everything a
DoFn leaves behind goes through the workspace, because engines run elements twice, kill workers and lose metrics.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam

from pipelines.exchange import PARTITION_BYTES, Exchange, read_slices, write_run
from pipelines.stages import Context, Stage, Task, perform, read_record
from pipelines.workspace import STATE, PartFile, Workspace, digest


class PerformTask(beam.DoFn):  # type: ignore[misc,unused-ignore]  # Beam has no types
    """One element is one task; its parts and commit record are written to the workspace; nothing is returned."""

    def __init__(self, stage: Stage, options: Any, url: str) -> None:
        self._stage, self._options, self._url = stage, options, url

    def process(self, task: Task) -> Iterator[Any]:
        perform(self._stage, self._options, self._url, task, lambda context: self._stage.work(task, context))
        return iter(())


class SendRun(beam.DoFn):  # type: ignore[misc,unused-ignore]  # Beam has no types
    """task → (receiver, (path, offset, length, sha256 of the run)) for each non-empty slice of its run file."""

    def __init__(self, stage: Stage, options: Any, url: str, exchange: Exchange, receivers: int, routes: Any) -> None:
        self._stage, self._options, self._url = stage, options, url
        self._exchange, self._receivers, self._routes = exchange, receivers, routes

    def process(self, task: Task) -> Iterator[tuple[int, tuple[str, int, int, str]]]:
        workspace = Workspace(self._url)

        def work(context: Context) -> None:
            table = self._exchange.send(task, context)
            directory = f"{STATE}/runs/{self._stage.name}"
            run, slices = write_run(
                workspace, directory, task.key, self._exchange, table, self._receivers, self._routes
            )
            context.keep("run", run)
            context.figure("slices", [list(piece) for piece in slices])

        path = perform(self._stage, self._options, self._url, task, work)
        record = read_record(workspace, path)
        assert record is not None
        run = PartFile.of(record["tables"]["run"][0])
        for receiver, offset, length in record["figures"]["slices"]:
            yield receiver, (run.path, offset, length, run.sha256)


class ReceiveRuns(beam.DoFn):  # type: ignore[misc,unused-ignore]  # Beam has no types
    """(receiver, references) → merge, do the receiver's task, write its parts and commit record."""

    def __init__(self, stage: Stage, options: Any, url: str, exchange: Exchange, targets: Sequence[Task]) -> None:
        self._stage, self._options, self._url = stage, options, url
        self._exchange, self._targets = exchange, targets

    def process(self, group: tuple[int, Iterable[tuple[str, int, int, str] | None]]) -> Iterator[tuple[str, str]]:
        receiver, grouped = group
        # An engine that runs a sender twice hands on its references twice; equal runs are one run.
        references = sorted({(path, at, length, sha256) for path, at, length, sha256 in filter(None, grouped)})
        target = self._targets[receiver]
        received = digest([[sha256, offset, length] for _, offset, length, sha256 in references])
        task = dataclasses.replace(target, inputs={**target.inputs, "received": received})

        def work(context: Context) -> None:
            table = read_slices(context.workspace, self._exchange, references)
            if table.nbytes > 2 * PARTITION_BYTES and target.key.startswith("range-"):
                context.figure("overflow", {"bytes": table.nbytes, "rows": table.num_rows})
            self._exchange.receive(task, table, context)

        path = perform(self._stage, self._options, self._url, task, work)
        note = json.dumps({"record": path}).encode()
        Workspace(self._url).write(f"{STATE}/received/{self._stage.name}/{target.key}.json", note)
        yield target.key, path
