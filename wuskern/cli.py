"""``wuskern train | doctor``; ``python -m wuskern`` is the same. Wrong arguments end with exit code 2 and one line."""

import argparse
import contextlib
import inspect
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wuskern import explain
from wuskern.policies.meprop import PER, MeProp
from wuskern.policies.wus import STATISTICS, WUS
from wuskern.rows import BIASES, SCOPES, SCORES

if TYPE_CHECKING:
    from wuskern.doctor import Report
    from wuskern.train import experiment

WUS_ARGUMENTS = {
    "threshold": "a statistic below this starts a skip window",
    "statistic": ", ".join(STATISTICS),
    "window": "changes that the statistic looks at",
    "patience": "epochs of a skip window",
    "cooldown": "full epochs after a window",
    "warmup": "epochs before the first look",
    "guard": "a fall by more than this ends a window",
}
TOPK_ARGUMENTS = {
    "scope": f"{' or '.join(SCOPES)}: the weight gradient alone, or the input gradient too, comes from the chosen rows",
    "score": f"{', '.join(SCORES)}: of |dY|, of its squares, or random rows in each step",
    "block": "choose aligned blocks of so many rows",
    "bias": f"{' or '.join(BIASES)}: all of the bias gradient, or that of the chosen rows",
    "per": f"{' or '.join(PER)}: the same rows for a batch, or, of linear layers alone and saving no time, each its own",
}
NOT_RECORDED = {"command", "overwrite", "checkpoint", "resume", "state", "dist_timeout"}  # not about the training
BROKEN, INTERRUPTED = 1, 130  # the latter is the shell's exit code of a program ended by Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = _parser().parse_args(argv)
    try:
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
        help="train a network under one or several policies and compare them",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    train.set_defaults(command=_train)
    what = train.add_argument_group("what to train")
    what.add_argument("--model", default="vgg11", metavar="NAME", help="mlp, alexnet, vgg11, vgg16 or resnet18")
    what.add_argument("--width", type=float, default=1.0, help="factor on the number of channels")
    what.add_argument(
        "--data", default="digits", help="digits, cifar10, cifar100, or an .npz with x_train, y_train, x_test, y_test"
    )
    what.add_argument("--data-dir", metavar="DIR", help="of cifar10 or cifar100, as torchvision keeps it; never downloaded")
    what.add_argument("--image-size", type=int, metavar="N", help="resize images to N x N")
    what.add_argument(
        "--policy",
        default="wus",
        help="dense, wus, wus+lr, frozen or topk; several with commas are compared, and with dense among them each of the "
        "others also with dense training in the same time",
    )
    how = train.add_argument_group("how to train")
    how.add_argument("--epochs", type=int, default=20, help="of each run")
    how.add_argument("--seeds", type=int, default=1, help="runs per policy, with seeds 0, 1, ...")
    how.add_argument("--batch", type=int, default=64, help="images of a step, of all processes together")
    how.add_argument("--optimizer", default="sgd", help="sgd or adamw")
    how.add_argument("--lr", type=float, default=0.05, help="learning rate at the start")
    how.add_argument(
        "--schedule", default="cosine", help="constant, or cosine: the rate falls to 0 over the run, epoch by epoch"
    )
    how.add_argument("--momentum", type=float, default=0.9, help="of sgd")
    how.add_argument("--weight-decay", type=float, default=5e-4)
    how.add_argument("--channels-last", action="store_true", help="keep images and weights in channels_last")
    how.add_argument("--device", default="auto", help="cpu, cuda, ...; auto: cuda where there is one")
    how.add_argument(
        "--dist-timeout", type=float, default=600, metavar="SECONDS", help="under torchrun: how long to wait for a process"
    )
    wus = train.add_argument_group("wus, wus+lr and frozen", "in accuracy on the training batches, from 0 to 1")
    _add_arguments_of(WUS, WUS_ARGUMENTS, wus)
    wus.add_argument(
        "--lr-factor", type=float, default=0.5, help="of wus+lr: what the rate is multiplied by on entering a window"
    )
    topk = train.add_argument_group(
        "topk", "meProp: each step computes some rows of the weights' gradients, the output layer all"
    )
    amount = topk.add_mutually_exclusive_group()
    amount.add_argument("--ratio", type=float, default=0.1, help="of each layer's rows (output units)")
    amount.add_argument("--k", type=int, help="or so many rows of each layer")
    _add_arguments_of(MeProp, TOPK_ARGUMENTS, topk)
    output = train.add_argument_group("output")
    output.add_argument("--out", type=Path, default=Path("runs/train"), metavar="DIR", help="results.json and accuracy.png")
    output.add_argument("--overwrite", action="store_true", help="replace the results in DIR and the checkpoint")
    output.add_argument(
        "--checkpoint", type=Path, metavar="PATH", help="write all that --resume needs, after each round of epochs"
    )
    output.add_argument(
        "--resume", type=Path, metavar="PATH", help="continue from a checkpoint, with its arguments, and keep it up to date"
    )
    train.set_defaults(**train_defaults)
    return parser


