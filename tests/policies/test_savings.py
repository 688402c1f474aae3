"""What policies saved: against torch's own count of real backward passes, and epochs worked by hand."""

import io
from typing import Any

import pytest
import torch
import torch.nn as nn
from torch.utils.flop_counter import FlopCounterMode

import wuskern as wk
from wuskern.policies import MEST, WUS, Compose, MeProp, Policy, Saved, Savings, ScoreMemory, SingleShotFreezing, SsProp
from wuskern.policies.base import Wants

BATCH = 16
SKIP: Wants = {"skip": True}
FROZEN: Wants = {"frozen": True}


class Fixed(Policy):
    """Wants the same of the layers that it names, always."""

    def __init__(self, model: nn.Sequential, flags: dict[str, Wants]) -> None:
        super().__init__(model)
        self.flags = flags
        self.apply()

    def step(self, metric: float | None = None) -> bool:
        return False

    def wants(self, name: str) -> Wants:
        return self.flags.get(name, {})

    def frozen_parameters(self) -> list[nn.Parameter]:
        """Of everything up to the last frozen layer."""
        last = max((int(name) for name, wanted in self.flags.items() if wanted.get("frozen")), default=-1)
        return list(self.model[: last + 1].parameters())  # type: ignore[index]

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.apply()


# ---- against torch's count ------------------------------------------------------------------------------------------


def mlp(bias: bool = True) -> nn.Sequential:
    return nn.Sequential(nn.Linear(20, 30, bias), nn.ReLU(), nn.Linear(30, 40, bias), nn.ReLU(), nn.Linear(40, 10, bias))


def conv(bias: bool = True, norm: bool = True) -> nn.Sequential:
    first, second = nn.Conv2d(3, 8, 3, bias=bias), nn.Conv2d(8, 20, 3, stride=2, padding=1, bias=bias)
    between = nn.BatchNorm2d(8) if norm else nn.ReLU()
    return nn.Sequential(first, between, second, nn.Flatten(), nn.Linear(20 * 4, 10, bias))


def tied() -> nn.Sequential:
    """The embedding trains where both layers that follow skip."""
    net = nn.Sequential(nn.Embedding(10, 20), nn.Linear(20, 20, bias=False), nn.Linear(20, 10, bias=False))
    net[2].weight = net[0].weight
    return net


VECTOR, IMAGE, TOKEN = (
    (lambda: torch.randn(BATCH, 20)),
    (lambda: torch.randn(BATCH, 3, 6, 6)),
    (lambda: torch.arange(BATCH) % 10),
)
NETWORKS = {
    "mlp": (mlp, VECTOR, ("0", "2", "4")),
    "mlp without biases": (lambda: mlp(bias=False), VECTOR, ("0", "2", "4")),
    "norm first": (lambda: nn.Sequential(nn.BatchNorm1d(20), *mlp()), VECTOR, ("1", "3", "5")),
    "conv": (conv, IMAGE, ("0", "2", "4")),
    "conv without biases": (lambda: conv(bias=False), IMAGE, ("0", "2", "4")),
    "conv without biases and norm": (lambda: conv(bias=False, norm=False), IMAGE, ("0", "2", "4")),
    "tied to an embedding": (tied, TOKEN, ("1", "2")),
}
TOKENS: Wants = {"tokens": wk.Tokens(ratio=0.5, pick="wta")}
FEW_TOKENS: Wants = {"tokens": wk.Tokens(k=4)}
HALF, HALF_OF_BOTH = ({"rows": wk.TopK(ratio=0.5, scope=scope)} for scope in ("weight", "both"))
WANTED: dict[str, tuple[Wants, Wants]] = {  # of the first layer, and of the others
    "all skip": (SKIP, SKIP),
    "the first skips": (SKIP, {}),
    "half of the rows": (HALF, HALF),
    "half of the rows, dgrad too": (HALF_OF_BOTH, HALF_OF_BOTH),
    "half of the tokens": (TOKENS, TOKENS),
    "some tokens of half of the rows": (HALF | FEW_TOKENS, HALF_OF_BOTH | TOKENS),
    "a fixed row": ({"rows": wk.Rows([3], "both")}, {"rows": wk.Rows([1])}),
    "the first is frozen": (FROZEN, {}),
    "frozen, then rows": (FROZEN | HALF, HALF_OF_BOTH),
    "frozen, then skip": (FROZEN | SKIP | TOKENS, SKIP | HALF | TOKENS),
}


