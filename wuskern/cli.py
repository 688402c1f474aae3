"""``wuskern train | recipes | doctor``; ``python -m wuskern`` is the same. Wrong arguments end with exit code 2."""

import argparse
import contextlib
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wuskern import explain

if TYPE_CHECKING:
    from wuskern.doctor import Report
    from wuskern.train import experiment

NOT_RECORDED = {"command", "overwrite", "checkpoint", "resume", "recipe", "state", "dist_timeout"}  # not about the training
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
        epilog=_methods_help(),
    )
    train.set_defaults(command=_train)
    what = train.add_argument_group("what to train")
    what.add_argument("--recipe", metavar="NAME", help="take the arguments from a recipe (see wuskern recipes) or a .toml file")
    what.add_argument(
        "--model",
        default="vgg11",
        metavar="NAME",
        help="mlp, alexnet, vgg11, vgg16, resnet18, resnet50, vit, efficientnet or gpt; torchvision/... or timm/... where "
        "those are installed",
    )
    what.add_argument("--width", type=float, default=1.0, help="factor on the number of channels")
    what.add_argument(
        "--data",
        default="digits",
        help="digits, cifar10, cifar100, an .npz with x_train, y_train, x_test, y_test, text (the Python standard library's "
        "source) or a .txt",
    )
    what.add_argument("--data-dir", metavar="DIR", help="of cifar10 or cifar100, as torchvision keeps it; never downloaded")
    what.add_argument("--image-size", type=int, metavar="N", help="resize images to N x N")
    what.add_argument("--context", type=int, default=64, help="bytes of text in a sample")
    what.add_argument("--text-bytes", type=int, default=2**18, metavar="N", help="bytes of text that are used")
    what.add_argument(
        "--policy",
        default="wus",
        metavar="METHODS",
        help="see below; several with commas are compared, and with dense among them each of the others also with dense "
        "training in the same time",
    )
    how = train.add_argument_group("how to train")
    how.add_argument("--epochs", type=int, default=20, help="of each run")
    how.add_argument("--seeds", type=int, default=1, help="runs per method, with seeds 0, 1, ...")
    how.add_argument("--batch", type=int, default=64, help="samples of a step, of all processes together")
    how.add_argument("--accumulate", type=int, default=1, metavar="N", help="micro-batches that a step's batch comes in")
    how.add_argument("--amp", default="off", help="off, bf16 or fp16 (with a GradScaler): automatic mixed precision")
    how.add_argument(
        "--optimizer", default="sgd", help="sgd, adamw, or row-sgd, row-adamw: wuskern's, which move rows with a gradient"
    )
    how.add_argument("--lr", type=float, default=0.05, help="learning rate at the start")
    how.add_argument(
        "--schedule", default="cosine", help="constant, or cosine: the rate falls to 0 over the run, epoch by epoch"
    )
    how.add_argument("--momentum", type=float, default=0.9, help="of sgd")
    how.add_argument("--weight-decay", type=float, default=5e-4)
    how.add_argument("--channels-last", action="store_true", help="keep images and weights in channels_last")
    how.add_argument("--device", default="auto", help="cpu, cuda, ...; auto: cuda where there is one")
    how.add_argument(
        "--cache", type=int, default=1024, metavar="MIB", help="at most, for what frozen layers give; 0: compute it anew"
    )
    how.add_argument("--host", action="store_true", help="keep the data in the host's memory, pinned, copied a batch ahead")
    how.add_argument("--workers", type=int, default=0, metavar="N", help="processes that fetch batches, with --host")
    how.add_argument(
        "--dist-timeout", type=float, default=600, metavar="SECONDS", help="under torchrun: how long to wait for a process"
    )
    output = train.add_argument_group("output")
    output.add_argument("--out", type=Path, default=Path("runs/train"), metavar="DIR", help="results.json and pictures")
    output.add_argument("--memory", action="store_true", help="measure the peak memory of a step, by PyTorch's profiler")
    output.add_argument("--overwrite", action="store_true", help="replace the results in DIR and the checkpoint")
    output.add_argument(
        "--checkpoint", type=Path, metavar="PATH", help="write all that --resume needs, after each round of epochs"
    )
    output.add_argument(
        "--resume", type=Path, metavar="PATH", help="continue from a checkpoint, with its arguments, and keep it up to date"
    )
    train.set_defaults(**train_defaults)

    recipes = commands.add_parser("recipes", help="list the experiments that come with wuskern, one per paper")
    recipes.set_defaults(command=_recipes)
    return parser


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults behind each argument; the epilog as it is."""


def _methods_help() -> str:
    from wuskern.train.methods import describe

    return (
        "methods, as in dense,wus,meprop:ratio=.1:scope=both+sieve:keep=.8: commas between methods, plus signs between the\n"
        "parts of one, colons before a part's arguments, whose meanings are in the docstrings of wuskern.policies:\n"
        + describe()
    )


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
        prepared = _prepare(arguments, device)
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
            if (here := _plain(getattr(arguments, name, None))) != there:
                raise ValueError(f"--{name.replace('_', '-')}: expected {there} as in {given.resume}, got {here}")
    arguments.checkpoint = given.checkpoint or given.resume
    arguments.state = state
    return arguments


def _prepare(a: argparse.Namespace, device: str) -> "experiment.Experiment":
    """Checks every argument and loads the data; writes nothing."""
    from wuskern.train import data, experiment, methods, processes, settings

    chosen = methods.parse(a.policy)
    world = processes.world()
    if world > 1 and any(method.has("frozen") for method in chosen):
        raise ValueError("--policy: expected others than frozen under torchrun: DDP cannot train what requires_grad toggles")
    _one_of("--optimizer", a.optimizer, settings.OPTIMIZERS)
    _one_of("--amp", a.amp, settings.AMP)
    least_of = {"epochs": 1, "seeds": 1, "accumulate": 1, "batch": 2 * world, "image_size": 1, "cache": 0, "workers": 0}
    for name, least in (least_of | {"context": 1, "text_bytes": 1}).items():
        if (value := getattr(a, name)) is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')}: expected at least {least}, got {value}")
    if a.batch < 2 * world * a.accumulate:
        raise ValueError(f"--accumulate: expected at most {a.batch // (2 * world)}, two samples each, got {a.accumulate}")
    if a.workers and not a.host:
        raise ValueError(f"--workers: expected --host with it, got {a.workers} without")
    _one_of("--schedule", a.schedule, settings.SCHEDULES)
    for name in ("width", "lr"):
        if not 0 < getattr(a, name) < math.inf:
            raise ValueError(f"--{name}: expected a positive number, got {getattr(a, name)}")
    for name in ("momentum", "weight_decay"):
        if not 0 <= getattr(a, name) < math.inf:
            raise ValueError(f"--{name.replace('_', '-')}: expected a number from 0, got {getattr(a, name)}")
    for name in (experiment.RESULTS, experiment.PICTURE, experiment.FRONT):
        if (a.out / name).exists() and not a.overwrite and a.resume is None:
            raise ValueError(f"--out: expected a directory without {name} (or --overwrite), got {a.out}")
    if a.checkpoint is not None and a.checkpoint != a.resume and a.checkpoint.exists() and not a.overwrite:
        raise ValueError(f"--checkpoint: expected a new file (or --overwrite, or --resume to continue), got {a.checkpoint}")

    made = settings.Settings(
        model=a.model,
        width=a.width,
        epochs=a.epochs,
        batch=a.batch,
        optimizer=a.optimizer,
        lr=a.lr,
        momentum=a.momentum,
        weight_decay=a.weight_decay,
        channels_last=a.channels_last,
        device=device,
        schedule=a.schedule,
        accumulate=a.accumulate,
        amp=a.amp,
        cache=a.cache,
        host=a.host,
        workers=a.workers,
    )
    samples = data.load(a.data, a.data_dir, context=a.context, limit=a.text_bytes)
    if a.image_size is not None:
        samples = samples.resized(a.image_size)
    if not a.host:
        samples = samples.to(device, made.memory_format)
    recorded = {name: _plain(value) for name, value in vars(a).items() if name not in NOT_RECORDED}
    if world > 1:
        recorded["processes"] = world
    prepared = experiment.Experiment(made, chosen, a.seeds, samples, a.out, recorded, a.checkpoint, measure_memory=a.memory)
    if a.resume is not None:
        with _input("--resume: "):
            prepared.resume(a.state)
        del a.state
    return prepared


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _one_of(name: str, value: str, allowed: Any) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")
