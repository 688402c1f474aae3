"""Which code runs an op: the registry of backends, and the choice (op, problem, explicit wish) -> (backend, reason).

``reference`` runs everywhere. ``native`` is the compiled library: C++ on CPU, CUDA C++ on NVIDIA. ``triton`` is any GPU
that Triton serves (and, with ``TRITON_INTERPRET=1``, the CPU, slowly). The fastest one that can run a problem is taken.
On a GPU, the products take the way that ``cuda.rule`` expects to be the fastest, the libraries' among them. An explicit wish,
``WUSKERN_BACKEND`` or ``with wuskern.backend(name)``, is obeyed or raises: "native" and "triton" are then kernels of ours
alone, and the library's way is "reference".
"""

import contextlib
import functools
import importlib
import importlib.util
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from wuskern.common.overlap import Overlapping
from wuskern.kernels import native_updates, reference
from wuskern.kernels.cpu import native
from wuskern.kernels.cuda import library, rule
from wuskern.kernels.cuda.gpus import capability_of
from wuskern.kernels.problem import OPS as PRODUCTS
from wuskern.kernels.problem import call_key, problem_of

Name = Literal["native", "triton", "reference"]
NAMES = get_args(Name)  # in order of preference
LIBRARIES = {"cpu": "libwuskern_cpu.so", "cuda": "libwuskern_cuda.so"}
TRITON_CAPABILITY = (8, 0)
LIBRARY_DIR = Path(__file__).parents[1] / "lib"


@dataclass(frozen=True)
class Choice:
    """The backend that runs an op, and why: ``run`` takes the op's arguments."""

    backend: str
    reason: str
    run: Callable[..., Any]


MOST_KNOWN = 4096  # calls of an op whose way is remembered: tokens may differ from step to step

# Problems of so few elements, on the CPU, whose few plain calls cost less than one of ours.
SMALL = 4096
PLAIN_WHERE_SMALL = {
    op: Choice("reference", f"dy has at most {SMALL} elements", reference.OPS[op])
    for op in ("bias_grad", "gather_rows", "rowsparse_wgrad", "rowsparse_dgrad")
}


# ---- what each backend can run, or a reason why not -------------------------------------------------------------------


@functools.cache
def library_obstacle(device: str) -> str | None:
    """Why the compiled library of a device type, which is loaded on first use, is not loaded; or None."""
    if device not in LIBRARIES:
        return f"there is no compiled library for {device}"
    path = LIBRARY_DIR / LIBRARIES[device]
    if not path.exists():
        return build_record().get(device, f"{path.name} is not part of this installation")
    if device == "cuda" and torch.version.cuda is None:
        return "this PyTorch is built without CUDA"
    try:
        torch.ops.load_library(path)
    except (OSError, RuntimeError) as error:
        return f"{path.name} does not load: {error}"
    return gpu_obstacle() if device == "cuda" else None


def gpu_obstacle() -> str | None:
    """Why the CUDA library has no code for one of the GPUs here, or None."""
    architectures = torch.ops.wuskern_native.cuda_architectures()
    for name, capability in capabilities().items():
        if code_for(architectures, capability) is None:
            return f"it was built for {architectures}, and {name} has {capability[0]}.{capability[1]}"
    return None


def capabilities() -> dict[str, tuple[int, int]]:
    """The compute capability of each GPU here, by its name in PyTorch; of NVIDIA's alone."""
    count = 0 if torch.version.hip is not None else torch.cuda.device_count()
    return {f"cuda:{i}": torch.cuda.get_device_capability(i) for i in range(count)}


def code_for(architectures: str, capability: tuple[int, int]) -> str | None:
    """The code of a library's architectures ("8.0 9.0a 12.0+PTX") that a GPU runs, in words, or None: machine code of the same
    major and no newer minor, with a feature letter of exactly that GPU; else PTX of an earlier one."""
    machine, ptx = "", ""
    for architecture in architectures.split():
        major, minor, feature, later = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", architecture).groups()  # type: ignore[union-attr]
        built = int(major), int(minor)
        if built == capability or (built[0] == capability[0] and built <= capability and not feature):
            machine = f"machine code for {major}.{minor}{feature}"
        elif later and built <= capability and not feature:
            ptx = f"PTX of {major}.{minor}, which the driver compiles at the first launch"
    return machine or ptx or None


def build_record() -> dict[str, str]:
    """Why each library was left out that the build did not make, as it wrote beside them."""
    path = LIBRARY_DIR / "build.json"
    return json.loads(path.read_text())["left_out"] if path.exists() else {}


