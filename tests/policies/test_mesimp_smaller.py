"""meSimp's model that becomes smaller while it trains."""

import pytest
import torch
import torch.nn as nn
from torch.utils.flop_counter import FlopCounterMode

import wuskern as wk
from tests.policies.mesimp_models import Viewing, X, cnn, mlp, train
from wuskern.policies import MeSimp, Savings


def torchs_flops(net: nn.Module, x: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x)
    return counter.get_total_flops()


IMAGES = torch.randn(24, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("make", "x"), [(mlp, X), (cnn, IMAGES), (Viewing, IMAGES)])
def test_a_model_that_becomes_smaller_trains_on(make, x):
    """From the end of the first cycle on; as ``Savings`` and torch count, and with the outputs of before."""
    net = wk.convert(make())
    policy = MeSimp(net, x, ratio=0.4, per="batch", prune=0.8, cycle=2, simplify=True)
    savings = Savings(policy, x)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    policy.attach(optimizer)
    dense, sizes = torchs_flops(net, x), []

    def look():
        savings.count(len(x))
        saved = savings.report()
        assert saved.fprop == pytest.approx(1 - torchs_flops(net, x) / dense)
        assert saved.rows == pytest.approx(1 - sum(1.0 * choice(layer) for layer in policy.layers.values()) / rows)
        sizes.append([layer.weight.shape[0] for layer in policy.layers.values()])
        assert all(
            len(policy.alive[name]) == layer.weight.shape[0]
            for name, layer in policy.layers.items()
            if name in policy.chosen_rows
        )
        assert len(optimizer.state) in (0, len(list(net.parameters())))

    def choice(layer) -> int:
        return layer.weight.shape[0] if layer.rows is None else layer.rows.count(layer.weight.shape[0])

    rows = sum(layer.weight.shape[0] for layer in policy.layers.values())
    train(net, policy, optimizer, 1, x, after=look)
    before = net.eval()(x)
    policy.step()
    look()
    torch.testing.assert_close(net(x), before)
    train(net.train(), policy, optimizer, 4, x, after=look)
    assert sizes[0] != sizes[1]
    assert sizes[1] == sizes[2] == sizes[3]  # the second cycle does not prune
    assert savings.report().total == 0.0
