"""A frozen prefix beside what else touches a forward: checkpointing, autocast, compilation."""

import copy

import pytest
import torch
import torch.nn as nn
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import wuskern as wk
from tests.policies.freezing_models import Transformer, TwoTexts, images, mlp, resnet
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


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_reentrant_checkpointing_is_right_where_an_input_needs_a_gradient(depth):
    torch.manual_seed(0)
    net, x = wk.convert(resnet().double()), images().requires_grad_()
    wrapped = Checkpointed(copy.deepcopy(net), True)
    found = []
    for model in (net, wrapped.train()):
        Prefix(model, x.detach()).set(depth)
        x.grad = None
        model(x).square().sum().backward()
        found.append([x.grad, *(p.grad for p in model.parameters())])
    for a, b in zip(*found, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a, b)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
def test_reentrant_checkpointing_in_front_of_or_without_training_is_left_alone():
    """Frozen segments, behind which all are trained as they are; and evaluation."""

    class Half(Checkpointed):
        def forward(self, x: Tensor) -> Tensor:
            return self.net[1:](checkpoint(self.net[0], x, use_reentrant=True) if self.training else self.net[0](x))

    net, x = Half(wk.convert(mlp()), True), torch.randn(4, 6)
    Prefix(net, x).set(1)
    net(x).sum().backward()
    assert [p.grad is None for p in net.parameters()] == [True] * 2 + [False] * 4
    Prefix(other := Checkpointed(wk.convert(mlp()), True), x).set(1)
    with torch.no_grad():
        other(x)


@pytest.mark.parametrize("make", [Transformer, TwoTexts])
def test_a_compiled_model_has_the_constants_of_its_parents_and_of_both_sides(make):
    """In front of the Transformer something trains."""
    torch.manual_seed(0)
    net = wk.convert(make().double()).eval()
    x = torch.tensor([0, 1, 2]) if make is TwoTexts else torch.randn(3, 4, 6, dtype=torch.float64, requires_grad=True)
    Prefix(net, x.detach()).set(1)
    found = []
    for model in (net, torch.compile(net, backend="eager", fullgraph=True)):
        net.zero_grad()
        x.grad = None
        model(x).square().sum().backward()
        found.append([x.grad, *(p.grad for p in net.parameters())])
    for a, b in zip(*found, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a, b)
    assert all(isinstance(p, nn.Parameter) for p in net.parameters())


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
