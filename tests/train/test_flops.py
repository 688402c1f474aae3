"""What a choice of rows leaves of a backward pass, counted by hand."""

import pytest
import torch
import torch.nn as nn

import wuskern as wk
from tests.train.test_loop import settings
from wuskern.policies import MeProp
from wuskern.train import data
from wuskern.train.flops import computed_share
from wuskern.train.loop import Run


def network() -> nn.Module:
    layers = nn.Linear(400, 500), nn.BatchNorm1d(500), nn.Dropout(), nn.Linear(500, 600), nn.Linear(600, 10)
    return wk.convert(nn.Sequential(*layers))


@pytest.mark.parametrize(("scope", "second"), [("both", 60 + 60), ("weight", 60 + 600)])
def test_share_counted_by_hand(scope, second):
    """Multiplications of an image: the first layer has no dgrad, the last one is dense. Scores and sums add less than 2 %."""
    policy = MeProp(network(), ratio=0.1, scope=scope)
    share = computed_share(policy, torch.randn(512, 400), torch.zeros(512, dtype=torch.long))
    last = 2 * 600 * 10
    assert share == pytest.approx((400 * 50 + 500 * second + last) / (400 * 500 + 2 * 500 * 600 + last), rel=0.02)


def test_per_example_computes_everything():
    policy = MeProp(network(), ratio=0.1, per="example")
    share = computed_share(policy, torch.randn(64, 400), torch.zeros(64, dtype=torch.long))
    assert share == pytest.approx(1, rel=0.02)


def test_counting_changes_nothing():
    net = network()
    policy = MeProp(net, ratio=0.1, score="random")
    before = {name: value.clone() for name, value in net.state_dict().items()}, torch.get_rng_state()
    computed_share(policy, torch.randn(64, 400, generator=torch.Generator()), torch.zeros(64, dtype=torch.long))
    assert all(torch.equal(value, before[0][name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), before[1])
    assert net.training
    assert all(p.grad is None for p in net.parameters())
    assert [layer.rows for layer in policy.layers.values()] == [policy.rows, policy.rows, None]


def test_a_run_records_it_for_a_policy_that_chooses_rows():
    digits = data.load("digits")
    computed = {
        policy: Run(policy, settings(topk=dict(ratio=0.2)), digits, seed=0).record.computed
        for policy in ("dense", "wus", "topk")
    }
    assert computed["dense"] is computed["wus"] is None
    assert 0 < computed["topk"] <= 1
