"""Seconds of layers, on a clock that ticks once each time that it is read: then they are numbers of nodes of autograd."""

import itertools

import pytest
import torch
import torch.nn as nn

import wuskern as wk
from wuskern.modules import skippable_layers
from wuskern.profile.layer_clock import LayerClock


def ticks(model: nn.Module, x: torch.Tensor, slow: nn.Parameter | None = None) -> dict[str, tuple[float, float]]:
    """Ticks of the forward and of the backward of each layer: one of each call, and of each node. Parts of the gradient of
    ``slow`` take ten to add up."""
    count = itertools.count()
    if slow is not None:
        slow.register_hook(lambda grad: [next(count) for _ in range(10)] and None)
    clock = LayerClock(model, skippable_layers(model), "cpu", lambda: float(next(count)))
    with clock.on():
        model(x).square().mean().backward()
    found = clock.seconds()
    assert set(clock.seconds().values()) == {(0.0, 0.0)}  # they were taken
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    return found


def test_each_node_of_a_layer_counts_for_it_alone():
    model = wk.convert(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2, bias=False)))
    x = torch.randn(5, 3)
    # the product, the transposed weight, and the arrival of two gradients; of the second no bias
    assert ticks(model, x) == {"0": (1, 4), "2": (1, 3)}
    wk.set_skip(model, True)
    assert ticks(model, x) == {"0": (1, 2), "2": (1, 1)}
    assert ticks(model, x) == {"0": (1, 2), "2": (1, 1)}  # nothing is left of the last time


def test_a_layer_that_runs_twice_and_one_that_does_not_run():
    layer = nn.Linear(3, 3)
    model = wk.convert(nn.Sequential(layer, nn.Tanh(), layer))
    model.add_module("idle", nn.Identity())
    model.idle.inside = wk.convert(nn.Linear(2, 2))
    found = ticks(model, torch.randn(5, 3))
    assert found["idle.inside"] == (0, 0)
    assert found["0"] == (2, 2 * 2 + 2)  # each product and transposed weight; gradients arrive once


def test_an_input_that_needs_a_gradient_is_no_part_of_the_layer():
    model = wk.convert(nn.Sequential(nn.Linear(3, 4)))
    assert ticks(model, torch.randn(5, 3, requires_grad=True)) == {"0": (1, 4)}


@pytest.mark.parametrize("grad", [False, True])
def test_a_tied_weight_arrives_once(grad):
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    first.weight.requires_grad_(grad)
    found = ticks(wk.convert(nn.Sequential(first, second, nn.Linear(3, 3))), torch.randn(5, 3))
    assert (found["0"][1], found["1"][1]) == ((3, 2) if grad else (0, 0))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embedding(ids))


def test_what_is_added_to_the_gradient_of_a_tied_weight_is_the_layers():
    model = wk.convert(Tied())
    ids = torch.arange(4)
    assert ticks(model, ids, slow=model.head.weight) == {"head": (1, 3 + 10)}
    model.head.skip = True
    assert ticks(model, ids) == {"head": (1, 1)}


def test_two_gradients_of_one_node_do_not_count_twice():
    """A convolution gives those of weight and bias together."""
    model = wk.convert(nn.Sequential(nn.Conv2d(2, 3, 1)))
    assert ticks(model, torch.randn(2, 2, 4, 4)) == {"0": (1, 3)}
    model[0].rows = wk.TopK(k=1)
    assert ticks(model, torch.randn(2, 2, 4, 4)) == {"0": (1, 3)}
