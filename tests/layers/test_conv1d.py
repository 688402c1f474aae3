"""Conv1D of transformers: converted and reverted as other layers are, by class alone."""

import copy
import io
import logging
import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn as nn
import torch.nn.utils.parametrizations as parametrizations
import torch.nn.utils.prune

import wuskern as wk
from tests.layers.stand_in import Conv1D, converted
from tests.oracle import assert_same_bits, gradients
from wuskern.layers import conv1d


class Special(Conv1D):
    pass


class Wrapped(torch.Tensor):
    """A weight that something else keeps in its own format."""


class Elsewhere:
    """A namespace for a class that has the name alone."""

    class Conv1D(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 4))


def test_round_trip_keeps_everything_but_the_class():
    model = nn.Sequential(Conv1D(6, 4), nn.GELU(), Conv1D(4, 6), Conv1D(4, 6))
    model[3].weight = model[2].weight
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    attributes = [set(m.__dict__) for m in model]
    parameters, state = [(n, id(p)) for n, p in model.named_parameters()], copy.deepcopy(model.state_dict())
    assert wk.convert(model) is model
    assert wk.convert(model) is model  # once more changes nothing
    assert all(isinstance(model[i], Conv1D) for i in (0, 2, 3))
    assert type(model[0]) is type(model[2]) is conv1d.SkippableConv1D
    assert model[3].weight is model[2].weight
    assert list(model.state_dict()) == list(state)
    model[0](torch.ones(2, 4))
    assert calls == [1]
    wk.set_plan(model, skip=True)
    assert repr(model[0]) == "SkippableConv1D(nf=6, nx=4, skip=True)"
    assert wk.revert(model) is model
    assert [type(model[i]) for i in (0, 2, 3)] == [Conv1D] * 3
    assert repr(model[0]) == "Conv1D(nf=6, nx=4)"
    assert [set(m.__dict__) for m in model] == attributes
    assert [(n, id(p)) for n, p in model.named_parameters()] == parameters
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def altered(**attributes):
    layer = Conv1D(4, 4)
    for name, value in attributes.items():
        setattr(layer, name, value)
    return layer


def test_what_is_left_alone_says_why():
    model = nn.ModuleDict(
        {
            "plain": Conv1D(4, 4),
            "subclass": Special(4, 4),
            "parametrized": parametrizations.weight_norm(Conv1D(4, 4)),
            "pruned": nn.utils.prune.identity(Conv1D(4, 4), "weight"),
            "patched": altered(forward=lambda x: x),
            "own skip": altered(skip=lambda x: x),
            "wrapped": altered(weight=nn.Parameter(torch.ones(4, 4).as_subclass(Wrapped))),
            "int8": altered(weight=nn.Parameter(torch.ones(4, 4, dtype=torch.int8), False)),
            "elsewhere": Elsewhere.Conv1D(),
            "convolution": nn.Conv1d(2, 2, 1),
        }
    )
    expected = {
        "plain": None,
        "subclass": "Special is a subclass with a behaviour of its own",
        "parametrized": "its weight is parametrized",
        "pruned": "its weight is computed from other parameters",
        "patched": "its forward was replaced on the object",
        "own skip": "it has an attribute skip of its own",
        "wrapped": "its weight is a Wrapped, a subclass of Tensor",
        "int8": "its weight is torch.int8",
        "elsewhere": "Conv1D computes with its own weight",
        "convolution": "there is no skipping Conv1d",
    }
    assert {f.name: f.obstacle for f in wk.survey(model)} == expected
    classes = [type(m) for m in model.values()]
    wk.convert(model)
    assert [type(m) for m in model.values()] == [conv1d.SkippableConv1D, *classes[1:]]


