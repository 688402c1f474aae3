"""bench/gpu: its table, its shares of the time, its grid. The races themselves are verified by the smoke run of bench."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench import gpu_summary
from bench import regret as bench_regret
from bench.gpu import cases, conftest, models, regret, test_steps
from tests.cases import Conv
from wuskern.kernels import backends
from wuskern.kernels.problem import problem_of


def row(group, milliseconds, peer, derived, **facts):
    numbers = {name: {"median": value, "iqr": 0.0} for name, value in derived.items()}
    return {"group": group, "case": "c", "peer": peer, "milliseconds": milliseconds, "derived": numbers, **facts}


def table(*rows):
    return [" ".join(line.split()) for line in gpu_summary.lines(list(rows), {"copy GB/s": 1.0})]


def test_bandwidth_is_held_against_its_aim():
    rows = (
        row("gpu bias_grad", {"ours": 1.0}, "sum", {"faster": value, "of_copy_bandwidth": share}, least_of_copy=aim)
        for value, share, aim in ((1.0, 0.8, 0.75), (4.0, 0.8, 0.9))
    )
    assert table(*rows) == [
        "copy GB/s: 1.0",
        "group cases shows mean worst aim reached",
        "gpu bias_grad 2 over sum 2.00 1.00 at least 1 2 of 2",
        "gpu bias_grad 2 of copy bandwidth 0.80 0.80 at least 0.75 or 0.9 1 of 2",
    ]


def test_the_best_peer_is_the_fastest_of_them():
    times = {"ours": 1.0, "compact": 0.5, "dense": 6.0, "frozen": 3.0, "plain": 2.0, "products": 0.1}
    derived = {"faster": 2.0, "over_dense": 6.0, "of_floor": 1.5}
    aims = dict(least_over_dense=5.0, least_over_best=1.5, most_of_floor=1.4)
    long, short = (row("gpu top-k Linear", {n: s * t for n, t in times.items()}, "plain", derived, **aims) for s in (1, 0.01))
    assert table(long, short)[2:] == [
        "gpu top-k Linear 2 over plain 2.00 2.00 - -",
        "gpu top-k Linear 2 over dense 6.00 6.00 at least 5 2 of 2",
        "gpu top-k Linear 2 over the best peer 2.00 2.00 at least 1.5 2 of 2",
        "gpu top-k Linear 2 times the floor 1.50 1.50 at most 1.4 0 of 1",  # the other floor is under 50 us
    ]


def test_a_run_without_a_case_says_so():
    assert gpu_summary.lines([], {}) == ["no case was measured"]


def test_other_groups_are_not_in_the_table():
    assert gpu_summary.lines([row("linear", {"ours": 1.0}, "frozen", {"faster": 1.0})], {}) == ["no case was measured"]


@given(st.floats(1, 1000), st.lists(st.floats(0, 1), min_size=len(conftest.SHARES), max_size=len(conftest.SHARES)))
def test_what_a_file_leaves_goes_to_the_next_and_all_end_with_the_budget(budget, used):
    """Each file takes a share of what it may, begun with none gone."""
    spent = 0.0
    for file, share in zip(conftest.SHARES, used, strict=True):
        end = conftest.deadline(budget, spent, file)
        assert end >= spent + 0.99 * min(budget - spent, conftest.SHARES[file] * budget) or spent == pytest.approx(budget)
        assert end <= budget * (1 + 1e-9)
        spent += (end - spent) * share
    assert conftest.deadline(budget, 0.0, "test_convs") == pytest.approx(budget)


def test_a_file_that_overran_leaves_the_next_nothing():
    assert conftest.deadline(100, 130, "test_convs") == 130


def test_the_grid_is_the_whole_one_and_its_squares_come_first():
    assert len(set(cases.LINEARS)) == 100
    assert all(n == k for _, n, k in cases.LINEARS[:20])
    assert set(cases.LINEARS) >= cases.COMPILED
    assert {case.name for case in cases.CONVS} >= cases.COMPILED_CONVS


def test_large_gradients_are_of_64_mib_256_mib_and_1_gib():
    sizes = [2 * a.shape[0] * a.shape[1] * (a.shape[2] * a.shape[3] if len(a.shape) == 4 else 1) for a in cases.GRADIENTS]
    assert sorted({size // cases.MIB for size in sizes}) == [64, 256, 1024]


def test_resnet_50_has_its_parameters():
    """He et al.: 25.6 million."""
    assert sum(p.numel() for p in models.resnet50().parameters()) == 25_557_032


def test_a_variant_that_moves_what_it_should_not_is_found():
    network = models.TINY[1]
    x, y = network.batch("cpu", torch.float32)
    variant = test_steps.Variant(network.make(), network, "dense", False, "cpu")
    variant.mode = "frozen"
    with pytest.raises(AssertionError, match=r"frozen: 100.0% of the rows moved"):
        test_steps.verify({"frozen": variant}, x, y)


# ---- regret ---------------------------------------------------------------------------------------------------------

SMALL = list(regret.cases([(40, 24, 16)], [Conv("3x3", 2, 8, 12, 6, 3, 1, 1)], (0.3,)))


@pytest.mark.parametrize("case", [*SMALL, dataclasses.replace(SMALL[0], whole=True)], ids=str)
def test_a_problem_of_the_regret_is_measured_by_every_way_here(case, monkeypatch):
    monkeypatch.setattr(regret, "ROUNDS", 1)
    problem, milliseconds = regret.measure(case, "cpu", torch.float32)
    assert problem == problem_of(case.op, *case.arguments("cpu", torch.float32))
    assert set(milliseconds) == set(backends.ways(case.op, "cpu")[0]) >= {"library"}


def test_the_regret_is_that_of_the_way_that_the_rule_takes(monkeypatch):
    """With a clock that has the library take half of the others."""
    calls = {"native": 2.0, "triton": 3.0, "library": 1.0}
    monkeypatch.setattr(backends, "ways", lambda op, device: ({way: stand_in(way) for way in calls}, []))
    monkeypatch.setattr(regret, "clock_of", lambda device: lambda run, _: calls[run.__name__])
    rows = regret.rows("cpu", SMALL)
    assert rows[0]["milliseconds"] == {way: 1e3 * seconds for way, seconds in calls.items()}
    assert [row["regret"] for row in rows] == [calls[row["chosen"]] - 1 for row in rows]


def stand_in(name):
    def run(dy, *_):
        return torch.ones(3)

    run.__name__ = name
    return run


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_regret_on_a_gpu_needs_one(capsys):
    assert bench_regret.main(["--device", "cuda"]) == 1
    assert "no GPU" in capsys.readouterr().err
