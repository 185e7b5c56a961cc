"""Build a corpus: every stage in the order of the data, each brought up to date or left alone.

links → pages → documents → annotations → corpus → tokenizer → shards → report. One build holds the workspace at a
time. A build that was killed is resumed by the same command; the result is the same bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipelines.inputs import InputFile, digest_inputs
from pipelines.options import RecipeError
from pipelines.progress import human_bytes, say
from pipelines.recipe import Recipe, ResolvedInputs, recipe_yaml
from pipelines.runner import RunnerOptions
from pipelines.stages import StageError, Task, annotation_tasks, run_stage
from pipelines.workspace import MANIFEST, SCRATCH, STATE, Json, Manifest, Workspace, digest, private_path

STEPS = ("links", "pages", "documents", "annotations", "corpus", "tokenizer", "shards", "report")
"""What `--until` and the stage subcommands name, in order."""


def check_space(workspace: Workspace, inputs: ResolvedInputs) -> None:
    """Raise RecipeError when the disk cannot hold what the inputs will become.

    Documents with their annotations, scratch and shards take about as much as compressed archives and texts do.
    """
    if not workspace.is_local:
        return
    need = sum(file.size for file in (*inputs.archives, *inputs.texts)) + sum(f.size for f in inputs.links) // 2
    need += 64 << 20
    free = shutil.disk_usage(workspace.local_path("")).free
    if free < need:
        raise RecipeError(
            f"{workspace.url} has {human_bytes(free)} free, and this build needs about {human_bytes(need)}: "
            "free some space or choose a workspace on another disk"
        )


def remember(
    workspace: Workspace, recipe: Recipe, inputs: ResolvedInputs, digests: Mapping[str, str], base: Path, limit: int
) -> None:
    """Keep the resolved recipe and the inputs' fingerprints in the workspace."""

    def whole(path: str) -> str:
        """A path of the recipe made absolute; the folder it is relative to is meant literally, not as a pattern."""
        spelled = os.path.expanduser(path)
        return spelled if os.path.isabs(spelled) else os.path.join(glob.escape(str(base)), spelled)

    def literal(path: str) -> str:
        return str(base / os.path.expanduser(path))

    fixed = dataclasses.replace(
        recipe,
        inputs=dataclasses.replace(
            recipe.inputs,
            **{
                name: tuple(whole(p) for p in getattr(recipe.inputs, name))
                for name in ("links", "archives", "texts", "wikipedia")
            },
        ),
        evaluation=tuple(
            dataclasses.replace(e, path=literal(e.path), train=literal(e.train) if e.train else "")
            for e in recipe.evaluation
        ),
    )
    if limit:
        workspace.write("limit.txt", str(limit).encode())
    else:
        workspace.remove("limit.txt")
    workspace.write("recipe.yaml", recipe_yaml(fixed).encode())
    listed = {
        section: [{"name": f.name, "size": f.size, "sha256": digests[f.path]} for f in getattr(inputs, section)]
        for section in ("links", "archives", "texts", "wikipedia", "evaluation")
    }
    workspace.write("inputs.json", json.dumps(listed, indent=1, ensure_ascii=False).encode() + b"\n")


def unused(recipe: Recipe, inputs: ResolvedInputs) -> list[str]:
    """Stages and files that this recipe does not make; an earlier one may have left them in the workspace."""
    rules = recipe.corpus.rules
    names: list[str] = []
    if "contamination" not in rules:
        names += ["corpus/frequencies"]
    if "duplicates" not in rules:
        names += ["corpus/duplicates", "corpus/duplicates.json", "corpus/keepers"]
    if not recipe.evaluation:
        names += ["corpus/contamination", "corpus/contamination.json", "annotations/contamination", "evaluation"]
    if not inputs.wikipedia:
        names += ["wikipedia"]
    if not inputs.links:
        names += ["annotations/links", "links"]
    return names