def _add_arguments_of(policy: type, meanings: dict[str, str], group: argparse._ArgumentGroup) -> None:
    for name, meaning in meanings.items():
        default = inspect.signature(policy).parameters[name].default
        group.add_argument(f"--{name}", type=type(default), default=default, help=meaning)


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
    from wuskern.train import data, experiment, loop, models, processes

    policies = tuple(dict.fromkeys(a.policy.split(",")))
    for policy in policies:
        _one_of("--policy", policy, loop.POLICIES)
    world = processes.world()
    if world > 1 and "frozen" in policies:
        raise ValueError("--policy: expected others than frozen under torchrun: DDP cannot train what requires_grad toggles")
    _one_of("--model", a.model, models.MODELS)
    _one_of("--optimizer", a.optimizer, loop.OPTIMIZERS)
    for name, least in (("epochs", 1), ("seeds", 1), ("batch", 2 * world), ("image_size", 1)):
        if (value := getattr(a, name)) is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')}: expected at least {least}, got {value}")
    _one_of("--schedule", a.schedule, loop.SCHEDULES)
    for name in ("width", "lr"):
        if not 0 < getattr(a, name) < math.inf:
            raise ValueError(f"--{name}: expected a positive number, got {getattr(a, name)}")
    if not 0 < a.lr_factor < 1:
        raise ValueError(f"--lr-factor: expected a number between 0 and 1, got {a.lr_factor}")
    for name in ("momentum", "weight_decay"):
        if not 0 <= getattr(a, name) < math.inf:
            raise ValueError(f"--{name.replace('_', '-')}: expected a number from 0, got {getattr(a, name)}")
    for name in (experiment.RESULTS, experiment.PICTURE):
        if (a.out / name).exists() and not a.overwrite and a.resume is None:
            raise ValueError(f"--out: expected a directory without {name} (or --overwrite), got {a.out}")
    if a.checkpoint is not None and a.checkpoint != a.resume and a.checkpoint.exists() and not a.overwrite:
        raise ValueError(f"--checkpoint: expected a new file (or --overwrite, or --resume to continue), got {a.checkpoint}")

    if a.k is not None:
        a.ratio = None
    settings = loop.Settings(
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
        wus={name: getattr(a, name) for name in WUS_ARGUMENTS},
        schedule=a.schedule,
        lr_factor=a.lr_factor,
        topk={name: getattr(a, name) for name in ("ratio", "k", *TOPK_ARGUMENTS)},
    )
    images = data.load(a.data, a.data_dir)
    if a.image_size is not None:
        images = images.resized(a.image_size)
    images = images.to(device, settings.memory_format)
    recorded = {name: _plain(value) for name, value in vars(a).items() if name not in NOT_RECORDED}
    if world > 1:
        recorded["processes"] = world
    prepared = experiment.Experiment(settings, policies, a.seeds, images, a.out, recorded, a.checkpoint)
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