def backward_flops(net: nn.Module, x: torch.Tensor) -> int:
    """Of matrix products and convolutions; sums and scores are others."""
    y = net(x)
    if not y.requires_grad:
        return 0
    with FlopCounterMode(display=False) as counter:
        y.square().mean().backward()
    kinds = ("aten.mm", "aten.convolution", "wgrad", "dgrad")
    return sum(n for op, n in counter.get_flop_counts()["Global"].items() if any(kind in str(op) for kind in kinds))


@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("network", NETWORKS)
def test_shares_are_those_that_torch_counts(network, wanted):
    if network == "tied to an embedding" and "frozen" in wanted:
        pytest.skip("frozen, the embedding would take the last layer with it")
    make, example, names = NETWORKS[network]
    net, x = wk.convert(make()), example()
    dense = backward_flops(net, x)
    first, others = WANTED[wanted]
    policy = Fixed(net, {name: first if name == names[0] else others for name in names})
    savings = Savings(policy, x)
    for parameter in policy.frozen_parameters():
        parameter.requires_grad_(False)
    savings.count(BATCH)
    saved = savings.report()
    d, w = (sum(getattr(cost, kind) for cost in savings.costs.values()) for kind in ("dgrad", "wgrad"))
    assert BATCH * (d + w) == dense
    assert 1 - (saved.dgrad * d + saved.wgrad * w) / (d + w) == pytest.approx(backward_flops(net, x) / dense)
    assert saved.depth == ("frozen" in first)


@pytest.mark.parametrize("network", ["norm first", "conv", "conv without biases"])
def test_layers_that_are_frozen_from_the_start_save_what_torch_counts(network):
    """The method's hooks are there already where the costs are asked for; beside it, another method skips."""
    make, example, _ = NETWORKS[network]
    net, x = wk.convert(make()), example()
    dense = backward_flops(net, x)
    policy = Compose([WUS(net, warmup=0, window=1), SingleShotFreezing(net, x, at=0, share=0.4)])
    savings = Savings(policy, x)
    d, w = (sum(getattr(cost, kind) for cost in savings.costs.values()) for kind in ("dgrad", "wgrad"))
    for depth in (1, 1, 1):
        savings.count(BATCH)
        saved = savings.report()
        assert saved.depth == depth
        assert 1 - (saved.dgrad * d + saved.wgrad * w) / (d + w) == pytest.approx(backward_flops(net, x) / dense)
        policy.after_epoch()
        policy.step(0.5)
    assert net[-1].skip


@pytest.mark.parametrize(("scope", "dgrad"), [("weight", 0), ("both", 7200 / 14480)])
def test_half_of_the_rows_of_each_group(scope, dgrad):
    """By hand: torch counts the wgrad of each group as if it were all groups'. The last layer is dense."""
    net = nn.Sequential(nn.Conv2d(20, 40, 3, groups=2), nn.Conv2d(40, 40, 3, groups=2), nn.Conv2d(40, 1, 1))
    savings = Savings(MeProp(wk.convert(net), ratio=0.5, scope=scope), torch.randn(2, 20, 5, 5))
    savings.count(2)
    saved = savings.report()
    assert [cost.wgrad for cost in savings.costs.values()] == [64800, 14400, 80]
    assert (saved.wgrad, saved.dgrad, saved.rows) == pytest.approx((39600 / 79280, dgrad, 40 / 81))


# ---- epochs by hand -------------------------------------------------------------------------------------------------


def by_hand() -> nn.Sequential:
    """Multiplications and additions of a sample: 40 + 40 + 20 in each layer's fprop and wgrad; dgrad without the first."""
    return wk.convert(nn.Sequential(nn.Linear(2, 10), nn.Linear(10, 2), nn.Linear(2, 5)))


def images() -> nn.Sequential:
    return wk.convert(nn.Sequential(nn.Conv2d(1, 10, 1), nn.Conv2d(10, 10, 1), nn.Flatten(), nn.Linear(10, 10)))


def epoch(savings: Savings, batches: list[int], cached_layers: int = 0) -> Saved:
    for samples in batches:
        savings.policy.before_step()
        savings.count(samples, cached_layers=cached_layers)
        savings.policy.after_step()
    return savings.report()


def test_bars_by_the_epoch():
    """wgrad: 20 + 200 + 200 of a sample; dgrad: 0 + 200 + 200. The bar leaves out .8 of both convolutions'."""
    savings = Savings(SsProp(images(), ratio=0.2), torch.randn(3, 1, 1, 1))
    dense = Saved(fprop=0, dgrad=0, wgrad=0, rows=0, samples=0, depth=0, total=0)
    assert epoch(savings, [3, 3]) == dense
    savings.policy.after_epoch()
    sparse = epoch(savings, [3, 3])
    assert (sparse.dgrad, sparse.wgrad, sparse.rows) == pytest.approx((0.8 * 200 / 400, 0.8 * 220 / 420, 0.8 * 20 / 30))
    assert sparse.total == pytest.approx(0.8 * 420 / (420 + 400 + 420))
    savings.policy.after_epoch()
    assert epoch(savings, [3, 3]) == dense


