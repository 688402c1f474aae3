"""The command line: ``wuskern train | profile | bench | report | recipes | doctor``, or ``python -m wuskern``.

Wrong input ends with exit code 2.
"""

import argparse
import contextlib
import math
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from wuskern.bench import command as bench_command
from wuskern.doctor import explain
from wuskern.profile import command as profile_command
from wuskern.train import report
from wuskern.train.command import Parser, add_arguments, command_line, methods_help, output_of, plain, prepare

if TYPE_CHECKING:
    from wuskern.doctor import Report

BROKEN, INTERRUPTED = 1, 130  # the latter is the shell's exit code of a program ended by Ctrl-C
LONGEST = 10**8  # seconds that one process waits for another: three years


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    try:
        arguments = _parsed(argv)
        if getattr(arguments, "recipe", None) is not None:
            argv = _with_recipe(arguments, argv)
            arguments = _parsed(argv)
        if getattr(arguments, "go_on", False):
            _go_on(arguments)
        if getattr(arguments, "resume", None) is not None:
            arguments = _resumed(arguments, argv)
        code = int(arguments.command(arguments))
        sys.stdout.flush()  # an error of writing shows here, and not when Python ends
        return code
    except KeyboardInterrupt:
        print("wuskern: interrupted", file=sys.stderr)
        return INTERRUPTED
    except WrongInput as error:
        print(f"wuskern: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # such as a full disk; files are as they were before
        _give_up_output()
        print(f"wuskern: {error}", file=sys.stderr)
        return BROKEN


def _give_up_output() -> None:
    """Drops what standard output did not take: Python would try once more to write it, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class WrongInput(Exception):
    """An error in what the user gave; nothing was written."""


@contextlib.contextmanager
def _input(what: str = "") -> Iterator[None]:
    """A block in which any error is one of the input: ``what`` and the first line of the error are the message."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise WrongInput(what + reason[0]) from error


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    with _input():
        return _parser().parse_args(argv)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="wuskern", description="Training without the weight gradients nobody will use.")
    commands = parser.add_subparsers(required=True, metavar="command")

    doctor = commands.add_parser("doctor", help="print what runs here, and why")
    doctor.set_defaults(command=_doctor)
    explain.add_arguments(doctor)

    train = commands.add_parser(
        "train",
        help="train a network under one or several methods and compare them",
        formatter_class=_Formatter,
        epilog=methods_help(),
    )
    train.set_defaults(command=_train)
    add_arguments(train)

    made = commands.add_parser("report", help="make one page of the results of wuskern train: verdict, table, curves")
    made.set_defaults(command=_report)
    report.add_arguments(made)

    bench = commands.add_parser("bench", help="time one layer of any shape, dense and in part, against PyTorch and its floor")
    bench.set_defaults(command=_bench)
    bench_command.add_arguments(bench)
    profile = commands.add_parser("profile", help="measure what a model of your own would save, before training it")
    profile.set_defaults(command=_profile)
    profile_command.add_arguments(profile)

    recipes = commands.add_parser("recipes", help="list the experiments that come with wuskern, one per paper")
    recipes.set_defaults(command=_recipes)
    return parser


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """A formatter of help that puts the default behind each argument, and leaves the epilog as it is."""


def _doctor(arguments: argparse.Namespace) -> int:
    with _input():
        report = explain.of_arguments(arguments) if arguments.explain else _everything()
    print(report)
    return 0


def _everything() -> "Report":
    from wuskern.doctor import doctor

    return doctor()


def _train(arguments: argparse.Namespace) -> int:
    with _input("train needs the extra 'train' (pip install 'wuskern[train]'): "):
        import matplotlib  # noqa: F401  (the picture would miss it at the very end)
        import tqdm  # noqa: F401
    from wuskern.train import processes

    with _input():
        device = processes.usable_device(arguments.device)
        if not 0 < arguments.dist_timeout < math.inf:
            raise ValueError(f"--dist-timeout: expected a positive number, got {arguments.dist_timeout}")
        if arguments.dist_timeout > LONGEST:
            raise ValueError(f"--dist-timeout: expected at most {LONGEST}, got {arguments.dist_timeout}")
    try:
        with processes.group(device, arguments.dist_timeout):
            return _train_on(device, arguments)
    except processes.GroupBroken as error:
        print(f"wuskern: {error}", file=sys.stderr)
        return BROKEN


