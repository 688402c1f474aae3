"""What needs a gradient in front of a frozen prefix, and what the example never showed, against stock PyTorch."""

import copy

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

import wuskern as wk
from tests.policies.freezing_models import CASES, TwoTexts
from wuskern.policies import SingleShotFreezing
from wuskern.policies.freezing import Prefix


def seeded(make) -> nn.Module:
    torch.manual_seed(7)
    return make().double()


def like_stock(make, x: Tensor, depth: int, frozen: tuple[str, ...], needed: bool) -> nn.Module:
    """Asserts the gradients of a prefix of that depth, the input's too; ``frozen``: how the names of what is frozen begin."""
    stock, ours = seeded(make), seeded(make)
    for name, p in stock.named_parameters():
        p.requires_grad_(not name.startswith(frozen))
    prefix = Prefix(wk.convert(ours), x)
    prefix.set(depth)
    assert prefix.depth == depth
    inputs = []
    for net in (stock, ours):
        inputs.append(x.clone().requires_grad_(needed))
        net.eval()(inputs[-1]).square().sum().backward()
    for (name, p), q in zip(ours.named_parameters(), stock.parameters(), strict=True):
        assert (p.grad is None) == name.startswith(frozen), name
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-12)
    if needed:
        torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-10, atol=1e-12)
    return ours


@pytest.mark.parametrize("name", CASES)
def test_an_input_that_needs_a_gradient_gets_that_of_a_stock_model(name):
    make, example, depth, frozen = CASES[name]
    like_stock(make, example(), depth, frozen, needed=True)


class Recurrent(nn.Module):
    """cuDNN's modules keep a list of their weights beside the table of parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.cell, self.b, self.c = nn.Linear(4, 4), nn.LSTM(4, 4, batch_first=True), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.cell(self.a(x))[0]))


class Attention(nn.Module):
    """A module that reads its child's weight, and parameters in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.attention = nn.Linear(4, 4), nn.MultiheadAttention(4, 2, batch_first=True)
        self.scales = nn.ParameterList([torch.randn(4), torch.randn(4)])
        self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x) * self.scales[0]
        return self.c(self.b(self.attention(x, x, x)[0] + self.scales[1]))


@pytest.mark.parametrize("needed", [False, True])
@pytest.mark.parametrize(("make", "frozen"), [(Recurrent, ("a.", "cell.")), (Attention, ("a.", "attention.", "scales."))])
def test_parameters_that_are_read_in_other_ways_are_constants_too(make, frozen, needed):
    net = like_stock(make, torch.randn(3, 5, 4, dtype=torch.float64), 1, frozen, needed)
    net(torch.randn(1, 5, 4, dtype=torch.float64))
    assert not any(isinstance(value, Tensor) for module in net.modules() for value in vars(module).values())


def test_a_parameter_that_stands_elsewhere_too_holds_the_depth():
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
            self.scale = nn.Parameter(torch.ones(4))
            self.listed = [self.scale]

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(self.a(x)) * self.listed[0])

    prefix = Prefix(wk.convert(Listed()), torch.randn(2, 4))
    assert [prefix.reachable(depth) for depth in range(4)] == [0, 1, 1, 1]


