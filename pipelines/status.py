"""What a workspace holds: the funnel with its drops, and which stages are done, stale or missing."""

from __future__ import annotations

from typing import Any

from pipelines.progress import say
from pipelines.runner import RunnerOptions
from pipelines.stages import NotCurrent, StageError
from pipelines.workspace import Json, Workspace, WorkspaceError, read_manifest

FUNNEL = (
    "links/submissions",
    "links",
    "pages",
    "documents",
    "annotations/links/matches",
    "annotations/language",
    "annotations/quality",
    "annotations/duplicates",
    "annotations/wikipedia",
    "annotations/contamination",
    "corpus",
    "tokenizer",
    "shards/written",
)
"""Stages in the order of the data."""

RUNS = (
    *FUNNEL[: FUNNEL.index("annotations/language")],
    "annotations/links",
    "annotations/language",
    "annotations/quality",
    "annotations/duplicates",
    "wikipedia",
    "annotations/wikipedia",
    "evaluation",
    "annotations/contamination",
    "corpus",
    "tokenizer",
    "shards/written",
)
"""Stages in the order a build runs them; what they are made of ("corpus/keepers") runs within them."""

TITLES = {
    "links/submissions": "link dumps",
    "annotations/links/matches": "links and pages",
    "shards/written": "shards",
}


def funnel(workspace: Workspace) -> list[dict[str, Json]]:
    """For each stage and unit: how many came in, were kept, and were dropped for each reason.

    Stages that judge without dropping (annotations) are left out.
    """
    rows: list[dict[str, Json]] = []
    for stage in FUNNEL:
        manifest = read_manifest(workspace, stage)
        if manifest is None or (stage.startswith("annotations/") and stage != "annotations/links/matches"):
            continue
        for unit, ledger in manifest.ledgers.items():
            dropped = {reason: n for reason, n in ledger.items() if reason not in ("in", "kept") and n}
            rows.append(
                {
                    "stage": stage,
                    "unit": unit,
                    "in": ledger.get("in", 0),
                    "kept": ledger.get("kept", 0),
                    "dropped": dict(sorted(dropped.items(), key=lambda item: (-item[1], item[0]))),
                    "balances": ledger.get("in", 0) == ledger.get("kept", 0) + sum(dropped.values()),
                    "broken_inputs": len(manifest.problems),
                }
            )
    return rows


def funnel_lines(workspace: Workspace) -> list[str]:
    """The funnel for a terminal, a line per ledger and a line per reason."""
    lines = []
    for row in funnel(workspace):
        title = TITLES.get(row["stage"], row["stage"])
        lines.append(f"{title:16} {row['in']:>10,} {row['unit']} in, {row['kept']:,} kept")
        lines += [f"{'':16} {n:>10,} {reason}" for reason, n in row["dropped"].items()]
    return lines


def status(workspace: Workspace) -> list[dict[str, Json]]:
    """Each stage: done, stale (its inputs, options or files changed) or missing; with rows and bytes.

    Raises WorkspaceError when the workspace holds no recipe.
    """
    current, left_out = _plan(workspace)
    rows: list[dict[str, Json]] = []
    for stage in FUNNEL:
        manifest = read_manifest(workspace, stage)
        if manifest is None and any(stage == name or stage.startswith(f"{name}/") for name in left_out):
            continue
        state = "missing" if manifest is None else "done" if RUNS.index(stage) < current else "stale"
        files = [file for table in manifest.tables.values() for file in table] if manifest else []
        rows.append(
            {
                "stage": stage,
                "state": state,
                "files": len(files),
                "rows": sum(file.rows for file in manifest.parts() or files) if manifest else 0,
                "bytes": sum(file.size for file in files),
                "broken_inputs": len(manifest.problems) if manifest else 0,
            }
        )
    return rows


def _place(stage: str) -> int:
    """Where a stage, or one that runs within it, stands among RUNS."""
    return max((len(name), i) for i, name in enumerate(RUNS) if stage == name or stage.startswith(f"{name}/"))[1]


def _plan(workspace: Workspace) -> tuple[int, list[str]]:
    """How many stages of RUNS are current, and which ones the recipe has no use for.

    Asks the build itself, with a runner that runs nothing.
    """
    from pathlib import Path

    from pipelines.build import Build, unused
    from pipelines.inputs import digest_inputs
    from pipelines.options import RecipeError
    from pipelines.recipe import parse_recipe, resolve_inputs

    if not workspace.exists("recipe.yaml"):
        raise WorkspaceError(f"{workspace.url} holds no recipe.yaml: no build has begun here")
    recipe = parse_recipe(workspace.read("recipe.yaml").decode(), f"{workspace.url}/recipe.yaml")
    try:
        inputs = resolve_inputs(recipe, Path("/"))
        limit = int(workspace.read("limit.txt")) if workspace.exists("limit.txt") else 0
    except RecipeError as error:
        say(f"the inputs are not where they were, so nothing can be said of what is stale: {error}")
        return len(RUNS), []
    except ValueError as error:
        raise WorkspaceError(f"{workspace.url}/limit.txt is damaged ({error}); remove it") from error
    plan = RunnerOptions(plan=True)
    build = Build(workspace, recipe, inputs, Path("/"), digest_inputs(workspace, inputs.all()), plan, limit)
    left_out = [*unused(recipe, inputs), *(() if recipe.fetch else ("pages",))]
    try:
        for step in ("links", "pages", "documents", "annotations", "corpus", "tokenizer", "shards"):
            getattr(build, step)()
    except NotCurrent as first:
        return _place(first.stage), left_out
    except StageError:  # what is current goes as far as a build does: it would end here with this error
        return (_place(list(build.made)[-1]) + 1 if build.made else 0), left_out
    return len(RUNS), left_out


def status_lines(rows: list[dict[str, Any]]) -> list[str]:
    """The status table for a terminal."""
    lines = [f"{'stage':28} {'state':8} {'files':>6} {'rows':>12} {'bytes':>14}"]
    for row in rows:
        broken = f"  {row['broken_inputs']} broken inputs" if row["broken_inputs"] else ""
        lines.append(
            f"{row['stage']:28} {row['state']:8} {row['files']:>6,} {row['rows']:>12,} {row['bytes']:>14,}{broken}"
        )
    return lines
