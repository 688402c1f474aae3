"""``convert(model, memory=True)``, ``revert`` and ``survey``: what is found, what is left alone and why, what each saves."""

import copy
import logging

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import wuskern as wk
from tests.memory.test_surroundings import network
from wuskern.memory.kept import kept_by
from wuskern.memory.layers import BitDropout, BitReLU, LeanBatchNorm2d


class Squared(nn.ReLU):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) ** 2


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.front, self.act, self.back = nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.back(self.act(self.front(x))))
        return F.dropout(F.dropout(torch.relu(x), 0.1), 0.0)


def test_nothing_of_it_without_being_asked():
    model = wk.convert(network())
    assert not any(type(m) in (BitReLU, BitDropout, LeanBatchNorm2d) for m in model.modules())
    assert {f.name for f in wk.survey(model)} == {"0", "3", "7", "9"}


def test_the_same_objects_there_and_back():
    model = network()
    before = [(m, type(m)) for m in model.modules()]
    tensors = {name: id(t) for name, t in (*model.named_parameters(), *model.named_buffers())}
    assert wk.convert(model, memory=True) is model
    classes = [type(m).__name__ for m in model]
    assert classes[1:3] == ["LeanBatchNorm2d", "BitReLU"]
    assert classes[4:6] == ["BitLeakyReLU", "BitDropout"]
    assert classes[8] == "BitReLU6"
    wk.convert(model, memory=True)  # again
    wk.convert(model)
    assert [type(m).__name__ for m in model] == classes
    assert all(a is b for a, (b, _) in zip(model.modules(), before, strict=True))
    assert {name: id(t) for name, t in (*model.named_parameters(), *model.named_buffers())} == tensors
    wk.revert(model)
    assert [(m, type(m)) for m in model.modules()] == before


def test_a_model_of_activations_alone():
    model = nn.Sequential(nn.ReLU())
    with pytest.raises(ValueError, match="it has no layer with a weight matrix"):
        wk.convert(model)
    assert type(wk.convert(model, memory=True)[0]) is BitReLU
    assert type(wk.convert(nn.ReLU(), memory=True)) is BitReLU


def test_what_is_left_alone_and_why():
    replaced = nn.ReLU()
    replaced.forward = torch.relu
    transformers = pytest.importorskip("transformers.activations")
    model = nn.ModuleDict(
        {
            "relu": nn.ReLU(), "gelu": nn.GELU(), "squared": Squared(), "replaced": replaced, "channels": nn.Dropout2d(),
            "lazy": nn.LazyBatchNorm2d(), "sync": nn.SyncBatchNorm(3), "wrapped": transformers.GELUActivation(),
            "out": nn.ReLU(),
        }
    )  # fmt: skip
    found = {f.name: f.obstacle for f in wk.survey(model, lambda _, name: name != "out", memory=True)}
    assert found == {
        "relu": None,
        "gelu": "there is no GELU that keeps less",
        "squared": "Squared is a subclass with a behaviour of its own",
        "replaced": "its forward was replaced on the object",
        "channels": "there is no Dropout2d that keeps less",
        "lazy": "it is lazy: run the model once before converting",
        "sync": "there is no SyncBatchNorm that keeps less",
        "wrapped": "there is no GELUActivation that keeps less",
        "out": "filter_fn left it out",
    }
    before = [type(m) for m in model.values()]
    wk.convert(model, lambda _, name: name != "out", memory=True)
    assert [type(m) for m in model.values()] == [BitReLU, *before[1:]]


def test_the_report(caplog):
    with caplog.at_level(logging.INFO, "wuskern"):
        wk.convert(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.ReLU(), nn.GELU(), nn.Dropout()), memory=True)
    assert caplog.messages == [
        "left alone: 3: there is no GELU that keeps less",
        "converted: 1 of 1 layers, with 100 % of the weights",
        "keep less: 2 ReLU, 1 Dropout",
        "calls of functions (F.relu, F.dropout, F.batch_norm) are not touched: survey(..., example=...) counts them",
    ]


def test_survey_counts_functions():
    model = wk.convert(Functional())
    found = wk.survey(model, memory=True, example=torch.randn(2, 4))
    assert found.functional == {"relu": 2, "dropout": 1}
    assert wk.survey(model, memory=True).functional is None


def test_survey_says_what_each_saves():
    """By hand, in bytes: of a ReLU in front of a dense layer its output stays, and its bits come on top; of one in front of a
    skipped layer it goes."""
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.Dropout(), nn.GELU())
    wk.convert(model)
    model[4].skip = True
    expected = {"1": -10 * 64 // 8, "3": 10 * 64 * 4 - 10 * 64 // 8, "5": 10 * 32 * 4 - 10 * 32 // 8, "6": None, "0": None}
    x = torch.randn(10, 4)
    for _ in range(2):  # as PyTorch's layers and as ours
        before = [type(m) for m in model], torch.get_rng_state()
        found = {f.name: f.saves for f in wk.survey(model, memory=True, example=x)}
        assert expected.items() <= found.items()
        assert [type(m) for m in model] == before[0]
        assert torch.equal(torch.get_rng_state(), before[1])
        wk.convert(model, memory=True)


def test_survey_is_what_a_forward_keeps():
    """The sum over the layers is what all of the model keeps less."""
    stock, ours = network(), wk.convert(network(), memory=True)
    wk.set_skip(ours, True)
    wk.set_skip(wk.convert(stock), True)
    x = torch.randn(4, 3, 8, 8)
    saved = sum(f.saves or 0 for f in wk.survey(stock, memory=True, example=x))
    assert saved == kept_by(stock, x).total - kept_by(ours, x).total > 0


def test_an_example_alone_is_refused():
    with pytest.raises(TypeError, match="example: expected it with memory=True alone, got one without"):
        wk.survey(network(), example=torch.randn(4, 3, 8, 8))


def test_a_copy_converts_alike():
    model = network()
    other = wk.convert(copy.deepcopy(model), memory=True)
    assert type(model[2]) is nn.ReLU
    assert type(other[2]) is BitReLU
