"""What the report takes from result files: duplicates, contamination, tokenizer, shards, runs.

These files are written by the stages and by the trainer, and documented there. A file that is absent gives None or an
empty list, one that is not JSON an error that names it. Lists are bounded, so that one page can hold them.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence

from pipelines.report_samples import Place, document_samples, read_rows
from pipelines.workspace import Json, Manifest, Workspace, WorkspaceError, part_key

POINTS = 400
"""Most points of a curve; a longer log is averaged over equal runs of lines."""

EITHER_SIDE = 300
"""Letters shown on either side of a match."""

MEASURES = ("acc_last_word", "ppl_last_word", "ppl_per_word", "ppl_per_token")
"""Scores that Table C.1 sets side by side for all, clean and dirty examples."""

SHOWN = re.compile(r"acc|ppl|perplexity|loss|bits_per|f1|bleu|examples|lines")
"""Measures of an evaluation that are scores (or say of how many examples), not book-keeping."""


def read_json(workspace: Workspace, path: str) -> Json | None:
    """A JSON file, None when absent. Raises WorkspaceError when it cannot be read."""
    if not workspace.exists(path):
        return None
    try:
        return json.loads(workspace.read(path))
    except ValueError as error:
        raise WorkspaceError(f"{workspace.url}/{path} is damaged ({error}); remove it and build again") from error


def finite(value: Json) -> float | None:
    """A finite number as it is, anything else as None."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if good else None


# Duplicates.


def read_duplicates(workspace: Workspace, documents: Manifest | None, pairs: int, letters: int) -> Json | None:
    """Sizes of clusters and some pairs with their texts, from corpus/duplicates.json (clusters.py, `figures_of`)."""
    found = read_json(workspace, "corpus/duplicates.json")
    if found is None:
        return None
    by_key = {part_key(part.part): part for part in documents.parts()} if documents else {}
    examples = [e for e in found["examples"] if all(e[side]["part"] in by_key for side in SIDES)][:pairs]

    def place(example: Json, side: str) -> Place:
        return Place(by_key[example[side]["part"]], example[side]["row"])

    texts = document_samples(workspace, [place(e, side) for e in examples for side in SIDES], letters)
    numbers = ("exact", "near", "exact_groups", "near_edges", "largest_component", "large_components", "chained")
    return {
        **{name: found[name] for name in numbers},
        "sizes": found["sizes"],
        "components": [{k: c[k] for k in ("documents", "kept", "least")} for c in found["components"][:pairs]],
        "examples": [
            {
                "similarity": example["similarity"],
                "reason": example["reason"],
                **{side: texts[place(example, side).key] for side in SIDES},
            }
            for example in examples
            if all(place(example, side).key in texts for side in SIDES)
        ],
    }


SIDES = ("survivor", "dropped")


# Contamination.


def find_words(text: str, wanted: str) -> tuple[int, int]:
    """Where the words of `wanted` stand in `text`, whatever separates them, in any case; (0, 0) if nowhere.

    >>> find_words("It -- did NOT rain.", "did not")
    (6, 13)
    """
    pattern = r"[\W_]+".join(re.escape(word) for word in re.findall(r"[^\W_]+", wanted))
    found = re.search(rf"(?<![^\W_]){pattern}(?![^\W_])", text, re.IGNORECASE) if pattern else None
    return found.span() if found else (0, 0)


def around(text: str, start: int, end: int, room: int) -> tuple[str, list[int]]:
    """A text cut to `room` letters on either side of a span, and where the span stands in it.

    >>> around("0123456789", 4, 6, 2)
    ('…234567…', [3, 5])
    """
    first, last = max(start - room, 0), min(end + room, len(text))
    before, after = "…" if first else "", "…" if last < len(text) else ""
    moved = len(before) - first
    return before + text[first:last] + after, [start + moved, end + moved]


def dirtiest(examples: Sequence[Json], most: int) -> list[Json]:
    """The examples with the largest share of their n-grams found, of those whose place in a document is known."""
    placed = [e for e in examples if any(match["places"] for match in e["matches"])]
    return sorted(placed, key=lambda e: (-e["found"] / max(e["grams"], 1), e["record"]))[:most]


def first_match(example: Json) -> Json:
    """The match of an example that the fewest documents share: the most telling one."""
    return min((m for m in example["matches"] if m["places"]), key=lambda m: (m["documents"], m["gram"]))


