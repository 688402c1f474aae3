"""BitFit: which layers skip, and steps against a stock network whose weights are frozen."""

import copy

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import wuskern as wk
from wuskern.policies import BitFit


def network() -> nn.Module:
    torch.manual_seed(0)
    front = [nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten()]
    return nn.Sequential(*front, nn.Linear(128, 16), nn.Linear(16, 4)).double()


def trained(net: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
    draw = torch.Generator().manual_seed(1)
    for _ in range(4):
        x = torch.randn(6, 3, 8, 8, generator=draw, dtype=torch.float64)
        F.cross_entropy(net(x), torch.randint(4, (6,), generator=draw)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)  # zeros, which decay and momentum would act on
    return net


def test_steps_are_those_of_a_stock_network_whose_weights_are_frozen():
    stock = network()
    for name in ("0", "3", "5"):
        stock.get_submodule(name).weight.requires_grad_(False)
    expected = trained(stock, torch.optim.AdamW([p for p in stock.parameters() if p.requires_grad], lr=0.1))
    net = wk.convert(network())
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    policy = BitFit(net)
    policy.attach(optimizer)
    found = trained(net, optimizer)
    assert policy.chosen == ["0", "3", "5"]
    for a, b in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_layers_that_train_whole_can_be_named():
    net = wk.convert(network())
    policy = BitFit(net, dense=["3", "6"])
    assert [name for name, layer in policy.layers.items() if layer.skip] == policy.chosen == ["0", "5"]
    policy.release()
    assert not any(layer.skip for layer in policy.layers.values())


def test_its_state_is_its_name_and_another_one_is_refused():
    policy = BitFit(wk.convert(network()))
    state = copy.deepcopy(policy.state_dict())
    policy.release()
    policy.load_state_dict(state)
    assert all(policy.layers[name].skip for name in policy.chosen)
    with pytest.raises(ValueError, match="MeProp"):
        policy.load_state_dict({"policy": "MeProp"})


def test_s2ft_is_bitfit_and_columns_of_what_it_leaves():
    """As the recipe says it: of the layers that BitFit leaves, those that are not dense to PaCA train a few columns."""
    net = wk.convert(network())
    policy = wk.policies.Compose([BitFit(net, dense=["5", "6"]), wk.policies.PaCA(net, ratio=0.25)])
    layers = policy.layers
    assert [(layer.skip, layer.columns is not None) for layer in layers.values()] == [
        (True, True), (True, True), (False, True), (False, False)
    ]  # fmt: skip
    trained(net, optimizer := wk.optim.AdamW(net.parameters(), lr=0.1))
    before = network().get_submodule("5").weight
    moved = (layers["5"].weight != before).any(0).nonzero().flatten()
    assert optimizer is not None
    assert torch.equal(moved, layers["5"].columns.index)
    assert torch.equal(layers["3"].weight, network().get_submodule("3").weight)
