"""The report of a workspace: everything its page shows, as data, read from manifests and small columns.

`build_report` gives `report.json`, `report_page.render_page` makes the page of it, `write_report` leaves both. A
stage that has not run is named as missing, never an error. Memory stays bounded whatever the corpus: histograms are
counted part by part from small columns, and text is read only for the few rows shown (report_samples.py).

    report/report.json   webtext-report, version 1; its fields are those of `build_report`
    report/index.html    the same as one page
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.report_page import VERSION, render_page
from pipelines.report_results import (
    read_contamination,
    read_duplicates,
    read_json,
    read_runs,
    read_shards,
    read_tokenizer,
)
from pipelines.report_samples import read_drops
from pipelines.workspace import (
    MANIFEST,
    Json,
    Manifest,
    PartFile,
    Workspace,
    WorkspaceError,
    digest,
    iter_part,
    part_metadata,
    read_manifest,
    read_part,
)

HOUSES = ("links", "pages", "documents", "evaluation", "annotations", "corpus", "tokenizer", "shards")
"""Folders that hold stages, in the order of the data."""

SELECTING = ("links", "pages", "documents", "corpus")
"""Those whose ledgers are the funnel."""

UNITS = ("submissions", "links", "records", "pages", "rows", "documents")
"""Units in the order of the data, to order the ledgers of one stage."""

WANTED = (
    *("links", "documents", "annotations/links", "annotations/language", "annotations/quality"),
    *("annotations/duplicates", "annotations/wikipedia", "annotations/contamination", "corpus", "tokenizer"),
)
"""Stages that a whole run has; those without a manifest are named as missing."""

EDGES = [round(10 ** (1 + i / 8)) for i in range(57)]
"""Borders of the length histogram: eight to a power of ten, from 10 to 100 million characters."""

EXACT = 1 << 20
"""Lengths below this are counted one by one, for the median."""

MANY_DOMAINS = 2_000_000
"""Hosts counted at a time; beyond this the rarer half is set aside, and the page says so."""


@dataclass(frozen=True)
class ReportOptions:
    """How much is shown: rows for each reason, letters of each row, entries of each list."""

    samples: int = 3
    letters: int = 300
    domains: int = 30
    languages: int = 15
    pairs: int = 8
    matches: int = 10
    problems: int = 200

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not 0 <= getattr(self, field.name) <= 10_000:
                raise ValueError(f"{field.name} must be between 0 and 10000, not {getattr(self, field.name)}")


# What is there, and how it balances.


def find_manifests(workspace: Workspace) -> dict[str, Manifest]:
    """Every committed stage by name, in the order of the data: a stage's own steps stand before it."""
    stages: list[str] = []
    for house in HOUSES:
        folders = [path.rpartition("/")[0] for path in workspace.list(house) if path.endswith(f"/{MANIFEST}")]
        stages += sorted((f for f in folders if f != "shards"), key=lambda folder: folder + "/\uffff")
    found = {stage: read_manifest(workspace, stage) for stage in stages}
    return {stage: manifest for stage, manifest in found.items() if manifest is not None}


def is_current(workspace: Workspace, documents: Manifest, beside: Manifest) -> bool:
    """Whether a stage that stands beside the documents, row by row, was made for these documents."""
    made_for = {part.part: part.sha256 for part in documents.parts()}
    files = {file.part: file for file in beside.parts()}
    return files.keys() == made_for.keys() and all(
        part_metadata(workspace, file).get("documents.sha256") == made_for[part] for part, file in files.items()
    )


def find_stale(workspace: Workspace, manifests: Mapping[str, Manifest]) -> list[str]:
    """Stages of an earlier state of the documents: another build has begun since and is not finished."""
    if "documents" not in manifests:
        return []
    beside = [stage for stage in manifests if stage in WANTED and (stage == "corpus" or "annotations/" in stage)]
    return [stage for stage in beside if not is_current(workspace, manifests["documents"], manifests[stage])]


def step(stage: str, unit: str, ledger: Mapping[str, int]) -> dict[str, Json]:
    """One ledger with its drops, largest first, and whether it balances."""
    drops = [(reason, n) for reason, n in ledger.items() if reason not in ("in", "kept") and n]
    entered, kept, dropped = ledger.get("in", 0), ledger.get("kept", 0), sum(n for _, n in drops)
    return {
        "stage": stage,
        "unit": unit,
        "in": entered,
        "kept": kept,
        "dropped": dropped,
        "drops": [{"reason": reason, "count": n} for reason, n in sorted(drops, key=lambda d: (-d[1], d[0]))],
        "balanced": entered == kept + dropped,
    }


