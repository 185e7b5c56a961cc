"""The report's sections: each a function from the report's data to markup.

Everything that came from the web goes through `escape` and stands in a `<bdi>`, so a title can neither bring markup
nor turn the reading direction of its neighbours. The contamination tables take the shapes of GPT-2's Table 6 (share
of a set's n-grams found) and GPT-3's Table C.1 (clean and dirty examples, and scores on each).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from pipelines.drawing import (
    Step,
    bars,
    count,
    decimal,
    escape,
    funnel,
    histogram,
    intervals,
    lines,
    percent,
    share_bar,
)
from pipelines.workspace import Json

PAPER_TABLE_6 = {"ptb": 0.88, "wikitext2": 1.63, "enwik8": 6.31, "text8": 3.94, "wikitext103": 2.42, "1bw": 3.75}
"""GPT-2, Table 6: percent of each set's 8-grams found in WebText's training split, to compare with."""

LINK = re.compile(r"https?://[!#-;=?-\[\]_a-z~]+", re.IGNORECASE | re.ASCII)
"""A web address of visible ASCII alone, without the characters that no address may hold."""

Cells = Sequence[str]


def bdi(text: str, letters: int = 0) -> str:
    """Text from the web, cut to some letters, inert and isolated from its neighbours' reading direction."""
    return f"<bdi>{escape(text if not letters or len(text) <= letters else text[: letters - 1] + '…')}</bdi>"


def link(url: str, letters: int = 140) -> str:
    """A link to a page, only where it is plain http or https with nothing hidden in it; its text otherwise."""
    if not LINK.fullmatch(url):
        return bdi(url, letters)
    return f'<a href="{escape(url)}" rel="noreferrer noopener" referrerpolicy="no-referrer">{bdi(url, letters)}</a>'


def table(caption: str, columns: Sequence[str], rows: Sequence[Cells], sortable: bool = False) -> str:
    """A table. A column named "#…" holds numbers, "~…" text that may break anywhere; cells are markup already."""
    if not rows:
        return ""
    kinds = [{"#": "n", "~": "wrap"}.get(name[:1], "key") for name in columns]
    head = "".join(
        f'<th scope="col" class="{k}">{escape(n.lstrip("#~"))}</th>' for k, n in zip(kinds, columns, strict=True)
    )
    body = "".join(
        "<tr>" + "".join(f'<td class="{k}">{c}</td>' for k, c in zip(kinds, row, strict=True)) + "</tr>\n"
        for row in rows
    )
    classes = [*(["sortable"] if sortable else []), *(["narrow"] if len(columns) < 4 else [])]
    class_ = f' class="{" ".join(classes)}"' if classes else ""
    return (
        f'<div class="scroll"><table{class_}><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>\n"
    )


def figure(svg: str, caption: str, class_: str = "half") -> str:
    return f'<figure class="{class_}">{svg}<figcaption>{escape(caption)}</figcaption></figure>\n'


def missing(what: str) -> str:
    """What a section says whose stage has not run."""
    return note(f"Not run: {what}.")


def note(text: str) -> str:
    return f'<p class="missing">{escape(text)}</p>\n'


def words(name: str) -> str:
    """A reason or stage as words."""
    return name.replace("_", " ")


def _number(value: float | None, places: int = 2) -> str:
    return "–" if value is None else decimal(value, places)


