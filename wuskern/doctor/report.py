"""The report of ``wuskern doctor``."""

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
import torch.nn as nn

from wuskern import ops
from wuskern.convert import survey
from wuskern.kernels import backends
from wuskern.kernels.cuda.gpus import architecture
from wuskern.modules import Skippable

Line = tuple[str, str]
UNKNOWN = (99, 0)  # a compute capability of the future


@dataclass(frozen=True)
class Report:
    """Lines of (what, answer); prints as an aligned table."""

    lines: tuple[Line, ...]

    def __str__(self) -> str:
        width = max(len(what) for what, _ in self.lines)
        return "\n".join(f"{what:<{width}}  {answer}" for what, answer in self.lines)

    __repr__ = __str__


def doctor(model: nn.Module | None = None) -> Report:
    """Versions, processors, which backend runs each op on each device and why the others do not.

    With a model, also which of its layers skip or could, and why the rest is left alone.
    """
    lines = [*_versions(), *_devices()]
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for op in ops.NAMES:
            choice = backends.choose(op, device)
            lines.append((f"{op} on {device}", f"{choice.backend} ({choice.reason})"))
    for device, name in backends.LIBRARIES.items():
        lines.append((name, backends.library_obstacle(device) or _loaded(device)))
    lines.append(("a GPU yet unknown", f"{_code(UNKNOWN)}, the tiles and rates of {architecture('99.0')}"))
    lines.append(("triton on GPUs", backends.triton_obstacle("cuda") or f"version {package_version('triton')}"))
    if model is not None:
        lines += [(f.name or "(root)", f.obstacle or _layer(f.module)) for f in survey(model)]
    return Report(tuple(lines))


def _versions() -> list[tuple[str, str]]:
    return [
        ("wuskern", package_version("wuskern")),
        ("python", platform.python_version()),
        ("torch", f"{torch.__version__} (CUDA {torch.version.cuda or 'not built in'})"),
    ]


def _devices() -> list[tuple[str, str]]:
    gpus = [(f"cuda:{i}", _gpu(f"cuda:{i}")) for i in range(torch.cuda.device_count())]
    return [("cpu", f"{processor()}, {torch.get_num_threads()} threads"), *gpus]


def _gpu(name: str) -> str:
    kind, capability = torch.cuda.get_device_name(name), backends.capabilities().get(name)
    if capability is None:
        return kind
    number = f"{capability[0]}.{capability[1]}"
    return f"{kind}, {number}: {_code(capability)}, the tiles and rates of {architecture(number)}"


def _code(capability: tuple[int, int]) -> str:
    """The code of ours that a GPU runs, in words."""
    loaded = backends.library_obstacle("cuda") is None
    code = backends.code_for(torch.ops.wuskern_native.cuda_architectures(), capability) if loaded else None
    if code is not None:
        return code
    if capability < backends.TRITON_CAPABILITY or backends.triton_obstacle("cuda"):
        return "no code of ours, PyTorch's own"
    return "Triton's code alone, compiled here"


def environment(device: str) -> dict[str, Any]:
    """What a reader needs to know to judge seconds on a device; nothing that names a machine."""
    return {
        "wuskern": package_version("wuskern"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
    }


def processor() -> str:
    """The processor's name where the system tells it, else its architecture."""
    try:
        with open("/proc/cpuinfo") as info:
            return next(line.split(":", 1)[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _loaded(device: str) -> str:
    native = torch.ops.wuskern_native
    return f"loaded, {native.cpu_capability()} kernels" if device == "cpu" else f"loaded, for {native.cuda_architectures()}"


def _layer(module: nn.Module) -> str:
    kind = type(module).__name__
    if not isinstance(module, Skippable):
        return f"{kind}: convert would take it"
    return f"{kind}, {module.plan}"


def package_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "a bare checkout" if package == "wuskern" else "not installed"