def retire(workspace: Workspace, recipe: Recipe, inputs: ResolvedInputs) -> None:
    """Remove what an earlier recipe made and this one does not, before a reader takes it for this one's.

    Pages that were fetched stay, without their manifest: a recipe that fetches again does not ask for them again.
    """
    for name in unused(recipe, inputs):
        if workspace.exists(name):
            workspace.remove(name)
            continue
        workspace.remove(f"{name}/{MANIFEST}")
        workspace.remove_directory(name)
        workspace.remove(private_path(name))
        workspace.remove_directory(private_path(name).removesuffix(".json"))
        workspace.remove_directory(f"{STATE}/stages/{name}")
    if recipe.fetch is None:
        workspace.remove(f"pages/{MANIFEST}")
        workspace.remove(private_path("pages"))


class Build:
    """One build: the recipe, its inputs' digests, the workspace, the runner, and the manifests made so far."""

    def __init__(
        self,
        workspace: Workspace,
        recipe: Recipe,
        inputs: ResolvedInputs,
        base: Path,
        digests: Mapping[str, str],
        runner: RunnerOptions,
        limit: int = 0,
    ) -> None:
        self.base = base
        self.workspace, self.recipe, self.inputs, self.runner = workspace, recipe, inputs, runner
        self.digests = digests
        self.limit = limit
        self.made: dict[str, Manifest] = {}

    def _note(self, manifest: Manifest) -> Manifest:
        self.made[manifest.stage] = manifest
        if self.recipe.on_broken_input == "fail" and manifest.problems:
            first = manifest.problems[0]
            raise StageError(
                f"{manifest.stage}: {len(manifest.problems)} broken inputs, the first is {first.input}: "
                f"{first.reason} at byte {first.offset} {first.detail}. The recipe says on_broken_input: fail"
            )
        return manifest

    def _file_task(self, file: InputFile, key: str, extra: Mapping[str, Json] | None = None) -> Task:
        inputs = {"name": file.name, "sha256": self.digests[file.path], **(extra or {})}
        if self.limit:
            inputs["limit"] = self.limit
        return Task(key, inputs, {"path": file.path}, max(1, file.size))

    def links(self) -> None:
        """links/: what people voted for, one row per URL."""
        from pipelines.harvest import build_links
        from pipelines.workspace import part_id

        if self.inputs.links:
            tasks = [self._file_task(file, part_id(file.name)) for file in self.inputs.links]
            for manifest in build_links(self.workspace, tasks, self.recipe.links, self.runner):
                self._note(manifest)

    def pages(self) -> None:
        """pages/: fetch the kept links into WARC files."""
        from pipelines.fetch import build_pages

        if self.recipe.fetch is not None:
            self._note(build_pages(self.workspace, self.made["links"], self.recipe.fetch, self.runner))

    def documents(self) -> None:
        """documents/: the text of every page, from archives, fetched pages and own texts."""
        from pipelines.documents import build_documents

        archives = [self._file_task(file, "") for file in self.inputs.archives]
        texts = [self._file_task(file, "") for file in self.inputs.texts]
        manifest = build_documents(
            self.workspace,
            archives,
            self.made.get("pages"),
            texts,
            self.recipe.documents,
            self.recipe.texts,
            self.runner,
        )
        self._note(manifest)
        if not manifest.parts():
            raise StageError("documents: no input gave a single document; see `webtext status` and pages/rejected")

    def annotations(self) -> None:
        """annotations/: what is true of each document, beside it, row by row."""
        from pipelines import language, linked, quality
        from pipelines.contamination import CONTAMINATION, contamination_tasks
        from pipelines.duplicates import annotate_duplicates
        from pipelines.evaluation_sets import EVALUATION, evaluation_task
        from pipelines.wikipedia import OVERLAP, WIKIPEDIA, overlap_tasks, wikipedia_tasks

        workspace, recipe, runner, documents = self.workspace, self.recipe, self.runner, self.made["documents"]
        tasks = annotation_tasks(documents)
        if self.inputs.links:
            self._note(
                linked.annotate_links(workspace, self.made["links"], self.made.get("pages"), documents, runner)
            )
        self._note(run_stage(workspace, language.STAGE, recipe.language, tasks, runner))
        self._note(run_stage(workspace, quality.STAGE, None, tasks, runner))
        self._note(annotate_duplicates(workspace, documents, recipe.duplicates, runner))
        index = None
        if self.inputs.wikipedia:
            dumps = wikipedia_tasks(self.inputs.wikipedia, dict(self.digests))
            index = self._note(run_stage(workspace, WIKIPEDIA, recipe.wikipedia, dumps, runner))
        self._note(run_stage(workspace, OVERLAP, recipe.wikipedia, overlap_tasks(documents, index), runner))
        if recipe.evaluation:
            task = evaluation_task(recipe.evaluation, self.base, self.digests, "evaluation")
            sets = self._note(run_stage(workspace, EVALUATION, recipe.contamination, [task], runner))
            scans = contamination_tasks(documents, sets)
            self._note(run_stage(workspace, CONTAMINATION, recipe.contamination, scans, runner))

    def corpus(self) -> None:
        """corpus/: the recipe's rules over the evidence."""
        from pipelines.corpus import build_corpus
        from pipelines.summaries import summarise

        documents, recipe = self.made["documents"], self.recipe
        corpus = build_corpus(self.workspace, documents, self.made, recipe.corpus, recipe.contamination, self.runner)
        self._note(corpus)
        self._withdraw_shards(corpus)
        if not corpus.ledgers["documents"].get("kept"):
            raise StageError(f"corpus: the rules keep no document: {dict(corpus.ledgers['documents'])}")
        summarise(self.workspace, self.made, recipe.contamination, self.runner)

    def _withdraw_shards(self, corpus: Manifest) -> None:
        """Take back the shards of another corpus: until they are written again nobody must train on them."""
        from pipelines.shards import SHARDS_MANIFEST

        path = f"{STATE}/shards-of.json"
        mine = digest([file.sha256 for file in corpus.parts()]).encode()
        if not self.runner.plan and (not self.workspace.exists(path) or self.workspace.read(path) != mine):
            self.workspace.remove(SHARDS_MANIFEST)
            self.workspace.write(path, mine)

    def tokenizer(self) -> None:
        """tokenizer/: byte-level BPE from the corpus's pretoken counts."""
        from pipelines.tokens import build_tokenizer

        self._trained = build_tokenizer(
            self.workspace, self.made["documents"], self.made["corpus"], self.recipe.tokenizer, self.runner
        )

    def shards(self) -> None:
        """shards/: the corpus as token ids."""
        from pipelines.shards import build_shards

        build_shards(
            self.workspace,
            self.made["documents"],
            self.made["corpus"],
            self._trained,
            self.recipe.shards,
            self.runner,
        )

    def report(self) -> None:
        """report/: the page and its data."""
        from pipelines.report import write_report

        write_report(self.workspace)


@contextlib.contextmanager
def held(workspace: Workspace) -> Iterator[None]:
    """The workspace's lease, where there is one to hold; unfinished files of a build that was killed are removed."""
    if not workspace.is_local:
        yield
        return
    with workspace.lease():
        for path in workspace.list(SCRATCH):
            workspace.remove(path)
        yield


def build(
    workspace: Workspace,
    recipe: Recipe,
    inputs: ResolvedInputs,
    base: Path,
    runner: RunnerOptions,
    until: str = STEPS[-1],
    limit: int = 0,
) -> dict[str, Manifest]:
    """Bring a workspace up to date with a recipe, up to and including one step; the manifests by stage.

    Raises WorkspaceError when another build holds the workspace, RecipeError, StageError and RunError as they arise.
    """
    with held(workspace):
        check_space(workspace, inputs)
        digests = digest_inputs(workspace, inputs.all())
        remember(workspace, recipe, inputs, digests, base, limit)
        retire(workspace, recipe, inputs)
        made = Build(workspace, recipe, inputs, base, digests, runner, limit)
        for step in STEPS[: STEPS.index(until) + 1]:
            say(f"— {step}", level=1)
            getattr(made, step)()
        return made.made
