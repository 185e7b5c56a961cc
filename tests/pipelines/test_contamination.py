"""Contamination: planted n-grams are found everywhere, nothing else is, cuts and tables follow the papers' rules."""

import dataclasses
import functools
import gzip
import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import ngrams, quality
from pipelines.contamination import (
    CONTAMINATION,
    HITS,
    ContaminationOptions,
    GramIndex,
    Overlap,
    contamination_table,
    contamination_tasks,
    counted_hits,
    cut_spans,
    decisive_grams,
    document_frequency,
    example_overlap,
    wilson,
)
from pipelines.corpus import CorpusOptions, build_corpus, kept_documents
from pipelines.evaluation_sets import (
    EVALUATION,
    EvaluationSet,
    Example,
    IndexTables,
    evaluation_task,
    index_examples,
    read_index,
    read_set,
)
from pipelines.ngrams import find_words, fold
from pipelines.runner import RunnerOptions
from pipelines.stages import Stage, Task, annotation_tasks, assemble, commit, perform, read_annotation, read_record
from pipelines.workspace import Manifest, Workspace, write_part

OPTIONS = ContaminationOptions()
QUOTE = (
    "Four score and seven years ago our fathers brought forth, upon this continent, "
    "a new nation — conceived in Liberty"
)


def index_of(texts: list[str], options: ContaminationOptions = OPTIONS, name: str = "set") -> IndexTables:
    examples = [Example(str(i), i, 0, 0, text) for i, text in enumerate(texts, 1)]
    return index_examples([(EvaluationSet(name, "file"), examples, [])], options)


def decisive_of(index: IndexTables) -> np.ndarray:
    n = [table.column("n").to_numpy() for table in (index.grams, index.examples)]
    return decisive_grams(*n, index.occurrences.to_batches(max_chunksize=7))


def hits_of(index: IndexTables, texts: list[str]) -> list[list[dict[str, int]]]:
    return GramIndex(index.grams).scan(texts).to_pylist()


def filler(rng: random.Random, words: int) -> str:
    return " ".join(
        rng.choice(["lorem", "ipsum", "dolor", "sit", "Ämet", "x1"]) + str(rng.randrange(99)) for _ in range(words)
    )


@pytest.mark.parametrize(
    "between", [" ", "\n", "\r\n\t", "-", "—", "' ", '." ', "\xa0", "_", "…\u2028", "\u200b", ",\n\n  «"]
)
@pytest.mark.parametrize("casing", [str.lower, str.upper, str.title])
def test_planted_text_is_found_whatever_its_punctuation_lines_and_case(between: str, casing) -> None:  # type: ignore[no-untyped-def]
    index = index_of([QUOTE])
    words = casing(fold(QUOTE)).replace(",", "").replace("—", "").split()
    text = "ünrelated … " + between.join(words) + " 終わり"
    hits = hits_of(index, [text])[0]
    assert len([h for h in hits if h["n"] == 13]) == 19 - 13 + 1
    assert len([h for h in hits if h["n"] == 8]) == 19 - 8 + 1
    raw, texts = text.encode(), index.grams.column("text").to_pylist()
    for hit in hits:
        found = raw[hit["start"] : hit["end"]].decode()
        assert fold(found.replace(between, " ")) == texts[hit["gram"]]
        assert len(texts[hit["gram"]].split()) == hit["n"]
    assert hits == sorted(hits, key=lambda h: (h["start"], h["n"]))


def test_spans_stand_on_characters_in_any_text() -> None:
    index = index_of([QUOTE])
    for before in ("", "é", "日本語 ", "😀😀 ", "\u0301", "İ ẞ K "):
        text = before + " " + QUOTE.replace("Liberty", "LIBERTY") + "é"
        for hit in hits_of(index, [text])[0]:
            inside = text.encode()[hit["start"] : hit["end"]].decode()
            assert text.count(inside) == 1
    assert [h for h in hits_of(index, [QUOTE + "é"])[0] if h["end"] >= len(QUOTE.encode())] == []


def test_batches_and_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(2)
    index = index_of([QUOTE, filler(rng, 40), "short one", filler(rng, 13)])
    grams = GramIndex(index.grams)
    known = index.examples.column("text").to_pylist()
    texts = [" ".join(rng.choice([filler(rng, 30), *known, ""]) for _ in range(rng.randrange(12))) for _ in range(60)]
    texts.append(" ".join([*known, filler(rng, 5)] * 300))
    expected = grams.scan(texts)
    assert expected.type == HITS.field("hits").type
    assert len(expected.flatten()) > 2000
    assert [hits for text in texts for hits in grams.scan([text]).to_pylist()] == expected.to_pylist()
    monkeypatch.setattr(ngrams, "PIECE", 4096)
    monkeypatch.setattr("pipelines.contamination.pieces", functools.partial(ngrams.pieces, size=3000))
    assert grams.scan(pa.chunked_array([pa.array(texts[:20]), pa.array(texts[20:])])).equals(expected)


