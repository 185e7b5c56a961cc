"""The command line: no torch until a command runs, flags for every option, JSON out, errors that name the input."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

from model.commands import add_commands, main, options_of, printable, whole_number
from model.options import EvaluateOptions, GenerateOptions, InfoOptions, TrainOptions

ROOT = Path(__file__).resolve().parents[2]


def test_definitions_import_no_torch_and_the_package_no_beam() -> None:
    code = (
        "import sys, argparse; from model.commands import add_commands;"
        "add_commands(argparse.ArgumentParser().add_subparsers());"
        "heavy = {'torch', 'numpy', 'pyarrow', 'tokenizers', 'apache_beam', 'pipelines'} & set(sys.modules);"
        "assert not heavy, heavy;"
        "import model.train, model.evaluate, model.generate, model.info;"
        "assert not {'apache_beam', 'pipelines', 'tokenizer'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_every_option_has_a_flag_or_a_place() -> None:
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers())
    flags = ["--shards", "s", "--text", "a=b", "--text", "c=d", "--stride", "4", "--best"]
    options = options_of(EvaluateOptions, parser.parse_args(["evaluate", "run", *flags]))
    assert options == EvaluateOptions("run", best=True, shards="s", text=("a=b", "c=d"), stride=4)
    options = options_of(TrainOptions, parser.parse_args(["train", "s", "r", "--tokens", "3e5", "--no-compile"]))
    assert options == TrainOptions("s", "r", tokens=300_000, compile=False)
    for name, kind in (
        ("train", TrainOptions),
        ("evaluate", EvaluateOptions),
        ("generate", GenerateOptions),
        ("info", InfoOptions),
    ):
        required = [f.name for f in fields(kind) if f.default is MISSING]
        needed: dict[str, Any] = (
            {"shards": "s"} if kind is EvaluateOptions else {}
        )  # which refuses to evaluate nothing
        flags = [f"--{flag}={value}" for flag, value in needed.items()]
        assert options_of(kind, parser.parse_args([name, *required, *flags])) == kind(*required, **needed)
        subparser = parser._subparsers._group_actions[0].choices[name]  # type: ignore[union-attr,index]  # argparse internals
        assert {f"model_{f.name}" for f in fields(kind)} <= {action.dest for action in subparser._actions}


def test_the_commands_can_be_mounted_in_another_program() -> None:
    """`run` is the function even where an option of that name is given."""
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers())
    parsed = parser.parse_args(["train", "shards", "runs/x"])
    assert callable(parsed.run)
    assert options_of(TrainOptions, parsed).run == "runs/x"


def test_numbers_and_terminal_text() -> None:
    assert [whole_number(text) for text in ("12", "1_000", "3e5")] == [12, 1000, 300_000]
    for text in ("1.5", "x", "1e400"):
        with pytest.raises(ValueError, match=r"."):
            whole_number(text)
    assert printable("a\x1b[31m\tb\n\u202e") == "a\\x1b[31m\tb\n\\u202e"


def test_train_evaluate_generate_info(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    shape = ["--preset", "tiny", "--n-embd", "32", "--n-ctx", "16", "--batch-tokens", "128", "--steps", "8"]
    assert main(["train", str(corpus), run, *shape, "--device", "cpu", "-q", "--json"]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert trained["finished"]
    assert trained["step"] == 8
    (tmp_path / "t.txt").write_text("the cat sat\n")
    assert main(["evaluate", run, "--shards", str(corpus), "--text", f"t={tmp_path / 't.txt'}"]) == 0
    shown = capsys.readouterr().out
    assert "t (perplexity, all)" in shown
    assert "ppl_per_word" in shown
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["sets"]["t"]["all"]["words"] == 3
    assert main(["generate", run, "--prompt", "the cat", "--tokens", "4"]) == 0
    assert capsys.readouterr().out.startswith("--- seed 0")
    assert main(["info", run, "--step", "3", "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["step"] == 8
    assert {seen["sample"] for seen in info["seen"]} == set(range(8))
    assert all(sum(s["tokens"] for s in info["seen"] if s["sample"] == i) == 17 for i in range(8))
    assert main(["info", run, "--step", "3"]) == 0
    listed = capsys.readouterr().out.split("\nwindow ", 1)[1].splitlines()
    assert listed[0].split()[:3] == ["doc_id", "part", "row"]
    seen = info["seen"]
    assert [line.split()[:4] for line in listed[1:]] == [
        [str(s["sample"]), s["doc_id"], f"{s['part']:016x}", str(s["row"])] for s in seen
    ]
    assert main(["info", str(corpus), "--json", "--verify"]) == 0
    assert json.loads(capsys.readouterr().out)["train_documents"] == 400


def test_quiet_prints_nothing_but_json(corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    shape = ["--preset", "tiny", "--n-embd", "32", "--n-ctx", "16", "--batch-tokens", "128", "--steps", "2"]
    commands = (
        ["train", str(corpus), run, *shape, "--device", "cpu"],
        ["evaluate", run, "--shards", str(corpus)],
        ["generate", run, "--tokens", "4"],
        ["info", run, "--step", "1"],
        ["info", str(corpus)],
    )
    for command in commands:
        assert main([*command, "-q"]) == 0
        assert capfd.readouterr() == ("", "")
        assert main([*command, "-q", "--json"]) == 0
        out, err = capfd.readouterr()
        assert json.loads(out)
        assert err == ""
    assert main(["info", str(tmp_path / "none"), "-q"]) == 1
    assert "neither a checkpoint nor a run" in capfd.readouterr().err


def test_a_reader_who_stops_early_hears_no_complaint(corpus: Path) -> None:
    """Whether the pipe breaks while printing or when what was printed is flushed at the end."""
    for buffered in ("", "1"):
        command = [sys.executable, "-m", "model", "info", str(corpus)]
        environment = {**os.environ, "PYTHONUNBUFFERED": buffered}
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=writing, stderr=subprocess.PIPE, text=True, check=False
        )
        os.close(writing)
        assert (done.returncode, done.stderr) == (1, "")


def test_a_prompt_that_is_not_utf8_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [os.fsencode(sys.executable), b"-m", b"model", b"generate", os.fsencode(tmp_path), b"--prompt", b"a\xff"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == b"error: prompt is not UTF-8 at character 2\n"


def test_errors_name_the_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(tmp_path), str(tmp_path / "run")]) == 1
    assert "manifest.json: no such file" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "nothing"), "--shards", "s"]) == 1
    assert "neither a checkpoint nor a run" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "nothing")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["train", "s", "r", "--tokens", "5", "--steps", "5"]) == 1
    assert "only one of tokens, steps and epochs" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "s", "r", "--preset", "gpt9"])
