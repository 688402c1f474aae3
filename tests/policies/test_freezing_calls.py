"""Calls of a frozen model beside, inside of and after one another."""

import copy
import threading

import pytest
import torch
import torch.nn as nn
from torch import Tensor

import wuskern as wk
from tests.policies.freezing_models import FROZEN, Transformer, assert_frozen, frozen_transformer, mlp, trained
from wuskern.policies.freezing import Prefix
from wuskern.policies.freezing.constants import Holder

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