def test_a_key_that_is_equal_by_accident_is_no_hit() -> None:
    index = index_of([QUOTE])
    forged = index.grams.set_column(2, "text", pa.array(["other words"] * index.grams.num_rows))
    assert hits_of(index, [QUOTE])[0]
    assert GramIndex(forged).scan([QUOTE]).to_pylist() == [[]]


def test_random_text_and_empty_things_have_no_hits() -> None:
    index = index_of([QUOTE])
    rng = random.Random(9)
    words = fold(QUOTE).replace(",", "").split()
    shuffled = [" ".join(rng.choices(words, k=2000)) for _ in range(50)]
    assert sum(map(len, hits_of(index, shuffled))) == 0
    assert hits_of(index, []) == []
    assert hits_of(index, ["", " "]) == [[], []]
    assert hits_of(index_of([]), [QUOTE]) == [[]]


def plain_cut(text: str, spans: list[tuple[int, int]], options: ContaminationOptions) -> tuple[str, list[str]]:
    """The rule character by character: (reason, pieces that stay)."""
    gone = [False] * len(text)
    for start, end in spans:
        for at in range(max(0, start - options.window), min(len(text), end + options.window)):
            gone[at] = True
    runs, run = [], ""
    for character, cut in zip(text, gone, strict=True):
        if cut and run:
            runs.append(run)
        run = "" if cut else run + character
    runs += [run] if run else []
    if len(runs) > options.max_pieces:
        return "too many pieces", []
    kept = [r for r in runs if len(r) >= options.min_piece]
    return ("" if kept else "no piece left"), kept


@settings(max_examples=300, deadline=None)
@given(st.text("aé日😀 ", min_size=1, max_size=120), st.data())
def test_cuts_equal_the_rule_character_by_character(text: str, data: st.DataObject) -> None:
    options = ContaminationOptions(
        window=data.draw(st.integers(0, 12)),
        min_piece=data.draw(st.integers(0, 20)),
        max_pieces=data.draw(st.integers(0, 4)),
    )
    spans = data.draw(st.lists(st.tuples(st.integers(0, len(text) - 1), st.integers(1, 20)), min_size=1, max_size=6))
    spans = [(start, min(len(text), start + size)) for start, size in spans]
    offsets = [len(text[:i].encode()) for i in range(len(text) + 1)]
    cut = cut_spans(text, [offsets[s] for s, _ in spans], [offsets[e] for _, e in spans], options)
    reason, kept = plain_cut(text, spans, options)
    assert cut.reason == reason
    if not reason:
        raw = text.encode()
        borders = [0, *(b for span in cut.spans for b in span), len(raw)]
        stay = [raw[i:j].decode() for i, j in zip(borders[::2], borders[1::2], strict=True) if j > i]
        assert "".join(stay) == "".join(kept)
        assert cut.pieces == len(kept)
        assert all(a < b for a, b in cut.spans)
        assert all(a[1] < b[0] for a, b in zip(cut.spans, cut.spans[1:], strict=False))


def test_one_long_quotation_is_one_cut() -> None:
    """Janitor's trap: every overlapping n-gram of a copied run counts, so 23 copied words void a document."""
    rng = random.Random(4)
    copied = filler(rng, 60)
    index = index_of([copied])
    text = "a" * 999 + " " + copied + " " + "b" * 999
    hits = [h for h in hits_of(index, [text])[0] if h["n"] == 13]
    assert len(hits) == 48
    cut = cut_spans(text, [h["start"] for h in hits], [h["end"] for h in hits], OPTIONS)
    assert (cut.pieces, cut.reason, len(cut.spans)) == (2, "", 1)
    start, end = cut.spans[0]
    assert (start, end) == (1000 - 200, 1000 + len(copied.encode()) + 200)


