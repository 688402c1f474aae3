"""convert and revert: only the class of a layer changes."""

import copy
import logging

import pytest
import torch
import torch.nn as nn
import torch.nn.utils.prune

import wuskern as wk


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 6)
        self.body = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.embedding(tokens)))


def test_round_trip_keeps_everything_but_the_class():
    model = Tied()
    calls = []
    model.body[0].register_forward_hook(lambda *_: calls.append(1))
    modules, parameters = [id(m) for m in model.modules()], [(n, id(p)) for n, p in model.named_parameters()]
    state, classes = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    tokens = torch.tensor([1, 2, 8])
    expected = model(tokens)

    assert wk.convert(model) is model
    assert type(model.head) is wk.SkippableLinear
    assert type(model.body[0]) is wk.SkippableLinear
    assert torch.equal(model(tokens), expected)
    assert model.head.weight is model.embedding.weight
    assert len(calls) == 2
    assert wk.convert(model) is model  # once more changes nothing

    wk.set_skip(model, True)
    assert wk.revert(model) is model
    assert [type(m) for m in model.modules()] == classes
    assert [id(m) for m in model.modules()] == modules
    assert [(n, id(p)) for n, p in model.named_parameters()] == parameters
    assert all("skip" not in m.__dict__ for m in model.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])


def test_the_root_itself():
    layer = nn.Conv2d(1, 2, 3)
    assert wk.convert(layer) is layer
    assert type(layer) is wk.SkippableConv2d
    assert type(wk.revert(layer)) is nn.Conv2d


def test_filter_fn_chooses():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    wk.convert(model, filter_fn=lambda module, name: name == "1")
    assert [type(m) for m in model] == [nn.Linear, wk.SkippableLinear]


def test_what_is_left_alone_says_why(caplog):
    class Special(nn.Linear):
        pass

    model = nn.ModuleDict(
        {
            "plain": nn.Linear(4, 4),
            "special": Special(4, 4),
            "lazy": nn.LazyLinear(4),
            "conv1d": nn.Conv1d(2, 2, 1),
            "attention": nn.MultiheadAttention(4, 2),
            "normed": torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
            "pruned": torch.nn.utils.prune.identity(nn.Linear(4, 4), "weight"),
            "patched": nn.Linear(4, 4),
        }
    )
    model["patched"].forward = lambda x: x
    reasons = {f.name: f.obstacle for f in wk.survey(model)}
    assert reasons == {
        "plain": None,
        "special": "Special is a subclass with a behaviour of its own",
        "lazy": "it is lazy: run the model once before converting",
        "conv1d": "there is no skipping Conv1d",
        "attention.out_proj": "NonDynamicallyQuantizableLinear is a subclass with a behaviour of its own",
        "normed": "its weight is parametrized",
        "pruned": "its weight is computed from other parameters",
        "patched": "its forward was replaced on the object",
    }
    with caplog.at_level(logging.INFO, logger="wuskern"):
        wk.convert(model)
    assert "left alone: conv1d: there is no skipping Conv1d" in caplog.messages
    assert len(caplog.messages) == 7
    assert type(model["special"]) is Special


def test_nothing_to_convert_is_an_error():
    with pytest.raises(ValueError, match=r"got Sequential: 0: there is no skipping Conv1d$"):
        wk.convert(nn.Sequential(nn.Conv1d(2, 2, 1)))
    with pytest.raises(ValueError, match=r"got ReLU: it has no layer with a weight matrix"):
        wk.convert(nn.ReLU())
    with pytest.raises(ValueError, match="filter_fn left it out"):
        wk.convert(nn.Linear(2, 2), filter_fn=lambda *_: False)
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got str"):
        wk.convert("model")
