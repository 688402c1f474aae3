"""Forward and backward of a skipped Linear against the stock layer with its weight frozen; the smallest shows the host cost."""

import copy

import pytest
import torch
import torch.nn as nn

from wuskern import convert

SHAPES = [(64, 64, 10), (512, 512, 512), (4096, 512, 2048)]


@pytest.mark.parametrize(("tokens", "inputs", "outputs"), SHAPES)
def test_linear(tokens, inputs, outputs, device, race):
    dense = nn.Linear(inputs, outputs, device=device)
    ours, frozen = convert(copy.deepcopy(dense)), copy.deepcopy(dense)
    ours.skip = True
    frozen.weight.requires_grad_(False)
    x = torch.randn(tokens, inputs, device=device, requires_grad=True)
    dy = torch.randn(tokens, outputs, device=device)

    def both(layer: nn.Linear, *parameters: nn.Parameter):
        return lambda: torch.autograd.grad(layer(x), (x, *parameters), dy)

    variants = {
        "ours": both(ours, ours.bias),
        "frozen": both(frozen, frozen.bias),
        "dense": both(dense, dense.bias, dense.weight),
    }
    for got, expected in zip(variants["ours"](), variants["frozen"](), strict=True):
        assert (got - expected).norm() <= 1e-4 * expected.norm()
    race(variants, group="linear", case=f"linear {tokens}x{inputs} -> {outputs} float32", peer="frozen")