def test_more_than_ten_pieces_and_nothing_left() -> None:
    text = ("x" * 700 + "!") * 11
    marks = [i for i, c in enumerate(text) if c == "!"][:10]
    assert cut_spans(text, marks[:9], [m + 1 for m in marks[:9]], OPTIONS).pieces == 10
    assert cut_spans(text, marks, [m + 1 for m in marks], OPTIONS).reason == "too many pieces"
    assert cut_spans("x" * 500, [250], [251], OPTIONS).reason == "no piece left"
    assert cut_spans("x" * 500, [], [], OPTIONS) == cut_spans(b"x" * 500, [], [], OPTIONS)
    assert cut_spans("x" * 500, [0], [1], OPTIONS).spans == ((0, 201),)


def test_common_ngrams_are_counted_over_kept_documents_and_ignored_when_cutting() -> None:
    """GPT-3, appendix C: n-grams in more than 10 training documents (boilerplate) are ignored. The number is read."""
    boilerplate = "all rights reserved this material may not be published broadcast rewritten or redistributed"
    index = index_of([boilerplate, QUOTE])
    hits = GramIndex(index.grams).scan([f"{boilerplate}. {boilerplate}"] * 12 + [QUOTE, f"{boilerplate} {QUOTE}"])
    everything = np.ones(14, bool)
    frequency = document_frequency([(hits, everything)], index.grams.num_rows)
    thirteen = {g["text"]: int(f) for g, f in zip(index.grams.to_pylist(), frequency, strict=True) if g["n"] == 13}
    assert thirteen[boilerplate] == 13
    assert set(thirteen.values()) == {2, 13}
    for row, most, expected in (
        (0, 10, 0),
        (0, 12, 0),
        (0, 13, 2),
        (12, 10, 7),
        (12, 1, 0),
        (13, 10, 7),
        (13, 13, 8),
    ):
        options = ContaminationOptions(max_documents=most)
        assert len(counted_hits(hits, row, frequency, decisive_of(index), options)[0]) == expected, (row, most)
    kept = everything.copy()
    kept[:8] = False
    fewer = document_frequency([(hits.slice(0, 5), kept[:5]), (hits.slice(5), kept[5:])], index.grams.num_rows)
    assert int(fewer.max()) == 5
    with pytest.raises(ValueError, match="14 rows of hits, but 3"):
        document_frequency([(hits, everything[:3])], index.grams.num_rows)


def test_ngrams_of_a_sets_own_n_count_for_that_set_and_no_other() -> None:
    rng = random.Random(8)
    questions, articles = [filler(rng, 9) for _ in range(20)], [filler(rng, 40) for _ in range(20)]
    articles[3] += " " + questions[5]
    sets = [
        (EvaluationSet(name, "file"), [Example(str(i), i, 0, 0, text) for i, text in enumerate(texts, 1)], [])
        for name, texts in (("articles", articles), ("questions", questions))
    ]
    index = index_examples(sets, OPTIONS)
    assert set(index.examples.column("n").to_pylist()) == {9, 13}
    grams, decisive = index.grams.to_pylist(), decisive_of(index)
    counted = {(g["n"], g["text"]) for g, some in zip(grams, decisive, strict=True) if some}
    assert {text for n, text in counted if n == 9} == {fold(question) for question in questions}
    assert {n for n, _ in counted} == {9, 13}
    hits = GramIndex(index.grams).scan([questions[5], " ".join(articles[7].split()[:9]), articles[9]])
    frequency = document_frequency([(hits, np.ones(3, bool))], index.grams.num_rows)
    assert [len(counted_hits(hits, row, frequency, decisive, OPTIONS)[0]) for row in range(3)] == [1, 0, 28]


