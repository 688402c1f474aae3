"""Checkpoints across a simplification, also where wuskern is not installed."""

import copy
import subprocess
import sys

import pytest
import torch
import torch.nn as nn

import wuskern as wk
from tests.simplify.networks import kill, shapes, shuffle_norms

NETWORK = """
import torch.nn as nn
def network():
    first = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.PReLU(6), nn.Conv2d(6, 6, 3, groups=6), nn.GroupNorm(6, 6), nn.ReLU()
    return nn.Sequential(*first, nn.Conv2d(6, 4, 1), nn.Flatten(), nn.Linear(16, 5, bias=False), nn.ReLU(), nn.Linear(5, 3))
"""
exec(NETWORK)


def dead() -> nn.Module:
    torch.manual_seed(0)
    model = network().eval()  # noqa: F821
    shuffle_norms(model)
    kill(model[0], [1, 2])
    kill(model[6], [3])
    kill(model[8], [0, 4])
    return model


X = torch.randn(2, 2, 6, 6)


def test_a_fresh_model_takes_the_state_of_a_simplified_one():
    smaller, _ = wk.simplify(dead(), X)
    assert shapes(smaller) != shapes(dead())
    fresh = wk.convert(network())  # noqa: F821
    before = list(fresh.parameters())
    assert wk.fit_(fresh, smaller.state_dict()) is fresh
    fresh.load_state_dict(smaller.state_dict())
    assert all(a is b for a, b in zip(fresh.parameters(), before, strict=True))
    assert torch.equal(fresh.eval()(X), smaller(X))
    assert str(wk.revert(fresh)) == str(smaller)  # the layers' sizes
    fresh.train()(X).sum().backward()


def test_a_checkpoint_resumes_with_its_optimizer():
    model = wk.convert(dead()).train()
    optimizer = torch.optim.Adam(model.parameters())

    def step(model, optimizer):
        optimizer.zero_grad()
        model(X).square().sum().backward()
        optimizer.step()

    step(model, optimizer)
    for layer, rows in ((0, [1, 2]), (6, [3]), (8, [0, 4])):
        kill(model[layer], rows)
    wk.simplify_(model, X, optimizer)
    saved = model.state_dict(), optimizer.state_dict()
    resumed = wk.convert(network())  # noqa: F821
    wk.fit_(resumed, saved[0]).load_state_dict(saved[0])
    its_optimizer = torch.optim.Adam(resumed.parameters())
    its_optimizer.load_state_dict(copy.deepcopy(saved[1]))
    step(model, optimizer)
    step(resumed, its_optimizer)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), resumed.state_dict().values(), strict=True))


def test_the_copy_is_loaded_without_wuskern(tmp_path):
    model = wk.convert(dead())
    wk.optim.Adam(model.parameters())  # which asks the weights for compact rows
    smaller, _ = wk.simplify(model, X)
    torch.save((smaller, smaller.state_dict(), X, smaller(X)), tmp_path / "model.pt")
    program = f"""
import sys
sys.modules["wuskern"] = None  # an import of it raises
import torch
model, state, x, y = torch.load({str(tmp_path / "model.pt")!r}, weights_only=False)
torch.testing.assert_close(model(x), y)  # by another number of threads
model.load_state_dict(state)
assert all(type(m).__module__.startswith("torch.nn") for m in model.modules())
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)


def test_a_model_of_the_same_size_stays():
    model = dead()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wk.fit_(model, before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("0.weight", torch.zeros(8, 2, 3, 3), r"expected 0.weight of shape up to \[6, 2, 3, 3\], got \[8, 2, 3, 3\]"),
        ("0.weight", torch.zeros(6, 2, 1, 1), r"expected 0.weight of shape \[..., 3, 3\], got \[6, 2, 1, 1\]"),
        ("0.weight", torch.zeros(4, 2, 3, 3), r"expected 0.weight of shape \[6, ...\], as bias has, got \[4, 2, 3, 3\]"),
        ("0.bias", torch.zeros(4), r"expected 0.weight of shape \[4, ...\], as bias has, got \[6, 2, 3, 3\]"),
        ("8.weight", torch.zeros(3, 16, 1), r"expected 8.weight of shape up to \[5, 16\], got \[3, 16, 1\]"),
        ("1.bias", torch.zeros(3), r"expected 1.bias of shape \[6\] in a BatchNorm2d, got \[3\]"),
        ("11.weight", torch.zeros(2), r"expected 11.weight of shape \[3\] in a LayerNorm, got \[2\]"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_changes(key, value, message):
    model = dead().append(nn.LayerNorm(3))
    before = shapes(model)
    with pytest.raises(ValueError, match=f"state_dict: {message}"):
        wk.fit_(model, model.state_dict() | {"10.weight": torch.zeros(3, 4), key: value})
    assert shapes(model) == before


def test_bad_arguments():
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got dict"):
        wk.fit_({}, {})
    with pytest.raises(TypeError, match="state_dict: expected a mapping of names to tensors, got Linear"):
        wk.fit_(nn.Linear(1, 1), nn.Linear(1, 1))
