"""What leaves a workspace, or is read after it moved on: exports, decisions, shards and copies that could mislead."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.inputs import find_inputs
from pipelines.options import RecipeError
from pipelines.recipe import parse_recipe, read_recipe
from pipelines.workspace import Workspace, read_manifest

WORDS = "the river and the mill stood by a road that led to the old market in that town for many years"


def text(seed: int) -> str:
    """An article of its own: 90 words in sentences, no two alike."""
    words = [
        f"{word}{(seed * 7 + i) % 97 if i % 4 == 0 else ''}"
        for i, word in enumerate((WORDS + " ") * 5 and (WORDS.split() * 5))
    ]
    return " ".join(words[:90]) + f" and so ended day {seed} of the year."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for name, seeds in (("a", range(8)), ("b", range(20, 26))):
        rows = [{"url": f"http://{name}.example/{i}", "text": text(i)} for i in seeds]
        (tmp_path / "in" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_recipe(tmp_path, "[]")
    return tmp_path


def write_recipe(folder: Path, rules: str) -> None:
    (folder / "r.yaml").write_text(
        "inputs: {texts: [in/*.jsonl]}\n"
        f"corpus: {{rules: {rules}, language: {{keep: [de], confidence: 0.9}}}}\n"
        "tokenizer: {bpe: {vocab_size: 300}}\nshards: {validation: 0.2}\n"
    )


def webtext(folder: Path, *arguments: str) -> int:
    return main([arguments[0], str(folder / "r.yaml"), "--workspace", str(folder / "ws"), "-q", *arguments[1:]])


def export(folder: Path, out: str, *more: str) -> int:
    return main(["export", str(folder / "ws"), "--out", str(folder / out), "-q", *more])


@pytest.mark.parametrize("change", ["altered", "added", "removed"])
def test_old_decisions_are_not_applied_to_new_documents(
    folder: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert webtext(folder, "build") == 0
    a, b = folder / "in/a.jsonl", folder / "in/b.jsonl"
    if change == "altered":
        a.write_text(a.read_text().replace("a.example/3", "z.example/3"))
    elif change == "added":
        shutil.copy(a, folder / "in/c.jsonl")
    else:
        b.unlink()
    assert webtext(folder, "documents") == 0
    assert export(folder, "out") == 1
    assert "build again" in capsys.readouterr().err
    assert webtext(folder, "build") == 0
    assert export(folder, "out") == 0


def test_an_export_leaves_nothing_of_the_one_before(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert webtext(folder, "build") == 0
    assert export(folder, "out") == 0
    (folder / "in/b.jsonl").rename(folder / "b.away")
    assert webtext(folder, "build") == 0
    assert export(folder, "out", "--format", "jsonl") == 0
    left = sorted(path.name for path in (folder / "out").iterdir())
    assert len(left) == 2
    assert left[0] == "_export.json"
    listed = json.loads((folder / "out/_export.json").read_text())["files"]
    assert listed == {left[1]: 8}
    (folder / "out/mine.parquet").write_bytes(b"somebody's own")
    assert export(folder, "out") == 1
    assert "mine.parquet" in capsys.readouterr().err
    assert (folder / "out/mine.parquet").read_bytes() == b"somebody's own"


def test_shards_of_another_corpus_are_taken_back(folder: Path) -> None:
    assert webtext(folder, "build") == 0
    manifest = folder / "ws/shards/manifest.json"
    before = manifest.read_bytes()
    write_recipe(folder, "[language]")
    assert webtext(folder, "build") == 1, "nothing is in German"
    assert not manifest.exists()
    write_recipe(folder, "[]")
    assert webtext(folder, "build") == 0
    assert manifest.read_bytes() == before


def test_a_workspace_copied_without_its_state_still_shows_its_results(folder: Path) -> None:
    assert webtext(folder, "build") == 0
    shutil.copytree(folder / "ws", folder / "bare" / "ws", ignore=shutil.ignore_patterns(".state"))
    bare = folder / "bare"
    whole = read_manifest(Workspace(str(folder / "ws")), "documents")
    copied = read_manifest(Workspace(str(bare / "ws")), "documents")
    assert whole is not None
    assert copied is not None
    assert copied.parts() == whole.parts()
    assert export(bare, "out") == 0
    assert main(["why", "https://a.example/3", "--workspace", str(bare / "ws"), "--json"]) == 0
    assert main(["report", str(bare / "ws"), "-q"]) == 0
    assert json.loads((bare / "ws/report/report.json").read_text())


@pytest.mark.parametrize("command", ["status", "report", "export", "why"])
def test_a_folder_that_is_no_workspace_is_left_alone(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"export": ["--out", str(tmp_path / "out")]}.get(command, [])
    arguments = ["why", "http://a/", "--workspace", str(tmp_path)] if command == "why" else [command, str(tmp_path)]
    assert main([*arguments, *more]) == 1
    assert "no build has begun here" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_why_knows_a_url_as_people_write_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert webtext(folder, "build") == 0
    for spelled in (
        "a.example/3",
        "//a.example/3",
        "HTTPS://www.A.example/3/",
        "http://a.example/3?utm_source=x&amp;a",
    ):
        found = main(["why", spelled, "--workspace", str(folder / "ws")]) == 0
        assert found is (not spelled.endswith("amp;a")), spelled
    assert main(["why", "http://bad\udcff.example/\x1b[31m", "--workspace", str(folder / "ws")]) == 1
    assert "\x1b" not in capsys.readouterr().out


def test_status_of_a_workspace_whose_inputs_went_away(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert webtext(folder, "build") == 0
    (folder / "in").rename(folder / "archived")
    (folder / "ws/.state/inputs.json").write_text("rubbish")
    assert main(["status", str(folder / "ws"), "--json"]) == 0
    assert {row["stage"] for row in json.loads(capsys.readouterr().out)} >= {"documents", "corpus", "shards/written"}


def test_inputs_below_odd_folders_and_links(tmp_path: Path) -> None:
    odd = tmp_path / "d[1] *x"
    (odd / "in/.git").mkdir(parents=True)
    (odd / "in/.git/config").write_text("hidden")
    (odd / "in/one.txt").write_text("one")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/two.txt").write_text("two")
    (odd / "in/linked").symlink_to(tmp_path / "elsewhere")
    (odd / "in/linked/back").symlink_to(odd / "in")
    names = [file.name for file in find_inputs(["in"], odd, "inputs.texts")]
    assert [name for name in names if "back" not in name] == ["linked/two.txt", "one.txt"]
    assert [file.name for file in find_inputs(["in/*.txt"], odd, "inputs.texts")] == ["one.txt"]
    (odd / "in/dangling.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(RecipeError, match=r"dangling\.txt is a link to a file that is not there"):
        find_inputs(["in"], odd, "inputs.texts")


def test_a_name_that_two_sections_share_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("a/same.warc", "same.warc"):
        (tmp_path / name).write_text("x")
    (tmp_path / "r.yaml").write_text("inputs: {texts: [same.warc], archives: [a/same.warc]}\n")
    with pytest.raises(RecipeError, match=r"both have a file named same\.warc"):
        read_recipe(tmp_path / "r.yaml")


def test_a_key_given_twice_is_refused() -> None:
    with pytest.raises(RecipeError, match="'links' is given twice"):
        parse_recipe("inputs: {links: [a], links: [b]}", "r.yaml")


def test_a_damaged_recipe_in_a_workspace_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_text("inputs: [")
    assert main(["report", str(tmp_path)]) == 1
    assert "recipe.yaml is damaged" in capsys.readouterr().err