def funnel_section(data: Json) -> str:
    """The picture and the ledgers it is drawn from."""
    steps = [
        Step(words(s["stage"]), s["unit"], s["in"], s["kept"], tuple((d["reason"], d["count"]) for d in s["drops"]))
        for s in data["funnel"]
    ]
    if not steps:
        return note("No stage that selects anything has run.")
    tokens = data["shards"]
    if tokens:
        steps.append(
            Step(
                "shards",
                "tokens",
                tokens["tokens"],
                tokens["splits"][0]["tokens"],
                _other_splits(tokens),
                "to train on",
            )
        )
    said = "; ".join(f"{s.name}: {count(s.kept)} of {count(s.entered)} {s.unit} {s.kept_as}" for s in steps)
    drawn = funnel(steps, f"The funnel. {said}")
    rows = [
        (
            escape(words(r["stage"])),
            escape(r["unit"]),
            count(r["in"]),
            count(r["kept"]),
            count(r["dropped"]),
            '<span class="good">balances</span>' if r["balanced"] else '<span class="bad">does not balance</span>',
        )
        for r in data["balance"]
    ]
    wrong = sum(not r["balanced"] for r in data["balance"])
    verdict = f"All {len(rows)} ledgers balance" if not wrong else f"{wrong} of {len(rows)} ledgers do not balance"
    return (
        figure(
            drawn,
            "The funnel. Each bar is a ledger, its unit stated at the left; blue is what went on, grey what was "
            "dropped, by reason. Widths within a bar are shares of what entered it; a bar continues the one above "
            "unless it says otherwise.",
            "wide",
        )
        + f"<p>{verdict}: what entered a stage is what it kept plus what it dropped for each reason.</p>\n"
        + table("The balance of every stage, in its own units.", _LEDGER, rows)
    )


_LEDGER = ["Stage", "Unit", "#In", "#Kept", "#Dropped", "In = kept + dropped"]


def _other_splits(shards: Json) -> tuple[tuple[str, int], ...]:
    return tuple((f"held out for {s['name']}", s["tokens"]) for s in shards["splits"][1:])


def _sample(sample: Json, kept: bool) -> str:
    title = f'<div class="title">{bdi(sample["title"], 160)}</div>' if sample["title"] else ""
    url = f'<div class="url">{link(sample["url"])}</div>' if sample["url"] else ""
    detail = f'<div class="detail">{bdi(sample["detail"], 300)}</div>' if sample["detail"] else ""
    related = f'<div class="detail">survivor: {link(sample["survivor"])}</div>' if sample["survivor"] else ""
    text = f'<p class="text" dir="auto">{bdi(sample["text"])}</p>' if sample["text"] else ""
    return f'<div class="sample{" kept" if kept else ""}">{title}{url}{detail}{related}{text}</div>'


def _reason(drop: Json) -> str:
    bar = share_bar(0, drop["count"], drop["of"])
    summary = (
        f'<span>{escape(words(drop["reason"]))}</span>{bar}<span class="n">{count(drop["count"])}</span>'
        f'<span class="n share">{percent(drop["count"], drop["of"])}</span>'
    )
    if not drop["dropped"] and not drop["kept"]:
        return f'<div class="reason"><span></span>{summary}</div>\n'
    dropped = "".join(_sample(s, False) for s in drop["dropped"]) or '<p class="note">No row is stored for these.</p>'
    kept = "".join(_sample(s, True) for s in drop["kept"]) or '<p class="note">None was kept.</p>'
    return (
        f'<details class="reason"><summary>{summary}</summary><div class="columns">'
        f"<div><h4>Dropped for this reason</h4>{dropped}</div><div><h4>Kept by the same stage</h4>{kept}</div>"
        "</div></details>\n"
    )


def drops_section(data: Json) -> str:
    """Every reason with its count, a few random rows dropped for it and a few kept."""
    drops = data["drops"]
    if not drops:
        return note("Nothing has been dropped.")
    parts = [
        "<p>Open a reason to see a few documents, drawn at random (by a hash of their place, so the draw repeats), "
        "that were dropped for it, beside some that the same stage kept.</p>\n"
        '<div class="pager" data-scope="reasons"></div><div id="reasons">\n'
    ]
    for stage, unit in dict.fromkeys((d["stage"], d["unit"]) for d in drops):
        parts.append(f"<h3>{escape(words(stage))}, counted in {escape(unit)}</h3>\n")
        parts += [_reason(d) for d in drops if (d["stage"], d["unit"]) == (stage, unit)]
    return "".join([*parts, "</div>\n"])


