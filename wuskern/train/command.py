"""The arguments of ``wuskern train``, and the experiment that they ask for."""

import argparse
import math
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from wuskern.common.arguments import one_of

if TYPE_CHECKING:
    from wuskern.train.experiment import Experiment
    from wuskern.train.output import Output

# Not about the training.
NOT_RECORDED = {"command", "overwrite", "checkpoint", "resume", "go_on", "recipe", "state", "dist_timeout"}


class Parser(argparse.ArgumentParser):
    """A parser that takes names in full, and raises ``ValueError``, with one line, for what is wrong."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{' '.join(message.split())} (see {self.prog} --help)")


def add_arguments(train: argparse.ArgumentParser) -> None:
    what = train.add_argument_group("what to train")
    what.add_argument("--recipe", metavar="NAME", help="take the arguments from a recipe (see wuskern recipes) or a .toml file")
    what.add_argument(
        "--model",
        default="vgg11",
        metavar="NAME",
        help="mlp, alexnet, vgg11, vgg16, resnet18, resnet50, vit, efficientnet or gpt; torchvision/... or timm/... where "
        "those are installed; FILE.py:function, which gives a torch.nn.Module and may take classes= and shape=",
    )
    what.add_argument("--width", type=float, default=1.0, help="factor on the number of channels")
    what.add_argument(
        "--data",
        default="digits",
        help="digits, cifar10, cifar100, an .npz with x_train, y_train, x_test, y_test, text (the Python standard library's "
        "source), a .txt, or FILE.py:function, which gives the four arrays of an .npz",
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
    output.add_argument("--out", type=path_of, default=Path("runs/train"), metavar="DIR", help="results.json and pictures")
    output.add_argument(
        "--log",
        metavar="KINDS",
        help="csv (log.csv, a row per epoch), tensorboard, where it is installed, or csv,tensorboard",
    )
    output.add_argument("--memory", action="store_true", help="measure the peak memory of a step, by PyTorch's profiler")
    output.add_argument("--overwrite", action="store_true", help="replace the results in DIR and the checkpoint")
    output.add_argument(
        "--checkpoint", type=path_of, metavar="PATH", help="write all that --resume needs, after each round of epochs"
    )
    output.add_argument(
        "--resume", type=path_of, metavar="PATH", help="continue from a checkpoint, with its arguments, and keep it up to date"
    )
    output.add_argument(
        "--go-on", action="store_true", help="continue from --checkpoint if it is there: for torchrun's --max-restarts"
    )


def path_of(text: str) -> Path:
    if not text:  # from a shell variable that is not set; Path would take it for the current folder
        raise argparse.ArgumentTypeError("expected a path, got ''")
    return Path(text)


def methods_help() -> str:
    from wuskern.train.methods import describe

    return (
        "methods, as in dense,wus,meprop:ratio=.1:scope=both+sieve:keep=.8: commas between methods, plus signs between the\n"
        "parts of one, colons before a part's arguments, whose meanings are in the docstrings of wuskern.policies:\n"
        + describe()
    )


def prepare(a: argparse.Namespace, device: str) -> "Experiment":
    """Checks every argument and loads the data; writes nothing."""
    from wuskern.kernels import backends
    from wuskern.train import data, experiment, log, methods, own, processes, settings

    backends.check_environment()
    chosen = methods.parse(a.policy)
    world = processes.world()
    if world > 1 and any(method.has("frozen") for method in chosen):
        raise ValueError("--policy: expected others than frozen under torchrun: DDP cannot train what requires_grad toggles")
    one_of("--optimizer", a.optimizer, settings.OPTIMIZERS)
    one_of("--amp", a.amp, settings.AMP)
    least_of = {"epochs": 1, "seeds": 1, "accumulate": 1, "batch": 2 * world, "image_size": 1, "cache": 0, "workers": 0}
    for name, least in (least_of | {"context": 1, "text_bytes": 1}).items():
        if (value := getattr(a, name)) is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')}: expected at least {least}, got {value}")
    if a.batch < 2 * world * a.accumulate:
        raise ValueError(f"--accumulate: expected at most {a.batch // (2 * world)}, two samples each, got {a.accumulate}")
    if a.workers and not a.host:
        raise ValueError(f"--workers: expected --host with it, got {a.workers} without")
    one_of("--schedule", a.schedule, settings.SCHEDULES)
    for name in ("width", "lr"):
        if not 0 < getattr(a, name) < math.inf:
            raise ValueError(f"--{name}: expected a positive number, got {getattr(a, name)}")
    if not 0 <= a.momentum < 1:
        raise ValueError(f"--momentum: expected a number from 0 and under 1, got {a.momentum}")
    if not 0 <= a.weight_decay < math.inf:
        raise ValueError(f"--weight-decay: expected a number from 0, got {a.weight_decay}")
    own_model = own.is_own(a.model)
    if own_model and a.width != 1:
        raise ValueError(f"--width: expected 1 for a model of your own, got {a.width}")
    processes.by_first(output_of(a).check)
    checksums = own.checksums(vars(a))

    values = {field.name: getattr(a, field.name) for field in fields(settings.Settings) if field.name != "device"}
    run_settings = settings.Settings(**values, device=device)
    samples = data.load(a.data, a.data_dir, context=a.context, limit=a.text_bytes, own_model=own_model)
    if world > 1 and own.is_own(a.data) and len(set(processes.of_all([samples.checksum()]))) > 1:
        raise ValueError(f"--data: expected the same from {a.data} in each process, got others")
    if a.image_size is not None:
        samples = samples.resized(a.image_size)
    if not a.host:
        samples = samples.to(device, run_settings.memory_format)
    recorded = {name: plain(value) for name, value in vars(a).items() if name not in NOT_RECORDED}
    if world > 1:
        recorded["processes"] = world
    made = run_settings, chosen, a.seeds, samples, a.out, recorded, a.checkpoint
    return experiment.Experiment(*made, measure_memory=a.memory, files=checksums, log=log.Log(a.out, log.kinds(a.log)))


def output_of(a: argparse.Namespace) -> "Output":
    """The files that the experiment of these arguments writes."""
    from wuskern.train import log, own
    from wuskern.train.output import Output

    named = [own.file_of(name) if own.is_own(name) else Path(name) for name in (a.model, a.data, a.recipe) if name is not None]
    read = [path for path in named if path.suffix]
    logs = log.files(a.log)
    if a.resume is None:
        return Output(a.out, a.checkpoint, a.overwrite, read=tuple(read), logs=logs)
    return Output(a.out, a.checkpoint, a.overwrite, a.resume, a.state["written"], a.state["experiment"], tuple(read), logs)


def command_line(recorded: dict[str, Any]) -> list[str]:
    """The words with which a user gives the arguments that ``prepare`` recorded, without the number of processes.

    Raises:
        ValueError: ``prepare`` never recorded such arguments.
    """
    train = Parser(prog="wuskern train")
    add_arguments(train)
    names = vars(train.parse_args([])).keys() - NOT_RECORDED
    if recorded.keys() != names:
        raise ValueError(f"expected the arguments {', '.join(sorted(names))}, got others")
    words = []
    for name, value in recorded.items():
        flag = f"--{name.replace('_', '-')}"
        if not isinstance(value, str | int | float | None):
            raise ValueError(f"{flag}: expected a number or text, got {type(value).__name__}")
        if value is not None and value is not False:
            words.append(flag if value is True else f"{flag}={value}")
    for name, here in vars(train.parse_args(words)).items():
        if name in names and (type(plain(here)), plain(here)) != (type(recorded[name]), recorded[name]):
            raise ValueError(f"expected {name} as a command line gives it, got {recorded[name]!r}")
    return words


def plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
