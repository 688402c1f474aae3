"""Copies of a frozen model, and what else stands on its forwards, changes its parameters or reads it."""

import copy
import inspect
import io
import pickle

import pytest
import torch
import torch.nn as nn

import wuskern as wk
from tests.policies.freezing_models import FROZEN, Transformer, assert_frozen, frozen_transformer, mlp, trained
from wuskern.policies.freezing import Prefix


def saved(net: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net)), saved])
def test_a_copy_is_frozen_by_itself(copied):
    net, prefix, x = frozen_transformer()
    other = copied(net)
    prefix.set(0)
    assert_frozen(other, x)
    net(x).sum().backward()
    assert len(trained(net)) == len(list(net.parameters()))


def test_so_is_one_that_is_made_in_the_middle_of_a_call():
    net, prefix, x = frozen_transformer()
    copies: list[nn.Module] = []
    handle = net.blocks[1].register_forward_pre_hook(lambda *_: copies.append(copy.deepcopy(net)))
    net(x)
    handle.remove()
    prefix.set(0)
    copies[0].blocks[1]._forward_pre_hooks.clear()
    assert_frozen(copies[0], x)


def test_the_state_is_that_of_a_stock_model_and_what_changes_it_is_followed():
    net, _, x = frozen_transformer()
    stock = Transformer().eval()
    assert list(net.state_dict()) == list(stock.state_dict())
    net.load_state_dict(stock.state_dict())
    torch.testing.assert_close(net(x), stock(x))
    net.token.data = net.token.data + 1
    stock.token.data += 1
    torch.testing.assert_close(net(x), stock(x))
    assert_frozen(net.double(), x.double())


def test_parameters_that_have_been_replaced_since_are_frozen_where_they_stand():
    """As ``load_state_dict(assign=True)`` does it: before the model is frozen, while it is, and after."""
    torch.manual_seed(0)
    net, x = wk.convert(Transformer()).eval(), torch.randn(3, 4, 6)
    prefix = Prefix(net, x)
    for depth in (1, 2, 1):
        net.load_state_dict({name: nn.Parameter(p.detach() + 0.1) for name, p in net.state_dict().items()}, assign=True)
        prefix.set(depth)
    assert_frozen(net, x)
    assert {id(p) for p in prefix.parameters} == {id(p) for name, p in net.named_parameters() if name.startswith(FROZEN)}
    net.load_state_dict({name: nn.Parameter(p.detach() + 0.1) for name, p in net.state_dict().items()}, assign=True)
    assert_frozen(net, x)
    stock = Transformer().eval()
    stock.load_state_dict(net.state_dict())
    torch.testing.assert_close(net(x), stock(x))


@pytest.mark.parametrize("first", [False, True])
def test_a_forward_that_somebody_replaced_stays_so(first):
    """As accelerate does, before it is frozen or after."""
    net, x = wk.convert(Transformer()).eval(), torch.randn(3, 4, 6)
    prefix = Prefix(net, x)
    calls: list[nn.Module] = []

    def replace(module: nn.Module) -> None:
        before = module.forward
        module.forward = lambda *args, **kwargs: (calls.append(module), before(*args, **kwargs))[1]

    if not first:
        prefix.set(1)
    replace(net), replace(net.embed)
    prefix.set(1)
    assert_frozen(net, x)
    prefix.set(0)
    net(x).sum().backward()
    assert len(trained(net)) == len(list(net.parameters()))
    prefix.set(1)
    assert_frozen(net, x)
    assert calls == [net, net.embed] * 3


def test_a_model_reverts_while_it_is_frozen():
    net, x = wk.convert(mlp()), torch.randn(2, 6)
    prefix = Prefix(net, x)
    prefix.set(1)
    wk.revert(net)(x).sum().backward()
    assert [type(net[i]) for i in (0, 3, 5)] == [nn.Linear] * 3
    assert trained(net) == {"3.weight", "3.bias", "5.weight", "5.bias"}
    prefix.set(0)
    assert not any("forward" in vars(module) for module in net.modules())


def test_a_trainer_sees_the_arguments_of_the_model():
    net, *_ = frozen_transformer()
    assert inspect.signature(net.forward) == inspect.signature(Transformer().forward)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace")
def test_tracers_and_exporters_see_the_stock_model():
    net, x = wk.convert(mlp()).eval(), torch.randn(2, 6)
    Prefix(net, x).set(1)
    expected = net(x)
    exported = torch.export.export(net, (x,))
    for found in (torch.fx.symbolic_trace(net), torch.jit.trace(net, x), exported.module()):
        torch.testing.assert_close(found(x), expected)
        assert sum(p.numel() for p in found.parameters()) == sum(p.numel() for p in net.parameters())
    assert "detach" not in str(exported.graph)


def test_functional_calls_have_constants_too():
    net, x = wk.convert(mlp()).eval(), torch.randn(2, 6)
    Prefix(net, x).set(1)
    values = dict(net.named_parameters())
    gradients = torch.func.grad(lambda values: torch.func.functional_call(net, values, (x,)).square().sum())(values)
    assert [bool(g.any()) for g in gradients.values()] == [False, False, True, True, True, True]


def test_replicas_are_refused():
    """DataParallel makes them of each module, and runs them where there are several GPUs."""
    net, *_ = frozen_transformer()
    with pytest.raises(
        RuntimeError, match="expected DistributedDataParallel around a model with frozen layers, got DataParallel"
    ):
        net._replicate_for_data_parallel()


def test_a_part_that_another_policy_has_frozen_since_is_refused():
    net, x = wk.convert(nn.Sequential(mlp(), nn.Linear(3, 2))), torch.randn(4, 6)
    whole, part = Prefix(net, x), Prefix(net[0], x)
    part.set(1)
    with pytest.raises(ValueError, match="model: expected one without frozen layers, got one that another policy freezes"):
        whole.set(2)
    assert whole.depth == 0
    part.set(0)
    whole.set(2)
    assert whole.depth == 2