def _train_on(device: str, arguments: argparse.Namespace) -> int:
    from wuskern.train import processes

    with _input():
        prepared = prepare(arguments, device)
        if arguments.resume is not None:
            with _input("--resume: "):
                prepared.resume(arguments.state)
        prepared.warm_up()
    output = output_of(arguments)
    arguments.state = None
    with contextlib.ExitStack() as stack:
        with _input():
            claimed = output.claimed(prepared.epochs_at_most, prepared.state_bytes)
            processes.by_first(lambda: stack.enter_context(claimed))
        with _input("--checkpoint: "):
            prepared.save_checkpoint()
        return 0 if prepared.run() else INTERRUPTED


def _report(arguments: argparse.Namespace) -> int:
    with _input():
        path, text = report.of_arguments(arguments)
    report.save(path, text)
    print(f"report: {path}")
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    with _input():
        bench_command.check_installed()
        asked = bench_command.asked(arguments)
    return bench_command.run(arguments, asked)


def _profile(arguments: argparse.Namespace) -> int:
    with _input():
        report = profile_command.of_arguments(arguments)
    print(report)
    if arguments.json is not None:
        arguments.json.write_text(report.to_json())
    return 0


def _recipes(_: argparse.Namespace) -> int:
    from wuskern.train import recipes

    with _input():
        text = "\n\n".join(recipe.describe() for recipe in recipes.shipped())
    print(text)
    return 0


def _with_recipe(parsed: argparse.Namespace, argv: Sequence[str] | None) -> list[str]:
    """The command line with the recipe's arguments ahead of the user's, which win."""
    from wuskern.train import recipes

    command, *user_words = sys.argv[1:] if argv is None else argv
    with _input():
        recipe = recipes.load(parsed.recipe)
        words = recipe.arguments(on_cifar=parsed.data_dir is not None)
        out = next((word for word in words if word.startswith("--out=")), None)
        if out and not recipe.shipped and parsed.overwrite and not any(word.split("=")[0] == "--out" for word in user_words):
            raise ValueError(f"--overwrite: expected --out with it, since {parsed.recipe} says {out}")
        return [command, *words, *user_words]


def _go_on(arguments: argparse.Namespace) -> None:
    """Has a training resume from its own checkpoint, if that is there."""
    with _input():
        if arguments.checkpoint is None:
            raise ValueError("--go-on: expected --checkpoint with it, got none")
        for name in ("resume", "overwrite"):
            if getattr(arguments, name):
                raise ValueError(f"--go-on: expected no --{name} beside it, got one")
    if arguments.checkpoint.exists():
        arguments.resume = arguments.checkpoint


def _resumed(parsed: argparse.Namespace, argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of the interrupted experiment, with which those on this command line must agree."""
    from wuskern.train import checkpoint, own
    from wuskern.train.processes import planned

    with _input():
        state = checkpoint.load(parsed.resume)
        recorded = dict(state["arguments"])
        if (processes := recorded.pop("processes", 1)) != planned():
            raise ValueError(f"--resume: expected {processes} processes as in {parsed.resume}, got {planned()}")
        command, *user_words = sys.argv[1:] if argv is None else argv
        with _input(f"--resume: {parsed.resume}: "):
            words = command_line(recorded)
        arguments = _parsed([command, *words, *user_words])
        for name, value in recorded.items():
            if (here := plain(getattr(arguments, name))) != value:
                raise ValueError(f"--{name.replace('_', '-')}: expected {value} as in {parsed.resume}, got {here}")
    with _input():
        own.check_unchanged(state["files"], recorded, parsed.resume)
    arguments.checkpoint, arguments.resume = parsed.checkpoint or parsed.resume, parsed.resume
    arguments.state = state
    return arguments