@functools.cache
def triton_obstacle(device: str) -> str | None:
    """Why Triton does not serve a device type here, or None."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "Triton serves GPUs; on the CPU only its interpreter runs (TRITON_INTERPRET=1)"
    if device not in ("cpu", "cuda"):
        return f"Triton does not serve {device}"
    for name, capability in capabilities().items() if device == "cuda" else ():
        if capability < TRITON_CAPABILITY:
            least, here = (f"{major}.{minor}" for major, minor in (TRITON_CAPABILITY, capability))
            return f"Triton compiles bfloat16 from compute capability {least} on, and {name} has {here}"
    return None


def _native(op: str, device: str) -> Callable[..., Any] | str:
    if obstacle := library_obstacle(device):
        return obstacle
    if device == "cpu" and op in native.OPS:
        return native.OPS[op]
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"wuskern_native::{op}", device.upper()):
        return f"it has no kernel for {device} yet"
    return native_updates.OPS.get(op) or getattr(torch.ops.wuskern_native, op).default


def _triton(op: str, device: str) -> Callable[..., Any] | str:
    if obstacle := triton_obstacle(device):
        return obstacle
    stem = f"wuskern.kernels.triton.{op.removesuffix('_conv2d')}"  # one for all files of an op
    if importlib.util.find_spec(stem) is None:
        return "it has no Triton kernel yet"
    return getattr(importlib.import_module(stem), op)  # which imports the package triton, there by now


def _reference(op: str, device: str) -> Callable[..., Any] | str:
    return reference.OPS[op]


_BACKENDS = {"native": _native, "triton": _triton, "reference": _reference}


# ---- the choice -----------------------------------------------------------------------------------------------------

_wish: str | None = None  # of `with backend(...)`; process-wide, since backward runs in threads of its own


def _set_wish(name: str | None) -> None:
    global _wish
    _wish = name


_wishes = Overlapping(lambda: _wish, _set_wish)


def backend(name: Name) -> contextlib.AbstractContextManager[None]:
    """A block in which every op runs on the named backend ("native", "triton" or "reference"), in all threads, or raises. Of
    blocks that overlap, the one entered last counts until it is left.

    Raises ``ValueError`` for another name here, and ``RuntimeError`` from an op that the backend cannot run.
    """
    return _wishes.block(_known(name, "name"))


def _known(name: str, argument: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{argument}: expected one of {', '.join(NAMES)}, got {name!r}")
    return name


def check_environment() -> None:
    """Raises if a variable names a backend or an instruction set that there is not: ops that never run would not say so."""
    if wish := _environment_wish():
        _known(wish, "WUSKERN_BACKEND")
    if library_obstacle("cpu") is None:
        torch.ops.wuskern_native.cpu_capability()


def choose(op: str, device: str, numel: int | None = None) -> Choice:
    """The backend that runs ``op`` on tensors of a device type, the first of so many elements, and the reason. Every call of
    every op asks, and has a microsecond for it: plain strings and a number, and each answer is made once."""
    wish = _wish or _environment_wish()
    if wish is None and numel is not None and numel <= SMALL and device == "cpu" and op in PLAIN_WHERE_SMALL:
        return PLAIN_WHERE_SMALL[op]
    return _choose(op, device, wish)


@functools.cache
def _environment_wish() -> str | None:
    return os.environ.get("WUSKERN_BACKEND") or None


@functools.cache
def _choose(op: str, device: str, wish: str | None) -> Choice:
    if wish is not None:
        run = _BACKENDS[_known(wish, "WUSKERN_BACKEND")](op, device)
        if isinstance(run, str):
            raise RuntimeError(f"backend {wish!r} cannot run {op} on {device}: {run}")
        return Choice(wish, "asked for", run)

    if device == "cuda" and op in PRODUCTS:
        return _by_problem(op)
    obstacles: list[str] = []
    for name in NAMES:
        if name == "triton" and device == "cpu":
            continue  # the interpreter is for tests: only an explicit wish reaches it
        run = _BACKENDS[name](op, device)
        if not isinstance(run, str):
            return Choice(name, "; ".join(obstacles) or "the fastest one here", run)
        obstacles.append(f"not {name}: {run}")
    raise AssertionError("reference runs everything")


def ways(op: str, device: str) -> tuple[dict[str, Callable[..., Any]], list[str]]:
    """How a product of the chosen rows can run, by way (``cuda.rule``), and why others cannot."""
    ours = {name: _BACKENDS[name](op, device) for name in ("native", "triton")}
    runs = {name: run for name, run in ours.items() if not isinstance(run, str)}
    runs["library"] = library.runner(op, _choose("gather_rows", device, None).run)
    return runs, [f"not {name}: {obstacle}" for name, obstacle in ours.items() if isinstance(obstacle, str)]


class Known(dict[Any, Any]):
    """What is known of so many calls at most; then all of it is forgotten."""

    def __setitem__(self, key: Any, value: Any) -> None:
        if len(self) >= MOST_KNOWN:
            self.clear()
        super().__setitem__(key, value)


def _by_problem(op: str) -> Choice:
    """The choice of a product on a GPU: native, triton or the library for each problem, as ``cuda.rule`` has it. Without a
    kernel of ours the reference, which is the library too."""
    runs, reasons = ways(op, "cuda")
    if list(runs) == ["library"]:
        return Choice("reference", "; ".join(reasons), reference.OPS[op])
    names, taken = tuple(runs), Known()

    def run(dy: Tensor, other: Tensor, rows: Tensor, *geometry: Any) -> Tensor:
        key = call_key(dy, other, rows, geometry)
        way = taken.get(key)
        if way is None:
            problem = problem_of(op, dy, other, rows, *geometry)
            way = taken[key] = runs[rule.choose(problem, capability_of(dy.device), names).way]
        return way(dy, other, rows, *geometry)

    told = f"{' or '.join(runs)}, by the problem: doctor --explain --device cuda tells"
    return Choice(next(iter(runs)), "; ".join([told, *reasons]), run)
