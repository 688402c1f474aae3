"""How a call is timed: by the wall clock on a CPU, by CUDA events on a GPU, its input cold on both.

Cold, because a benchmark that calls a kernel again on what it has just read measures a cache. On a GPU, L2 is overwritten
before every timing and inputs rotate. On a CPU, inputs (and outputs, where a case preallocates them) rotate through enough
copies to fill the last-level cache twice, at most MAX_COPIES of them: small problems stay in a cache, as they do in
training. A case that is larger than that by itself needs no second copy. ``--copies 1`` times warm ones.

glibc gives freed memory back, and faults it in again page by page, by thresholds that grow with the blocks a process frees.
``settle_allocator`` puts them where a training has them after its first steps, before anything is timed; without it a
large gradient costs a multiple by what happened to be freed before.
"""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

FLUSH_BYTES = 2**28  # larger than any L2
MAX_COPIES = 8
LONG_ENOUGH = 2e-4  # seconds: a thousand times what the clock resolves
MAX_REPEAT = 1000
SLEEP, LONGEST_SLEEP = 5e-4, 0.2  # seconds
CYCLES_PER_SECOND = 2e9  # of a GPU's clock, at most: one that is slower sleeps for longer

Calls = Sequence[tuple[Any, ...]]  # the arguments of each call
Clock = Callable[[Callable[..., object], Calls], float]  # seconds of one call


def on_host(function: Callable[..., object], calls: Calls) -> float:
    """Seconds that the host spends in one call; on a GPU that is the launching alone."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    start = time.perf_counter()
    for arguments in calls:
        function(*arguments)
    return (time.perf_counter() - start) / len(calls)


def on_gpu(function: Callable[..., object], calls: Calls) -> float:
    """Seconds on the GPU between two events, the host's launching not among them: the GPU sleeps before the first event until
    all is launched. A sleep that was too short, as in a first call that compiles, is made longer, and the calls are timed
    again; what launches for longer than LONGEST_SLEEP is timed with what its launching takes."""
    asleep = SLEEP
    while True:
        seconds, launching = _after_sleep(function, calls, asleep)
        if launching < asleep or asleep >= LONGEST_SLEEP:
            return seconds
        asleep = min(LONGEST_SLEEP, 2 * launching)


def _after_sleep(function: Callable[..., object], calls: Calls, asleep: float) -> tuple[float, float]:
    """The seconds of a call on the GPU, and those in which the host launched all of them."""
    torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda").zero_()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()  # else the host would be ahead of what was launched before
    start = time.perf_counter()
    torch.cuda._sleep(int(asleep * CYCLES_PER_SECOND))  # type: ignore[no-untyped-call]
    begin.record()
    for arguments in calls:
        function(*arguments)
    end.record()
    launching = time.perf_counter() - start
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / len(calls), launching


def settle_allocator() -> None:
    """Frees a few blocks of nearly the 32 MiB up to which glibc raises its thresholds."""
    for _ in range(3):
        torch.empty(2**25 - 2**13, dtype=torch.int8).fill_(1)


def clock_of(device: str) -> Clock:
    return on_gpu if device == "cuda" else on_host


def repeat_for(seconds: float, device: str) -> int:
    """Calls per timing, so that one timing takes LONG_ENOUGH. Events on a GPU resolve a single call."""
    if device == "cuda":
        return 1
    return max(1, min(MAX_REPEAT, math.ceil(LONG_ENOUGH / max(seconds, 1e-9))))


def copies_for(size: int, device: str) -> int:
    """Copies of a case that moves ``size`` bytes, for the rule at the top of this file."""
    least, most = (2 if device == "cuda" else 1), MAX_COPIES
    return max(least, min(most, math.ceil(2 * last_level_cache(device) / max(size, 1))))


def last_level_cache(device: str) -> int:
    """Bytes of the largest cache; 32 MiB where the system does not tell."""
    if device == "cuda":
        return torch.cuda.get_device_properties(0).L2_cache_size
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(size[:-1]) * {"K": 2**10, "M": 2**20}[size[-1]] for size in sizes), default=2**25)
