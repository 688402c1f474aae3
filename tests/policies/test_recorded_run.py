"""Examples of all kinds, and layers called by keyword: what is recorded is the same."""

from collections import UserDict

import pytest
import torch
import torch.nn as nn
from torch import Tensor

import wuskern as wk
from wuskern.common.example import Samples
from wuskern.policies import ActivationCache, MeProp, MeSimp, ProgressiveFreezing, Savings, SpFDE
from wuskern.policies.costs import costs
from wuskern.policies.freezing import Prefix
from wuskern.policies.freezing.trace import trace
from wuskern.simplify import norms_of_rows


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


def batch_encoding(**inputs):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: it is in .ci/requirements.txt")
    return transformers.BatchEncoding(inputs)


def with_a_dead_row() -> nn.Module:
    model = net()
    with torch.no_grad():
        model.a.weight[2] = model.a.bias[2] = 0
    return model


@pytest.mark.parametrize("kind", [dict, UserDict, batch_encoding])
def test_functions_that_run_the_whole_model_take_keyword_inputs(kind):
    """Each gives what it gives for a tensor: costs, freezing, savings, smaller models, meSimp."""
    example = kind(features=X, mask=MASK)
    assert costs(net(), example) == costs(net(), X)
    assert Prefix(net(), example).order == ("a", "b", "c")
    assert SpFDE(net(), example, epochs=4, samples=8).freezing.prefix.order == ("a", "b", "c")
    assert Savings(MeProp(net(), ratio=0.5), example).costs == costs(net(), X)
    smaller, report = wk.simplify(with_a_dead_row(), example)
    assert report.layers == wk.simplify(with_a_dead_row(), X)[1].layers
    torch.testing.assert_close(smaller(**example), with_a_dead_row()(X, MASK))
    in_place = with_a_dead_row()
    wk.simplify_(in_place, example)
    assert in_place.a.weight.shape == (7, 6)
    assert norms_of_rows(net(), example) == norms_of_rows(net(), X) != {}
    model = with_a_dead_row()
    policy = MeSimp(model, example, ratio=0.5, per="batch", cycle=1, prune=0.6, simplify=True)
    policy.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    model(**example).sum().backward()
    policy.after_step()
    policy.after_epoch()
    assert model.a.weight.shape[0] < 8


@pytest.mark.parametrize("kind", [dict, UserDict, batch_encoding])
def test_a_cache_takes_all_samples_by_name(kind):
    torch.manual_seed(0)
    model = wk.convert(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))).train()
    freezing = ProgressiveFreezing(model, kind(input=X), start=0, end=2, saving=0.1, epochs=4)
    freezing.prefix.set(1)
    cache, index = ActivationCache(freezing, kind(input=X)), torch.tensor([2, 0])
    torch.testing.assert_close(cache(index), model(X[index]))
    assert (cache.layers, cache.reason) == (1, None)


@pytest.mark.parametrize("kind", [dict, UserDict, batch_encoding])
def test_a_cache_takes_several_inputs_by_name(kind):
    freezing = ProgressiveFreezing(net(), kind(features=X, mask=MASK), start=1, end=2)
    freezing.prefix.set(1)
    cache = ActivationCache(freezing, kind(features=X, mask=MASK))
    torch.testing.assert_close(cache(torch.tensor([3])), freezing.model(X[3:], MASK[3:]))
    assert cache.layers == 1


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ({}, "samples: expected inputs of one length, got none"),
        ({"a": X, "b": X[:2]}, r"samples: expected inputs of one length, got {'a': 4, 'b': 2}"),
        ({"a": [1, 2]}, "samples: expected tensors by name, got list as 'a'"),
        ({3: X}, "example: expected a mapping of keyword inputs by name, got the key 3"),
    ],
)
def test_samples_that_are_none(samples, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Samples(samples)


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
