"""The plans of all layers of a model, set together. (tests/common/test_overlap.py: blocks that overlap.)"""

import pytest
import torch
import torch.nn as nn

import wuskern as wk


def test_set_skip_and_skipping():
    model = wk.convert(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    model[0].skip = True
    with wk.skipping(model):
        assert (model[0].skip, model[2].skip) == (True, True)
        with wk.skipping(model, False):
            assert (model[0].skip, model[2].skip) == (False, False)
        assert (model[0].skip, model[2].skip) == (True, True)
    assert (model[0].skip, model[2].skip) == (True, False)
    wk.set_skip(model, True)
    assert (model[0].skip, model[2].skip) == (True, True)


def test_skipping_puts_the_flags_back_after_an_error():
    model = wk.convert(nn.Linear(3, 4))
    with pytest.raises(KeyError), wk.skipping(model):
        raise KeyError
    assert model.skip is False


def nested():
    block = lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))  # noqa: E731
    return wk.convert(nn.ModuleDict({"encoder": nn.ModuleList([block(), block()]), "encoder2": nn.Linear(4, 4)}))


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (["encoder.0"], ["encoder.0.0", "encoder.0.2"]),
        (["*.2"], ["encoder.0.2", "encoder.1.2"]),
        (["*r.1"], ["encoder.1.0", "encoder.1.2"]),
        (["*2"], ["encoder.0.2", "encoder.1.2", "encoder2"]),
        (("encoder2", "encoder.1.2"), ["encoder.1.2", "encoder2"]),
        ({"encoder"}, ["encoder.0.0", "encoder.0.2", "encoder.1.0", "encoder.1.2"]),
    ],
)
def test_names_of_layers_and_of_modules_take_what_lies_in_them(names, taken):
    rows, columns, tokens = wk.Rows([0]), wk.Columns([1]), wk.Tokens(k=2)
    for set_part, value, part in (
        (wk.set_skip, True, "skip"),
        (wk.set_rows, rows, "rows"),
        (wk.set_columns, columns, "columns"),
        (wk.set_tokens, tokens, "tokens"),
        (lambda model, value, names: wk.set_plan(model, names=names, rows=value), rows, "rows"),
    ):
        model = nested()
        set_part(model, value, names=names)
        layers = {name: m for name, m in model.named_modules() if hasattr(m, "plan")}
        assert [name for name, layer in layers.items() if getattr(layer, part) == value] == taken
    model = nested()
    with wk.skipping(model, names=names):
        assert [name for name, m in model.named_modules() if getattr(m, "skip", False)] == taken
    with wk.skipping(model, filter_fn=lambda module, name: name == "encoder2"):
        assert [name for name, m in model.named_modules() if getattr(m, "skip", False)] == ["encoder2"]
    assert wk.policies.MeProp(nested(), k=1, dense=names).dense == tuple(taken)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (
            {"names": ["encode"]},
            ValueError,
            r"names: expected names of converted layers \(.*encoder2\) or of modules .*, got 'encode'",
        ),
        ({"names": "encoder"}, TypeError, "names: expected a list of names of layers, got 'encoder'"),
        ({"names": [0]}, TypeError, r"names: expected a list of names of layers, got \[0\]"),
        ({"names": []}, ValueError, "names: expected at least one, got none"),
        (
            {"names": ["encoder"], "filter_fn": lambda *_: True},
            TypeError,
            "filter_fn, names: expected one of the two, got both",
        ),
        ({"filter_fn": ["encoder"]}, TypeError, r"filter_fn: expected a function of \(module, name\), or names="),
    ],
)
def test_names_that_are_none_are_refused_and_change_nothing(arguments, error, said):
    model = nested()
    with pytest.raises(error, match=said):
        wk.set_skip(model, True, **arguments)
    with pytest.raises(error, match=said), wk.skipping(model, **arguments):
        pass
    assert not any(getattr(m, "skip", False) for m in model.modules())


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # torch.compile's own
def test_names_are_those_of_the_plain_model():
    """In convert, survey and the setters alike, whatever wraps the model or a part of it."""
    model = torch.compile(nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4))), backend="eager")
    model._orig_mod[1] = torch.compile(model._orig_mod[1], backend="eager")
    wk.convert(model, lambda module, name: name in ("0", "1.0"))
    assert [(found.name, found.obstacle) for found in wk.survey(model)] == [("0", None), ("1.0", None)]
    wk.set_skip(model, True, names=["1.0"])
    wk.set_skip(model, True, names=["1"])
    assert [m.skip for m in model.modules() if hasattr(m, "plan")] == [False, True]


def without_bias(**also):
    return wk.convert(nn.Sequential(nn.Linear(8, 16, bias=False), nn.ReLU(), *also.values(), nn.Linear(16, 4, bias=False)))


@pytest.mark.parametrize("also", [{}, {"norm": nn.BatchNorm1d(16, affine=False)}])
def test_a_skip_that_leaves_nothing_to_train_is_said(also, caplog):
    """As in models without biases, and of adapters."""
    net = without_bias(**also)
    wk.set_skip(net, True)
    said = "skip: expected a bias or another parameter to be left to train, got none: backward works only for an input that"
    assert [message.startswith(said) for message in caplog.messages] == [True]


def test_a_skip_that_leaves_something_is_silent(caplog):
    wk.set_skip(without_bias(norm=nn.BatchNorm1d(16)), True)
    wk.set_plan(without_bias(), skip=True, filter_fn=lambda module, name: name == "0")
    tied = without_bias()
    tied.append(nn.Embedding(16, 8))
    tied[-1].weight = tied[0].weight  # which trains through the embedding
    wk.set_skip(tied, True)
    assert caplog.messages == []


def test_frozen_parameters_are_nothing_left(caplog):
    net = without_bias(norm=nn.BatchNorm1d(16).requires_grad_(False))
    with wk.skipping(net):
        assert caplog.messages == []  # for a while, by a block
    wk.set_skip(net, True)
    assert len(caplog.messages) == 1


def test_windows_of_a_policy_that_leave_nothing_to_train_are_said(caplog):
    policy = wk.policies.WUS(without_bias(), warmup=0, window=1, patience=2)
    assert policy.step(0.5) is False
    assert caplog.messages == []
    assert policy.step(0.5) is True
    assert caplog.messages[0].startswith("skip: expected a bias")


@pytest.mark.parametrize(
    ("part", "value", "meant"),
    [
        ("rows", 0.05, "TopK(ratio=0.05)"),
        ("rows", 8, "TopK(k=8)"),
        ("rows", [0, 3], "Rows([0, 3])"),
        ("columns", 0.1, "TopColumns(ratio=0.1)"),
        ("columns", (1, 2), "Columns((1, 2))"),
        ("tokens", 0.3, "Tokens(ratio=0.3)"),
    ],
)
def test_a_number_in_place_of_a_choice_is_told_what_is_meant(part, value, meant):
    with pytest.raises(TypeError) as caught:
        wk.Plan(**{part: value})
    assert str(caught.value).endswith(f", or None, got {value!r} (is {meant} meant?)")
    with pytest.raises(TypeError, match=r"got True$"):
        wk.Plan(**{part: True})