def documents_section(data: Json) -> str:
    """Lengths, languages and domains, of all documents and of those kept."""
    documents = data["documents"]
    if not documents:
        return missing("documents")
    lengths, decided = documents["lengths"], documents["decided"]
    series = [("all documents", lengths["all"])] + ([("kept in the corpus", lengths["kept"])] if decided else [])
    parts = [
        f"<p>{count(documents['total'])} documents"
        + (f", {count(documents['kept'])} of them in the corpus" if decided else "; no corpus has been decided yet")
        + f". Half of all are shorter than {count(lengths['median'])} characters.</p>\n",
        figure(
            histogram(lengths["edges"], series, "Lengths of documents", "characters of text", "documents"),
            "Length of documents, in characters, on a logarithmic axis.",
        ),
    ]
    if documents["languages"]:
        spoken = [
            (r["language"] or "unknown", [r["all"], *([r["kept"]] if decided else [])])
            for r in documents["languages"]
        ]
        names = ["all documents", "kept in the corpus"] if decided else ["all documents"]
        parts.append(
            figure(
                bars(spoken, names, "Languages of documents", "documents"),
                "Languages of documents, identified from the text"
                + (" (kept / all)." if decided else ".")
                + " Codes are ISO 639-1.",
            )
        )
    else:
        parts.append(missing("language identification"))
    most = max((r["all"] for r in documents["domains"]), default=1)
    rows = [
        (
            bdi(r["domain"], 80),
            count(r["all"]),
            count(r["kept"]) if decided else "–",
            percent(r["all"], documents["total"]),
            share_bar(r["kept"], r["all"], most),
        )
        for r in documents["domains"]
    ]
    about = (
        "" if documents["domains_exact"] else " Rare domains were set aside while counting: counts are lower bounds."
    )
    caption = f"The domains with most documents, of {count(documents['domains_distinct'])}.{about}"
    return "".join(parts) + table(
        caption, ["~Domain", "#Documents", "#In the corpus", "#Share", "Kept of all"], rows, True
    )


def duplicates_section(data: Json) -> str:
    """Sizes of clusters, and pairs side by side."""
    found = data["duplicates"]
    if not found:
        return missing("duplicates")
    sizes = found["sizes"]
    chained = ""
    if found["chained"]:
        chained = (
            f" Documents joined by the longest chain of pairs: {count(found['largest_component'])}; more that would "
            f"have been dropped by merging whole chains: {count(found['chained'])}."
        )
    parts = [
        f"<p>Copies dropped: {count(found['exact'])} exact and {count(found['near'])} near. Groups of exact copies: "
        f"{count(found['exact_groups'])}; pairs whose counted similarity reaches the threshold: "
        f"{count(found['near_edges'])}.{chained}</p>\n"
    ]
    if sizes:
        shown = [(r["size"].replace("-", "–"), [r["clusters"]]) for r in sizes]
        parts.append(
            figure(
                bars(shown, ["clusters"], "Sizes of duplicate clusters", "clusters"),
                "Duplicate clusters by size: a kept document and those dropped for it.",
            )
        )
    if found["components"]:
        rows = [(count(c["documents"]), count(c["kept"]), decimal(c["least"], 3)) for c in found["components"]]
        caption = f"Large chains, of {count(found['large_components'])}: documents that pairs join step by step."
        parts.append(table(caption, ["#Documents", "#Kept", "#Least similarity"], rows))
    for index, pair in enumerate(found["examples"]):
        similarity = f"{escape(words(pair['reason']))}, similarity {decimal(pair['similarity'], 3)}"
        parts.append(
            f'<details class="pairs"{" open" if index == 0 else ""}><summary>Pair {index + 1}: {similarity}</summary>'
            f'<div class="columns"><div><h4>Survivor</h4>{_sample(pair["survivor"], True)}</div>'
            f"<div><h4>Dropped</h4>{_sample(pair['dropped'], False)}</div></div></details>\n"
        )
    return "".join(parts)


def marked(text: str, start: int, end: int) -> str:
    """Text with one span marked."""
    start = min(max(start, 0), len(text))
    end = min(max(end, start), len(text))
    if start == end:
        return bdi(text)
    return f"<bdi>{escape(text[:start])}<mark>{escape(text[start:end])}</mark>{escape(text[end:])}</bdi>"