@pytest.mark.parametrize("what", ["drop", "cut", "report"])
def test_short_examples_are_dropped_and_cut_like_long_ones(tmp_path: Path, what: str) -> None:
    """Each of 20 documents holds an example of ten words; two more are held by 12 documents, which spares them."""
    rng = random.Random(5)
    workspace = Workspace.open(tmp_path / "workspace", create=True)
    examples = [filler(rng, 10) for _ in range(30)]
    (tmp_path / "set").write_text("".join(f"{example}\n" for example in examples))
    quoting = [f"{filler(rng, 90)} {examples[i % 15]} {filler(rng, 90)}" for i in range(20)]
    common = [f"{filler(rng, 90)} {examples[20]} {examples[21]} {filler(rng, 9)}" for _ in range(12)]
    texts = {"a": [*quoting[:12], filler(rng, 50)], "b": [*common, *quoting[12:]]}
    documents = documents_of(workspace, texts)
    ids = pa.schema([pa.field("doc_id", pa.string(), False)])
    positions = [
        write_part(workspace, "pages/positions", p, pa.table([[f"{p}{i}" for i in range(len(t))]], ids), ids)
        for p, t in texts.items()
    ]
    documents = dataclasses.replace(documents, tables={**documents.tables, "positions": tuple(positions)})
    one = EvaluationSet("short", str(tmp_path / "set"))
    task = evaluation_task([one], tmp_path, {one.path: "0" * 64}, "evaluation")
    evaluation = run(workspace, EVALUATION, OPTIONS, [task])
    made = {
        "evaluation": evaluation,
        "annotations/quality": run(workspace, quality.STAGE, None, annotation_tasks(documents)),
        "annotations/contamination": run(
            workspace, CONTAMINATION, OPTIONS, contamination_tasks(documents, evaluation)
        ),
    }
    options = CorpusOptions(rules=("contamination",), contamination=what)  # type: ignore[arg-type]
    corpus = build_corpus(workspace, documents, made, options, OPTIONS, RunnerOptions(workers=1))
    kept = [
        text
        for file, decisions in zip(documents.parts(), corpus.parts(), strict=True)
        for batch in kept_documents(workspace, file, decisions, ["text"])
        for text in batch.column("text").to_pylist()
    ]
    whole = [*texts["a"][12:], *common]
    quotes = [text for text in kept if any(example in text for example in examples[:20])]
    if what == "report":
        assert kept == [*texts["a"], *texts["b"]]
    elif what == "drop":
        assert corpus.ledgers["documents"] == {"in": 33, "kept": 13, "contamination": 20}
        assert kept == whole
    else:
        assert corpus.ledgers["documents"] == {"in": 33, "kept": 33}
        assert [text for text in kept if text in {*texts["a"], *texts["b"]}] == whole
        assert quotes == []
        assert read_index(workspace, evaluation).examples.column("n").to_pylist() == [10] * 30


def test_dirty_clean_and_short_examples_and_their_documents() -> None:
    rng = random.Random(6)
    long = [filler(rng, 20) for _ in range(30)]
    index = index_of([*long, "only three words", QUOTE])
    texts = ["nothing here", f"… {long[3]} …", filler(rng, 50), f"{long[3]}, {QUOTE}", "only three words"]
    hits = GramIndex(index.grams).scan(texts)
    overlap = Overlap(index.grams.num_rows)
    overlap.add("part-a", hits.slice(0, 3), np.ones(3, bool))
    overlap.add("part-b", hits.slice(3), np.array([True, True]))
    (entry,) = contamination_table(index, overlap, OPTIONS)
    assert (entry["examples"], entry["n"], entry["short"], entry["dirty"], entry["clean"]) == (32, 13, 1, 2, 29)
    assert entry["dirty_share"] == pytest.approx(2 / 31)
    assert entry["interval"][0] < 2 / 31 < entry["interval"][1]
    assert entry["ngrams"]["13"]["total"] == 30 * 8 + 7
    assert entry["ngrams"]["13"]["found"] == 8 + 7
    assert entry["ngrams"]["8"]["found"] == 13 + 12
    low, high = entry["ngrams"]["8"]["interval"]
    assert low < entry["ngrams"]["8"]["share"] < high
    assert [e["id"] for e in entry["dirty_examples"]] == ["4", "32"]
    match = entry["dirty_examples"][0]["matches"][0]
    assert (match["documents"], match["places"]) == (2, [{"part": "part-a", "row": 1}, {"part": "part-b", "row": 0}])
    json.dumps(entry, allow_nan=False)
    status = example_overlap(index, overlap.documents)
    assert status.column("status").to_pylist().count("short") == 1
    assert status.column("found").to_pylist()[3] == status.column("grams").to_pylist()[3] == 8
    nothing = Overlap(index.grams.num_rows)
    nothing.add("part-a", hits, np.zeros(5, bool))
    (none,) = contamination_table(index, nothing, OPTIONS)
    assert (none["dirty"], none["clean"], none["ngrams"]["8"]["found"], none["dirty_examples"]) == (0, 31, 0, [])


