"""A stand-in for an NVIDIA GPU, for Python processes that have this folder on their path: "cuda" is the CPU.

``make rehearse-gpu`` runs the targets for a GPU with it, so that what only they go through (Python of tests and benchmarks,
the Makefile's commands) has run before there is one. Nothing that it prints is a measurement, and no kernel of csrc/cuda runs:
those run in the tests' emulation.
"""

import contextlib
import importlib
import os
import time
from collections.abc import Callable
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

CAPABILITY, PROCESSORS = (9, 0), 132
CPU = torch.device("cpu")


# ---- devices --------------------------------------------------------------------------------------------------------


def on_cpu(given: Any) -> Any:
    """The CPU for a GPU, whose first one alone is there; anything else as it is."""
    if isinstance(given, torch.device) and given.type == "cuda":
        return CPU
    return "cpu" if isinstance(given, str) and given in ("cuda", "cuda:0") else given


class OnCpu(TorchFunctionMode):
    """Calls that name a GPU name the CPU."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (Tensor.cuda, Tensor.pin_memory):
            return args[0]
        return function(*map(on_cpu, args), **{name: on_cpu(value) for name, value in (kwargs or {}).items()})


class Generator(torch.Generator):
    def __new__(cls, device: Any = "cpu") -> "Generator":
        return super().__new__(cls, on_cpu(device))


# ---- torch.cuda -----------------------------------------------------------------------------------------------------


class Stream(contextlib.AbstractContextManager[None]):
    """Whatever was asked for is done."""

    cuda_stream = stream_id = 0
    device = torch.device("cuda", 0)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __exit__(self, *_: Any) -> None: ...

    def wait_stream(self, *_: Any) -> None: ...

    def wait_event(self, *_: Any) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def record_event(self, event: Any = None) -> Any:
        event = event or Event()
        event.record()
        return event


class Event:
    """A moment of the CPU's clock."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.at = 0.0

    def record(self, *_: Any) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None: ...

    def wait(self, *_: Any) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, later: "Event") -> float:
        return 1e3 * (later.at - self.at)


class Graph:
    """What it captures runs, once; a test that replays it is skipped."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def replay(self) -> None:
        import pytest

        pytest.skip("a stand-in cannot replay a graph")

    def reset(self) -> None: ...

    def pool(self) -> None: ...


class Properties:
    name, major, minor, multi_processor_count = "stand-in", *CAPABILITY, PROCESSORS
    total_memory, L2_cache_size, max_threads_per_multi_processor = 2**33, 50 * 2**20, 2048
    shared_memory_per_block_optin, shared_memory_per_multiprocessor, regs_per_multiprocessor = 227 << 10, 228 << 10, 2**16
    gcnArchName, warp_size, clock_rate, memory_clock_rate, memory_bus_width = "", 32, 1_980_000, 3_201_000, 6144


def answer(value: Any) -> Callable[..., Any]:
    """A function of its own that says this, whatever it is asked: the compiler tells functions apart."""
    return lambda *_, **__: value


STAND_INS: dict[str, Any] = {
    "is_available": answer(True),
    "is_initialized": answer(True),
    "is_bf16_supported": answer(True),
    "is_current_stream_capturing": answer(False),
    "device_count": answer(1),
    "current_device": answer(0),
    "get_device_capability": answer(CAPABILITY),
    "get_device_name": answer(Properties.name),
    "get_device_properties": answer(Properties),
    "mem_get_info": answer((Properties.total_memory, Properties.total_memory)),
    "Stream": Stream,
    "Event": Event,
    "CUDAGraph": Graph,
    "current_stream": lambda *_: Stream(),
    "default_stream": lambda *_: Stream(),
    "get_rng_state": lambda *_: torch.get_rng_state(),
    "set_rng_state": lambda state, *_: torch.set_rng_state(state),
    "get_rng_state_all": lambda: [torch.get_rng_state()],
    "set_rng_state_all": lambda states: torch.set_rng_state(states[0]),
}
STAND_INS |= {name: answer(contextlib.nullcontext()) for name in ("stream", "device", "device_of", "graph")}
STAND_INS |= {f"{what}_{kind}": answer(0) for what in ("memory", "max_memory") for kind in ("allocated", "reserved")}
STAND_INS |= {
    name: answer(None)
    for name in (
        "_lazy_init", "init", "synchronize", "empty_cache", "reset_peak_memory_stats", "set_device", "_sleep", "manual_seed",
        "manual_seed_all", "set_stream",
    )
}  # fmt: skip


def stand_in() -> None:
    """From here on this process has a GPU to look at."""
    for name, value in STAND_INS.items():
        setattr(torch.cuda, name, value)
    torch.Generator, torch.version.cuda = Generator, "13.0"
    for name in ("adam", "adamw", "optimizer"):  # what may be part of a graph
        importlib.import_module(f"torch.optim.{name}")._get_capturable_supported_devices = answer(["cpu"])
    load, loaded = torch.ops.load_library, []

    def load_library(path: Any) -> None:
        if not str(path).endswith("libwuskern_cuda.so"):
            load(path)
        elif not loaded:
            loaded.append(register())

    torch.ops.load_library = load_library
    OnCpu().__enter__()


def register() -> list[torch.library.Library]:
    """What the library of CUDA kernels adds: each op can be asked for, and the CPU has those too that it has no kernel of."""
    from wuskern import ops
    from wuskern.kernels import backends, reference

    backends.library_obstacle("cpu")  # loads the CPU's
    added = torch.library.Library("wuskern_native", "FRAGMENT")
    added.impl("cuda_architectures", lambda: "9.0a", "CompositeExplicitAutograd")
    for name in ops.NAMES:
        added.impl(name, answer(None), "CUDA")  # no tensor gets there
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"wuskern_native::{name}", "CPU"):
            added.impl(name, reference.OPS[name], "CPU")
    return [added]


stand_in()
