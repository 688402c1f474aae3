"""The races of bench/: what they refuse and what they compute. Nothing here depends on how long anything takes."""

import itertools
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench import conftest, race, results
from tests.cases import NETWORK_CONVS
from tests.conftest import ROOT
from wuskern.bench import clocks, turns
from wuskern.bench.ceilings import Ceilings
from wuskern.common import memory

# ---- the race -------------------------------------------------------------------------------------------------------


class Pedantic:
    """pytest-benchmark's fixture, as far as a race uses it."""

    group = None

    def __init__(self, disabled: bool = False) -> None:
        self.disabled, self.rounds = disabled, 0

    def pedantic(self, target, rounds=1, warmup_rounds=0):
        self.rounds = rounds
        for _ in range(warmup_rounds + rounds):
            target()


def known_ceilings() -> Ceilings:
    ceilings = Ceilings("cpu")
    ceilings.__dict__["bandwidth"] = {"copy": 1e9, "read": 2e9}
    return ceilings


def run(monkeypatch, variants, times, benchmark=None, session_rounds=5, **keywords):
    """The row of a race whose clock reads ``times``: name -> seconds of each round, warm-up included."""
    remaining = {variants[name]: iter(seconds) for name, seconds in times.items()}
    monkeypatch.setattr(race, "clock_of", lambda device: lambda function, calls: next(remaining[function]))
    rows = []
    arguments = dict(group="g", case="c", inputs=lambda: (torch.ones(3),), verify=lambda *_: None, peer="peer", repeat=1)
    race.Race(benchmark or Pedantic(), known_ceilings(), rows.append, session_rounds)(variants, **(arguments | keywords))
    return rows


def two_variants():
    return {"ours": lambda x: x + 1, "peer": lambda x: x + 1}


WARM = [9.0] * turns.WARM_UP


def test_a_wrong_result_stops_the_race_before_anything_is_timed(monkeypatch):
    timed = []
    monkeypatch.setattr(race, "clock_of", lambda device: lambda *call: timed.append(call) or 1.0)

    def verify(got, x):
        assert torch.equal(got["ours"], got["peer"])

    wrong = {"ours": lambda x: x + 1, "peer": lambda x: x + 2}
    benchmark = Pedantic()
    with pytest.raises(AssertionError):
        race.Race(benchmark, known_ceilings(), timed.append)(
            wrong, group="g", case="c", inputs=lambda: (torch.ones(3),), verify=verify, peer="peer"
        )
    assert not timed
    assert not benchmark.rounds


def test_a_smoke_run_verifies_and_times_nothing(monkeypatch):
    seen = []
    rows = run(monkeypatch, two_variants(), {}, Pedantic(disabled=True), verify=lambda got, x: seen.append(set(got)))
    assert seen == [{"ours", "peer"}]
    assert rows == []


class Item:
    """What a smoke run looks at of a test."""

    def __init__(self, test: str, **params: object) -> None:
        self.nodeid = f"bench/{test}{list(params.values()) or ''}"
        if params:
            self.callspec = SimpleNamespace(params=params)


def test_a_smoke_run_has_each_shape_and_all_else_once():
    grid = [Item("a", case=case, dtype=dtype, ratio=r) for case in "xyz" for dtype in (4, 2) for r in (0.1, 0.2)]
    others = [Item("b"), Item("c", where="outside"), Item("c", where="inside")]
    kept = conftest.smoke_cases(grid + others)
    assert [item in kept for item in grid] == [True] * 4 + [False, True, False, False] + [False, False, True, False]
    assert kept.issuperset(others)


@given(st.integers(1, 6))
def test_every_variant_takes_every_place_of_a_round(count):
    order = []
    variants = {str(i): (lambda x, i=i: i) for i in range(count)}
    found = turns.turns(variants, lambda function, calls: order.append(function(0)) or 1.0, iter(lambda: (0,), 1), 1, False)
    rounds = []
    for _ in range(count):
        assert set(next(found)) == set(variants)
        rounds.append(order[-count:])
    for place in range(count):
        assert {names[place] for names in rounds} == set(range(count))


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.booleans())
def test_a_call_takes_the_inputs_used_longest_ago(variants, copies, repeat, rehearse):
    used = []

    def clock(function, calls):
        for arguments in calls:
            function(*arguments)
        return 1.0

    sets = itertools.cycle([(i,) for i in range(copies)])
    found = turns.turns({str(i): used.append for i in range(variants)}, clock, sets, repeat, rehearse)
    for _ in range(4):
        next(found)
    assert used == [i % copies for i in range(4 * variants * (repeat + rehearse))]


def test_ratios_are_medians_over_rounds_and_not_quotients_of_medians(monkeypatch):
    ours, peer = [1.0, 2.0, 4.0, 2.0, 1.0], [4.0, 4.0, 4.0, 2.0, 1.0]
    times = {"ours": WARM + ours, "peer": [90.0] * turns.WARM_UP + peer}
    (row,) = run(monkeypatch, two_variants(), times, floor=lambda t: t["peer"] / 2)
    assert row["milliseconds"] == {"ours": 2000, "peer": 4000}
    assert list(row["milliseconds"]) == ["ours", "peer"]  # whoever came first in the first round
    assert row["derived"]["faster"]["median"] == 1.0  # of 4, 2, 1, 1, 1
    assert row["derived"]["of_floor"]["median"] == 2.0
    assert row["rounds"] == 5