def test_a_stream_makes_every_line_it_touches_dirty(tmp_path: Path) -> None:
    (tmp_path / "set").write_text(
        "one two three four five six seven\n\neight nine ten\neleven twelve thirteen end\nx y\n"
    )
    one = EvaluationSet("s", str(tmp_path / "set"), "stream")
    index = index_examples([(one, read_set(one, one.path, "")[0], [])], ContaminationOptions(least=3, most=8))
    words = ["three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
    overlap = Overlap(index.grams.num_rows)
    overlap.add("p", GramIndex(index.grams).scan([" ".join(words)]), np.ones(1, bool))
    (entry,) = contamination_table(index, overlap, ContaminationOptions(least=3, most=8))
    rows = example_overlap(index, overlap.documents)
    assert rows.column("n").to_pylist() == [3] * 4
    assert rows.column("status").to_pylist() == ["dirty", "dirty", "dirty", "short"]
    assert [e["id"] for e in entry["dirty_examples"]] == ["1", "3", "4"]
    assert all(e["matches"] for e in entry["dirty_examples"])


def test_wilson() -> None:
    assert wilson(0.0, 100)[0] == 0.0
    assert wilson(0.0, 100)[1] == pytest.approx(0.0370, abs=1e-4)
    assert wilson(0.5, 100) == pytest.approx([0.4038, 0.5962], abs=1e-4)
    assert wilson(1.0, 10)[1] == 1.0


def run(workspace: Workspace, stage: Stage, options: object, tasks: list[Task]) -> Manifest:
    records = {}
    for task in tasks:
        path = perform(stage, options, workspace.url, task, functools.partial(stage.work, task))
        records[task.key] = read_record(workspace, path) or {}
    manifest = assemble(workspace, stage, options, "test", records)
    commit(workspace, stage, manifest, [])
    return manifest


def documents_of(workspace: Workspace, parts: dict[str, list[str]]) -> Manifest:
    schema = pa.schema([pa.field("text", pa.string(), False)])
    files = [write_part(workspace, "documents", p, pa.table([pa.array(t)], schema), schema) for p, t in parts.items()]
    return Manifest("documents", 1, "", {}, {}, {"": tuple(files)})


def lines_of(file: Path) -> list[str]:
    return gzip.decompress(file.read_bytes()).decode().rstrip("\n").split("\n")


def test_stages_from_files_to_annotations(tmp_path: Path, shared: Path) -> None:
    workspace = Workspace.open(tmp_path / "workspace", create=True)
    data = shared / "data"
    sets = [
        EvaluationSet("wikitext-2", str(data / "wikitext-2/test.txt.gz"), "stream"),
        EvaluationSet("lambada", str(data / "lambada/lambada_test.jsonl.gz"), "jsonl"),
    ]
    task = evaluation_task(sets, tmp_path, {one.path: "0" * 64 for one in sets}, "contamination.sets")
    evaluation = run(workspace, EVALUATION, OPTIONS, [task])
    ledger = evaluation.ledgers["evaluation records"]
    assert ledger == {"in": 4358 + 5153, "kept": 2891 + 5153, "blank": 1467}
    index = read_index(workspace, evaluation)
    lambada = [json.loads(line)["text"] for line in lines_of(Path(sets[1].path))]
    wiki = lines_of(Path(sets[0].path))
    web = [json.loads(line)["text"] for line in lines_of(data / "c4-sample/c4.jsonl.gz")]
    parts = {"a": [*web[:200], lambada[10].upper() + "\n" + web[0], ""], "b": [wiki[3] + wiki[4], *web[200:400]]}
    documents = documents_of(workspace, parts)
    annotations = run(workspace, CONTAMINATION, OPTIONS, contamination_tasks(documents, evaluation))
    assert annotations.ledgers["documents"] == {"in": 403, "kept": 403}
    overlap = Overlap(index.grams.num_rows)
    texts = index.grams.column("text").to_pylist()
    for file in documents.parts():
        hits = read_annotation(workspace, annotations, file).column("hits").combine_chunks()
        assert hits.type == HITS.field("hits").type
        for text, found in zip(parts[file.part], hits.to_pylist(), strict=True):
            for hit in found:
                span = find_words([text.encode()[hit["start"] : hit["end"]].decode()])
                assert ngrams.gram_text(span, 0, hit["n"]) == texts[hit["gram"]]
        overlap.add(file.part, hits, np.ones(len(hits), bool))
    table = {entry["set"]: entry for entry in contamination_table(index, overlap, OPTIONS)}
    assert list(table) == ["lambada", "wikitext-2"]
    assert [e["record"] for e in table["lambada"]["dirty_examples"]] == [11]
    assert table["lambada"]["dirty"] == 1
    assert table["wikitext-2"]["n"] == 8
    assert 4 in [e["record"] for e in table["wikitext-2"]["dirty_examples"]]
    assert 0 < table["wikitext-2"]["ngrams"]["8"]["share"] < 0.01
