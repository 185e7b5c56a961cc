"""The command line over a finished workspace and over wrong recipes: what it says, what it prints, how it exits."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from pipelines import workspace as workspace_module
from pipelines.cli import main
from pipelines.recipe import TEMPLATE
from pipelines.workspace import Workspace, read_manifest, read_part

Said = pytest.CaptureFixture[str]


@pytest.fixture
def own(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished workspace that a test may damage."""
    shutil.copytree(built, tmp_path / "ws")
    monkeypatch.setattr(workspace_module, "_verified", set())
    return tmp_path / "ws"


def printed_json(capsys: Said) -> Any:
    return json.loads(capsys.readouterr().out)


def states(workspace: Path, capsys: Said) -> dict[str, str]:
    assert main(["status", str(workspace), "--json"]) == 0
    return {row["stage"]: row["state"] for row in printed_json(capsys)}


# Recipes that are wrong.

WRONG = [
    ("inputs: {texts: [texts/*.jsonl], text: [x]}", "inputs.text is not an option; did you mean texts?"),
    ("tokenzier: {}", "tokenzier is not an option; did you mean tokenizer?"),
    ("shards: {validation: much}", "shards.validation must be a number, not str 'much'"),
    ("shards: {validation: 1.5}", "shards: validation must be at least 0 and less than 1, not 1.5"),
    ("tokenizer: {bpe: {vocab_size: 50257.5}}", "tokenizer.bpe.vocab_size must be a whole number"),
    ("tokenizer: {bpe: {vocab_size: 7}}", "tokenizer.bpe: vocab_size must be between 257"),
    ("corpus: {rules: [language, spelling]}", "corpus.rules[1] must be one of"),
    ("corpus: {rules: [linked]}", "corpus.rules holds linked, and inputs.links is empty"),
    ("corpus: {rules: [contamination]}", "corpus.rules holds contamination, and evaluation names no set"),
    ("corpus: {duplicates: {similarity: 0.3}}", "below duplicates.floor"),
    ("corpus: strict", "corpus must be a mapping of options, not str 'strict'"),
    ("corpus: 5", "corpus must be a mapping of options"),
    ("inputs: [a, b]", "inputs must be a mapping of options"),
    ("inputs: {texts: [nowhere/*.jsonl]}", "inputs.texts[0] names no file: nowhere/*.jsonl"),
    ("inputs: {archives: [x.warc.gz]}", "inputs.archives[0] names no file"),
    ("inputs: {texts: 5}", "inputs.texts must be a list"),
    ("inputs: {links: [dumps/*]}", "inputs gives no text"),
    ("fetch: {}", "fetch: contact must name an address"),
    ("evaluation: [{name: x, path: nothing.jsonl}]", "evaluation[0]"),
    ("evaluation: [{name: x}]", "evaluation[0].path is required"),
    ("links: {created_before: 2017-13-45}", "is not YAML: month must be in 1..12"),
    ("links: {created_before: soon}", "created_before must be a day such as 2017-12-31"),
    ("on_broken_input: ignore", "on_broken_input must be count or fail"),
    ("a: [b", "is not YAML: while parsing a flow"),
    ("a: !!python/object/apply:os.system [ls]", "is not YAML"),
    ("just words", "must be a mapping of sections"),
    ("", "must be a mapping of sections"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[change[:40] for change, _ in WRONG])
def test_a_wrong_recipe_is_refused_in_one_line_with_its_path(
    world: Any, tmp_path: Path, capsys: Said, change: str, message: str
) -> None:
    recipe = world.folder / "wrong.yaml"
    section = change.partition(":")[0]
    inputs = "" if section == "inputs" or ":" not in change else "inputs: {texts: [texts/*.jsonl]}\n"
    recipe.write_text(f"{inputs}{change}\n")
    assert main(["build", str(recipe), "--workspace", str(tmp_path / "ws"), "-q"]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith(f"webtext: {recipe}")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "ws").exists()


def test_two_inputs_of_one_name_are_refused(world: Any, tmp_path: Path, capsys: Said) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.jsonl").write_text("{}\n")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("inputs: {texts: [one/same.jsonl, two/same.jsonl]}\n")
    assert main(["build", str(recipe), "--workspace", str(tmp_path / "ws"), "-q"]) == 2
    assert "would both be named same.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "-1"], "workers must be 0"),
        (["--limit", "-3"], "--limit must be 0"),
        (["--runner", "DirectRunner"], "runner DirectRunner is not supported"),
        (["--", "--direct_running_mode=multi_threading"], "multi_threading loses data"),
    ],
)
def test_wrong_arguments_are_refused(
    world: Any, tmp_path: Path, capsys: Said, arguments: list[str], message: str
) -> None:
    given = ["build", str(world.recipe()), "--workspace", str(tmp_path / "ws"), "-q", *arguments]
    assert main(given) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert message in error
    assert not (tmp_path / "ws").exists()


