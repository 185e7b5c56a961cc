"""The demo: a small web, served on loopback, through every real stage, to a trained and evaluated model.

Nothing here is a short cut: the link dump is harvested, the pages are fetched through a proxy into WARC files, and
the same build runs that runs on any recipe. At the end it is checked what became of each planted thing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.corpus import kept_documents
from pipelines.demo_web import BOILERPLATE, Plant, SmallWeb, make_web
from pipelines.loopback import LoopbackWeb
from pipelines.progress import human_seconds, say
from pipelines.runner import RunnerOptions
from pipelines.workspace import Json, Workspace, need_manifest

VOCABULARY = 4096
RECIPE = """\
name: demo
inputs:
  links: [inputs/RS_demo.zst]
  wikipedia: [inputs/wikipedia.xml.bz2]
links: {{min_score: 3}}
fetch:
  contact: nobody@demo.example
  proxy: {proxy}
  ca_file: {ca_file}
  delay_seconds: 0.0
  timeout_seconds: 3.0
  retries: 0
evaluation:
  - {{name: examination, path: inputs/examination.jsonl, format: jsonl, id_field: id}}
corpus:
  rules: [linked, language, quality, wikipedia, duplicates, contamination]
tokenizer: {{bpe: {{vocab_size: {vocabulary}}}}}
shards: {{validation: 0.05}}
"""


class DemoError(Exception):
    """The demo could not be run to its end."""


@dataclass(frozen=True)
class Check:
    """What was planted, what became of it, and whether that is what must become of it."""

    planted: str
    url: str
    expected: str
    found: str
    caught: bool


def _write_inputs(web: SmallWeb, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in (
        ("RS_demo.zst", web.dump()),
        ("wikipedia.xml.bz2", web.wikipedia),
        ("examination.jsonl", web.evaluation),
    ):
        path = folder / name
        if not path.exists() or path.read_bytes() != data:
            path.write_bytes(data)


def _build(folder: Path, served: LoopbackWeb, runner: RunnerOptions) -> None:
    from pipelines.build import build
    from pipelines.recipe import read_recipe

    recipe = folder / "demo.yaml"
    authority = folder / "inputs" / "ca.pem"
    authority.write_bytes(Path(served.ca_file).read_bytes())
    text = RECIPE.format(proxy=served.proxy, ca_file=authority, vocabulary=VOCABULARY)
    recipe.write_text(text, encoding="utf-8")
    options, inputs = read_recipe(recipe)
    build(Workspace.open(folder, create=True), options, inputs, folder, runner)


def _model(arguments: Sequence[str], quiet: bool) -> Any:
    """Run a command of the model package in a process of its own, so that no process holds both Beam and torch."""
    command = [sys.executable, "-m", "model", *arguments, "--json"]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL if quiet else None, check=False, text=True
    )
    if done.returncode:
        raise DemoError(f"`{' '.join(command[1:])}` ended with status {done.returncode}")
    return json.loads(done.stdout)


def fate_of(life: dict[str, Any], plant: Plant) -> str:
    """What became of a URL, in one word, from its life: a drop's reason, or "kept"."""
    for link in life["links"]:
        if not link["keep"]:
            return str(link["reason"])
    for page in life["fetched"]:
        if page["reason"]:
            return str(page["reason"])
    for page in life["rejected"]:
        return str(page["reason"])
    for document in life["documents"]:
        decision = document["decision"]
        return "kept" if decision.get("keep") else str(decision.get("reason", "undecided"))
    return "unknown"