def unit_order(unit: str) -> tuple[int, str]:
    return (UNITS.index(unit) if unit in UNITS else len(UNITS), unit)


def all_steps(manifests: Mapping[str, Manifest]) -> list[dict[str, Json]]:
    """Every ledger of every stage, in the order of the data."""
    return [
        step(stage, unit, manifest.ledgers[unit])
        for stage, manifest in manifests.items()
        for unit in sorted(manifest.ledgers, key=unit_order)
    ]


def in_funnel(stage: str) -> bool:
    return stage.partition("/")[0] in SELECTING


# Documents: lengths, languages, domains.


@dataclass
class Census:
    """What is counted about documents, of all (0) and of those kept (1)."""

    lengths: npt.NDArray[np.int64]
    exact: npt.NDArray[np.int64]
    languages: tuple[Counter[str], Counter[str]]
    hosts: tuple[Counter[str], Counter[str]]
    rows: list[int]
    domains_exact: bool = True


def new_census() -> Census:
    bins = np.zeros((2, len(EDGES) - 1), np.int64)
    return Census(bins, np.zeros(EXACT + 1, np.int64), (Counter(), Counter()), (Counter(), Counter()), [0, 0])


def hosts_of(urls: pa.ChunkedArray) -> pa.ChunkedArray:
    """The host of each URL as it stands there: what is between :// and the next slash."""
    return pc.list_element(pc.split_pattern(pc.replace_substring_regex(urls, "^[^/]*//", ""), "/", max_splits=1), 0)


def value_counts(values: pa.ChunkedArray) -> Counter[str]:
    return Counter({pair["values"]: pair["counts"] for pair in values.value_counts().to_pylist()})


