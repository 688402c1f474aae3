"""A frozen prefix beside what else touches a forward: checkpointing, autocast, compilation."""

import copy

import pytest
import torch
import torch.nn as nn
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import wuskern as wk
from tests.policies.freezing_models import images, mlp, resnet
from wuskern.policies.freezing import Prefix

pytestmark = pytest.mark.usefixtures("one_thread")


class Checkpointed(nn.Module):
    def __init__(self, net: nn.Sequential, reentrant: bool) -> None:
        super().__init__()
        self.net, self.reentrant = net, reentrant

    def forward(self, x: Tensor) -> Tensor:
        for part in self.net:
            again = self.training
            x = checkpoint(part, x, use_reentrant=self.reentrant) if again else part(x)
        return x


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_activation_checkpointing_changes_no_gradient(depth):
    torch.manual_seed(0)
    net, x = wk.convert(resnet().double()), images()
    wrapped = Checkpointed(copy.deepcopy(net), False)
    Prefix(net, x).set(depth)
    Prefix(wrapped, x).set(depth)
    for model in (net, wrapped.train()):
        model(x).square().sum().backward()
    for p, q in zip(net.parameters(), wrapped.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
def test_reentrant_checkpointing_says_so():
    net, x = Checkpointed(wk.convert(mlp()), True), torch.randn(4, 6)
    Prefix(net, x).set(1)
    with pytest.raises(RuntimeError, match="use_reentrant=False works"):
        net.train()(x)


@pytest.mark.parametrize("enabled", [False, True])
def test_a_weight_that_two_layers_share_trains_under_autocast(enabled):
    """Autocast keeps casts of weights, and the first of them is made without gradients."""
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    wk.convert(net)
    x = torch.randn(3, 4)
    Prefix(net, x).set(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        y = net(x).float()
    y.sum().backward()
    hidden = net[1](net[0](x)).detach()
    tolerance = 0.1 if enabled else 1e-5
    torch.testing.assert_close(net[2].weight.grad, hidden.sum(0).expand(4, 4), atol=tolerance, rtol=tolerance)


def test_a_compiled_model_freezes_and_thaws():
    torch.manual_seed(0)
    net = wk.convert(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
    x = torch.randn(4, 3)
    prefix = Prefix(net, x)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    for depth in (0, 1, 2, 0):
        prefix.set(depth)
        net.train()
        mean = net[1].running_mean.clone()
        grads = []
        for model in (net, compiled):
            net.zero_grad()
            model(x).square().sum().backward()
            grads.append([p.grad for p in net.parameters()])
        for p, q in zip(*grads, strict=True):
            assert (p is None) == (q is None), depth
            if p is not None:
                torch.testing.assert_close(p, q)
        assert torch.equal(mean, net[1].running_mean) == (depth > 0)