def test_a_missing_recipe_or_workspace_is_said(tmp_path: Path, capsys: Said) -> None:
    assert main(["build", str(tmp_path / "no.yaml"), "--workspace", str(tmp_path / "ws")]) == 2
    assert "cannot read the recipe" in capsys.readouterr().err
    for command in (["status"], ["report"], ["export", "--out", str(tmp_path / "out")]):
        assert main([*command, str(tmp_path / "ws")]) == 1
        assert "no workspace at" in capsys.readouterr().err
    assert main(["why", "http://a.example/", "--workspace", str(tmp_path / "ws")]) == 1
    assert "no workspace at" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    for command in (["status"], ["export", "--out", str(tmp_path / "out")]):
        assert main([*command, str(tmp_path / "empty")]) == 1
        assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "empty"]


def test_a_workspace_that_cannot_be_made_is_said_in_one_line(world: Any, tmp_path: Path, capsys: Said) -> None:
    (tmp_path / "file").write_text("in the way")
    assert main(["build", str(world.recipe()), "--workspace", str(tmp_path / "file" / "ws"), "-q"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_too_little_space_is_said_at_the_start(
    world: Any, tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**12, 10**12 - 4096, 4096))
    assert main(["build", str(world.recipe()), "--workspace", str(tmp_path / "ws"), "-q"]) != 0
    error = capsys.readouterr().err
    assert "4.1 kB free, and this build needs about" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "ws" / "documents").exists()


def test_new_writes_a_recipe_that_is_one(tmp_path: Path, capsys: Said) -> None:
    recipe = tmp_path / "recipe.yaml"
    assert main(["new", str(recipe)]) == 0
    assert str(recipe) in capsys.readouterr().out
    assert main(["new", str(recipe)]) == 2
    assert "exists" in capsys.readouterr().err
    assert main(["build", str(recipe), "--workspace", str(tmp_path / "ws")]) == 2
    assert "inputs.links[0] names no file: dumps/RS_*.zst" in capsys.readouterr().err
    from pipelines.recipe import parse_recipe, read_recipe, recipe_yaml

    # Every line that is commented out is one that works, too.
    whole = "\n".join(
        line.replace("# ", "", 1) if line.lstrip().startswith("# ") else line for line in TEMPLATE.splitlines()[2:]
    )
    for pattern in ("dumps/RS_a.zst", "archives/a.warc.gz", "texts/a.jsonl", "enwiki-pages-articles.xml.bz2",
                    "evaluation/lambada_test.jsonl"):  # fmt: skip
        (tmp_path / pattern).parent.mkdir(exist_ok=True)
        (tmp_path / pattern).write_bytes(b'{"text": "x"}\n')
    for text in (TEMPLATE, "\n".join(line for line in whole.splitlines() if "first rule that fails" not in line)):
        recipe.write_text(text)
        parsed, inputs = read_recipe(recipe)
        assert len(inputs.links) == len(inputs.archives) == 1
        assert parse_recipe(recipe_yaml(parsed), "again") == parsed


