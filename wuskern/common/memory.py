"""The peak memory of one call: the most that PyTorch's allocator had handed out at once, above what was there before.

On a CPU that is read from a profile of one untimed call; scratch memory that oneDNN takes for itself is not in it.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(function: Callable[[], object], device: str) -> int:
    """The peak memory of one call of ``function``, in bytes; its result counts, since it is alive when the call ends."""
    return _on_gpu(function) if device == "cuda" else _on_cpu(function)


def _on_cpu(function: Callable[[], object]) -> int:
    with _without_words(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        function()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        record.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    live = peak = 0
    for event in sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"]):
        live += event["args"]["Bytes"]
        peak = max(peak, live)
    return peak


@contextlib.contextmanager
def _without_words() -> Iterator[None]:
    """A block in which the profiler's library, which reads this once, does not print that it begins and ends."""
    name = "KINETO_LOG_LEVEL"
    had = os.environ.get(name)
    os.environ[name] = had or "6"
    try:
        yield
    finally:
        if had is None:
            del os.environ[name]


def _on_gpu(function: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