def _share(share: float | None, interval: Json, tip: str = "") -> str:
    """A share as percent, with its interval where there is one."""
    if share is None:
        return "–"
    between = f" [{decimal(100 * interval[0])}, {decimal(100 * interval[1])}]" if interval else ""
    title = f' title="{escape(tip)}"' if tip else ""
    return f'<span{title}>{decimal(100 * share)}</span><span class="ci">{between}</span>'


def _overlap(grams: Json) -> str:
    if not grams:
        return "–"
    tip = f"{count(grams['found'])} of {count(grams['total'])} n-grams"
    if grams["rare_share"] is not None:
        tip += f"; {decimal(100 * grams['rare_share'])} % without n-grams that many documents share"
    return _share(grams["share"], grams["interval"], tip)


def relative(clean: float | None, all_: float | None) -> str:
    """100 ln(clean / all), what GPT-3's Table C.1 prints as relative difference."""
    if clean is None or all_ is None or clean <= 0 or all_ <= 0:
        return "–"
    return f"{100 * math.log(clean / all_):+.1f}\u202f%".replace("-", "\u2212")


def _score_rows(sets: Json) -> list[Cells]:
    """Table C.1: a row per set, or per set and score where a run was scored on it."""
    rows: list[Cells] = []
    for s in sets:
        counts = [escape(s["name"]), count(s["n"]), count(s["examples"]), count(s["dirty"]), count(s["clean"])]
        counts += [count(s["short"]), percent(s["clean"], s["clean"] + s["dirty"])]
        for score in s["scores"] or [{"run": "", "metric": "–", "all": None, "dirty": None, "clean": None}]:
            values = ["–" if score[k] is None else short_or_count(score[k]) for k in ("all", "dirty", "clean")]
            name = bdi(f"{score['run']}: {words(score['metric'])}" if score["run"] else score["metric"])
            rows.append((*counts, name, *values, relative(score["clean"], score["all"])))
    return rows


def _matches(s: Json) -> str:
    parts = []
    for match in s["matches"]:
        held = f"{count(match['documents'])} documents hold" if match["documents"] != 1 else "1 document holds"
        example = (
            f"Example {bdi(match['example'], 60)}: {count(match['found'])} of {count(match['grams'])} n-grams found"
        )
        source = _sample({**_BARE, "title": match["title"], "url": match["url"]}, False)
        inside, outside = marked(match["text"], *match["text_span"]), marked(match["excerpt"], *match["span"])
        parts.append(
            f'<div class="columns"><div><h4>{example}</h4><p class="passage" dir="auto">{inside}</p></div>'
            f"<div><h4>{held} the marked n-gram, such as</h4>{source}"
            f'<p class="passage" dir="auto">{outside}</p></div></div>'
        )
    if not parts:
        return ""
    said = f"{escape(s['name'])}: {len(parts)} of {count(s['dirty'])} dirty examples"
    return f'<details class="pairs"><summary>{said}</summary>{"".join(parts)}</details>\n'


_BARE = {"title": "", "url": "", "text": "", "detail": "", "survivor": ""}


def _dot(n: str, grams: Json) -> tuple[str, float, float, float]:
    return (f"{n}-grams", 100 * grams["share"], 100 * grams["interval"][0], 100 * grams["interval"][1])