def take_census(
    census: Census,
    urls: pa.ChunkedArray,
    lengths: npt.NDArray[np.int64],
    languages: pa.ChunkedArray | None,
    keep: npt.NDArray[np.bool_] | None,
) -> None:
    """Count a part's documents; `keep` is None while no corpus has been decided."""
    hosts = hosts_of(urls)
    bins = np.clip(np.searchsorted(EDGES, lengths, side="right") - 1, 0, len(EDGES) - 2)
    census.exact += np.bincount(np.minimum(lengths, EXACT), minlength=EXACT + 1)
    for which, chosen in enumerate((None, keep) if keep is not None else (None,)):
        mask = None if chosen is None else pa.array(chosen)
        census.rows[which] += len(lengths) if chosen is None else int(chosen.sum())
        census.lengths[which] += np.bincount(bins if chosen is None else bins[chosen], minlength=len(EDGES) - 1)
        census.hosts[which].update(value_counts(hosts if mask is None else hosts.filter(mask)))
        if languages is not None:
            census.languages[which].update(value_counts(languages if mask is None else languages.filter(mask)))
    if len(census.hosts[0]) > MANY_DOMAINS:
        common = dict(census.hosts[0].most_common(MANY_DOMAINS // 2))
        census.hosts = (Counter(common), Counter({h: n for h, n in census.hosts[1].items() if h in common}))
        census.domains_exact = False


def text_lengths(workspace: Workspace, part: PartFile) -> npt.NDArray[np.int64]:
    """Characters of each text of a part, int64[rows]: read text where no annotation says its length."""
    found = [pc.utf8_length(batch.column("text")) for batch in iter_part(workspace, part, ["text"])]
    return np.concatenate([np.zeros(0, np.int64), *(lengths.to_numpy() for lengths in found)]).astype(np.int64)


def annotation(
    workspace: Workspace, manifests: Mapping[str, Manifest], stage: str, part: PartFile, column: str
) -> pa.ChunkedArray | None:
    """A column of the rows that stand beside a document part; None when that stage has not run."""
    manifest = manifests.get(stage)
    if manifest is None:
        return None
    file = next(file for file in manifest.parts() if file.part == part.part)
    return read_part(workspace, file, [column]).column(column)


def count_documents(workspace: Workspace, manifests: Mapping[str, Manifest]) -> tuple[Census, bool]:
    """The census of all documents, and whether a corpus has been decided over them."""
    census, decided = new_census(), "corpus" in manifests
    for part in manifests["documents"].parts():
        lengths = annotation(workspace, manifests, "annotations/quality", part, "n_chars")
        keep = annotation(workspace, manifests, "corpus", part, "keep")
        take_census(
            census,
            read_part(workspace, part, ["url"]).column("url"),
            text_lengths(workspace, part) if lengths is None else lengths.to_numpy().astype(np.int64),
            annotation(workspace, manifests, "annotations/language", part, "language"),
            None if keep is None else keep.to_numpy(),
        )
    return census, decided


def by_domain(of_all: Counter[str], of_kept: Counter[str]) -> tuple[Counter[str], Counter[str]]:
    """Documents by registered domain (`bbc.co.uk` of `news.bbc.co.uk`), by host where there is none."""
    from pipelines.urls import registered_domain

    domains: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    for host, n in of_all.items():
        domain = registered_domain(host.rpartition("@")[2].partition(":")[0]) or host
        domains[0][domain] += n
        domains[1][domain] += of_kept[host]
    return domains


def most(of_all: Counter[str], of_kept: Counter[str], limit: int, name: str) -> list[dict[str, Json]]:
    """The largest entries, by count and then by name."""
    ranked = sorted(of_all.items(), key=lambda item: (-item[1], item[0]))[:limit]
    return [{name: key, "all": n, "kept": of_kept[key]} for key, n in ranked]


def read_documents(workspace: Workspace, manifests: Mapping[str, Manifest], options: ReportOptions) -> Json | None:
    """Lengths, languages and domains of all documents and of those the corpus keeps."""
    if "documents" not in manifests:
        return None
    census, decided = count_documents(workspace, manifests)
    used = np.flatnonzero(census.lengths[0])
    first, last = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
    languages = most(*census.languages, options.languages, "language")
    rest = [
        c.total() - sum(row[k] for row in languages) for c, k in zip(census.languages, ("all", "kept"), strict=True)
    ]
    if rest[0]:
        languages.append({"language": "all others", "all": rest[0], "kept": rest[1]})
    domains = by_domain(*census.hosts)
    return {
        "total": census.rows[0],
        "kept": census.rows[1],
        "decided": decided,
        "lengths": {
            "edges": EDGES[first : last + 1],
            "all": census.lengths[0, first:last].tolist(),
            "kept": census.lengths[1, first:last].tolist(),
            "median": int(np.searchsorted(np.cumsum(census.exact), census.rows[0] / 2)),
        },
        "languages": languages,
        "domains": most(domains[0], domains[1], options.domains, "domain"),
        "domains_distinct": len(domains[0]),
        "domains_exact": census.domains_exact,
    }


# Broken input, versions, recipe.


def read_problems(manifests: Mapping[str, Manifest], limit: int) -> dict[str, Json]:
    """Broken input by stage and reason, and the first of each manifest's list."""
    found = [(stage, problem) for stage, manifest in manifests.items() for problem in manifest.problems]
    reasons = Counter((stage, problem.reason) for stage, problem in found)
    return {
        "total": len(found),
        "by_reason": [{"stage": s, "reason": r, "count": n} for (s, r), n in sorted(reasons.items())],
        "listed": [{"stage": stage, **dataclasses.asdict(problem)} for stage, problem in found[:limit]],
    }


def read_stages(manifests: Mapping[str, Manifest]) -> list[dict[str, Json]]:
    """What each stage committed."""
    return [
        {
            "stage": stage,
            "version": manifest.version,
            "fingerprint": manifest.fingerprint,
            "parts": sum(len(files) for files in manifest.tables.values()),
            "rows": max((sum(file.rows for file in files) for files in manifest.tables.values()), default=0),
            "bytes": sum(file.size for files in manifest.tables.values() for file in files),
        }
        for stage, manifest in manifests.items()
    ]


def without_folders(value: Json) -> Json:
    """A recipe's values with absolute paths cut to file names: where inputs lay on a machine is nobody's concern."""
    if isinstance(value, dict):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_folders(item) for item in value]
    return value.rstrip("/").rpartition("/")[2] if isinstance(value, str) and value.startswith("/") else value


def read_recipe(workspace: Workspace) -> Json:
    """The recipe as kept in the workspace, {} if there is none."""
    if not workspace.exists("recipe.yaml"):
        return {}
    import yaml

    try:
        body = yaml.safe_load(workspace.read("recipe.yaml"))
    except (yaml.YAMLError, ValueError) as error:
        said = " ".join(str(error).split())
        raise WorkspaceError(f"{workspace.url}/recipe.yaml is damaged ({said}); build again to write it") from error
    return without_folders(body) if isinstance(body, dict) else {}


def recipe_text(recipe: Json) -> str:
    import yaml

    return str(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)) if recipe else ""


