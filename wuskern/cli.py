"""``wuskern train | recipes | doctor``; ``python -m wuskern`` is the same. Wrong arguments end with exit code 2."""

import argparse
import contextlib
import math
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from wuskern import explain
from wuskern.train.command import add_arguments, methods_help, plain, prepare

if TYPE_CHECKING:
    from wuskern.doctor import Report

BROKEN, INTERRUPTED = 1, 130  # the latter is the shell's exit code of a program ended by Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        if getattr(arguments, "recipe", None) is not None:
            argv = _with_recipe(arguments, argv)
            arguments = _parser().parse_args(argv)
        if getattr(arguments, "resume", None) is not None:
            arguments = _resumed(arguments, argv)
        return int(arguments.command(arguments))
    except KeyboardInterrupt:
        print("wuskern: interrupted", file=sys.stderr)
        return INTERRUPTED
    except WrongInput as error:
        print(f"wuskern: {error}", file=sys.stderr)
        return 2


class WrongInput(Exception):
    """What the user gave cannot work; nothing was written."""


@contextlib.contextmanager
def _input(what: str = "") -> Iterator[None]:
    """Any error inside is one of the input: its first line is the message."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise WrongInput(what + reason[0]) from error


def _parser(**train_defaults: Any) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="wuskern", description="Training without the weight gradients nobody will use.")
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
    train.set_defaults(**train_defaults)

    recipes = commands.add_parser("recipes", help="list the experiments that come with wuskern, one per paper")
    recipes.set_defaults(command=_recipes)
    return parser


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults behind each argument; the epilog as it is."""


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
    try:
        with processes.group(device, arguments.dist_timeout):
            return _train_on(device, arguments)
    except processes.GroupBroken as error:
        print(f"wuskern: {error}", file=sys.stderr)
        return BROKEN


def _train_on(device: str, arguments: argparse.Namespace) -> int:
    with _input():
        prepared = prepare(arguments, device)
        if arguments.resume is not None:
            with _input("--resume: "):
                prepared.resume(arguments.state)
            del arguments.state
        prepared.warm_up()
    with _input("--out: "):
        arguments.out.mkdir(parents=True, exist_ok=True)
    with _input("--checkpoint: "):
        prepared.save_checkpoint()
    return 0 if prepared.run() else INTERRUPTED


def _recipes(_: argparse.Namespace) -> int:
    from wuskern.train import recipes

    with _input():
        print("\n\n".join(recipe.describe() for recipe in recipes.shipped()))
    return 0


def _with_recipe(given: argparse.Namespace, argv: Sequence[str] | None) -> list[str]:
    """The command line with the recipe's arguments before the user's, which win."""
    from wuskern.train import recipes

    command, *own = sys.argv[1:] if argv is None else argv
    with _input():
        return [command, *recipes.load(given.recipe).arguments(on_cifar=given.data_dir is not None), *own]


def _resumed(given: argparse.Namespace, argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of the interrupted experiment. One that is given anew must agree with them."""
    from wuskern.train import checkpoint
    from wuskern.train.processes import planned

    with _input():
        state = checkpoint.load(given.resume)
        recorded = state["arguments"]
        if (there := recorded.get("processes", 1)) != planned():
            raise ValueError(f"--resume: expected {there} processes as in {given.resume}, got {planned()}")
        arguments = _parser(**recorded).parse_args(argv)
        for name, there in recorded.items():
            if (here := plain(getattr(arguments, name, None))) != there:
                raise ValueError(f"--{name.replace('_', '-')}: expected {there} as in {given.resume}, got {here}")
    arguments.checkpoint = given.checkpoint or given.resume
    arguments.state = state
    return arguments