# What a workspace tells.


def test_status_tells_done_stale_and_missing(
    smaller: tuple[Any, Path], tools: Any, tmp_path: Path, capsys: Said
) -> None:
    part, finished = smaller
    inputs = tools.copied(part, tmp_path / "inputs")
    workspace = tmp_path / "ws"
    shutil.copytree(finished, workspace)
    tools.build(inputs.recipe(), workspace, "--until", "links")
    before = tools.hashes(workspace, (".",))
    done = states(workspace, capsys)
    assert set(done.values()) == {"done"}
    assert "pages" not in done
    assert {"links", "documents", "annotations/links/matches", "corpus", "shards/written"} <= done.keys()
    assert tools.hashes(workspace, (".",)) == before, "asking changed the workspace"

    def stale(recipe: Path) -> list[str]:
        tools.build(recipe, workspace, "--until", "links")
        return [stage for stage, state in states(workspace, capsys).items() if state == "stale"]

    assert stale(inputs.recipe(shards={"validation": 0.2})) == ["shards/written"]
    assert stale(inputs.recipe(tokenizer={"bpe": {"vocab_size": 500}})) == ["tokenizer", "shards/written"]
    assert stale(inputs.recipe(corpus={"quality": {"min_words": 9}})) == ["corpus", "tokenizer", "shards/written"]
    assert stale(inputs.recipe(contamination={"ngrams": [7, 13]}))[0] == "annotations/contamination"
    assert stale(inputs.recipe(wikipedia={"n": 7}))[0] == "annotations/wikipedia"
    assert stale(inputs.recipe(duplicates={"floor": 0.6}))[0] == "annotations/duplicates"
    assert stale(inputs.recipe(documents={"slice_mib": 32}))[0] == "documents"
    assert stale(inputs.recipe()) == []

    (inputs.folder / "texts" / "a.jsonl").open("ab").write(b'{"text": "more"}\n')
    assert next(stage for stage, state in states(workspace, capsys).items() if state == "stale") == "documents"
    (inputs.folder / "texts" / "a.jsonl").unlink()
    (inputs.folder / "texts" / "b.jsonl").unlink()
    assert next(stage for stage, state in states(workspace, capsys).items() if state == "stale") == "documents"

    tools.build(inputs.recipe(), workspace, "--until", "documents")
    (workspace / "shards" / "written" / "manifest.json").unlink()
    found = states(workspace, capsys)
    assert (found["documents"], found["corpus"], found["shards/written"]) == ("done", "stale", "missing")
    assert main(["status", str(workspace)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[1:]] == list(found.values())


def test_why_tells_every_planted_life(built: Path, tools: Any, capsys: Said) -> None:
    for url, reason in tools.plants.items():
        assert main(["why", url, "--workspace", str(built), "--json"]) == 0
        life = printed_json(capsys)
        decision = life["documents"][0]["decision"]
        assert (decision["keep"], decision["reason"]) == (reason == "", reason)
        assert life["verdict"].startswith(
            "in the corpus" if not reason else f"not in the corpus: dropped by the rules as {reason}"
        )
        linked = url not in ("http://unlinked.example/story",)
        assert bool(life["links"]) == linked
        assert set(life["documents"][0]["evidence"]) == {
            "links", "language", "quality", "wikipedia", "duplicates", "contamination"
        }  # fmt: skip
        assert main(["why", url, "--workspace", str(built)]) == 0
        assert ("kept" if not reason else f"dropped: {reason}") in capsys.readouterr().out


def test_why_names_the_survivor_of_a_duplicate(built: Path, capsys: Said) -> None:
    def life(url: str) -> Any:
        main(["why", url, "--workspace", str(built), "--json"])
        return printed_json(capsys)["documents"][0]

    exact, near = life("http://copy.example/exact"), life("http://copy.example/near")
    assert exact["decision"]["detail"].split() == [life("http://kept.example/first")["doc_id"], "1.0000"]
    survivor, similarity = near["decision"]["detail"].split()
    assert survivor == life("http://kept.example/page")["doc_id"]
    assert 0.8 <= float(similarity) < 1


@pytest.mark.parametrize(
    ("url", "verdict"),
    [
        ("http://empty.example/", "not in the corpus: its page gave no document, no_text"),
        ("https://www.youtube.com/watch?v=1", "not in the corpus: the link was dropped, blocked_domain"),
        ("http://nowhere.example/lost", "not in the corpus: the link was kept, and no page of it is here"),
        ("HTTP://WWW.Kept.example:80/first#part", "in the corpus"),
    ],
)
def test_why_tells_where_a_link_was_lost(built: Path, capsys: Said, url: str, verdict: str) -> None:
    assert main(["why", url, "--workspace", str(built), "--json"]) == 0
    assert printed_json(capsys)["verdict"] == verdict


def test_why_says_what_it_does_not_know(built: Path, capsys: Said) -> None:
    assert main(["why", "http://never.example/\x1b[31m", "--workspace", str(built)]) == 1
    out = capsys.readouterr().out
    assert "no link and no page of this URL is in the workspace" in out
    assert "\x1b" not in out


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_export_writes_what_was_kept_with_its_provenance(
    built: Path, tools: Any, tmp_path: Path, capsys: Said, format: str
) -> None:
    out = tmp_path / "out"
    assert main(["export", str(built), "--out", str(out), "--format", format, "--json"]) == 0
    told = printed_json(capsys)
    rows: list[dict[str, Any]] = []
    files = sorted(path for path in out.iterdir() if not path.name.startswith("_"))
    assert pq.read_table(out).num_rows if format == "parquet" else True, "a folder that Parquet readers open"
    for path in files:
        if format == "parquet":
            rows += pq.read_table(path).to_pylist()
        else:
            rows += [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert told == {"documents": len(rows), "files": len(files)}

    workspace = Workspace.open(built)
    documents, corpus = read_manifest(workspace, "documents"), read_manifest(workspace, "corpus")
    assert documents is not None
    assert corpus is not None
    positions = {file.part: file for file in documents.parts("positions")}
    expected = {}
    for file, decisions in zip(documents.parts(), corpus.parts(), strict=True):
        where = read_part(workspace, positions[file.part], ["source", "offset", "fetched_at"]).to_pylist()
        verdicts = read_part(workspace, decisions).to_pylist()
        for at, row in enumerate(read_part(workspace, file).to_pylist()):
            if verdicts[at]["keep"]:
                expected[file.part, at] = {**row, **where[at]}, verdicts[at]["cuts"]
    assert {(row["part"], row["row"]) for row in rows} == set(expected)
    cut = 0
    for row in rows:
        original, cuts = expected[row["part"], row["row"]]
        for name in ("doc_id", "url", "title", "date", "language", "source", "offset", "fetched_at"):
            assert row[name] == original[name]
        if not cuts:
            assert row["text"] == original["text"]
            continue
        cut += 1
        data, at, pieces = original["text"].encode(), 0, []
        for span in [*cuts, {"start": len(data), "end": len(data)}]:
            pieces.append(data[at : span["start"]].decode().strip())
            at = span["end"]
        assert row["text"] == "\n\n".join(piece for piece in pieces if piece)
        assert "eleven silver herons" not in row["text"]
        assert "eleven silver herons" in original["text"]
    assert cut == 1
    by_url = {row["url"]: row for row in rows}
    assert by_url["http://kept.example/page"]["source"] == "two.warc.gz"
    assert by_url["http://kept.example/page"]["fetched_at"] == 1_500_000_000
    assert by_url["http://kept.example/first"]["score"] == 70
    assert all(row["link"] for row in rows)
    assert set(by_url) >= {url for url, reason in tools.plants.items() if not reason}
    assert not set(by_url) & {url for url, reason in tools.plants.items() if reason}


def test_quiet_is_quiet_and_json_is_json(own: Path, world: Any, tmp_path: Path, capsys: Said) -> None:
    recipe = str(world.recipe())
    for command in (
        ["build", recipe, "--workspace", str(own), "--workers", "1"],
        ["links", recipe, "--workspace", str(own)],
        ["export", str(own), "--out", str(tmp_path / "out")],
        ["report", str(own)],
        ["new", str(tmp_path / "new.yaml")],
    ):
        assert main([*command, "-q"]) == 0
        assert capsys.readouterr() == ("", ""), command
    assert main(["build", recipe, "--workspace", str(own), "--json"]) == 0
    told = printed_json(capsys)
    assert told["workspace"] == str(own)
    assert {row["stage"] for row in told["funnel"]} >= {"links", "documents", "corpus", "shards/written"}
    assert all(row["balances"] for row in told["funnel"])
    assert main(["report", str(own), "--json"]) == 0
    assert printed_json(capsys) == json.loads((own / "report" / "report.json").read_text())
    assert main(["build", recipe, "--workspace", str(own)]) == 0
    assert "256 kept" in capsys.readouterr().out


def test_the_workspace_remembers_recipe_and_inputs(built: Path, world: Any) -> None:
    from pipelines.recipe import read_recipe

    kept, files = read_recipe(built / "recipe.yaml")
    given, _ = read_recipe(world.recipe())
    assert (kept.corpus, kept.tokenizer, kept.shards) == (given.corpus, given.tokenizer, given.shards)
    assert yaml.safe_load((built / "recipe.yaml").read_text())["duplicates"]["permutations"] == 112
    listed = json.loads((built / "inputs.json").read_text())
    assert [file["name"] for file in listed["texts"]] == ["a.jsonl", "b.jsonl", "c.jsonl", "d.jsonl"]
    assert {len(file["sha256"]) for files in listed.values() for file in files} == {64}
    assert [file.name for file in files.links] == ["RS_2017-01", "RS_2017-02"]


def test_a_home_folder_in_a_recipe_is_remembered_as_it_was_meant(
    world: Any, tools: Any, tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tools.copied(world, tmp_path / "home")
    monkeypatch.setenv("HOME", str(home.folder))
    herons = [{"name": "herons", "path": "~/herons.jsonl", "format": "jsonl"}]
    recipe = world.recipe("home.yaml", inputs={"texts": ["~/texts/a.jsonl"]}, corpus=None, evaluation=herons)
    workspace = tmp_path / "ws"
    tools.build(recipe, workspace, "--until", "documents")
    assert states(workspace, capsys)["documents"] == "done"


# Damage.


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def alter(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [cut, alter, Path.unlink], ids=["cut", "altered", "removed"])
@pytest.mark.parametrize("table", ["documents", "pages/positions", "annotations/quality", "corpus"])
def test_a_damaged_part_is_named(own: Path, tmp_path: Path, capsys: Said, table: str, damage: Any) -> None:
    bad = sorted((own / table).glob("a.jsonl*.parquet"))[0]
    damage(bad)
    url = "http://site0.example/story/0"
    assert main(["why", url, "--workspace", str(own)]) == 1
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert f"{table}/{bad.name}" in error
    assert "build again" in error
    if table != "annotations/quality":  # which an export has no use for
        assert main(["export", str(own), "--out", str(tmp_path / "out"), "-q"]) == 1
        assert f"{table}/{bad.name}" in capsys.readouterr().err
        assert [path for path in (tmp_path / "out").iterdir() if path.name.startswith(("a.jsonl", "."))] == []


def test_damage_is_repaired_by_the_same_command(own: Path, built: Path, world: Any, tools: Any, capsys: Said) -> None:
    for table in ("documents", "annotations/language", "annotations/duplicates", "corpus/survivors", "links"):
        cut(sorted((own / table).glob("*.parquet"))[0])
    sorted((own / "corpus").glob("*.parquet"))[0].unlink()
    sorted((own / "pages" / "rejected").glob("*.parquet"))[0].unlink()
    cut(sorted((own / "shards").glob("train-*.arrow"))[0])
    (own / "shards" / "manifest.json").unlink()
    alter(own / "tokenizer" / "vocab.json")
    assert states(own, capsys)["links"] == "stale"
    tools.build(world.recipe(), own, "--until", "shards")
    assert tools.differences(tools.hashes(built), tools.hashes(own)) == []
    altered = sorted((own / "documents").glob("*.parquet"))[0]
    alter(altered)
    altered.unlink()  # as the message about it says
    tools.build(world.recipe(), own, "--until", "shards")
    assert tools.differences(tools.hashes(built), tools.hashes(own)) == []


def test_a_damaged_manifest_is_named(own: Path, capsys: Said) -> None:
    (own / "corpus" / "manifest.json").write_bytes(b"{")
    assert main(["export", str(own), "--out", str(own.parent / "out")]) == 1
    error = capsys.readouterr().err
    assert "corpus/manifest.json is not a manifest" in error
    assert error.count("\n") == 1


def test_broken_inputs_are_counted_or_fatal_as_the_recipe_says(
    world: Any, tools: Any, tmp_path: Path, capsys: Said
) -> None:
    inputs = {"archives": ["archives/*.warc.gz"]}
    workspace = tmp_path / "ws"
    strict = world.recipe("strict.yaml", inputs=inputs, corpus=None, evaluation=None, on_broken_input="fail")
    command = ["build", str(strict), "--workspace", str(workspace), "--workers", "1", "-q"]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "cut.warc.gz" in error
    assert "on_broken_input: fail" in error
    found = states(workspace, capsys)
    assert (found["documents"], found["corpus"]) == ("done", "missing")


# What is not imported.


def modules_after(code: str, tools: Any) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint('\\n'.join(sys.modules), file=sys.stderr)"],
        capture_output=True,
        text=True,
        cwd=tools.root,
        check=True,
    )
    return {name.partition(".")[0] for name in done.stderr.splitlines()}


HEAVY = set("apache_beam torch trafilatura tokenizers fastwarc py3langid pandas transformers datasets".split())


def modules_of(package: str, tools: Any) -> str:
    names = sorted(path.stem for path in (tools.root / package).glob("*.py") if not path.stem.startswith("__"))
    return "\n".join(f"import {package}.{name}" for name in names if (package, name) not in BEAM)


BEAM = {("pipelines", "dofns"), ("pipelines", "preload")}
"""The modules that are there to be imported where Beam runs."""


def test_help_loads_nothing_heavy(tools: Any) -> None:
    code = "from pipelines.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    assert not modules_after(code, tools) & {*HEAVY, "pyarrow", "numpy"}
    for command in ("build", "why", "train"):
        assert not modules_after(code.replace("'--help'", f"{command!r}, '--help'"), tools) & HEAVY


def test_packages_keep_to_themselves(tools: Any) -> None:
    assert not modules_after(modules_of("pipelines", tools), tools) & {*HEAVY, "model"}
    assert not modules_after(modules_of("tokenizer", tools), tools) & {*HEAVY, "model", "pipelines"}
    assert not modules_after(modules_of("model", tools), tools) & {"apache_beam", "pipelines", "trafilatura"}
    assert not modules_after("import pipelines.dofns, pipelines.preload, pipelines.build", tools) & {"torch", "model"}


def test_no_module_of_the_pipeline_asks_for_the_day(tools: Any) -> None:
    """What is fetched carries its time; nothing else may know what day it is."""
    import re

    asks = re.compile(r"\btime\.time\(|\.now\(|\.today\(|\.utcnow\(|time\.(?:gm|local)time\(")
    found = {
        path.name
        for package in ("pipelines", "tokenizer")
        for path in (tools.root / package).glob("*.py")
        if asks.search(path.read_text(encoding="utf-8"))
    }
    assert found <= {"fetch.py", "crawl.py", "loopback.py", "demo.py", "demo_web.py"}
