"""Backend "emulated", of tests alone: the CUDA kernels of csrc/cuda on CPU tensors, thread by thread (csrc/testing/cuda).

Their ops have the schemas of ``wuskern_native`` in a namespace of their own. While the backend is asked for, that namespace
takes the place of ``torch.ops.wuskern_native``, so that what wuskern composes in Python finds them as well.
"""

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from wuskern import backends, native_updates, ops

NAME = "emulated"
LIBRARY = Path(__file__).parents[1] / "build" / "testing" / "libwuskern_emulated.so"
PROCESSORS = 2  # small, so that small tensors fill a grid
_namespace = torch.library.Library("wuskern_emulated", "DEF")
_CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)


@functools.cache
def obstacle() -> str | None:
    """Loads the library on first use. None when it is loaded, else why it is not."""
    if not LIBRARY.exists():
        return f"{LIBRARY.name} is not built (make build)"
    for name in ops.NAMES:
        schema = str(getattr(torch.ops.wuskern_native, name).default._schema)
        _namespace.define(schema.removeprefix("wuskern_native::"))
    _namespace.define("probe(str name, Tensor(a!) out, int threads) -> ()")
    try:
        torch.ops.load_library(LIBRARY)
    except OSError as error:
        return f"{LIBRARY.name} does not load: {error}"
    configure()
    return None


def configure(processors: int = PROCESSORS, seed: int = 0, tensors_on_gpu: bool = False, capability: int = 90) -> None:
    """The machine that is emulated; ``seed``: in which order threads run, ``tensors_on_gpu``: what they say of themselves,
    ``capability``: 80 for 8.0."""
    library = ctypes.CDLL(str(LIBRARY))
    library.wuskern_emulate(processors, ctypes.c_uint(seed), tensors_on_gpu)
    library.wuskern_emulate_capability(capability)


def op(name: str) -> Callable[..., Any]:
    """The kernel registered for CUDA, on tensors of the CPU."""
    return functools.partial(getattr(torch.ops.wuskern_emulated, name).default.redispatch, _CUDA)


def op_obstacle(name: str, device: str) -> str | None:
    if missing := obstacle():
        return missing
    if device != "cpu":
        return f"the emulation serves the CPU, not {device}"
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"wuskern_emulated::{name}", "CUDA"):
        return "it has no CUDA kernel yet"
    return None


class _Packet:
    def __init__(self, name: str) -> None:
        self.default = op(name)

    def __call__(self, *arguments: Any) -> Any:
        return self.default(*arguments)


class _Namespace:
    def __getattr__(self, name: str) -> _Packet:
        return _Packet(name)


def _choose(name: str, device: str) -> backends.Choice:
    if missing := op_obstacle(name, device):
        raise RuntimeError(f"backend {NAME!r} cannot run {name} on {device}: {missing}")
    return backends.Choice(NAME, "asked for", getattr(native_updates, name, None) or op(name))


@contextlib.contextmanager
def emulated() -> Iterator[None]:
    """Every op inside runs on the emulation."""
    configure()
    with mock.patch.object(backends, "choose", _choose), mock.patch.object(torch.ops, "wuskern_native", _Namespace()):
        yield