def test_without_transformers_nothing_imports_it():
    program = (
        "import sys, torch.nn as nn, wuskern as wk\n"
        "class Conv1D(nn.Conv1d): pass\n"
        "wk.revert(wk.convert(nn.Sequential(nn.Linear(2, 2), Conv1D(2, 2, 1))))\n"
        "print([name for name in sys.modules if name.split('.')[0] == 'transformers'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_the_share_of_the_weights_that_is_covered(caplog):
    model = nn.Sequential(Conv1D(6, 4), nn.Linear(2, 4), nn.LSTM(1, 1), nn.Embedding(100, 100))
    found = wk.survey(model)
    assert isinstance(found, list)
    assert found.share == (24 + 8) / (24 + 8 + 8)
    assert wk.survey(nn.ReLU()).share == 0
    with caplog.at_level(logging.INFO, logger="wuskern"):
        wk.convert(model)
    assert "converted: 2 of 3 layers, with 80 % of the weights" in caplog.messages
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


SHAPES = [(4,), (3, 4), (2, 3, 4), (0, 4), (2, 0, 4), (1, 4), (1, 2, 3, 4)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_dense_layer_is_stock(shape, dtype):
    torch.manual_seed(0)
    stock, x = Conv1D(6, 4).to(dtype), torch.randn(shape).to(dtype)
    ours = wk.convert(copy.deepcopy(stock))
    ours.rows, ours.columns = wk.TopK(ratio=1.0), wk.TopColumns(ratio=1.0)
    assert_same_bits(gradients(ours, x), gradients(stock, x))


def test_what_stock_refuses_is_refused_in_its_words():
    stock, ours = Conv1D(6, 4), converted(6, 4, dtype=torch.float32)
    bad = [torch.randn(3, 5), torch.randn(3, 4, dtype=torch.float64), torch.randn(4, 2, 3).transpose(0, 2), torch.tensor(1.0)]
    for parts in ({}, {"skip": True}, {"rows": wk.TopK(k=2)}, {"rows": wk.TopK(k=2, scope="both"), "tokens": wk.Tokens(k=1)}):
        ours.plan = wk.Plan(**parts)
        for x in bad:
            with pytest.raises((RuntimeError, IndexError)) as expected:
                stock(x)
            with pytest.raises(expected.type) as found:
                ours(x)
            assert str(found.value) == str(expected.value)


def saved(layer):
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), saved], ids=["deepcopy", "pickle", "torch.save"]
)
def test_copies(copied):
    layer = converted(6, 4)
    layer.columns = wk.Columns([1, 2], sparse=True)
    twin = copied(layer)
    assert type(twin) is type(layer)
    assert twin.plan == layer.plan
    assert twin._home is not layer._home
    x = torch.randn(3, 4, dtype=torch.float64)
    for each in (layer, twin):
        each(x).sum().backward()
    assert torch.equal(twin.weight.grad.to_dense(), layer.weight.grad.to_dense())
    assert type(wk.revert(twin)) is Conv1D


def test_a_pickle_brings_the_class_along_in_another_process(tmp_path):
    """It needs transformers, and finds it."""
    torch.save(converted(6, 4), tmp_path / "layer.pt")
    program = (
        "import torch\n"
        "from tests.layers import stand_in\n"
        "stand_in.install()\n"
        f"layer = torch.load({str(tmp_path / 'layer.pt')!r}, weights_only=False)\n"
        "print(type(layer).__name__, isinstance(layer, stand_in.Conv1D))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "SkippableConv1D True\n", done.stderr
    with pytest.raises(AttributeError, match="has no attribute Nothing"):
        conv1d.Nothing  # noqa: B018


def test_a_parametrization_that_is_added_later_stays_when_reverted():
    layer = converted(6, 4)
    parametrizations.weight_norm(layer)
    layer.rows = wk.Rows([1])
    layer(torch.ones(2, 4, dtype=torch.float64)).sum().backward()
    wk.revert(layer)
    assert type(layer).__name__ == "ParametrizedConv1D"
    nn.utils.parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is Conv1D


def test_a_wrapper_may_call_forward_after_revert():
    layer = converted(6, 4)
    layer.skip = True
    forward, x = layer.forward, torch.ones(2, 4, dtype=torch.float64)
    wk.revert(layer)
    assert torch.equal(forward(x), layer(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit.trace
def test_what_is_recorded_is_stock():
    layer = converted(6, 4)
    x = torch.ones(2, 4, dtype=torch.float64)
    for parts in ({"skip": True}, {"rows": wk.Rows([1])}):
        layer.plan = wk.Plan(**parts)
        for recorded in (torch.fx.symbolic_trace(layer), torch.jit.trace(layer, x), torch.export.export(layer, (x,)).module()):
            assert torch.equal(recorded(x), layer(x))
            recorded.weight.grad = None
            recorded(x).sum().backward()
            assert recorded.weight.grad.all()
