"""Benchmarks on a GPU: sizes by device, and a share of the time for each file.

    pytest bench/gpu --device cuda --budget 540 --results bench/results/h200.json    # what `make bench-gpu` runs
    pytest bench/gpu --device cuda --benchmark-disable                               # verify every case, time nothing
    pytest bench/gpu --benchmark-disable                                             # the same of tiny ones, on a CPU
    pytest bench/gpu --budget 60 --rounds 2                                          # a rehearsal: tiny ones timed, on a CPU

A file that has spent its share of ``--budget`` skips what is left of it, and says so; what it leaves goes to the next files.
"""

import time

import pytest
import torch

SHARES = {"test_statistics": 0.1, "test_updates": 0.07, "test_steps": 0.23, "test_linears": 0.35, "test_convs": 0.25}
STARTED: pytest.StashKey[dict[str, float]] = pytest.StashKey()


def pytest_configure(config):
    config.stash[STARTED] = {}


def pytest_collection_modifyitems(items):
    order = list(SHARES)
    ours = [item for item in items if "bench/gpu" in item.nodeid]
    ours.sort(key=lambda item: order.index(item.module.__name__.rsplit(".", 1)[1]))
    items[:] = [item for item in items if "bench/gpu" not in item.nodeid] + ours


def deadline(budget: float, spent: float, file: str) -> float:
    """Seconds from the start until which ``file``, which begins when ``spent`` are gone, may start cases: its share among
    the files that are left, of the time that is left."""
    left = list(SHARES.values())[list(SHARES).index(file) :]
    return spent + max(0.0, budget - spent) * left[0] / sum(left)


@pytest.fixture(autouse=True)
def _in_time(request):
    config = request.config
    budget = config.getoption("--budget")
    if config.getoption("--device") == "cpu" and budget is None and not config.getoption("--benchmark-disable"):
        pytest.skip("for a GPU: --device cuda")
    if budget is None:
        return
    now, file = time.monotonic(), request.module.__name__.rsplit(".", 1)[1]
    started = config.stash[STARTED]
    begin = started.setdefault("", now)
    started.setdefault(file, deadline(budget, now - begin, file))
    if now - begin > started[file]:
        pytest.skip("the budget of this file is spent")


@pytest.fixture(autouse=True)
def _memory(device):
    """What a case held goes back before the next one."""
    yield
    if device == "cuda":
        torch.cuda.empty_cache()
