"""Backend "emulated", of tests alone: the CUDA kernels of csrc/cuda on CPU tensors, thread by thread (csrc/testing/cuda).

Their ops have the schemas of ``wuskern_native`` in a namespace of their own. While the backend is asked for, that namespace
takes the place of ``torch.ops.wuskern_native``, so that what wuskern composes in Python finds them as well.
"""

import contextlib
import ctypes
import functools
import mmap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from wuskern import ops
from wuskern.kernels import backends, native_updates

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


class Fenced:
    """A copy of a tensor, with its strides and its alignment to 16 bytes, that ends within 16 bytes of a page that nobody may
    touch; NaN around it."""

    def __init__(self, original: Tensor) -> None:
        self.original, size = original, original.element_size()
        elements = 1 + sum((n - 1) * step for n, step in zip(original.shape, original.stride(), strict=True))
        self.elements = elements if original.numel() else 0
        used = self.elements * size
        inside = -(-(used + 32) // mmap.PAGESIZE) * mmap.PAGESIZE
        start = mmap.PAGESIZE + inside - used
        start -= (start - original.data_ptr()) % 16
        memory = mmap.mmap(-1, inside + 2 * mmap.PAGESIZE)
        first = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        ctypes.memset(first, 0xFF, len(memory))
        for page in (first, first + mmap.PAGESIZE + inside):
            ctypes.CDLL(None).mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), 0)  # PROT_NONE
        everything = torch.frombuffer(memory, dtype=original.dtype, offset=mmap.PAGESIZE + start % size)
        self.line = everything[(start - mmap.PAGESIZE) // size :][: self.elements]
        self.line.copy_(self._line_of(original))
        self.tensor = self.line.as_strided(original.shape, original.stride())

    def _line_of(self, t: Tensor) -> Tensor:
        return t.detach().as_strided((self.elements,), (1,))

    def give_back(self) -> None:
        """To the original, what was written."""
        self._line_of(self.original).copy_(self.line)


def op(name: str) -> Callable[..., Any]:
    """The kernel registered for CUDA, on tensors of the CPU: on fenced copies of them. What it allocates is fenced too."""
    overload = getattr(torch.ops.wuskern_emulated, name).default
    written = [a.alias_info is not None for a in overload._schema.arguments]

    def run(*arguments: Any) -> Any:
        fenced = [Fenced(a) if isinstance(a, Tensor) else a for a in arguments]
        try:
            result = overload.redispatch(_CUDA, *(f.tensor if isinstance(f, Fenced) else f for f in fenced))
            result = pytree.tree_map_only(Tensor, Tensor.clone, result)
        finally:
            ctypes.CDLL(str(LIBRARY)).wuskern_free_fenced()
        for one, changed in zip(fenced, written, strict=False):
            if changed and isinstance(one, Fenced):
                one.give_back()
        return result

    return run


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


def _choose(name: str, device: str, numel: int | None = None) -> backends.Choice:
    if missing := op_obstacle(name, device):
        raise RuntimeError(f"backend {NAME!r} cannot run {name} on {device}: {missing}")
    return backends.Choice(NAME, "asked for", native_updates.OPS.get(name) or op(name))


@contextlib.contextmanager
def emulated() -> Iterator[None]:
    """Every op inside runs on the emulation, on a machine and in an order of threads that torch's seed chooses."""
    seed = torch.initial_seed() % 2**32
    configure(PROCESSORS + seed % 3, seed)
    with mock.patch.object(backends, "choose", _choose), mock.patch.object(torch.ops, "wuskern_native", _Namespace()):
        yield
