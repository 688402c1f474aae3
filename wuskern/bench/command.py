"""The arguments of ``wuskern bench``, and the run of pytest that they ask for."""

import argparse
import importlib.util
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from wuskern.bench.asked import Asked
from wuskern.common.arguments import one_of, share
from wuskern.doctor.explain import CONV2D, DTYPES, LINEAR, numbers

KINDS = ("linear", "conv2d")
BY_NAME = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16} | DTYPES
# Options of pytest-benchmark that are passed on, with what they take.
PASSED = {"json": "PATH", "save": "NAME", "autosave": None, "compare": "RUN", "storage": "URI", "disable": None}
HELP = {
    "json": "write the rounds and all numbers of each variant to a JSON file",
    "save": "keep this run, under a name, for --benchmark-compare",
    "autosave": "keep this run",
    "compare": "show a run that was kept beside this one",
    "storage": "where runs are kept (default: .benchmarks, here)",
    "disable": "verify every variant, and time nothing",
}
EPILOG = f"""shapes: linear {LINEAR}, such as 4096x1024x1024, and conv2d {CONV2D}, such as 32x64x128x56x3.
Every variant is verified against float64 before any is timed, and all are timed in turn. The table says how many times
faster than PyTorch's dense layer each is (vs dense), and the share of its time that its floor is (of floor): bytes and
FLOPs, at the rates of a copy and of a matrix product that are measured on this machine."""


def add_arguments(bench: argparse.ArgumentParser) -> None:
    """Gives the parser of ``wuskern bench`` its arguments."""
    bench.formatter_class, bench.epilog = argparse.RawDescriptionHelpFormatter, EPILOG
    bench.add_argument("kind", metavar="KIND", help="linear or conv2d")
    bench.add_argument("shape", metavar="SHAPE", help="see below; the same as of wuskern doctor --explain")
    bench.add_argument("--dtype", default="float32", help="float32 (default), bf16, fp16 or float64")
    bench.add_argument("--ratio", type=float, default=0.05, help="share of rows, and of columns, that train (default: 0.05)")
    bench.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    bench.add_argument("--threads", type=int, metavar="N", help="on the CPU (default: PyTorch's)")
    bench.add_argument("--rounds", type=int, metavar="N", help="timings of each (default: 11, or as many as fit into a minute)")
    conv = bench.add_argument_group("of conv2d")
    conv.add_argument("--stride", type=int, default=1, metavar="N", help="default: 1")
    conv.add_argument("--padding", type=int, metavar="N", help="default: half the kernel")
    conv.add_argument("--groups", type=int, default=1, metavar="N", help="default: 1")
    conv.add_argument("--channels-last", action="store_true", help="memory format of images and weights")
    passed = bench.add_argument_group("of pytest-benchmark, passed on")
    for name, value in PASSED.items():
        form = {"action": "store_true"} if value is None else {"metavar": value}
        passed.add_argument(f"--benchmark-{name}", help=HELP[name], **form)  # type: ignore[arg-type]


def asked(a: argparse.Namespace) -> Asked:
    """What the arguments ask for. Raises ``ValueError`` or ``TypeError``, in one line, for what none of them can be."""
    one_of("KIND", a.kind, KINDS)
    one_of("--dtype", a.dtype, BY_NAME)
    one_of("--device", a.device, ("cpu", "cuda"))
    share("--ratio", a.ratio)
    least = {"threads": 1, "rounds": 1, "stride": 1, "padding": 0, "groups": 1}
    for name, lowest in least.items():
        if (value := getattr(a, name)) is not None and value < lowest:
            raise ValueError(f"--{name}: expected at least {lowest}, got {value}")
    if a.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device: expected cpu where PyTorch sees no GPU, got cuda")
    _check_output(a.benchmark_json)
    if a.kind == "linear":
        given = [name for name in ("stride", "groups") if getattr(a, name) != 1]
        given += [name for name in ("padding", "channels_last") if getattr(a, name) not in (None, False)]
        if given:
            raise ValueError(f"--{given[0].replace('_', '-')}: expected conv2d with it, got linear")
        return Asked("linear", tuple(numbers("SHAPE", a.shape, 3, LINEAR)), BY_NAME[a.dtype], a.ratio, a.device)
    sizes = tuple(numbers("SHAPE", a.shape, 5, CONV2D))
    padding = sizes[4] // 2 if a.padding is None else a.padding
    return Asked("conv2d", sizes, BY_NAME[a.dtype], a.ratio, a.device, a.stride, padding, a.groups, a.channels_last)


def _check_output(path: str | None) -> None:
    """Finds before anything is measured what pytest-benchmark would find with a page of usage."""
    if path is not None and (not path or Path(path).is_dir() or not Path(path).absolute().parent.is_dir()):
        raise ValueError(f"--benchmark-json: expected a file in a folder that is there, got {path!r}")


def check_installed() -> None:
    """Raises ``ValueError`` without pytest-benchmark, or without assertions."""
    if not importlib.util.find_spec("pytest") or not importlib.util.find_spec("pytest_benchmark"):
        raise ValueError("bench needs pytest-benchmark: pip install 'wuskern[bench]'")
    if not __debug__:
        raise ValueError("bench: expected a Python that asserts, by which results are verified, got one with -O")


def run(a: argparse.Namespace, asked: Asked) -> int:
    """Measures, prints the table, and returns the exit code: 0; 1 where a result is wrong; 2 for what pytest-benchmark refuses;
    130 after Ctrl-C."""
    import pytest

    from wuskern.bench.plugin import Plugin

    with _alone(a.threads), tempfile.TemporaryDirectory() as folder:
        code = pytest.main([*_of_pytest(), *_passed(a, folder)], plugins=[Plugin(asked, a.rounds)])
    known = {pytest.ExitCode.OK: 0, pytest.ExitCode.USAGE_ERROR: 2, pytest.ExitCode.INTERRUPTED: 130}
    return known.get(pytest.ExitCode(code), 1)


def _of_pytest() -> list[str]:
    """The arguments of pytest: this folder's cases, and nothing that the current folder or other plugins say."""
    here = Path(__file__).parent
    alone = ["-c", os.devnull, "--rootdir", str(here), "--confcutdir", str(here), "-p", "no:cacheprovider", "-p", "benchmark"]
    return [str(here / "cases.py"), *alone, "-q", "-s", "-x", "--tb=short", "--no-header", "--disable-warnings"]


def _passed(a: argparse.Namespace, folder: str) -> list[str]:
    """The options of pytest-benchmark, whose own table shows where another run is to be compared; it would make a folder for
    runs even where none is kept: ``folder`` is for that."""
    values = {name: getattr(a, f"benchmark_{name}") for name in PASSED}
    given = [f"--benchmark-{name}" + ("" if value is True else f"={value}") for name, value in values.items() if value]
    if not (a.benchmark_save or a.benchmark_autosave or a.benchmark_compare or a.benchmark_storage):
        given.append(f"--benchmark-storage=file://{folder}")
    return given if a.benchmark_compare else [*given, "--benchmark-quiet"]


@contextmanager
def _alone(threads: int | None) -> Iterator[None]:
    """A block with so many threads, in which pytest loads no plugin that is merely installed, and takes no options from the
    environment."""
    before, environment = torch.get_num_threads(), dict(os.environ)
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER"):  # with the latter pytest-benchmark takes no times
        os.environ.pop(name, None)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        os.environ.clear()
        os.environ.update(environment)
