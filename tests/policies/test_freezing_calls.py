"""Calls of a frozen model beside, inside of and after one another; copies of it; and what else stands on its forwards."""

import copy
import inspect
import io
import pickle
import threading

import pytest
import torch
import torch.nn as nn
from torch import Tensor

import wuskern as wk
from tests.policies.freezing_models import Transformer, mlp
from wuskern.policies.freezing import Prefix

FROZEN = ("embed.", "token", "position", "blocks.0.norm1")  # of the Transformer, at depth 1


def frozen_transformer() -> tuple[nn.Module, Prefix, Tensor]:
    torch.manual_seed(0)
    net, x = wk.convert(Transformer()).eval(), torch.randn(3, 4, 6)
    prefix = Prefix(net, x)
    prefix.set(1)
    return net, prefix, x


def trained(net: nn.Module) -> set[str]:
    return {name for name, p in net.named_parameters() if p.grad is not None}


def assert_frozen(net: nn.Module, x: Tensor) -> None:
    """And clean: outside of its calls a model holds no constants."""
    net.zero_grad()
    net(x).square().sum().backward()
    assert trained(net) == {name for name, _ in net.named_parameters() if not name.startswith(FROZEN)}
    assert not any(isinstance(value, Tensor) for module in net.modules() for value in vars(module).values())
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in net.parameters())


# ---- at once --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradients", [False, True])
def test_a_call_that_ends_inside_of_another_threads_call_changes_nothing_there(gradients):
    net, _, x = frozen_transformer()
    inside, ended, outputs = threading.Event(), threading.Event(), []

    def pause(*_) -> None:
        if threading.current_thread() is thread:
            inside.set()
            assert ended.wait(20)

    net.embed.register_forward_hook(pause)
    thread = threading.Thread(target=lambda: outputs.append(net(x)))
    thread.start()
    assert inside.wait(20)
    with torch.set_grad_enabled(gradients):
        net(x)
    ended.set()
    thread.join()
    outputs[0].square().sum().backward()
    assert trained(net) == {name for name, _ in net.named_parameters() if not name.startswith(FROZEN)}
    assert_frozen(net, x)


def test_each_of_many_threads_has_the_gradients_of_one():
    net, _, x = frozen_transformer()
    parameters = [p for name, p in net.named_parameters() if not name.startswith(FROZEN)]
    wanted, found = torch.autograd.grad(net(x).sum(), parameters), []

    def work() -> None:
        for _ in range(5):
            with torch.no_grad():
                net(x)
            found.append(torch.autograd.grad(net(x).sum(), parameters))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20
    for gradients in found:
        torch.testing.assert_close(gradients, wanted)
    assert_frozen(net, x)


class Nested(Transformer):
    """Calls itself, evaluates itself or a part in a training step, or is handed to a wrapper that calls it again."""

    how = "plain"

    def forward(self, x: Tensor, inner: bool = False) -> Tensor:
        if inner or self.how == "plain":
            return super().forward(x)
        if self.how == "twice":
            return self(x, inner=True) + self(2 * x, inner=True)
        with torch.no_grad():
            if self.how == "evaluates itself":
                self(x, inner=True)
            else:
                self.blocks[1](torch.cat((self.token.expand(len(x), -1, -1), self.embed(x)), 1))
        return super().forward(x)


@pytest.mark.parametrize("how", ["twice", "evaluates itself", "evaluates a part"])
def test_calls_inside_of_a_call(how):
    torch.manual_seed(0)
    net, x = wk.convert(Nested().double()).eval(), torch.randn(3, 4, 6, dtype=torch.float64)
    stock = copy.deepcopy(net)
    for name, p in stock.named_parameters():
        p.requires_grad_(not name.startswith(FROZEN))
    Prefix(net, x).set(1)
    for model in (net, stock):
        model.how = how
        model(x).square().sum().backward()
    for p, q in zip(net.parameters(), stock.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        assert p.grad is None or torch.allclose(p.grad, q.grad)
    assert_frozen(net, x)


def test_parts_that_are_called_alone_are_frozen_too():
    net, x = wk.convert(nn.Sequential(mlp(), nn.Linear(3, 2))), torch.randn(4, 6)
    Prefix(net, x).set(1)
    net[0](x).sum().backward()
    assert trained(net) == {"0.3.weight", "0.3.bias", "0.5.weight", "0.5.bias"}
    assert not net[0][0](x).requires_grad


# ---- after an interrupt ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
@pytest.mark.parametrize("where", ["embed", "blocks.0.norm1", "blocks.1", "head"])
def test_an_interrupted_call_leaves_nothing_behind(where, error):
    net, prefix, x = frozen_transformer()

    def interrupt(*_) -> None:
        raise error

    for register in ("register_forward_pre_hook", "register_forward_hook"):
        handle = getattr(net.get_submodule(where), register)(interrupt)
        with pytest.raises(error):
            net(x)
        handle.remove()
        assert torch.is_grad_enabled()
        assert_frozen(net, x)
    prefix.set(0)
    net(x).sum().backward()
    assert len(trained(net)) == len(list(net.parameters()))


@pytest.mark.parametrize("name", ["enter", "leave"])
def test_an_interrupt_in_between_is_made_up_for_by_the_next_call(name, monkeypatch):
    """In the middle of making constants, or of unmaking them."""
    from wuskern.policies.freezing.constants import Holder

    net, _, x = frozen_transformer()
    once, original = [True], getattr(Holder, name)

    def interrupted(self, *arguments) -> None:
        if self.module is net.embed and once:
            once.clear()
            raise KeyboardInterrupt
        original(self, *arguments)

    monkeypatch.setattr(Holder, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        net(x)
    assert_frozen(net, x)


# ---- copies, and other hands ----------------------------------------------------------------------------------------


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
