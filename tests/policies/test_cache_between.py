"""The activation cache where a model computes something by itself between its frozen modules."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

import wuskern as wk
from wuskern.policies import ActivationCache, SingleShotFreezing

N, WIDE, NARROW = 12, 8, 4
BYTES = 4 * N  # of one float for each sample
SAMPLES = torch.randn(N, WIDE, generator=torch.Generator().manual_seed(0))
INDEX = torch.tensor([7, 0, 11])


class Between(nn.Module):
    """Two frozen layers, of 8 and of 4 outputs, and a head; ``between`` is called with the first one's output."""

    def __init__(self, between: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.between = between
        self.wide, self.narrow, self.head = nn.Linear(WIDE, WIDE), nn.Linear(WIDE, NARROW), nn.Linear(NARROW, 2)
        self.register_buffer("seen", torch.ones(WIDE))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.narrow(self.between(self, self.wide(x))))


def squashed(_: nn.Module, x: Tensor) -> Tensor:
    return torch.relu_(F.gelu(x) + 1) * 2


def in_place(_: nn.Module, x: Tensor) -> Tensor:
    x.mul_(2).relu_()
    return x


def shaped(_: nn.Module, x: Tensor) -> Tensor:
    parts = x.view(-1, 2, WIDE // 2).transpose(1, 2).chunk(2, 1)
    return torch.cat([part.flatten(1) for part in parts], 1) + torch.zeros_like(x, device=x.device)


def constant(module: nn.Module, x: Tensor) -> Tensor:
    return torch.where(x > 0, x, module.seen.expand_as(x)).to(x.dtype)


def added(_: nn.Module, x: Tensor) -> Tensor:
    y = x.sin()
    y += x
    y[:, 0] = x[:, 1]
    return y


def attended(_: nn.Module, x: Tensor) -> Tensor:
    q, k, v = x.view(-1, 2, 1, 4).unbind(1)[0], x.view(-1, 2, 1, 4)[:, 1], x.view(-1, 2, 1, 4)[:, 0]
    return torch.cat([F.scaled_dot_product_attention(q, k, v).flatten(1), k.flatten(1)], 1)


def normed(module: nn.Module, x: Tensor) -> Tensor:
    return F.batch_norm(x, torch.zeros(WIDE), module.seen)


def into_new(_: nn.Module, x: Tensor) -> Tensor:
    y = torch.zeros(len(x), WIDE)
    y.copy_(x)
    return y


def into_buffer(module: nn.Module, x: Tensor) -> Tensor:
    module.seen.fill_(2).mul_(x.detach().abs().mean(0) * 0 + 1)
    return x


def number(_: nn.Module, x: Tensor) -> Tensor:
    return x * (2.0 if x[0, 0].item() < 1e9 else 1.0)


def branch(_: nn.Module, x: Tensor) -> Tensor:
    return x.relu() if bool((x < 1e9).all()) else x


def random(_: nn.Module, x: Tensor) -> Tensor:
    return x + 0 * torch.rand_like(x)


def built(between: Callable[[nn.Module, Tensor], Tensor]) -> tuple[Between, ActivationCache]:
    torch.manual_seed(0)
    model = wk.convert(Between(between)).train()
    return model, ActivationCache(SingleShotFreezing(model, SAMPLES[:2], at=0, share=0.7), SAMPLES)


@pytest.mark.parametrize("between", [squashed, in_place, shaped, constant, added, attended])
def test_what_only_a_frozen_module_reads_is_not_kept(between):
    _, cache = built(between)
    cache(INDEX)
    assert (cache.reason, cache.nbytes, cache.layers) == (None, BYTES * NARROW, 2)


@pytest.mark.parametrize("between", [normed, into_new, into_buffer, number, branch, random])
def test_what_needs_the_values_themselves_gets_them(between):
    _, cache = built(between)
    cache(INDEX)
    assert (cache.reason, cache.nbytes, cache.layers) == (None, BYTES * (WIDE + NARROW), 2)


@pytest.mark.parametrize(
    "between", [squashed, in_place, shaped, constant, added, attended, normed, into_new, into_buffer, number, branch, random]
)
def test_the_model_computes_what_it_does_without_a_cache(between):
    model, cache = built(between)
    for _ in range(2):  # computed, and then kept
        torch.manual_seed(1)
        cache(INDEX).square().sum().backward()
        got, drawn = (model.head.weight.grad.clone(), model.head.bias.grad.clone()), torch.rand(1)
        model.zero_grad()
        torch.manual_seed(1)
        model(SAMPLES[INDEX]).square().sum().backward()
        torch.testing.assert_close(got, (model.head.weight.grad, model.head.bias.grad), rtol=1e-6, atol=1e-6)
        assert torch.equal(drawn, torch.rand(1))
        model.zero_grad()


class Telling(Between):
    """It gives more of what it computes in training than in evaluation, in which a prefix is tried."""

    def __init__(self, made: Callable[[Tensor], Any]) -> None:
        super().__init__(self.keep)
        self.made = made

    def keep(self, _: nn.Module, x: Tensor) -> Tensor:
        self.hidden = self.made(x)
        return x.relu()

    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return (y, self.hidden) if self.training else y


@pytest.mark.parametrize("made", [lambda y: y, lambda y: (y.tanh(), 1), lambda y: {"hidden": y[:, :1] + 1}])
def test_a_model_that_gives_away_an_output_in_training_alone_raises(made):
    model = wk.convert(Telling(made)).train()
    cache = ActivationCache(SingleShotFreezing(model, SAMPLES[:2], at=0, share=0.7), SAMPLES)
    with pytest.raises(RuntimeError, match=r"cache: expected nothing .* to read the output of wide.*got: the model gives it"):
        cache(INDEX)


def test_what_trains_needs_the_values():
    """A parameter of the model's own, read beside a frozen output."""

    class Gated(Telling):
        def __init__(self) -> None:
            super().__init__(torch.tanh)
            self.gate = nn.Parameter(torch.ones(WIDE))

        def forward(self, x: Tensor) -> Tensor:
            return Between.forward(self, x) + (self.hidden * self.gate).sum(1, keepdim=True)

    torch.manual_seed(0)
    model = wk.convert(Gated()).train()
    cache = ActivationCache(SingleShotFreezing(model, SAMPLES[:2], at=0, share=0.7), SAMPLES)
    cache(INDEX).sum().backward()
    got, model.gate.grad = model.gate.grad, None
    model(SAMPLES[INDEX]).sum().backward()
    torch.testing.assert_close(got, model.gate.grad)
    assert (cache.reason, cache.nbytes) == (None, BYTES * (WIDE + NARROW))


def test_a_loss_of_what_the_model_keeps_to_itself_raises():
    model = wk.convert(Telling(torch.tanh)).train()
    model.forward = lambda x: Between.forward(model, x)
    cache = ActivationCache(SingleShotFreezing(model, SAMPLES[:2], at=0, share=0.7), SAMPLES)
    output = cache(INDEX)
    with pytest.raises(RuntimeError, match=r"to read the output of wide.*got: aten.add"):
        output.sum() + model.hidden.sum()


class Halves(nn.Module):
    """A layer of which frozen modules get two halves as they are, and give them as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.left, self.right = nn.Linear(WIDE, WIDE), nn.Identity(), nn.Identity()
        self.head = nn.Linear(WIDE // 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.wide(x).chunk(2, 1)
        return self.head(self.left(left) * self.right(right))


class Folded(nn.Module):
    """The rows that a frozen module gives are read in another form; what it was computed from is not."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.same, self.head = nn.Linear(WIDE, WIDE), nn.Identity(), nn.Linear(NARROW, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.same(self.wide(x).sin()).view(-1, 2, NARROW).transpose(0, 1)).sum(0)


class Windows(nn.Module):
    """A frozen module whose output has two rows for each sample, and one that puts them together."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow, self.head = nn.Linear(WIDE // 2, WIDE // 2), nn.Linear(WIDE, NARROW), nn.Linear(NARROW, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.narrow(self.wide(x.view(-1, WIDE // 2)).relu().view(-1, WIDE)))


@pytest.mark.parametrize(("made", "share", "kept"), [(Halves, 0.5, WIDE), (Folded, 0.5, WIDE), (Windows, 0.7, NARROW)])
def test_outputs_that_are_parts_of_others(made, share, kept):
    torch.manual_seed(0)
    model = wk.convert(made()).train()
    cache = ActivationCache(SingleShotFreezing(model, SAMPLES[:2], at=0, share=share), SAMPLES)
    torch.testing.assert_close(cache(INDEX), model(SAMPLES[INDEX]), rtol=1e-6, atol=1e-6)
    assert (cache.reason, cache.nbytes) == (None, BYTES * kept)
