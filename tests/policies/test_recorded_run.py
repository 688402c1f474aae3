"""Examples of all kinds, and layers called by keyword: what is recorded is the same."""

from collections import UserDict

import pytest
import torch
import torch.nn as nn
from torch import Tensor

import wuskern as wk
from wuskern.policies import MeProp, ProgressiveFreezing, Savings, SpFDE
from wuskern.policies.costs import costs
from wuskern.policies.freezing import Prefix
from wuskern.policies.freezing.trace import trace


class Masked(nn.Module):
    """Its layers are called by keyword where it is told so."""

    def __init__(self, keyword: bool = False) -> None:
        super().__init__()
        self.keyword = keyword
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def run(self, layer: nn.Module, x: Tensor) -> Tensor:
        return layer(input=x) if self.keyword else layer(x)

    def forward(self, features: Tensor, mask: Tensor | None = None, more: dict | None = None) -> Tensor:
        h = torch.relu(self.run(self.b, torch.relu(self.run(self.a, features))))
        return self.run(self.c, h if mask is None else h * mask) + (more["scale"] if more else 0)


X, MASK = torch.randn(4, 6), torch.ones(4, 8)
EXAMPLES = {
    "a tensor": X,
    "a list": [X, MASK],
    "a dict": {"mask": MASK, "features": X},
    "a mapping that is no dict": UserDict(features=X, mask=MASK),
    "with a number first": {"more": {"scale": torch.tensor(2.0)}, "features": X},
    "with a mapping in it": (X, None, {"scale": torch.ones(4, 1)}),
}


def net(keyword: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return wk.convert(Masked(keyword))


@pytest.mark.parametrize("keyword", [False, True])
@pytest.mark.parametrize("name", EXAMPLES)
def test_costs_are_those_worked_by_hand(name, keyword):
    found = costs(net(keyword), EXAMPLES[name])
    assert {layer: (cost.fprop, cost.dgrad, cost.wgrad) for layer, cost in found.items()} == {
        "a": (96, 0, 96),
        "b": (128, 128, 128),
        "c": (48, 48, 48),
    }


@pytest.mark.parametrize("keyword", [False, True])
@pytest.mark.parametrize("name", EXAMPLES)
def test_a_prefix_and_what_it_saves_are_the_same_for_each(name, keyword):
    model = net(keyword)
    prefix = Prefix(model, EXAMPLES[name])
    assert prefix.order == ("a", "b", "c")
    assert [prefix.saved(depth) for depth in range(3)] == [0, 96 + 128, 96 + 256 + 48]
    prefix.set(1)
    model(features=X, mask=MASK).sum().backward()
    assert [p.grad is None for p in model.parameters()] == [True] * 2 + [False] * 4
    fed = trace(net(keyword), EXAMPLES[name]).fed.values()
    assert [time >= 0 for time in fed] == [False, True, True]


@pytest.mark.parametrize("keyword", [False, True])
def test_policies_take_them(keyword):
    model = net(keyword)
    policy = ProgressiveFreezing(model, EXAMPLES["a dict"], start=0, end=2, saving=0.1, epochs=4)
    assert Savings(policy, EXAMPLES["a dict"]).costs == costs(net(), X)
    assert SpFDE(net(keyword), EXAMPLES["a dict"], epochs=4, samples=8).freezing.prefix.order == ("a", "b", "c")
    savings = Savings(MeProp(net(keyword), ratio=0.5), EXAMPLES["a dict"])
    savings.count(4)
    assert savings.report().total > 0


def test_a_batch_of_the_package_transformers():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: it is in .ci/requirements.txt")
    batch = transformers.BatchEncoding({"features": X, "mask": MASK})
    assert costs(net(), batch) == costs(net(), X)
    assert Prefix(net(), batch).order == ("a", "b", "c")


@pytest.mark.parametrize("example", [3, "text", None, {1, 2}])
def test_anything_else_is_refused_and_leaves_no_hook(example):
    model = net()
    for function in (costs, trace, Prefix):
        with pytest.raises(
            TypeError, match=r"example: expected a tensor, a sequence of positional .* got (int|str|NoneType|set)"
        ):
            function(model, example)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("example", [[], {}, {"features": X[:0]}, (torch.tensor(1.0),)])
def test_an_empty_batch_is_refused(example):
    with pytest.raises(ValueError, match="example: expected a batch of at least one sample, got none"):
        costs(net(), example)