def contamination_section(data: Json) -> str:
    """How much of each test set stands in the corpus, and what that does to scores."""
    sets = data["contamination"]
    if not sets:
        return missing("contamination (or the recipe names no test set)")
    sizes = sorted({n for s in sets for n in s["ngrams"]}, key=int)
    papers = [PAPER_TABLE_6.get(re.sub(r"[^a-z0-9]", "", s["name"].lower())) for s in sets]
    told = any(p is not None for p in papers)
    own = [n for n in sizes if any((s["ngrams"].get(n) or {}).get("own_train_share") is not None for s in sets)]
    columns = [
        *("Test set", "#Examples"),
        *(f"#{n}-grams in the corpus, %" for n in sizes),
        *(f"#{n}-grams in its own train split, %" for n in own),
        *(["#8-grams in WebText (GPT-2), %"] if told else []),
    ]
    rows = [
        (
            *(escape(s["name"]), count(s["examples"])),
            *(_overlap(s["ngrams"].get(n)) for n in sizes),
            *(_share((s["ngrams"].get(n) or {}).get("own_train_share"), None) for n in own),
            *([_number(p)] if told else []),
        )
        for s, p in zip(sets, papers, strict=True)
    ]
    dots = [
        (s["name"], [_dot(n, s["ngrams"][n]) for n in sizes if (s["ngrams"].get(n) or {}).get("interval")])
        for s in sets
    ]
    scored = table(
        "Clean and dirty examples, in the shape of GPT-3's Table C.1. Dirty: at least one N-gram of the example "
        "stands in a kept document. Short: fewer than N words, not judged. The relative difference is "
        "100 ln(clean / all), which is what that table prints.",
        [
            *("Test set", "#N", "#Examples", "#Dirty", "#Clean", "#Short", "#Clean, %"),
            *("Score", "#All", "#Dirty", "#Clean", "#Rel. diff."),
        ],
        _score_rows(sets),
    )
    return (
        "<p>Overlap is counted over the documents kept, on lower-cased words without punctuation.</p>\n"
        + table(
            "Share of each test set's n-grams that stand in the corpus, with 95 % intervals, in the shape of "
            "GPT-2's Table 6." + (" The last column is what that table reports for WebText." if told else ""),
            columns,
            rows,
            True,
        )
        + figure(
            intervals(dots, "Overlap of test sets with the corpus", "percent of the set's n-grams found"),
            "The same, drawn with 95 % intervals.",
        )
        + scored
        + "<h3>The matches themselves</h3>\n"
        + ("".join(_matches(s) for s in sets) or '<p class="note">No example matches a kept document.</p>\n')
    )


TEXT_FACTS = {
    "n_bytes": "Bytes of text",
    "words": "Words",
    "pretokens": "Pretokens",
    "types": "Distinct pretokens",
    "wanted": "Vocabulary asked for",
}
SIZE_FACTS = {
    "vocab_size": "Vocabulary",
    "tokens": "Tokens",
    "bytes_per_token": "Bytes per token",
    "tokens_per_word": "Tokens per word",
    "single_byte_share": "Single bytes, share of tokens",
    "unused": "Entries never used",
}


def tokenizer_section(data: Json) -> str:
    """Vocabulary and what it buys: bytes of text per token, at the sizes training passed through."""
    tokenizer = data["tokenizer"]
    if not tokenizer:
        return missing("tokenizer")
    sizes, facts = tokenizer["sizes"], tokenizer["facts"]
    shown = [key for key in SIZE_FACTS if any(key in size for size in sizes)]
    rows = [[short_or_count(size[key]) if key in size else "–" for key in shown] for size in sizes]
    points = [(s["vocab_size"], s["bytes_per_token"]) for s in sizes if {"vocab_size", "bytes_per_token"} <= s.keys()]
    parts = [
        table(
            "The text the tokenizer was trained on.",
            ["Figure", "#Value"],
            [(name, short_or_count(facts[key])) for key, name in TEXT_FACTS.items() if key in facts],
        ),
        table(
            "Compression of that text by size of the vocabulary; the last row is the tokenizer itself.",
            [f"#{SIZE_FACTS[key]}" for key in shown],
            rows,
        ),
    ]
    if len(points) > 1:
        drawn = lines(
            [("bytes per token", points)], "Compression", "entries in the vocabulary", "bytes per token", True
        )
        parts.append(figure(drawn, "Compression by size of the vocabulary, as the same training reached each size."))
    return "".join(parts)


def short_or_count(value: float) -> str:
    """A whole number in full, any other with four digits after the point, or two where it is large."""
    return count(value) if float(value).is_integer() else decimal(value, 4 if abs(value) < 100 else 2)


