"""A profile leaves a model as it was, bit for bit, whatever it is and whatever goes wrong."""

import contextlib
import random
from collections import UserDict

import numpy as np
import pytest
import torch
import torch.nn as nn
from torch import Tensor

import wuskern as wk
from wuskern.profile import variants

pytestmark = [pytest.mark.usefixtures("quick"), pytest.mark.filterwarnings("ignore:.*nn.utils.spectral_norm:FutureWarning")]


X = torch.randn(4, 6)
OF_THE_PREFIX = (6,)  # which calls of the model are made to find it


class Restless(nn.Module):
    """All that a step may change: running statistics, power iterations, counters, lists, a buffer that is replaced, a
    generator, its input, its own weights, and the modes of its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.norm, self.frozen_norm = nn.BatchNorm1d(8), nn.BatchNorm1d(8)
        self.middle = nn.utils.spectral_norm(nn.Linear(8, 8))
        self.embedding = nn.Embedding(5, 8, max_norm=0.5)
        self.last = nn.Linear(8, 3)
        self.calls, self.history, self.seen = 0, [], {}
        self.register_buffer("mean", torch.zeros(8))
        self.draw = torch.Generator().manual_seed(3)
        self.fails = None

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        self.calls += 1
        if self.calls == self.fails:
            raise RuntimeError("as asked")
        x.mul_(0.5)
        h = torch.dropout(torch.relu(self.norm(self.first(x))), 0.3, self.training)
        h = h + torch.rand(8, generator=self.draw) * random.random() * np.random.rand()  # noqa: NPY002
        self.mean = self.mean * 0.9 + h.detach().mean(0) * 0.1
        self.history.append(float(h.detach().sum()))
        self.seen[self.calls] = h
        h = self.frozen_norm(self.middle(h)) + self.embedding(torch.arange(len(x)) % 5)
        return self.last(h)


def restless() -> Restless:
    torch.manual_seed(0)
    model = Restless()
    model.frozen_norm.eval()
    model.first.register_forward_hook(lambda module, args, output: None)
    model(torch.randn(4, 6)).sum().backward()
    model.last.bias.grad = None
    model.first.weight.requires_grad_(False)
    return model


def state(model: Restless) -> dict:
    """All of a model that can be seen."""
    tensors = {f"{kind} {name}": t for kind in ("parameters", "buffers") for name, t in getattr(model, f"named_{kind}")()}
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {
        "tensors": {name: (t, t.detach().clone(), t.requires_grad) for name, t in tensors.items()},
        "gradients": {name: (g, None if g is None else g.clone()) for name, g in gradients.items()},
        "modules": [(type(m), m.training, list(m.__dict__), m.__dict__.get("_plan")) for m in model.modules()],
        "hooks": [list(m._forward_hooks) + list(m._forward_pre_hooks) for m in model.modules()],
        "parameter hooks": [
            [None if table is None else dict(table) for table in (p._backward_hooks, p._post_accumulate_grad_hooks)]
            for p in model.parameters()
        ],
        "own": (model.calls, list(model.history), list(model.seen), model.draw.get_state().tolist()),
        "random": (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())),  # noqa: NPY002
    }


def assert_same(before: dict, after: dict) -> None:
    for key in ("modules", "hooks", "parameter hooks", "own", "random"):
        assert before[key] == after[key], key
    for name, (tensor, values, requires_grad) in before["tensors"].items():
        now, found, requires = after["tensors"][name]
        assert now is tensor, name
        assert requires == requires_grad, name
        assert found.numpy().tobytes() == values.numpy().tobytes(), name
    for name, (grad, values) in before["gradients"].items():
        now, found = after["gradients"][name]
        assert now is grad, name
        assert grad is None or torch.equal(found, values), name


def converted(model: Restless) -> Restless:
    return wk.convert(model)


def planned(model: Restless) -> Restless:
    wk.convert(model)
    model.first.plan, model.last.skip = wk.Plan(rows=wk.TopK(k=2), columns=wk.Columns([1])), True
    return model


def in_eval(model: Restless) -> Restless:
    return model.eval()


def watched(model: Restless) -> Restless:
    """An optimizer that steps in backward, and a hook that looks at a gradient."""
    optimizer = torch.optim.SGD([model.last.weight], lr=1.0)
    model.last.weight.register_post_accumulate_grad_hook(lambda p: optimizer.step())
    model.first.bias.register_hook(lambda grad: grad * 2)
    return model


MODELS = {"stock": lambda model: model, **{f.__name__: f for f in (converted, planned, in_eval, watched)}}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_the_model_is_as_before(make):
    model = make(restless())
    x, before = X.clone(), state(model)
    found = wk.profile(model, (x, None), seconds=20)
    assert len(found.ways) >= 5, found
    assert_same(before, state(model))
    assert torch.equal(x, X)


@pytest.mark.parametrize("fails", [1, 3, 6, 9, 12])
@pytest.mark.parametrize("make", [MODELS["stock"], planned], ids=["stock", "planned"])
def test_the_model_is_as_before_where_it_raises(make, fails):
    model = make(restless())
    model.fails = model.calls + fails
    before = state(model)
    with contextlib.ExitStack() as stack:
        if fails not in OF_THE_PREFIX:  # which alone is given up then
            stack.enter_context(pytest.raises(RuntimeError, match="as asked"))
        wk.profile(model, X, seconds=20)
    assert_same(before, state(model))


def test_the_model_is_as_before_where_it_is_interrupted(monkeypatch):
    model, real = planned(restless()), variants.Way.on
    before = state(model)

    def interrupted(way, *args):
        if way.name.startswith("rows"):
            raise KeyboardInterrupt
        return real(way, *args)

    monkeypatch.setattr(variants.Way, "on", interrupted)
    with pytest.raises(KeyboardInterrupt):
        wk.profile(model, X, seconds=20)
    assert_same(before, state(model))


def test_an_optimizer_that_steps_in_backward_does_not():
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))
    stepped = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(stepped.append)
        parameter.register_hook(stepped.append)
    wk.profile(model, X)
    assert stepped == []
    model(X).sum().backward()
    assert len(stepped) == 8


def test_a_way_puts_modes_back_for_the_next_one():
    """A norm in evaluation mode in front of what trains, of a model in training mode."""
    model = wk.convert(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)))
    model[1].eval()
    (way,) = variants.frozen_ways(model, X)
    with way.on(dict(model.named_modules())):
        model(X).sum().backward()
        assert model[0].weight.grad is None
    assert [module.training for module in model] == [True, False, True]


def test_a_policy_goes_on_as_if_nothing_had_been():
    """Its observers hear of nothing, and its plans are back."""
    trained = []
    for with_profile in (False, True):
        torch.manual_seed(0)
        model = wk.convert(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)))
        policy = wk.policies.ScoreMemory(model, ratio=0.5)
        optimizer = wk.optim.AdamW(model.parameters(), 0.1)
        policy.attach(optimizer)
        for step in range(4):
            if with_profile and step == 2:
                assert {way.name for way in wk.profile(model, X).ways} >= {"skip", "columns 5%", "rows 5%"}
            policy.before_step()
            model(torch.ones(4, 6) * step).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            policy.after_step()
        trained.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*trained, strict=True))


class Doubling(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        input.data.mul_(2)
        return input


@pytest.mark.parametrize("inputs", [[], {}], ids=["positional", "keyword"])
def test_the_batch_is_not_written_to(inputs):
    model = nn.Sequential(Doubling(), nn.Linear(6, 8), nn.Linear(8, 3))
    x = X.clone().requires_grad_()
    wk.profile(model, [x] if inputs == [] else UserDict(input=x))
    assert torch.equal(x, X)
    assert x.grad is None