@pytest.mark.parametrize(("wanted", "expected"), [(None, 5), (2, 2), (9, 5)])
def test_a_case_can_ask_for_fewer_rounds_and_not_for_more(monkeypatch, wanted, expected):
    times = {"ours": WARM + [1.0] * 5, "peer": WARM + [1.0] * 5}
    (row,) = run(monkeypatch, two_variants(), times, **({"rounds": wanted} if wanted else {}))
    assert row["rounds"] == expected


def test_rates_and_the_share_of_the_ceiling(monkeypatch):
    times = {"ours": WARM + [1e-3] * 5, "peer": WARM + [1e-3] * 5}
    (row,) = run(monkeypatch, two_variants(), times, moved=10**6)
    assert (row["bytes"], row["GB/s"], row["of_ceiling"]) == (10**6, 1.0, 0.5)  # a read gives 2 GB/s


def test_flops_are_counted_and_peaks_measured(monkeypatch):
    def product(x):
        return x @ x

    variants = {"ours": product, "peer": lambda x: torch.cat((x @ x, x))}
    times = {"ours": WARM + [1e-3] * 5, "peer": WARM + [1e-3] * 5}
    (row,) = run(monkeypatch, variants, times, inputs=lambda: (torch.ones(64, 64),))
    assert row["flops"] == 2 * 64**3
    assert row["peak_bytes"] == {"ours": 4 * 64**2, "peer": 3 * 4 * 64**2}


@given(st.lists(st.floats(1e-3, 1e3), min_size=4, max_size=40))
def test_spread_is_the_interquartile_range(values):
    low, high = np.percentile(values, [25, 75], method="weibull")
    assert turns.iqr(values) == pytest.approx(high - low)
    assert turns.iqr(values[:3]) == 0


def test_inputs_fill_the_last_level_cache_twice_and_no_more_than_needed(monkeypatch):
    monkeypatch.setattr(clocks, "last_level_cache", lambda device: 100)
    assert [clocks.copies_for(size, "cpu") for size in (0, 10, 50, 100, 199, 200, 10**6)] == [8, 8, 4, 2, 2, 1, 1]
    assert clocks.copies_for(10**6, "cuda") == 2


def test_short_calls_are_repeated_until_the_clock_resolves_them():
    assert clocks.repeat_for(1.0, "cpu") == 1
    assert clocks.repeat_for(clocks.LONG_ENOUGH / 10, "cpu") in (10, 11)
    assert clocks.repeat_for(0.0, "cpu") == clocks.MAX_REPEAT
    assert clocks.repeat_for(1e-6, "cuda") == 1


def test_the_clock_passes_each_call_its_own_arguments():
    seen = []
    assert clocks.on_host(lambda *a: seen.append(a), [(1, 2), (3, 4)]) >= 0
    assert seen == [(1, 2), (3, 4)]


def test_peak_memory_is_what_lived_at_once():
    def function():
        a = torch.zeros(1000)
        b = a + a
        del a
        return b + b

    assert memory.peak_bytes(function, "cpu") == 8000


def test_a_ceiling_is_set_by_the_slower_of_memory_and_arithmetic():
    ceilings = known_ceilings()
    ceilings._gemm[torch.float32] = 1e9
    assert ceilings.seconds(2 * 10**9, 0, None) == 1.0
    assert ceilings.seconds(2 * 10**9, 3 * 10**9, torch.float32) == 3.0
    assert ceilings.as_dict() == {"copy GB/s": 1.0, "read GB/s": 2.0, "GEMM float32 GFLOP/s": 1.0}


# ---- the whole, in pytest -------------------------------------------------------------------------------------------


def bench(*arguments):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "bench", *map(str, arguments)]
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_XDIST")}  # it would time nothing
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


def test_a_run_writes_its_row_and_pytest_benchmark_reports_the_same_timings(tmp_path):
    ours, theirs = tmp_path / "ours.json", tmp_path / "theirs.json"
    done = bench("-k", "head and bias_grad and bfloat16", "--rounds", 6, "--results", ours, f"--benchmark-json={theirs}")
    assert done.returncode == 0, done.stdout + done.stderr
    (one,) = results.read(ours)["rows"]
    (report,) = json.loads(theirs.read_text())["benchmarks"]
    assert one["group"] == report["group"] == "bias_grad"
    assert report["stats"]["rounds"] == one["rounds"] == 6
    assert 1e3 * report["stats"]["median"] == pytest.approx(one["milliseconds"]["ours"], rel=1e-3)
    assert {key: report["extra_info"][key] for key in one} == one
    assert report["extra_info"]["environment"] == results.read(ours)["environment"]
    assert set(one["milliseconds"]) == {"ours", "sum", "copy"}
    assert all(value > 0 for value in one["milliseconds"].values())


def test_a_smoke_run_has_no_results_to_write():
    config = SimpleNamespace(getoption={"--results": "x.json", "--benchmark-disable": True}.get)
    with pytest.raises(pytest.UsageError, match="--results: expected a run that measures, got --benchmark-disable"):
        conftest.pytest_configure(config)


def test_parameters_and_what_a_case_adds_are_plain_json():
    given = {"dtype": torch.float32, "case": NETWORK_CONVS[0], "shape": (2, torch.Size([3])), "ratio": None, "graphed": True}
    output = {"benchmarks": [{"params": given, "extra_info": {"of": given}}, {"params": None, "extra_info": {}}]}
    conftest.pytest_benchmark_update_json(None, [], output)
    expected = {"dtype": "float32", "case": str(NETWORK_CONVS[0]), "shape": [2, [3]], "ratio": None, "graphed": True}
    assert output["benchmarks"] == [{"params": expected, "extra_info": {"of": expected}}, {"params": {}, "extra_info": {}}]
    assert json.loads(json.dumps(output)) == output