def test_a_frozen_layer_is_dense_for_its_input_whatever_it_skips():
    """Rows of scope "both" would leave out a part of the input's gradient, and refuse a second derivative."""
    torch.manual_seed(0)
    net = wk.convert(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1)).double())
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    wanted = torch.autograd.grad(net(x).sum(), x)[0]
    Prefix(net, x.detach()).set(2)
    net[0].rows, net[2].skip = wk.TopK(k=1, scope="both"), True
    (found,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
    torch.testing.assert_close(found, wanted)
    found.square().sum().backward()
    assert [p.grad is None for p in net.parameters()] == [True] * 4 + [False, True]


# ---- what the example did not show ----------------------------------------------------------------------------------


class Routed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts, self.route = nn.ModuleList(nn.Linear(4, 4) for _ in range(3)), 0

    def forward(self, x: Tensor) -> Tensor:
        return self.experts[self.route](x)


def test_an_expert_that_the_example_was_not_routed_to_trains_inside_of_the_prefix():
    net = wk.convert(nn.Sequential(nn.Linear(4, 4), Routed(), nn.Linear(4, 4), nn.Linear(4, 2)))
    Prefix(net, torch.randn(2, 4)).set(2)
    net[1].route = 1
    net(torch.randn(2, 4)).sum().backward()
    assert {name for name, p in net.named_parameters() if p.grad is None} == {
        f"{name}.{kind}" for name in ("0", "1.experts.0", "1.experts.2") for kind in ("weight", "bias")
    }


def test_what_a_frozen_layer_is_conditioned_by_trains():
    """As a style network trains that feeds a frozen norm layer, not through its input."""

    class Styled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.style = nn.Parameter(torch.full((4,), 2.0)), torch.ones(4)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale * self.style

    net = wk.convert(nn.Sequential(nn.Linear(4, 4), Styled(), nn.Linear(4, 2)))
    Prefix(net, torch.randn(2, 4)).set(1)
    style = torch.ones(4, requires_grad=True)
    net[1].style = style * 1
    net(torch.randn(2, 4)).sum().backward()
    assert style.grad is not None
    assert net[1].scale.grad is None


def test_a_hook_inside_of_the_prefix_trains_what_it_uses():
    net, probe = wk.convert(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))), nn.Linear(4, 1)
    Prefix(net, torch.randn(2, 4)).set(1)
    losses: list[Tensor] = []
    net[0].register_forward_hook(lambda _m, _x, y: losses.append(probe(y).sum()))
    (net(torch.randn(2, 4)).sum() + losses[0]).backward()
    assert probe.weight.grad is not None
    assert net[0].weight.grad is None


# ---- used on both sides ---------------------------------------------------------------------------------------------


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.linear(self.second(self.first(x)), self.first.weight.t()))


@pytest.mark.parametrize("needed", [False, True])
def test_a_tied_layer_trains_by_its_use_behind_the_prefix_alone(needed):
    torch.manual_seed(0)
    net, x = wk.convert(Autoencoder().double()), torch.randn(2, 4, dtype=torch.float64)
    stock = copy.deepcopy(net)
    Prefix(net, x).set(1)
    found, wanted = (x.clone().requires_grad_(needed) for _ in range(2))
    net(found).square().sum().backward()
    w = stock.first.weight.detach()
    hidden = stock.second(F.linear(wanted, w, stock.first.bias.detach()))
    stock.last(F.linear(hidden, stock.first.weight.t())).square().sum().backward()
    torch.testing.assert_close(net.first.weight.grad, stock.first.weight.grad)
    assert net.first.bias.grad is None
    if needed:
        torch.testing.assert_close(found.grad, wanted.grad)


def test_a_module_that_runs_on_both_sides_trains_by_the_second_run_alone():
    torch.manual_seed(0)
    net, index = wk.convert(TwoTexts().double()), torch.tensor([0, 1, 2])
    stock = copy.deepcopy(net)
    Prefix(net, index).set(1)
    net(index).square().sum().backward()
    first = stock.a(stock.norm(stock.embedding(index))).detach()
    stock.c(stock.b(first) + stock.norm(stock.embedding(index + 1))).square().sum().backward()
    for (name, p), q in zip(net.named_parameters(), stock.parameters(), strict=True):
        assert (p.grad is None) == name.startswith("a."), name
        assert p.grad is None or torch.allclose(p.grad, q.grad), name


def test_samples_that_need_a_gradient_are_not_taken_from_a_cache():
    net, x = wk.convert(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))), torch.randn(8, 4, requires_grad=True)
    cache = wk.policies.ActivationCache(SingleShotFreezing(net, x[:1].detach(), at=0), x)
    cache(torch.arange(3)).sum().backward()
    assert x.grad is not None
    assert cache.reason == "the samples need a gradient"