def read_matches(
    workspace: Workspace, documents: Manifest | None, sets: Sequence[Json], most: int
) -> list[list[Json]]:
    """For each set some dirty examples, each beside a document that holds one of its n-grams, both marked."""
    by_name = {part.part: part for part in documents.parts()} if documents else {}
    chosen = [[(e, first_match(e)) for e in dirtiest(one["dirty_examples"], most)] for one in sets]

    def place(match: Json) -> Place:
        return Place(by_name[match["places"][0]["part"]], match["places"][0]["row"])

    chosen = [[(e, m) for e, m in pairs if m["places"][0]["part"] in by_name] for pairs in chosen]
    rows = read_rows(workspace, [place(m) for pairs in chosen for _, m in pairs], ["title", "url", "text"])
    return [[shown_match(e, m, rows[place(m).key]) for e, m in pairs if place(m).key in rows] for pairs in chosen]


def shown_match(example: Json, match: Json, document: Mapping[str, str]) -> dict[str, Json]:
    """One example and the document's passage around the n-gram, with the spans of the n-gram in both."""
    text, text_span = around(example["text"], *find_words(example["text"], match["gram"]), EITHER_SIDE)
    excerpt, span = around(document["text"], *find_words(document["text"], match["gram"]), EITHER_SIDE)
    return {
        "example": example["id"],
        "record": example["record"],
        "found": example["found"],
        "grams": example["grams"],
        "gram": match["gram"],
        "documents": match["documents"],
        "text": text,
        "text_span": text_span,
        "title": document["title"],
        "url": document["url"],
        "excerpt": excerpt,
        "span": span,
    }