def test_bars_by_the_step_weigh_by_samples():
    """Dense, dense, rows, rows, dense, and the last batch is smaller."""
    savings = Savings(SsProp(images(), ratio=0.2, unit="step", length=2), torch.randn(3, 1, 1, 1))
    saved = epoch(savings, [4, 4, 4, 4, 2])
    assert saved.rows == pytest.approx(8 / 18 * 0.8 * 20 / 30)


def test_windows_of_skipping():
    net = by_hand()
    savings = Savings(WUS(net, window=1, warmup=0, patience=2, threshold=0.01, cooldown=3), torch.randn(1, 2))
    found = []
    for metric in (0.5, 0.5, 0.5, 0.5):
        found.append(epoch(savings, [3, 3]))
        savings.policy.step(metric)
    full, skip = found[0], found[2]
    assert found == [full, full, skip, skip]
    assert (full.wgrad, full.total) == (0, 0)
    assert (skip.wgrad, skip.dgrad, skip.fprop, skip.rows) == (1, 0, 0, 1)
    assert skip.total == pytest.approx(100 / 260)


def test_rows_that_change_in_each_step():
    savings = Savings(ScoreMemory(by_hand(), ratio=0.5, dense=["2"]), torch.randn(1, 2))
    net, seen = savings.policy.model, set()
    for _ in range(6):
        seen.add(savings.policy.wants("0")["rows"].numbers)
        net(torch.randn(4, 2)).square().sum().backward()
        savings.count(4)
        savings.policy.after_step()
    assert len(seen) > 1
    saved = savings.report()
    assert (saved.wgrad, saved.dgrad, saved.rows) == pytest.approx((40 / 100, 20 / 60, 6 / 17))


def test_of_several_policies_skip_goes_over_rows():
    net = by_hand()
    wus = WUS(net, window=1, warmup=0, patience=1, threshold=0.01)
    savings = Savings(Compose([wus, MeProp(net, ratio=0.5)]), torch.randn(1, 2))
    rows = epoch(savings, [2])
    assert (rows.wgrad, rows.dgrad) == pytest.approx((40 / 100, 20 / 60))
    savings.policy.step(0.5)
    savings.policy.step(0.5)
    skip = epoch(savings, [2])
    assert (skip.wgrad, skip.dgrad) == (1, 0)


@pytest.mark.parametrize("cached", [0, 1, 2])
def test_a_frozen_prefix_and_its_cache(cached):
    """The third layer trains and has no dgrad: all of dgrad is gone, and all of wgrad but its own."""
    savings = Savings(Fixed(by_hand(), {"0": FROZEN, "1": FROZEN}), torch.randn(1, 2))
    saved = epoch(savings, [4, 4], cached)
    assert (saved.dgrad, saved.wgrad, saved.rows) == pytest.approx((1, 80 / 100, 12 / 17))
    assert (saved.fprop, saved.depth) == (pytest.approx(40 * cached / 100), 2)
    assert saved.total == pytest.approx((40 * cached + 60 + 80) / 260)


@pytest.mark.parametrize(
    ("wanted", "cached", "computed"),
    [
        ({}, 0, 40 + 40 + 40),
        (SKIP, 0, 40 + 40),
        ({"rows": wk.Rows([0], "both")}, 0, 40 + 20 + 20),
        (FROZEN, 0, 40),
        (FROZEN, 1, 40),
        (FROZEN, 2, 0),
    ],
)
def test_masked_is_what_dense_kernels_compute_of_zeros(wanted, cached, computed):
    """Three quarters of the second layer's weights are masked; two samples of ten are left out."""
    policy = Fixed(by_hand(), {"0": wanted, "1": wanted | {"density": 0.25}})
    savings = Savings(policy, torch.randn(1, 2), samples=10)
    dense = Savings(Fixed(by_hand(), {"0": wanted, "1": wanted}), torch.randn(1, 2), samples=10)
    saved, other = epoch(savings, [4, 4], cached), epoch(dense, [4, 4], cached)
    assert saved.masked == pytest.approx(0.8 * 0.75 * computed / 260)
    assert (saved.total, other.masked) == (other.total, 0)


def test_masks_of_sparse_training_count_as_they_change():
    """Half of the masked layers' weights, and then, grown, three quarters; all layers but the last have a mask."""
    policy = MEST(by_hand(), epochs=4, sparsity=0.5, lower=0.5, upper=(0.5, 0.25), switches=(1,), interval=1)
    savings = Savings(Compose([policy]), torch.randn(1, 2))
    assert epoch(savings, [3]).masked == pytest.approx(0.5 * (80 + 40 + 80) / 260)
    policy.step()
    assert epoch(savings, [3]).masked == pytest.approx(0.25 * (80 + 40 + 80) / 260)


