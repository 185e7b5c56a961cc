"""`webtext`: one command, typed subcommands. Heavy imports happen inside the subcommand that needs them.

Exit status: 0 done, 1 the work failed or found what it must not, 2 the command or the recipe was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

EXPECTED = (
    "RecipeError",
    "StageError",
    "RunError",
    "WorkspaceError",
    "ShardError",
    "CheckpointError",
    "TrainError",
    "VocabularyError",
    "DemoError",
)
"""Errors that are messages to the user: shown as one line, without a stack."""

STAGES = {
    "links": "harvest the links people voted for",
    "pages": "… and fetch the kept links into WARC files",
    "documents": "… and extract the main text of every page",
    "annotations": "… and find language, quality, duplicates, Wikipedia and contamination",
    "corpus": "… and decide with the recipe's rules what is kept",
    "tokenizer": "… and train the tokenizer on what is kept",
    "shards": "… and write the token shards",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="webtext", description="Build a WebText-style corpus, and train a GPT you can answer for."
    )
    parser.add_argument("--version", action="store_true", help="print the version and leave")
    commands = parser.add_subparsers(dest="subcommand", metavar="COMMAND")

    def command(name: str, help: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(run=run)
        sub.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")
        sub.add_argument("-v", "--verbose", action="store_true", help="say more")
        return sub

    sub = command("demo", "make a small web, build a corpus from it, train on it, and check what was caught", _demo)
    sub.add_argument("--workspace", default="webtext-demo", help="folder to work in (default: %(default)s)")
    sub.add_argument("--json", action="store_true", help="print the result as JSON")
    _add_workers(sub)

    sub = command("new", "write a small commented recipe", _new)
    sub.add_argument("recipe", nargs="?", default="recipe.yaml", help="where to write it (default: %(default)s)")

    sub = command("options", "list every option of a recipe with its type, default and meaning", _options)
    sub.add_argument("section", nargs="?", default="", help="only this section, such as links or corpus.quality")

    sub = command(
        "build", "run all corpus stages of a recipe; resumes what was cut off, redoes what is stale", _build
    )
    _add_build(sub)
    sub.add_argument("--until", choices=[*STAGES, "report"], default="report", help="stop after this step")
    for name, help in STAGES.items():
        sub = command(name, help, _build)
        _add_build(sub)
        sub.set_defaults(until=name)

    sub = command("status", "show what is done, stale and missing in a workspace", _status)
    _add_workspace(sub)
    sub = command("why", "tell the life of one URL: every judgement, and why it is or is not in the corpus", _why)
    sub.add_argument("url", help="a link or page, in any spelling")
    sub.add_argument("--workspace", required=True, help="the workspace to look in")
    sub.add_argument("--json", action="store_true", help="print JSON")
    sub = command("export", "write the corpus with its provenance as Parquet or JSON lines", _export)
    _add_workspace(sub)
    sub.add_argument("--out", required=True, help="folder to write to")
    sub.add_argument("--format", choices=["parquet", "jsonl"], default="parquet", help="default: %(default)s")
    sub = command("report", "write report/index.html and report.json", _report)
    _add_workspace(sub)
    _add_model_commands(commands)
    return parser


def _add_workspace(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("workspace", help="the workspace folder")
    sub.add_argument("--json", action="store_true", help="print JSON")


def _add_workers(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--workers", type=int, default=0, help="worker processes (default: one per core)")
    sub.add_argument("--runner", default="FnApiRunner", help="Beam runner; its own options follow after --")
    sub.set_defaults(passthrough=())
    sub.epilog = (
        "What follows -- is passed to the Beam runner as it is: … --runner FlinkRunner -- --flink_master=host:8081"
    )


def _add_build(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("recipe", help="the recipe, as `webtext new` writes one")
    sub.add_argument("--workspace", required=True, help="folder for everything the build makes")
    sub.add_argument("--limit", type=int, default=0, help="only the first N records of each input, for a first look")
    sub.add_argument("--json", action="store_true", help="print the result as JSON")
    _add_workers(sub)


def _add_model_commands(commands: Any) -> None:
    """train, evaluate, generate, info: defined by the model package, which imports torch only when one runs."""
    from model.commands import add_commands

    add_commands(commands)


def _runner(arguments: argparse.Namespace) -> Any:
    from pipelines.options import RecipeError
    from pipelines.runner import RunnerOptions

    try:
        return RunnerOptions(arguments.runner, arguments.workers, tuple(arguments.passthrough))
    except ValueError as error:
        raise RecipeError(str(error)) from error


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=1))


def _new(arguments: argparse.Namespace) -> int:
    from pipelines.options import RecipeError
    from pipelines.recipe import TEMPLATE

    path = Path(arguments.recipe)
    if path.exists():
        raise RecipeError(f"{path} exists; name another file")
    path.write_text(TEMPLATE, encoding="utf-8")
    if not arguments.quiet:
        print(f"wrote {path}: name your inputs in it, then `webtext build {path} --workspace DIR`")
    return 0


def _options(arguments: argparse.Namespace) -> int:
    from pipelines.options import RecipeError, describe_options
    from pipelines.recipe import Recipe

    blocks = "\n".join(describe_options(Recipe)).split("\n\n")
    wanted = arguments.section
    chosen = [block for block in blocks if not wanted or re.match(rf"{re.escape(wanted)}[.:\[]", block)]
    if not chosen:
        raise RecipeError(f"there is no section {wanted}; `webtext options` lists them all")
    print("\n\n".join(chosen).strip())
    return 0


def _build(arguments: argparse.Namespace) -> int:
    from pipelines.build import build
    from pipelines.options import RecipeError
    from pipelines.recipe import read_recipe
    from pipelines.status import funnel, funnel_lines
    from pipelines.workspace import Workspace

    if arguments.limit < 0:
        raise RecipeError(f"--limit must be 0 (everything) or more, not {arguments.limit}")
    runner = _runner(arguments)
    recipe, inputs = read_recipe(Path(arguments.recipe))
    workspace = Workspace.open(arguments.workspace, create=True)
    base = Path(arguments.recipe).absolute().parent
    build(workspace, recipe, inputs, base, runner, arguments.until, arguments.limit)
    if arguments.json:
        _print_json({"workspace": workspace.url, "funnel": funnel(workspace)})
    elif not arguments.quiet:
        print("\n".join(funnel_lines(workspace)))
        if arguments.until == "report":
            print(f"report: {workspace.local_path('report/index.html')}")
    return 0


def _open_run(folder: str) -> Any:
    """A workspace that a build has begun in. Raises WorkspaceError for any other folder."""
    from pipelines.workspace import Workspace, WorkspaceError

    workspace = Workspace.open(folder)
    if not workspace.exists("recipe.yaml"):
        raise WorkspaceError(f"{folder} holds no recipe.yaml: no build has begun here")
    return workspace


def _status(arguments: argparse.Namespace) -> int:
    from pipelines.status import status, status_lines

    rows = status(_open_run(arguments.workspace))
    if arguments.json:
        _print_json(rows)
    else:
        print("\n".join(status_lines(rows)))
    return 0


def _why(arguments: argparse.Namespace) -> int:
    from pipelines.why import life_lines, life_of

    life = life_of(_open_run(arguments.workspace), arguments.url)
    if arguments.json:
        _print_json(life)
    else:
        print("\n".join(life_lines(life)))
    return 0 if life["found"] else 1


def _export(arguments: argparse.Namespace) -> int:
    from pipelines.export import export_corpus

    result = export_corpus(_open_run(arguments.workspace), Path(arguments.out), arguments.format)
    if arguments.json:
        _print_json(result)
    elif not arguments.quiet:
        print(f"{result['documents']:,} documents in {result['files']} files under {arguments.out}")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from pipelines.report import write_report

    workspace = _open_run(arguments.workspace)
    data = write_report(workspace)
    if arguments.json:
        _print_json(data)
    elif not arguments.quiet:
        print(f"{workspace.local_path('report/index.html')}")
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from pipelines.demo import run_demo

    return run_demo(Path(arguments.workspace), _runner(arguments), as_json=arguments.json, quiet=arguments.quiet)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    parser = _parser()
    given = list(sys.argv[1:] if arguments is None else arguments)
    own, passed = (given[: given.index("--")], given[given.index("--") + 1 :]) if "--" in given else (given, [])
    parsed = parser.parse_args(own)
    if passed and not hasattr(parsed, "passthrough"):
        parser.error(f"{parsed.subcommand} runs no Beam pipeline: leave out what follows --")
    parsed.passthrough = passed
    if parsed.version:
        import importlib.metadata

        print(f"webtext {importlib.metadata.version('webtext')}")
        return 0
    if parsed.subcommand is None:
        parser.print_help()
        return 2
    from pipelines.progress import printable, set_verbosity

    set_verbosity(1 if getattr(parsed, "verbose", False) else -1 if getattr(parsed, "quiet", False) else 0)
    try:
        run = parsed.run if hasattr(parsed, "run") else parsed.command
        return int(run(parsed) or 0)
    except KeyboardInterrupt:
        print("interrupted; the same command resumes", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        expected = any(kind.__name__ in EXPECTED for kind in type(error).__mro__) or isinstance(
            error, OSError
        )  # OSError: no space, no permission
        if not expected or getattr(parsed, "verbose", False):
            raise
        print(f"webtext: {printable(error)}", file=sys.stderr)
        return 2 if type(error).__name__ == "RecipeError" else 1


if __name__ == "__main__":
    sys.exit(main())
