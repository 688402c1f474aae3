"""Backend "emulated", of tests alone: the CUDA kernels of csrc/cuda on CPU tensors, thread by thread (csrc/testing/cuda).

Their ops have the schemas of ``wuskern_native`` in a namespace of their own. While the backend is asked for, that namespace
takes the place of ``torch.ops.wuskern_native``, so that what wuskern composes in Python finds them as well.
"""

import contextlib
import ctypes
import functools
import mmap
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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
    schema = str(torch.ops.wuskern_native.spread_rows.default._schema)
    _namespace.define(schema.removeprefix("wuskern_native::"))
    _namespace.define("probe(str name, Tensor(a!) out, int threads) -> ()")
    try:
        torch.ops.load_library(LIBRARY)
    except OSError as error:
        return f"{LIBRARY.name} does not load: {error}"
    configure()
    return None


def configure(
    processors: int = PROCESSORS, seed: int = 0, tensors_on_gpu: bool = False, capability: int = 90, stream: int = 0,
    capturing: bool = False,
) -> None:  # fmt: skip
    """The machine that is emulated; ``seed``: in which order threads run, ``tensors_on_gpu``: what they say of themselves,
    ``capability``: 80 for 8.0, ``stream``: the number of the one that launches, and whether a graph captures it."""
    library = ctypes.CDLL(str(LIBRARY))
    library.wuskern_emulate_stream(ctypes.c_ulonglong(stream), capturing)
    library.wuskern_emulate(processors, ctypes.c_uint(seed), tensors_on_gpu)
    library.wuskern_emulate_capability(capability)


@dataclass(frozen=True)
class Launch:
    """A kernel that was launched: its name without namespaces, its blocks, and the threads and dynamic shared memory of one."""

    kernel: str
    blocks: int
    threads: int
    shared: int


@dataclass
class Trace:
    """What a block of code had the GPU do: launches, and the bytes of each new tensor of an op, in order."""

    launches: list[Launch] = field(default_factory=list)
    news: list[int] = field(default_factory=list)

    @property
    def kernels(self) -> list[str]:
        return [launch.kernel for launch in self.launches]


_runs = True


@contextlib.contextmanager
def traced(runs: bool = True) -> Iterator[Trace]:
    """A block whose launches and new tensors are written down. Without ``runs`` no kernel runs and results hold anything, so
    that problems of any size can be counted."""
    global _runs
    library, trace = ctypes.CDLL(str(LIBRARY)), Trace()
    library.wuskern_traced.restype = ctypes.c_char_p
    library.wuskern_trace(True, runs)
    _runs = runs
    try:
        yield trace
        for word, *numbers in map(str.split, library.wuskern_traced().decode().splitlines()):
            if word == "zeros":
                trace.launches.append(Launch("zeros", 0, 0, 0))
            elif word == "new":
                trace.news.append(int(numbers[0]))
            else:
                place, *rest = map(int, numbers)
                trace.launches.append(Launch(_kernels()[place], *rest))
    finally:
        _runs = True
        library.wuskern_trace(False, True)


@functools.cache
def _kernels() -> dict[int, str]:
    """The names of the library's functions, by where they lie in it."""
    lines = subprocess.run(["nm", "-C", "--defined-only", LIBRARY], capture_output=True, text=True, check=True).stdout
    found = (re.match(r"(\w+) \w .*?(\w+)(?:<.*)?\(", line) for line in lines.splitlines())
    return {int(match[1], 16): match[2] for match in found if match}


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


def _forgotten(result: Any) -> Any:
    """What an op returned that ran no kernel, in memory without values."""
    result = pytree.tree_map_only(Tensor, lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype), result)
    ctypes.CDLL(str(LIBRARY)).wuskern_free_fenced()
    return result


def _kept(t: Tensor) -> Tensor:
    """A copy of a result, with all of its memory: with what lies between its rows."""
    elements = t.untyped_storage().nbytes() // t.itemsize
    return t.as_strided((elements,), (1,), 0).clone().as_strided(t.shape, t.stride(), t.storage_offset())


def op(name: str) -> Callable[..., Any]:
    """The kernel registered for CUDA, on tensors of the CPU: on fenced copies of them. What it allocates is fenced too."""
    overload = getattr(torch.ops.wuskern_emulated, name).default
    written = [a.alias_info is not None for a in overload._schema.arguments]

    def run(*arguments: Any) -> Any:
        if not _runs:
            return _forgotten(overload.redispatch(_CUDA, *arguments))
        fenced = [Fenced(a) if isinstance(a, Tensor) else a for a in arguments]
        try:
            result = overload.redispatch(_CUDA, *(f.tensor if isinstance(f, Fenced) else f for f in fenced))
            result = pytree.tree_map_only(Tensor, _kept, result)
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