def test_per_example_saves_nothing():
    savings = Savings(MeProp(by_hand(), k=1, per="example"), torch.randn(1, 2))
    assert epoch(savings, [4]) == Saved(0, 0, 0, 0, 0, 0, 0)


def test_so_many_tokens_are_another_share_of_another_batch():
    """Five tokens a sample: 4 of 10, then 4 of 20 and all of 5 (k is at most what there is); images are one each."""
    savings = Savings(Fixed(by_hand(), dict.fromkeys("012", FEW_TOKENS)), torch.randn(2, 5, 2))
    assert epoch(savings, [2]).wgrad == pytest.approx(0.6)
    assert epoch(savings, [4, 1]).wgrad == pytest.approx((4 * 0.8 + 0.2) / 5)
    assert epoch(savings, [4]).dgrad == 0
    savings = Savings(Fixed(images(), dict.fromkeys("01", FEW_TOKENS)), torch.randn(3, 1, 1, 1))
    assert epoch(savings, [8]).wgrad == pytest.approx(0.5 * 220 / 420)


def test_samples_that_were_left_out_count_in_the_total():
    savings = Savings(Fixed(by_hand(), dict.fromkeys("012", SKIP)), torch.randn(1, 2), samples=10)
    saved = epoch(savings, [4, 4])
    assert saved.samples == pytest.approx(0.2)
    assert saved.total == pytest.approx(1 - 0.8 * 160 / 260)
    assert epoch(savings, [10]).samples == 0


def test_an_empty_epoch():
    net = by_hand()
    assert Savings(WUS(net), torch.randn(1, 2)).report() == Saved(0, 0, 0, 0, 0, 0, 0)
    assert Savings(WUS(net), torch.randn(1, 2), samples=5).report() == Saved(0, 0, 0, 0, samples=1, depth=0, total=1)


def test_flags_that_are_set_already_do_not_count_as_dense():
    """A bias-free layer that skips is in no graph: the layers after it would seem to need no dgrad."""
    net = wk.convert(mlp(bias=False))
    policy = Fixed(net, dict.fromkeys("024", SKIP))
    assert [cost.dgrad > 0 for cost in Savings(policy, torch.randn(1, 20)).costs.values()] == [False, True, True]
    assert all(layer.skip for layer in policy.layers.values())


@pytest.mark.parametrize("cut", range(6))
def test_a_resumed_epoch_reports_the_same(cut):
    """Its state is taken between two batches, and goes through a file."""
    savings, again = (Savings(SsProp(images(), unit="step"), torch.randn(2, 1, 1, 1), samples=24) for _ in range(2))
    going = savings
    for i, samples in enumerate([4, 4, 4, 4, 3]):
        if i == cut:
            file = io.BytesIO()
            torch.save({"policy": savings.policy.state_dict(), "savings": savings.state_dict()}, file)
            state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
            again.policy.load_state_dict(state["policy"])
            again.load_state_dict(state["savings"])
            going = again
        going.count(samples)
        going.policy.after_step()
    expected = epoch(Savings(SsProp(images(), unit="step"), torch.randn(2, 1, 1, 1), samples=24), [4, 4, 4, 4, 3])
    assert going.report() == expected


def test_bad_arguments_are_refused():
    net = by_hand()
    x = torch.randn(1, 2)
    with pytest.raises(TypeError, match="policy: expected a policy, got Sequential"):
        Savings(net, x)
    with pytest.raises(ValueError, match="samples: expected at least 1, got 0"):
        Savings(WUS(net), x, samples=0)
    savings = Savings(Fixed(net, {"0": FROZEN}), x)
    with pytest.raises(ValueError, match="cached_layers: expected at most 1, those that are frozen, got 2"):
        savings.count(1, cached_layers=2)
    with pytest.raises(ValueError, match="samples: expected at least 0, got -1"):
        savings.count(-1)
    assert savings.trained == 0
    with pytest.raises(ValueError, match="state: expected the keys"):
        savings.load_state_dict({})
    state = savings.state_dict()
    for change in (
        {"trained": -1},
        {"trained": 1.5},
        {"depth": 4},
        {"left_out": {}},
        {"left_out": state["left_out"] | {"rows": -1}},
    ):
        with pytest.raises(ValueError, match=f"state: expected {next(iter(change))}|rows"):
            savings.load_state_dict(state | {"trained": 7} | change)
        assert savings.state_dict() == state