def shards_section(data: Json) -> str:
    """What there is to train on."""
    shards = data["shards"]
    if not shards:
        return missing("shards")
    rows = [
        (
            escape(s["name"]),
            count(s["files"]),
            count(s["documents"]),
            count(s["tokens"]),
            count(s["n_bytes"]),
            decimal(s["n_bytes"] / s["tokens"] if s["tokens"] else math.nan, 3),
        )
        for s in shards["splits"]
    ]
    caption = f"Token shards ({shards['dtype']}, vocabulary of {count(shards['vocab_size'])})."
    return table(caption, ["Split", "#Files", "#Documents", "#Tokens", "#Bytes of text", "#Bytes per token"], rows)


def runs_section(data: Json) -> str:
    """Loss, scores and a sample of each run."""
    if not data["runs"]:
        return missing("training")
    parts = []
    for run in data["runs"]:
        parts.append(f"<h3>Run {escape(run['name'])}</h3>\n")
        if run["curves"]:
            curves = [(c["name"], [(p[0], p[1]) for p in c["points"]]) for c in run["curves"]]
            thinned = f" Each point is the mean of {run['thinned']} lines of the log." if run["thinned"] > 1 else ""
            broken = f" Lines of the log that could not be read: {run['unreadable']}." if run["unreadable"] else ""
            parts.append(
                figure(
                    lines(curves, "Loss by step", "step", "loss, nats per token"),
                    f"Loss during training.{thinned}{broken}",
                )
            )
        else:
            parts.append(note("The log holds no losses."))
        rows = [(bdi(words(f["task"])), escape(words(f["name"])), short_or_count(f["value"])) for f in run["scores"]]
        parts.append(table("Scores.", ["Task", "Measure", "#Value"], rows) or missing("evaluation"))
        for s in run["samples"]:
            prompt = f'<span class="prompt">{escape(s["prompt"])}</span>' if s["prompt"] else ""
            parts.append(f'<h4>Generated text</h4><blockquote dir="auto">{prompt}{escape(s["text"])}</blockquote>\n')
    return "".join(parts)


def problems_section(data: Json) -> str:
    """Broken input, by file and reason."""
    problems = data["problems"]
    if not problems["total"]:
        return "<p>No broken input was met.</p>\n"
    rows = [
        (
            escape(p["stage"]),
            bdi(p["input"], 160),
            escape(words(p["reason"])),
            count(p["offset"]) if p["offset"] >= 0 else "–",
            bdi(p["detail"], 200),
        )
        for p in problems["listed"]
    ]
    left = problems["total"] - len(rows)
    rest = f" {count(left)} more stand in the manifests." if left else ""
    reasons = [(escape(r["stage"]), escape(words(r["reason"])), count(r["count"])) for r in problems["by_reason"]]
    return table("Broken input by reason.", ["Stage", "Reason", "#Count"], reasons) + table(
        f"Broken input, file by file.{rest}", ["Stage", "~Input", "Reason", "#Byte offset", "~Detail"], rows, True
    )


def versions_section(data: Json) -> str:
    """What to name when the result is quoted: recipe, stages, libraries, fingerprints."""
    rows = [
        (
            escape(s["stage"]),
            count(s["version"]),
            count(s["parts"]),
            count(s["rows"]),
            count(s["bytes"]),
            f"<code>{escape(s['fingerprint'][:16])}</code>",
        )
        for s in data["stages"]
    ]
    libraries = [(escape(name), escape(version)) for name, version in data["libraries"]]
    inputs = [
        (escape(words(f["kind"])), bdi(f["name"], 160), count(f["size"]), f"<code>{escape(f['sha256'][:16])}</code>")
        for f in data["inputs"]
    ]
    recipe = (
        f"<h3>Recipe</h3>\n<pre>{escape(data['recipe'])}</pre>\n"
        if data["recipe"]
        else note("No recipe is kept in this workspace.")
    )
    return (
        table("Stages as committed.", ["Stage", "#Version", "#Parts", "#Rows", "#Bytes", "Fingerprint"], rows)
        + table("Input files.", ["Kind", "~Name", "#Bytes", "sha256"], inputs)
        + table("Libraries that shape the bytes.", ["Library", "Version"], libraries)
        + recipe
    )
