"""An activation cache never gives what the model would not compute: whatever changes its frozen part, and how."""

import pytest
import torch
import torch.nn as nn
from torch import Tensor

import wuskern as wk
from wuskern.policies import ActivationCache, SingleShotFreezing

SAMPLES = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
INDEX = torch.arange(0, 16, 3)


RUNS: list[int] = []  # samples in each forward of Scaled


class Scaled(nn.Module):
    """With settings of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.function, self.numbers, self.mask = torch.relu, [1.0, {"shift": 0.0}], torch.ones(4)

    def forward(self, x: Tensor) -> Tensor:
        RUNS.append(len(x))
        return self.function(x) * self.numbers[0] * self.mask + self.numbers[1]["shift"]


def cached() -> tuple[nn.Sequential, ActivationCache]:
    """Four children are frozen, and their outputs are kept."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh(), Scaled(), nn.Linear(4, 2))
    wk.convert(net).train()(SAMPLES)
    cache = ActivationCache(SingleShotFreezing(net, SAMPLES[:2], at=0), SAMPLES, chunk=8)
    cache(INDEX)
    assert cache.nbytes
    return net, cache


def replace_forward(net: nn.Sequential) -> None:
    before = net[3].forward
    net[3].forward = lambda x: before(x) + 1


def set_(owner, name: str, value) -> None:
    setattr(owner, name, value)


CHANGES = {
    "in place": lambda net: net[0].weight.detach().mul_(2),
    "through .data": lambda net: net[0].weight.data.mul_(2),
    "one number": lambda net: net[0].weight.data[1, 2].add_(0.5),
    "other rows": lambda net: net[0].weight.data.copy_(net[0].weight.data.flip(0)),
    "another .data": lambda net: set_(net[0].weight, "data", net[0].weight.data * 2),
    "by numpy": lambda net: net[0].bias.detach().numpy().fill(3),
    "all at once": lambda net: torch._foreach_mul_([p.data for p in net[0].parameters()], 1.5),
    "another parameter": lambda net: set_(net[0], "bias", nn.Parameter(torch.ones(4))),
    "no parameter": lambda net: set_(net[0], "bias", None),
    "a buffer": lambda net: net[1].running_var.data.mul_(4),
    "a tensor that is no buffer": lambda net: net[3].mask[:2].zero_(),
    "NaN": lambda net: net[0].bias.data.fill_(float("nan")),
    "eps": lambda net: set_(net[1], "eps", 0.5),
    "a number in a list": lambda net: net[3].numbers.__setitem__(0, 3.0),
    "a number in a dict": lambda net: net[3].numbers[1].update(shift=1.0),
    "a function": lambda net: set_(net[3], "function", torch.sigmoid),
    "a forward hook": lambda net: net[2].register_forward_hook(lambda _m, _x, y: 2 * y),
    "a pre-hook": lambda net: net[0].register_forward_pre_hook(lambda _m, args: (2 * args[0],)),
    "another module": lambda net: net.__setitem__(2, nn.Sigmoid()),
    "another class": lambda net: set_(net[2], "__class__", nn.Sigmoid),
    "another forward": replace_forward,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen_by_the_next_call(name):
    net, cache = cached()
    before = cache(INDEX)
    CHANGES[name](net)
    expected = net(SAMPLES[INDEX])
    torch.testing.assert_close(cache(INDEX), expected, equal_nan=True)
    assert not torch.allclose(before, expected)


def test_a_global_hook_is_seen():
    net, cache = cached()
    double = torch.nn.modules.module.register_module_forward_hook(lambda m, _x, y: 2 * y if m is net[2] else None)
    try:
        torch.testing.assert_close(cache(INDEX), net(SAMPLES[INDEX]))
    finally:
        double.remove()
    torch.testing.assert_close(cache(INDEX), net(SAMPLES[INDEX]))


def test_what_changes_no_output_drops_nothing():
    """Modes, flags of a layer that is frozen, hooks and settings behind it, values that are loaded and are the same."""
    net, cache = cached()
    RUNS.clear()
    net.eval().train()
    net[0].skip, net[0].rows, net[0].tokens = True, wk.TopK(k=1), wk.Tokens(k=2)
    net[4].register_forward_hook(lambda *_: None)
    net.load_state_dict({name: value.clone() for name, value in net.state_dict().items()})
    with torch.no_grad():
        net[4].weight.add_(1)
    cache(INDEX)
    assert RUNS == []


def test_a_child_that_stands_twice_in_the_model_runs_twice():
    double = nn.Sequential(nn.Linear(4, 4), relu := nn.ReLU(), nn.Linear(4, 4), relu, nn.Linear(4, 2))
    net = wk.convert(double).train()
    cache = ActivationCache(SingleShotFreezing(net, SAMPLES[:2], at=0, share=0.4), SAMPLES)
    torch.testing.assert_close(cache(INDEX), net(SAMPLES[INDEX]))
    assert cache.layers == 1


def test_a_child_of_which_the_example_showed_a_part_is_not_kept():
    """The rest trains, once it runs."""

    class Either(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts, self.which = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]), 0

        def forward(self, x: Tensor) -> Tensor:
            return self.parts[self.which](x)

    net = wk.convert(nn.Sequential(nn.Linear(4, 4), Either(), nn.Linear(4, 2))).train()
    cache = ActivationCache(SingleShotFreezing(net, SAMPLES[:2], at=0, share=0.7), SAMPLES)
    net[1].which = 1
    cache(INDEX).sum().backward()
    assert cache.layers == 1
    assert net[1].parts[1].weight.grad is not None


def test_a_batch_may_have_several_inputs():
    class Pairs:
        def __len__(self) -> int:
            return 16

        def __getitem__(self, index: Tensor) -> dict[str, Tensor]:
            return {"features": SAMPLES[index], "factor": torch.tensor(2.0)}

    class Net(nn.Sequential):
        def forward(self, features: Tensor, factor: Tensor) -> Tensor:
            return super().forward(features * factor)

    net = wk.convert(Net(nn.Linear(4, 4), nn.Linear(4, 2))).train()
    example = {"features": SAMPLES[:2], "factor": torch.tensor(2.0)}
    cache = ActivationCache(SingleShotFreezing(net, example, at=0), Pairs())
    torch.testing.assert_close(cache(INDEX), net(SAMPLES[INDEX], 2.0))
    assert (cache.reason, cache.layers) == (None, 1)
