"""The papers' networks, frozen to several depths: what has no gradient is what is said to be frozen."""

import pytest
import torch

import wuskern as wk
from wuskern.policies.freezing import Prefix
from wuskern.train.models import MODELS, build

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", MODELS)
def test_frozen_parameters_are_those_without_a_gradient(name):
    if name == "gpt":
        net, x = build(name, 16, [], 256, 0.25), torch.randint(256, (2, 16))
    else:
        net, x = build(name, 3, (16, 16), 10, 0.125), torch.randn(2, 3, 16, 16)
    wk.convert(net)
    prefix = Prefix(net, x)
    last = len(prefix.order) - 1
    for depth in {1, last // 3, last // 2, last}:
        prefix.set(depth)
        assert prefix.depth == depth
        net.train().zero_grad()
        net(x).square().sum().backward()
        without = {parameter for parameter in net.parameters() if parameter.grad is None}
        assert without == set(prefix.parameters)
        assert {net.get_submodule(layer).weight for layer in prefix.order[:depth]} <= without
