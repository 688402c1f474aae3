"""The autotuning of the Triton products, off by default: ``WUSKERN_AUTOTUNE=1``, or ``with wuskern.autotune():``.

The first time a problem is met on a kind of GPU, each configuration that its table has is timed, and the fastest one is kept,
in ``$XDG_CACHE_HOME/wuskern/autotune/`` (``~/.cache`` without it), one JSON file for each kind of GPU. Without autotuning the
pure functions of ``configs`` choose. What writes to its arguments is never tuned: a candidate must be free to run many times.

While a CUDA graph is captured, nothing may be timed, and no code may be loaded: what has run before must run. That is the
configuration that autotuning took for the problem in this process, on this GPU, or else the one of the pure functions.
"""

import contextlib
import json
import os
import re
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch

from wuskern.common.overlap import Overlapping
from wuskern.kernels.cuda.gpus import capability_of
from wuskern.kernels.triton.tiles import GemmTile

FORMAT = 1
WARM_UP, ROUNDS = 2, 7
SLEEP_CYCLES = 10**6

Config = tuple[GemmTile, int]  # a tile, and how much of the sum one program takes (0: all)
Clock = Callable[[Callable[[], object], torch.device], float]


def _asked() -> bool:
    """Whether the environment asks for autotuning."""
    return os.environ.get("WUSKERN_AUTOTUNE") == "1"


_on = _asked()
_lock = threading.Lock()
_caches: dict[Path, dict[str, list[int]]] = {}  # of this process: file -> problem -> configuration
_taken: dict[tuple[torch.device, str], Config] = {}  # and which have run, so that their code is loaded


def _turn(on: bool) -> None:
    global _on
    _on = on


_blocks = Overlapping(lambda: _on, _turn)


def autotune(enabled: bool = True) -> contextlib.AbstractContextManager[None]:
    """A block in which, in all threads, the Triton products of a problem met for the first time on this kind of GPU are timed
    in every configuration, for some milliseconds, and the fastest is kept, in a file, for good. Outside, and with
    ``enabled=False``, nothing is timed, and no file is read. Of blocks that overlap, the one entered last counts until it is
    left."""
    return _blocks.block(enabled)


def pick(
    words: Callable[[], str],
    device: torch.device,
    default: Config,
    candidates: Callable[[], Sequence[Config]],
    run: Callable[[Config], object],
) -> Config:
    """The configuration for a problem, by whose ``words()`` it is kept: ``default`` unless autotuning is on.

    ``run`` launches one, into memory of its own. A kept configuration that is no candidate (any more) is timed anew.
    """
    if (_on or _taken) and is_capturing(device):
        return _taken.get((device, words()), default)
    if not _on:
        return default
    with _lock:
        key = words()
        taken = _taken[device, key] = _kept_or_fastest(key, device, candidates(), run)
    return taken


def is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _kept_or_fastest(key: str, device: torch.device, candidates: Sequence[Config], run: Callable[[Config], object]) -> Config:
    path = file_of(device)
    if path not in _caches:
        _caches[path] = read(path)
    kept = _caches[path].get(key)
    for candidate in candidates:
        if _as_list(candidate) == kept:
            return candidate
    best = fastest(candidates, run, device)
    _caches[path][key] = _as_list(best)
    write(path, _caches[path])
    return best


def fastest(candidates: Sequence[Config], run: Callable[[Config], object], device: torch.device) -> Config:
    """The configuration with the smallest median, all timed in turn."""
    seconds: dict[Config, list[float]] = {candidate: [] for candidate in candidates}
    for turn in range(WARM_UP + ROUNDS):
        for candidate, of_candidate in seconds.items():
            taken = clock(lambda candidate=candidate: run(candidate), device)  # type: ignore[misc]
            if turn >= WARM_UP:
                of_candidate.append(taken)
    return min(seconds, key=lambda candidate: statistics.median(seconds[candidate]))


def clock(function: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, on the GPU between two events; the GPU sleeps for the first half a millisecond of launching."""
    if device.type != "cuda":
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(SLEEP_CYCLES)  # type: ignore[no-untyped-call]
    begin.record()
    function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


# ---- the file -------------------------------------------------------------------------------------------------------


def file_of(device: torch.device) -> Path:
    """The file of the kind of GPU that ``device`` is."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return Path(root) / "wuskern" / "autotune" / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}-{capability_of(device)}.json"


def read(path: Path) -> dict[str, list[int]]:
    """The configurations that were kept; none, and a warning that names the file, where it is not one of ours."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ValueError("no regular file")
        content = json.loads(path.read_text())
        if not isinstance(content, dict) or content.get("format") != FORMAT or not isinstance(content.get("kept"), dict):
            raise ValueError(f"no mapping of format {FORMAT}")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError) as error:
        warnings.warn(f"{path}: ignored, expected what autotuning keeps, got {error}", stacklevel=2)
        return {}
    return dict(content["kept"])


def write(path: Path, kept: dict[str, list[int]]) -> None:
    """Writes a file in one step, with what other processes have added meanwhile; warns where that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said when it was first read
            merged = read(path) | kept
        with tempfile.TemporaryDirectory(dir=path.parent) as own:
            whole = Path(own) / path.name
            whole.write_text(json.dumps({"format": FORMAT, "kept": merged}, indent=1))
            os.replace(whole, path)
    except OSError as error:
        warnings.warn(f"{path}: what autotuning found is not kept: {error}", stacklevel=2)


def _as_list(config: Config) -> list[Any]:
    return [*astuple(config[0]), config[1]]
