"""The house rules that a machine can check: style, types, imports that cost, and the README's two commands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str) -> str:
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_ruff_is_clean() -> None:
    run("-m", "ruff", "check", ".")
    run("-m", "ruff", "format", "--check", ".")


def test_types_are_clean() -> None:
    run("-m", "mypy")


def test_docstring_examples_are_true() -> None:
    run("-m", "pytest", "--doctest-modules", "-q", "pipelines", "tokenizer", "-p", "no:cacheprovider")


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("from pipelines.cli import main; main(['--version'])", "apache_beam torch trafilatura pyarrow numpy"),
        ("import pipelines.recipe, pipelines.build, pipelines.status, pipelines.why", "apache_beam torch model"),
        ("import pipelines.dofns, pipelines.report, pipelines.demo, pipelines.shards", "torch model"),
        ("import model.train, model.evaluate, model.generate, model.commands", "apache_beam pipelines"),
        ("import tokenizer.encode, tokenizer.train, tokenizer.files", "apache_beam pipelines model torch"),
    ],
)
def test_imports_keep_to_their_side(statement: str, forbidden: str) -> None:
    code = f"import sys\n{statement}\nprint(*(m for m in {forbidden.split()!r} if m in sys.modules))"
    assert run("-c", code).split("\n")[-2].split() == []


def test_ci_runs_exactly_the_readme_test_command() -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    commands = [line for line in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines() if "pytest" in line]
    assert commands == [blocks[1].strip()]
    assert blocks[0].strip().endswith("webtext demo")
