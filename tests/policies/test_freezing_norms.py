"""The statistics of a frozen norm layer: fixed, but for who estimates them anew."""

import copy

import pytest
import torch
import torch.nn as nn
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, update_bn

import wuskern as wk
from wuskern.policies import ActivationCache, SingleShotFreezing
from wuskern.policies.freezing import Prefix


def batches() -> list[Tensor]:
    return [torch.randn(32, 6, dtype=torch.float64) * 3 + 5 for _ in range(4)]


def trained() -> tuple[nn.Module, Prefix, list[Tensor]]:
    """One that has seen data; the first layer is frozen."""
    torch.manual_seed(0)
    norms = nn.BatchNorm1d(8), nn.BatchNorm1d(8)
    net = nn.Sequential(nn.Linear(6, 8), norms[0], nn.ReLU(), nn.Linear(8, 8), norms[1], nn.Linear(8, 2))
    wk.convert(net.double().train())
    data = batches()
    for x in data:
        net(x)
    prefix = Prefix(net, data[0])
    prefix.set(1)
    return net, prefix, data


def step(net: nn.Module, x: Tensor) -> None:
    net.zero_grad()
    net.train()(x).square().sum().backward()


def assert_of_the_data(net: nn.Module, data: list[Tensor]) -> None:
    """Averages over batches, as ``momentum=None`` makes them."""
    hidden = torch.stack([x @ net[0].weight.detach().t() + net[0].bias.detach() for x in data])
    torch.testing.assert_close(net[1].running_mean, hidden.mean((0, 1)))
    torch.testing.assert_close(net[1].running_var, hidden.var(1).mean(0))


def assert_fixed(net: nn.Module, data: list[Tensor]) -> None:
    """Through steps, evaluation, and forwards without gradients."""
    before, behind = (net[i].running_mean.clone() for i in (1, 4))
    for x in data:
        step(net, x)
        with torch.no_grad():
            net(x)
    net.eval()(data[0])
    step(net, data[0])
    assert torch.equal(net[1].running_mean, before)
    assert not torch.equal(net[4].running_mean, behind)
    assert net[1].weight.grad is None
    assert net[4].weight.grad is not None


@pytest.mark.parametrize("stepped", [False, True])
def test_update_bn_gives_the_statistics_of_the_data(stepped):
    net, prefix, data = trained()
    if stepped:
        step(net, data[0])
    update_bn(data, net)
    assert_of_the_data(net, data)
    assert_fixed(net, data)
    prefix.set(0)
    assert [net[1].training, "reset_running_stats" in vars(net[1])] == [True, False]


def test_update_bn_of_an_averaged_copy():
    net, _, data = trained()
    kept = net[1].running_mean.clone()
    averaged = AveragedModel(net)
    with torch.no_grad():
        for p in averaged.parameters():
            p *= 1.5
    update_bn(data, averaged)
    assert_of_the_data(averaged.module, data)
    assert torch.equal(net[1].running_mean, kept)
    assert_fixed(net, data)


def test_update_bn_before_anything_was_learned():
    torch.manual_seed(0)
    net, data = wk.convert(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)).double()), batches()
    Prefix(net, data[0]).set(1)
    step(net, data[0])
    net.load_state_dict(copy.deepcopy(net.state_dict()))
    step(net, data[0])
    assert not net[1].running_mean.any()
    update_bn(data, net)
    assert_of_the_data(net, data)


def reset(norm: nn.Module) -> None:
    norm.reset_running_stats()


def reset_in_place(norm: nn.Module) -> None:
    norm.running_mean.zero_(), norm.running_var.fill_(1), norm.num_batches_tracked.zero_()


def other_tensors(norm: nn.Module) -> None:
    norm.running_mean, norm.running_var = torch.zeros_like(norm.running_mean), torch.ones_like(norm.running_var)
    norm.num_batches_tracked = torch.zeros_like(norm.num_batches_tracked)


def counted_anew(norm: nn.Module) -> None:
    """The first factor of an average is 1."""
    norm.num_batches_tracked.zero_()


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("how", [reset, reset_in_place, other_tensors, counted_anew])
def test_averages_by_hand(how, gradients):
    """In steps that an optimizer takes no part in, too. The model is in training mode already: nobody says so again."""
    net, _, data = trained()
    step(net, data[0])
    for norm in (net[1], net[4]):
        how(norm)
        norm.momentum = None
    for x in data:
        with torch.set_grad_enabled(gradients):
            net(x)
    for norm in (net[1], net[4]):
        norm.momentum = 0.1
    assert_of_the_data(net, data)
    assert_fixed(net, data)


@pytest.mark.parametrize("how", [reset, reset_in_place, other_tensors])
@pytest.mark.parametrize("gradients", [False, True])
def test_running_averages_by_hand(how, gradients):
    """With the momentum that the layer has: until forwards without gradients are over, or the model is evaluated."""
    net, _, data = trained()
    step(net, data[0])
    how(net[1])
    expected = torch.zeros(8, dtype=torch.float64)
    for x in data:
        with torch.set_grad_enabled(gradients):
            net.train()(x)
        expected = 0.9 * expected + 0.1 * (x @ net[0].weight.detach().t() + net[0].bias.detach()).mean(0)
    torch.testing.assert_close(net[1].running_mean, expected)
    if gradients:
        net.eval()(data[0])
    assert_fixed(net, data)


def test_statistics_that_are_loaded_or_averaged_stay_as_they_are():
    net, _, data = trained()
    step(net, data[0])
    net[1].running_mean.mul_(0.5)
    assert_fixed(net, data)
    net.load_state_dict({name: value.clone() for name, value in net.state_dict().items()})
    assert_fixed(net, data)


def test_a_layer_that_always_averages_is_fixed_too():
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, momentum=None), nn.Linear(8, 8), nn.Linear(8, 2))
    net.insert(3, nn.ReLU()), net.insert(4, nn.BatchNorm1d(8))
    wk.convert(net.double()).train()
    data = batches()
    net(data[0])
    Prefix(net, data[0]).set(1)
    assert_fixed(net, data)


def test_a_cache_is_filled_by_the_statistics_of_the_data():
    net, prefix, data = trained()
    prefix.set(0)
    policy, samples = SingleShotFreezing(net, data[0], at=0, share=0.34), torch.cat(data)
    cache = ActivationCache(policy, samples)
    cache(torch.arange(5))
    update_bn(data, net.train())
    assert_of_the_data(net, data)
    found = cache(torch.arange(5))
    net[4].eval()  # whose own statistics have moved by that
    torch.testing.assert_close(cache(torch.arange(5)), net(samples[:5]))
    assert found.requires_grad
    assert_of_the_data(net, data)
