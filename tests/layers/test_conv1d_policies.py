"""Methods on a model with Conv1D: they choose its output and input units as a Linear's, or refuse it by name."""

import copy

import pytest
import torch
import torch.nn as nn

import wuskern as wk
from tests.layers.stand_in import Conv1D, linear_of
from wuskern import policies
from wuskern.policies.costs import costs
from wuskern.policies.freezing import forwards


def network() -> nn.Module:
    torch.manual_seed(0)
    return wk.convert(nn.Sequential(Conv1D(12, 8), nn.GELU(), Conv1D(6, 12), nn.Linear(6, 3))).double()


def of_linears() -> nn.Module:
    net = network()
    wk.revert(net)
    return wk.convert(nn.Sequential(linear_of(net[0]), nn.GELU(), linear_of(net[2]), net[3]))


X = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
METHODS = {
    "meprop": lambda net: policies.MeProp(net, k=2),
    "meprop per batch": lambda net: policies.MeProp(net, ratio=0.5, per="batch"),
    "paca": lambda net: policies.PaCA(net, k=4, score="weight"),
    "ssprop": lambda net: policies.SsProp(net, ratio=0.5, linear=True),
    "scores": lambda net: policies.ScoreMemory(net, ratio=0.5),
    "tokens": lambda net: policies.ColumnRowSampling(net, k=3, pick="top"),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_as_on_linears(method):
    nets = network(), of_linears()
    for net in nets:
        policy = METHODS[method](net)
        update = torch.optim.SGD(net.parameters(), 0.1)
        for step in range(4):
            net(X.roll(step, 0)).square().sum().backward()
            update.step()
            update.zero_grad()
            if "after_step" in policy.calls.needs:
                policy.after_step()
    ours, linear = nets
    for name, theirs in linear.named_parameters():
        value = ours.get_parameter(name)
        torch.testing.assert_close(value.t() if name in ("0.weight", "2.weight") else value, theirs, rtol=1e-10, atol=1e-10)
    assert not torch.equal(ours[0].weight, network()[0].weight)


def test_costs_and_savings_are_those_of_linears():
    found, expected = (costs(net, X) for net in (network(), of_linears()))
    assert {name: (c.fprop, c.dgrad, c.wgrad, c.rows) for name, c in found.items()} == {
        name: (c.fprop, c.dgrad, c.wgrad, c.rows) for name, c in expected.items()
    }
    reports = []
    for net in (network(), of_linears()):
        savings = policies.Savings(policies.MeProp(net, k=2, per="batch"), X)
        savings.count(5)
        reports.append(savings.report())
    assert reports[0] == reports[1]


def test_masks_of_weights_and_patterns_of_inputs():
    net = network()
    policy = policies.MEST(net, epochs=4, sparsity=0.5, interval=1)
    assert (net[0].weight == 0).float().mean() == 0.5
    update = wk.optim.AdamW(net.parameters(), 0.1)
    policy.attach(update)
    net[0].columns = wk.Columns([1, 2])
    policy.before_step()
    net(X).sum().backward()
    assert net[0].weight.grad.is_sparse
    update.step()
    policy.after_step()
    assert not net[0].weight[~policy.masks["0"]].any()
    with pytest.raises(ValueError, match="dense: expected 0 in it, a Conv1D, whose inputs lie in no row for n:m"):
        policies.MEST(network(), epochs=4, pattern="2:4", interval=1)


def test_rows_are_not_cut_out():
    net = network()
    with torch.no_grad():
        net[0].weight[:, 3], net[0].bias[3] = 0, 0
        net[2].weight[:, 1], net[2].bias[1] = 0, 0
    smaller, report = wk.simplify(net, X)
    torch.testing.assert_close(smaller(X), net(X))
    assert [tuple(p.shape) for p in smaller.parameters()] == [tuple(p.shape) for p in net.parameters()]
    assert type(smaller[0]) is Conv1D
    assert list(report.layers) == ["3"]
    with pytest.raises(ValueError, match="dense: expected 0 in it, a Conv1D, of which simplify removes no rows"):
        policies.MeSimp(network(), X, k=2)
    policies.MeSimp(
        wk.convert(nn.Sequential(Conv1D(4, 8), nn.Linear(4, 4), nn.Linear(4, 2))).double(), X, k=2, dense=["0", "2"]
    )


def test_a_linear_before_it_keeps_its_dead_rows_and_the_report_says_why():
    net = nn.Sequential(nn.Linear(8, 4), Conv1D(3, 4)).double()
    with torch.no_grad():
        net[0].weight[2], net[0].bias[2] = 0, 0
    report = wk.simplify(net, X)[1]
    (reason,) = report.layers["0"].reasons
    assert "is not known to keep units apart" in reason


def test_a_frozen_prefix_has_no_backward_and_runs_stocks_forward_whatever_the_plan_is():
    net = network()
    assert forwards._stock(type(net[0])) is Conv1D
    wk.set_rows(net, wk.TopK(k=2))
    policy = policies.ProgressiveFreezing(net, X, start=0, end=2, share=0.6)
    before = copy.deepcopy(net.state_dict())
    for _ in range(3):
        policy.after_epoch()
    net(X).sum().backward()
    assert net[0].weight.grad is None
    assert net[3].weight.grad is not None
    torch.testing.assert_close(net.state_dict(), before)


def test_wus_skips_it():
    net = network()
    policy = policies.WUS(net, warmup=0)
    for _ in range(9):
        policy.step(0.5)
    assert net[0].skip
    net(X).sum().backward()
    assert (net[0].weight.grad, net[2].weight.grad) == (None, None)