def read_inputs(workspace: Workspace) -> list[dict[str, Json]]:
    """The input files with their digests, from inputs.json."""
    found = read_json(workspace, "inputs.json") or {}
    return [
        {"kind": kind, **{k: f[k] for k in ("name", "size", "sha256")}} for kind in sorted(found) for f in found[kind]
    ]


# The whole.


def headline(steps: Sequence[Json], documents: Json, shards: Json, runs: Sequence[Json]) -> list[dict[str, Json]]:
    """The numbers one looks for first."""
    found: list[tuple[str, float, bool]] = []
    if steps:
        found.append((f"{steps[0]['unit']} read", steps[0]["in"], True))
    links = [s for s in steps if s["stage"].partition("/")[0] == "links" and s["unit"] == "links"]
    if links:
        found.append(("links kept", links[-1]["kept"], True))
    if documents:
        found.append(("documents", documents["total"], True))
    if documents and documents["decided"]:
        found.append(("in the corpus", documents["kept"], True))
    if shards:
        found.append(("tokens", shards["tokens"], True))
    curves = [c["points"] for run in runs for c in run["curves"] if c["name"] == "validation loss"]
    if curves:
        found.append(("validation loss", min(y for points in curves for _, y in points), False))
    return [{"name": name, "value": value, "whole": whole} for name, value, whole in found]


def build_report(workspace: Workspace, options: ReportOptions | None = None) -> dict[str, Json]:
    """Everything the page shows.

    Lists: `headline` (figures), `missing` (stages not run), `stale` (stages of older documents, left out), `funnel`
    (the ledgers of links, pages, documents and corpus: stage, unit, in, kept, dropped, drops, balanced), `balance`
    (all ledgers), `drops` (each reason with example rows), `contamination` (by set), `runs`, `stages`, `libraries`,
    `inputs`. Objects, or null when not run: `documents`, `duplicates`, `tokenizer`, `shards`. Besides `problems`, and
    `recipe` as YAML. Raises WorkspaceError when a file that a manifest names is missing or damaged.
    """
    options = options or ReportOptions()
    found = find_manifests(workspace)
    stale = find_stale(workspace, found)
    manifests = {stage: manifest for stage, manifest in found.items() if stage not in stale}
    steps = all_steps(manifests)
    funnel = [s for s in steps if in_funnel(s["stage"]) and (s["in"] or s["drops"])]
    selecting = [
        s for s in steps if in_funnel(s["stage"]) or s["stage"].startswith(("annotations/links", "evaluation"))
    ]
    documents, shards, runs = (
        read_documents(workspace, manifests, options),
        read_shards(workspace),
        read_runs(workspace),
    )
    recipe = read_recipe(workspace)
    libraries = {item for manifest in manifests.values() for item in manifest.libraries.items()}
    absent = [stage for stage in WANTED if stage not in found]
    return {
        "format": "webtext-report",
        "version": VERSION,
        "name": f"{recipe.get('name', 'corpus')}: report on the corpus",
        "fingerprint": digest({stage: manifest.fingerprint for stage, manifest in manifests.items()}),
        "headline": headline(funnel, documents, shards, runs),
        "missing": [*absent, *([] if shards else ["shards"]), *([] if runs else ["training"])],
        "stale": stale,
        "funnel": funnel,
        "balance": [{k: s[k] for k in ("stage", "unit", "in", "kept", "dropped", "balanced")} for s in steps],
        "drops": read_drops(workspace, manifests, selecting, options.samples, options.letters),
        "documents": documents,
        "duplicates": read_duplicates(workspace, manifests.get("documents"), options.pairs, options.letters),
        "contamination": read_contamination(workspace, manifests.get("documents"), recipe, runs, options.matches),
        "tokenizer": read_tokenizer(workspace),
        "shards": shards,
        "runs": runs,
        "problems": read_problems(manifests, options.problems),
        "stages": read_stages(manifests),
        "libraries": [list(item) for item in sorted(libraries)],
        "inputs": read_inputs(workspace),
        "recipe": recipe_text(recipe),
    }


def write_report(workspace: Workspace, options: ReportOptions | None = None) -> dict[str, Json]:
    """Write report/report.json and report/index.html, and return the report's data."""
    data = build_report(workspace, options)
    text = json.dumps(data, indent=1, sort_keys=True, ensure_ascii=True, allow_nan=False)
    page = render_page(data)
    workspace.write("report/report.json", text.encode() + b"\n")
    workspace.write("report/index.html", page.encode())
    return data