def check_plants(workspace: Workspace, web: SmallWeb, requested: set[str] | None) -> list[Check]:
    """Judge every plant. `requested` are the URLs the web was asked for, None when nothing was fetched this time."""
    from pipelines.why import life_of

    checks = []
    for plant in web.plants:
        found = fate_of(life_of(workspace, plant.url), plant)
        caught = found in plant.fate
        if "unrequested" in plant.fate and requested is not None:
            caught = caught and plant.url not in requested
        if "quoted" in plant.fate:
            named = _quoted(workspace, web)
            caught = caught and named
            found += ", and its example is dirty" if named else ", and its example is not named"
        checks.append(Check(plant.name, plant.url, plant.fate[0], found, caught))
    kept = _corpus_texts(workspace)
    leaked = sorted(phrase for phrase in BOILERPLATE if any(phrase in text for text in kept))
    checks.append(Check("boilerplate", "every page", "in no document", ", ".join(leaked) or "in none", not leaked))
    broken = need_manifest(workspace, "links/submissions").ledgers["submissions"].get("malformed", 0)
    checks.append(Check("broken line in the dump", "RS_demo.zst", "1 malformed", f"{broken} malformed", broken == 1))
    return checks


def _quoted(workspace: Workspace, web: SmallWeb) -> bool:
    """Whether the contamination table names the quoted record as dirty."""
    table = json.loads(workspace.read("corpus/contamination.json"))
    return any(example["id"] == web.quoted for entry in table["sets"] for example in entry["dirty_examples"])


def _corpus_texts(workspace: Workspace) -> list[str]:
    decisions = {file.part: file for file in need_manifest(workspace, "corpus").parts()}
    return [
        text
        for file in need_manifest(workspace, "documents").parts()
        for batch in kept_documents(workspace, file, decisions[file.part], ["text"])
        for text in batch.column("text").to_pylist()
    ]


def check_lines(checks: Sequence[Check]) -> list[str]:
    """The checks for a terminal."""
    width = max((len(check.planted) for check in checks), default=0)
    return [
        f"{'caught' if check.caught else 'MISSED':6}  {check.planted:{width}}  {check.found}"
        + ("" if check.caught else f"  (expected {check.expected}; {check.url})")
        for check in checks
    ]


def run_demo(folder: Path, runner: RunnerOptions, as_json: bool = False, quiet: bool = False) -> int:
    """Make the small web, build, train, evaluate, report and check; 0 when everything planted was caught, else 1."""
    from pipelines.report import write_report
    from pipelines.status import funnel, funnel_lines

    started = time.monotonic()
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    say("making a small web out of Python's own documentation")
    web = make_web()
    _write_inputs(web, folder / "inputs")
    workspace = Workspace.open(folder, create=True)
    with LoopbackWeb(web.pages) as served:
        _build(folder, served, runner)
        requested = set(served.urls()) or None
    shards, run = str(folder / "shards"), str(folder / "runs" / "demo")
    trained = _model(["train", shards, run, "--preset", "demo"], quiet)
    examination = [f"examination={folder / 'inputs' / 'examination.jsonl'}"]
    dirty = [f"examination={folder / 'corpus/contamination/dirty-examination.json'}"]
    scores = _model(["evaluate", run, "--shards", shards, "--lambada", *examination, "--dirty", *dirty], quiet)
    samples = _model(["generate", run, "--tokens", "60", "--temperature", "0.8", "--top-k", "40"], quiet)
    (folder / "runs" / "demo" / "samples.json").write_text(json.dumps(samples, indent=1), encoding="utf-8")
    write_report(workspace)
    checks = check_plants(workspace, web, requested)
    missed = sum(not check.caught for check in checks)
    result: dict[str, Json] = {
        "workspace": str(folder),
        "funnel": funnel(workspace),
        "checks": [asdict(check) for check in checks],
        "missed": missed,
        "trained": trained,
        "evaluation": scores,
        "seconds": round(time.monotonic() - started, 1),
    }
    if as_json:
        print(json.dumps(result, indent=1, ensure_ascii=False))
    elif quiet:
        print(
            "\n".join(check_lines([c for c in checks if not c.caught])), end="\n" if missed else "", file=sys.stderr
        )
    else:
        print("\n".join(funnel_lines(workspace)))
        print()
        print("\n".join(check_lines(checks)))
        print(f"\nreport: {os.path.join(folder, 'report', 'index.html')}")
        print(
            f"{len(checks) - missed} of {len(checks)} planted things caught, "
            f"{human_seconds(result['seconds'])} in all"
        )
    return 1 if missed else 0
