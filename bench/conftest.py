"""The race: variants of one problem, verified first, timed in turn within one run, written to one file.

pytest bench --results bench/results/cpu.json     # measure and write
pytest bench --benchmark-disable                  # run everything once
"""

import itertools
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from wuskern.train.results import environment, replace

ROUNDS = 21
FLUSH_BYTES = 2**28  # larger than any L2


def pytest_addoption(parser):
    parser.addoption("--results", type=Path, help="write the medians of this run to a JSON file")
    parser.addoption("--device", default="cpu", help="cpu or cuda")


def pytest_configure(config):
    config.stash[ROWS] = []


ROWS: pytest.StashKey[list[dict[str, Any]]] = pytest.StashKey()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    path, rows = session.config.getoption("--results"), session.config.stash[ROWS]
    if path is None or exitstatus != 0 or not rows:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, json.dumps({"environment": environment(session.config.getoption("--device")), "rows": rows}, indent=1))
    for group, members in itertools.groupby(rows, key=lambda row: row["group"]):
        ratios = [row["peer_over_ours"] for row in members if row["peer_over_ours"]]
        if ratios:
            mean = math.exp(statistics.fmean(map(math.log, ratios)))
            print(f"\n{group}: peer / ours {mean:.2f} (geometric mean of {len(ratios)}), worst {min(ratios):.2f}", end="")
    print(f"\nresults: {path}")


@pytest.fixture
def device(request):
    name = request.config.getoption("--device")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    return name


@pytest.fixture
def race(request, benchmark, device):
    """``race(variants, group=..., case=..., peer=..., **facts)``: times each variant once per round, in rotating order.

    ``variants``: name -> function; "ours" is ours, ``peer`` names the one it is compared with. Callers verify before.
    ``rehearse``: each is called once before it is timed, so that it meets the state that it leaves itself.
    """
    time_once = _time_on_gpu if device == "cuda" else _time_on_cpu

    def run(
        variants: dict[str, Callable[[], object]],
        *,
        group: str,
        case: str,
        peer: str | None = None,
        rehearse: bool = False,
        rounds: int = ROUNDS,
        **facts: Any,
    ) -> dict[str, float]:
        times: dict[str, list[float]] = {name: [] for name in variants}
        turn = itertools.count()

        def round_of_all() -> None:
            names = list(variants)
            shift = next(turn) % len(names)
            for name in names[shift:] + names[:shift]:
                if rehearse:
                    variants[name]()
                times[name].append(time_once(variants[name]))

        benchmark.group = group
        rounds = 1 if benchmark.disabled else rounds
        benchmark.pedantic(variants["ours"], setup=round_of_all, rounds=rounds, warmup_rounds=0 if benchmark.disabled else 3)
        medians = {name: statistics.median(t[-rounds:]) for name, t in times.items()}
        row = {
            "group": group,
            "case": case,
            "peer": peer,
            "peer_over_ours": medians[peer] / medians["ours"] if peer else None,
            "milliseconds": {name: round(1e3 * m, 5) for name, m in medians.items()},
            "spread": {name: round(_spread(t[-rounds:]), 3) for name, t in times.items()},
            **facts,
        }
        benchmark.extra_info.update(row)
        request.config.stash[ROWS].append(row)
        return medians

    return run


def _spread(times: list[float]) -> float:
    """Interquartile range over the median."""
    if len(times) < 4:
        return 0.0
    low, median, high = statistics.quantiles(times, n=4)
    return (high - low) / median


def _time_on_cpu(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _time_on_gpu(function: Callable[[], object]) -> float:
    torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda").zero_()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3
