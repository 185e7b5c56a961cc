"""The command line of the model, without torch: definitions here, the work imported when a command runs.

`add_commands(subparsers)` mounts train, evaluate, generate and info under any program; each parsed namespace then
carries `run`, a function from the namespace to an exit status. Flags are the fields of the options dataclasses; their
values are kept under `model_<field>`, so that they meet no name of the program they are mounted in.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, asdict, fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from model.options import EvaluateOptions, GenerateOptions, InfoOptions, TrainOptions

Command = Callable[[argparse.Namespace], int]
PREFIX = "model_"
SEEN_HEAD = f"{'window':6}  {'doc_id':32}  {'part':16}  {'row':>10}  file  first token+tokens"


def add_commands(subparsers: Any) -> None:
    """Mount the four commands on what `ArgumentParser.add_subparsers()` returned."""
    for name, options, run, help in (
        ("train", TrainOptions, run_train, "train a GPT on token shards, or continue a run"),
        ("evaluate", EvaluateOptions, run_evaluate, "validation loss, perplexity and LAMBADA of a checkpoint"),
        ("generate", GenerateOptions, run_generate, "text from a checkpoint"),
        ("info", InfoOptions, run_info, "what a checkpoint, run or shards folder holds; what a step read"),
    ):
        parser = subparsers.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
        add_arguments(parser, options)
        parser.set_defaults(run=functools.partial(report_errors, run))


def add_arguments(parser: argparse.ArgumentParser, options: type[Any]) -> None:
    """A positional for each field without a default, a flag for every other; and --json and -q."""
    hints = get_type_hints(options, include_extras=True)
    for field in fields(options):
        add_argument(parser, field, hints[field.name])
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="print nothing but errors, and what --json asks for"
    )


def add_argument(parser: argparse.ArgumentParser, field: Field[Any], hint: Any) -> None:
    hint, text = get_args(hint)
    if field.default is MISSING:
        parser.add_argument(PREFIX + field.name, metavar=field.name, help=text)
        return
    flag = "--" + field.name.replace("_", "-")
    if get_origin(hint) in (types.UnionType, Union):
        hint = next(kind for kind in get_args(hint) if kind is not type(None))
    if field.default not in (None, "", (), False):
        text += (
            f" (default: {field.default:g})"
            if isinstance(field.default, int | float)
            else f" (default: {field.default})"
        )
    if hint is bool:
        action = argparse.BooleanOptionalAction if field.default is None else "store_true"
        parser.add_argument(flag, dest=PREFIX + field.name, action=action, default=argparse.SUPPRESS, help=text)
    elif get_origin(hint) is tuple:
        parser.add_argument(
            flag, dest=PREFIX + field.name, action="append", default=argparse.SUPPRESS, metavar="NAME=FILE", help=text
        )
    elif get_origin(hint) is Literal:
        parser.add_argument(
            flag, dest=PREFIX + field.name, choices=get_args(hint), default=argparse.SUPPRESS, help=text
        )
    else:
        kind = whole_number if hint is int else hint
        parser.add_argument(
            flag, dest=PREFIX + field.name, type=kind, default=argparse.SUPPRESS, metavar=kind_name(hint), help=text
        )


def kind_name(hint: Any) -> str:
    return {int: "N", float: "X"}.get(hint, "PATH")


def whole_number(text: str) -> int:
    """ "300_000", "300000" or "3e5"."""
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if not number.is_integer():
            raise ValueError(text) from None
        return int(number)


def options_of(kind: type[Any], arguments: argparse.Namespace) -> Any:
    """The options dataclass that a parsed namespace means. Raises ValueError from its own checks."""
    values = vars(arguments)
    given = {f.name: values[PREFIX + f.name] for f in fields(kind) if PREFIX + f.name in values}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


def wait_passively() -> None:
    """Let idle threads sleep, unless the user says otherwise. To be called before torch is first imported.

    Two spinning threads on two cores lose a tenfold as soon as another process wants a core (13,000 tokens/s alone,
    1,000 beside others); sleeping ones cost a quarter alone (10,000) and stay at 6,700 beside others.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def run_train(arguments: argparse.Namespace) -> int:
    options: TrainOptions = options_of(TrainOptions, arguments)
    wait_passively()
    from model.train import train

    result = train(options, out=None if arguments.quiet else sys.stderr)
    if arguments.json:
        print_json(asdict(result))
    return 0


def run_evaluate(arguments: argparse.Namespace) -> int:
    options: EvaluateOptions = options_of(EvaluateOptions, arguments)
    wait_passively()
    from model.evaluate import evaluate

    result = evaluate(options)
    if arguments.json:
        print_json(result)
    elif not arguments.quiet:
        if "validation" in result:
            print_figures("validation", result["validation"])
        for name, scores in result["sets"].items():
            for subset in ("all", "clean", "dirty"):
                if subset in scores:
                    print_figures(f"{name} ({scores['task']}, {subset})", scores[subset])
    return 0


def run_generate(arguments: argparse.Namespace) -> int:
    options: GenerateOptions = options_of(GenerateOptions, arguments)
    wait_passively()
    from model.generate import generate

    samples = generate(options)
    if arguments.json:
        print_json(samples)
    elif not arguments.quiet:
        for sample in samples:
            print(f"--- seed {sample['seed']}, {sample['tokens']} tokens{', end of text' if sample['ended'] else ''}")
            print(printable(options.prompt + sample["text"]))
    return 0


def run_info(arguments: argparse.Namespace) -> int:
    options: InfoOptions = options_of(InfoOptions, arguments)
    from model.info import info

    result = info(options)
    if arguments.json:
        print_json(result)
    elif not arguments.quiet:
        print_figures(options.path, {k: v for k, v in result.items() if k != "seen"})
        if "seen" in result:
            print(SEEN_HEAD)
        for seen in result.get("seen", ()):
            where = f"{seen['part']:016x}  {seen['row']:10d}  {seen['file']}  {seen['start']}+{seen['tokens']}"
            print(f"{seen['sample']:6d}  {printable(seen['doc_id'])}  {printable(where)}")
    return 0


def report_errors(command: Command, arguments: argparse.Namespace) -> int:
    """Run a command; what is wrong with its input is one line on standard error and status 1, not a stack.

    Status 1 without a word where nobody reads the output to its end, as in `info … | head`.
    """
    try:
        status = command(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush when Python ends
        return 1
    except (ValueError, ArithmeticError, OSError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 1


def print_json(value: object) -> None:
    print(json.dumps(value, indent=1, sort_keys=True))


def print_figures(title: str, figures: dict[str, Any]) -> None:
    print(printable(title))
    for name, value in figures.items():
        shown = (
            f"{value:,.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
        )
        print(f"  {name:24} {printable(shown)}")


def printable(text: str) -> str:
    """Text a model or a file gave, harmless to a terminal: control characters but line feed and tab are escaped."""
    return "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m model …`: 0 when done, 1 for input that does not fit, 2 for arguments that do not."""
    parser = argparse.ArgumentParser(prog="python -m model", description="Train and evaluate a GPT on token shards.")
    add_commands(parser.add_subparsers(required=True, metavar="COMMAND"))
    arguments = parser.parse_args(argv)
    command: Command = arguments.run
    return command(arguments)