def plain(name: str) -> str:
    """A set's name without case and punctuation: WikiText-2 and wikitext2 are one set."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def set_scores(name: str, runs: Sequence[Json]) -> list[dict[str, Json]]:
    """Scores of every run on one set, over all, dirty and clean examples; only where dirty and clean are known."""
    scores = []
    for run in runs:
        for task, subsets in run["subsets"].items():
            if plain(task) == plain(name):
                for measure in MEASURES:
                    values = {k: finite(subsets[k].get(measure)) for k in ("all", "dirty", "clean")}
                    if values["all"] is not None:
                        scores.append({"run": run["name"], "metric": measure, **values})
    return scores


def read_contamination(
    workspace: Workspace, documents: Manifest | None, recipe: Json, runs: Sequence[Json], most: int
) -> list[dict[str, Json]]:
    """Overlap of each test set with the corpus, from corpus/contamination.json (contamination.py,
    `contamination_table`), joined with the runs' scores and with the documents' passages.

    The share found in a set's own training split is null where the recipe names no such split.
    """
    sets = (read_json(workspace, "corpus/contamination.json") or {}).get("sets", [])
    trained = {one["name"] for one in recipe.get("evaluation") or [] if one.get("train")}
    matches = read_matches(workspace, documents, sets, most)
    kept = ("examples", "words", "n", "dirty", "clean", "short", "dirty_share", "interval")
    return [
        {
            "name": one["set"],
            **{key: one[key] for key in kept},
            "ngrams": {
                n: {**grams, "own_train_share": grams.get("own_train_share") if one["set"] in trained else None}
                for n, grams in one["ngrams"].items()
            },
            "scores": set_scores(one["set"], runs),
            "matches": found,
        }
        for one, found in zip(sets, matches, strict=True)
    ]


# Tokenizer and shards.


def read_tokenizer(workspace: Workspace) -> Json | None:
    """Figures of the text, and compression by vocabulary size, from tokenizer/report.json (tokenizer/report.py)."""
    found = read_json(workspace, "tokenizer/report.json")
    if found is None:
        return None
    sizes = [
        {key: value for key, number in size.items() if (value := finite(number)) is not None}
        for size in found.get("sizes", [])
    ]
    return {"facts": {key: found[key] for key in sorted(found) if finite(found[key]) is not None}, "sizes": sizes}


def read_shards(workspace: Workspace) -> Json | None:
    """Documents, tokens and bytes of each split, from shards/manifest.json."""
    found = read_json(workspace, "shards/manifest.json")
    if found is None or found.get("format") != "webtext-shards":
        return None
    splits = [
        {
            "name": name,
            "files": len(files),
            **{key: sum(file[key] for file in files) for key in ("documents", "tokens", "n_bytes")},
        }
        for name, files in sorted(found["splits"].items(), key=lambda split: (split[0] != "train", split[0]))
    ]
    return {
        "dtype": found["dtype"],
        "vocab_size": found["vocab_size"],
        "fingerprint": found["fingerprint"],
        "tokens": sum(split["tokens"] for split in splits),
        "documents": sum(split["documents"] for split in splits),
        "splits": splits,
    }


# Runs.


def log_lines(workspace: Workspace, path: str) -> Iterator[Json | None]:
    """The objects of a JSON-lines file one by one; None for a line that is none (a kill can tear the last)."""
    with workspace.open_input(path) as stream:
        for line in io.BufferedReader(stream):
            try:
                value = json.loads(line)
            except ValueError:
                value = None
            yield value if isinstance(value, dict) else None


class Curve:
    """Points of a curve of any length in bounded memory: past 2 × POINTS, neighbours are averaged."""

    def __init__(self) -> None:
        self.points: list[tuple[float, float]] = []
        self.held: list[tuple[float, float]] = []
        self.each = 1

    def add(self, x: float, y: float) -> None:
        self.held.append((x, y))
        if len(self.held) == self.each:
            self.points.append(mean(self.held))
            self.held = []
        if len(self.points) == 2 * POINTS:
            self.points = [mean(self.points[i : i + 2]) for i in range(0, 2 * POINTS, 2)]
            self.each *= 2

    def all(self) -> list[tuple[float, float]]:
        return self.points + ([mean(self.held)] if self.held else [])


def mean(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return math.fsum(p[0] for p in points) / len(points), math.fsum(p[1] for p in points) / len(points)


def read_log(workspace: Workspace, path: str) -> dict[str, Json]:
    """Training and validation loss by step: of lines with `event` step and evaluation, or with loss and val_loss."""
    training, validation, unreadable, steps = Curve(), Curve(), 0, 0.0
    for line in log_lines(workspace, path) if workspace.exists(path) else ():
        at = finite(line.get("step")) if line else None
        if line is None or at is None:
            unreadable += 1
            continue
        steps = max(steps, at)
        loss, held_out = finite(line.get("loss")), finite(line.get("val_loss"))
        if loss is not None:
            (validation if line.get("event") == "evaluation" else training).add(at, loss)
        if held_out is not None:
            validation.add(at, held_out)
    named = (("training loss", training), ("validation loss", validation))
    return {
        "curves": [
            {"name": name, "points": [list(point) for point in curve.all()]} for name, curve in named if curve.all()
        ],
        "thinned": training.each,
        "unreadable": unreadable,
        "steps": steps,
    }


def read_scores(workspace: Workspace, path: str) -> dict[str, Json]:
    """Scores of evaluation.json: flat rows to list, and by set the subsets all, clean and dirty."""
    found = read_json(workspace, path) or {}
    sets = {**(found.get("tasks") or {}), **(found.get("sets") or {})}
    subsets = {
        name: {key: scores.get(key) or {} for key in ("all", "dirty", "clean")}
        for name, scores in sorted(sets.items())
        if isinstance(scores.get("all"), dict)
    }
    flat = {name: scores["all"] if name in subsets else scores for name, scores in sorted(sets.items())}
    if isinstance(found.get("validation"), dict):
        flat = {"validation split": found["validation"], **flat}
    rows = [
        {"task": task, "name": key, "value": value}
        for task, scores in flat.items()
        for key, number in scores.items()
        if SHOWN.search(key) and (value := finite(number)) is not None
    ]
    return {"scores": rows, "subsets": subsets}


def read_samples(workspace: Workspace, path: str) -> list[dict[str, str]]:
    """Generated texts of a run: a list of objects with `text` and perhaps `prompt`."""
    found = read_json(workspace, path) or []
    listed = found if isinstance(found, list) else found.get("samples", [])
    prompt = "" if isinstance(found, list) else found.get("prompt", "")
    return [{"prompt": str(s.get("prompt", prompt)), "text": str(s["text"])[:2000]} for s in listed[:4]]


def read_runs(workspace: Workspace) -> list[dict[str, Json]]:
    """Every run: log.jsonl, evaluation.json and samples.json of each folder below runs/ that has any of them."""
    names = {
        path.split("/")[1]
        for path in workspace.list("runs")
        if path.count("/") == 2 and path.rpartition("/")[2] in ("log.jsonl", "evaluation.json", "samples.json")
    }
    return [
        {
            "name": name,
            **read_log(workspace, f"runs/{name}/log.jsonl"),
            **read_scores(workspace, f"runs/{name}/evaluation.json"),
            "samples": read_samples(workspace, f"runs/{name}/samples.json"),
        }
        for name in sorted(names)
    ]
