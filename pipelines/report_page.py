"""The report as one page: `report.json` in, one self-contained HTML file out.

The page loads nothing: styles, script and figures stand in it, and its content security policy forbids the rest.
Without JavaScript everything is there; the script adds sorting, a filter, and opening everything for print.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from pipelines.drawing import count, decimal, element, escape
from pipelines.report_sections import (
    contamination_section,
    documents_section,
    drops_section,
    duplicates_section,
    funnel_section,
    problems_section,
    runs_section,
    shards_section,
    tokenizer_section,
    versions_section,
    words,
)
from pipelines.workspace import Json

VERSION = 1
"""Version of `report.json`; raised when a field changes its meaning."""

SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("thead th").forEach((th, column) => {
    const button = document.createElement("button");
    button.type = "button"; button.append(...th.childNodes); th.append(button);
    button.addEventListener("click", () => {
      const down = th.getAttribute("aria-sort") !== "descending";
      const of = row => row.cells[column].textContent.trim();
      const as = text => { const n = parseFloat(text.replace(/[\\u202f%<>]/g, "").replace("\\u2212", "-"));
        return th.classList.contains("n") ? (isNaN(n) ? -Infinity : n) : text; };
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const x = as(of(a)), y = as(of(b)); return (x < y ? 1 : x > y ? -1 : 0) * (down ? 1 : -1); });
      table.querySelectorAll("th").forEach(h => h.removeAttribute("aria-sort"));
      th.setAttribute("aria-sort", down ? "descending" : "ascending");
      table.tBodies[0].append(...rows);
    });
  });
}
for (const holder of document.querySelectorAll(".pager")) {
  const scope = document.getElementById(holder.dataset.scope), label = document.createElement("label");
  const input = document.createElement("input");
  input.type = "search"; input.id = holder.dataset.scope + "-filter"; label.htmlFor = input.id;
  label.textContent = "Filter"; holder.append(label, input);
  input.addEventListener("input", () => { const wanted = input.value.toLowerCase();
    for (const item of scope.querySelectorAll(".reason"))
      item.hidden = !item.textContent.toLowerCase().includes(wanted); });
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(d => { d.open = true; }));
"""

SECTIONS = (
    ("funnel", "The funnel", funnel_section),
    ("drops", "What was dropped, and why", drops_section),
    ("documents", "Documents", documents_section),
    ("duplicates", "Duplicates", duplicates_section),
    ("contamination", "Contamination", contamination_section),
    ("tokenizer", "Tokenizer", tokenizer_section),
    ("shards", "Token shards", shards_section),
    ("training", "Training and evaluation", runs_section),
    ("problems", "Broken input", problems_section),
    ("versions", "Recipe, versions, fingerprints", versions_section),
)


def headline(data: Json) -> str:
    """The numbers one looks for first."""
    cells = "".join(
        f"<div><dt>{escape(f['name'])}</dt>"
        f"<dd>{count(f['value']) if f['whole'] else decimal(f['value'], 3)}</dd></div>"
        for f in data["headline"]
    )
    return f'<dl class="figures">{cells}</dl>\n' if cells else ""


def abstract(data: Json) -> str:
    """One paragraph that says what this is."""
    wrong = sum(not r["balanced"] for r in data["balance"])
    balance = (
        "" if not data["balance"] else " Every ledger balances." if not wrong else f" {wrong} ledgers do not balance."
    )
    absent = f" Not run yet: {', '.join(words(s) for s in data['missing'])}." if data["missing"] else ""
    stale = f" Out of date, left out: {', '.join(words(s) for s in data['stale'])}." if data["stale"] else ""
    return (
        '<p class="abstract">What went into this corpus, what was left out and why, how much of the test sets stands '
        f"in it, and what a model trained on it scores.{balance}{absent}{stale}</p>\n"
    )


def policy(style: str) -> str:
    """A content security policy: this page's own style and script, by their hashes, and nothing else."""

    def source(text: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"

    return (
        f"default-src 'none'; style-src {source(style)}; script-src {source(SCRIPT)}; "
        "base-uri 'none'; form-action 'none'"
    )


def render_page(data: Json) -> str:
    """The report page of `build_report`'s data, as the text of one HTML file.

    Raises ValueError when the data are of another version.
    """
    if data.get("format") != "webtext-report" or data.get("version") != VERSION:
        raise ValueError(
            f"report data of format {data.get('format')!r}, version {data.get('version')!r}: build the report again"
        )
    style = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
    contents = "".join(
        f'<li><a href="#{key}">{no}\u2002{escape(name)}</a></li>' for no, (key, name, _) in enumerate(SECTIONS, 1)
    )
    body = "".join(
        f'<section id="{key}" aria-labelledby="{key}-name">'
        f'<h2 id="{key}-name"><span class="no">{no}</span>{escape(name)}</h2>\n{section(data)}</section>\n'
        for no, (key, name, section) in enumerate(SECTIONS, 1)
    )
    fingerprint = element("code", escape(data["fingerprint"][:16]))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy(style))}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n<meta name="robots" content="noindex">\n'
        f"<title>{escape(data['name'])}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#funnel">Skip to the report</a>\n'
        f"<header><h1>{escape(data['name'])}</h1>\n{abstract(data)}{headline(data)}"
        f'<nav aria-label="Contents"><ol>{contents}</ol></nav></header>\n<main>\n{body}</main>\n'
        f"<footer>Made by webtext from the manifests of the workspace; state {fingerprint}. "
        "The same numbers are in report.json beside this page.</footer>\n"
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )
