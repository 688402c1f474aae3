"""Which layers have sparse gradients: those whose weight an optimizer of wk.optim holds, as long as that optimizer lives."""

import contextlib
import gc
import weakref

import pytest
import torch

import wuskern as wk
from tests.optim.models import OPTIMIZERS, ROWS, backward, form, layouts, network, without_gc

each = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
make = OPTIMIZERS["AdamW"]


# ---- who asks -------------------------------------------------------------------------------------------------------


def test_it_is_asked_for_weights_that_are_held_in_layers_with_rows():
    model = network()
    wk.set_rows(model, wk.Rows([0, 2]))
    optimizer = wk.optim.SGD([model[0].weight], lr=0.1)
    backward(model)
    assert layouts(model) == ["sparse", "dense", "dense"]
    model.zero_grad()
    optimizer.add_param_group({"params": [model[2].weight, model[2].bias], "lr": 0.2})
    model[0].rows = None
    backward(model)
    assert layouts(model) == ["dense", "sparse", "dense"]
    assert not model[2].bias.grad.is_sparse


@pytest.mark.parametrize("order", ["convert, rows, optimizer", "convert, optimizer, rows", "optimizer, convert, rows"])
@each
def test_the_order_in_which_a_model_is_set_up_is_all_one(make, order):
    model, kept = wk.revert(network()), []
    steps = {
        "convert": lambda: wk.convert(model),
        "rows": lambda: setattr(model[2], "rows", wk.Rows(ROWS)),
        "optimizer": lambda: kept.append(make(model.parameters())),
    }
    for step in order.split(", "):
        steps[step]()
    assert form(model) == "sparse"


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("held", [True, False])
def test_what_a_choice_says_of_itself_wins(asked, held):
    model = network()
    optimizer = make(model.parameters()) if held else None
    model[2].rows = wk.Rows(ROWS, sparse=asked)
    assert form(model) == ("sparse" if asked else "dense")
    del optimizer
    assert form(model) == ("sparse" if asked else "dense")
    assert model[2].rows == wk.Rows(ROWS, sparse=asked)


def test_the_choice_itself_stays_as_it_was_given():
    model = network()
    optimizer = make(model.parameters())
    assert form(model) == "sparse"
    assert model[2].rows == wk.Rows(ROWS)
    assert model[2].rows.sparse is None
    del optimizer


@pytest.mark.parametrize("rows", [None, wk.TopK(k=8), wk.PerExample(k=2)], ids=["none", "all of them", "per example"])
def test_a_gradient_of_all_rows_is_dense(rows):
    model = network()
    model[2].rows = rows
    optimizer = make(model.parameters())
    assert form(model) == "dense"
    del optimizer


# ---- how long -------------------------------------------------------------------------------------------------------


@each
def test_a_wish_ends_with_its_optimizer(make):
    """At once: no cycle of references holds an optimizer that has stepped, been saved and loaded."""
    model = network()
    with without_gc():
        optimizer = make(model.parameters())
        for seed in range(2):
            optimizer.zero_grad()
            backward(model, seed)
            optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
        assert form(model) == "sparse"
        gone = weakref.ref(optimizer)
        del optimizer
        assert gone() is None
        assert form(model) == "dense"


def test_a_scheduler_holds_its_optimizer_no_longer_than_it_lives():
    model = network()
    optimizer = make(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    del optimizer
    assert form(model) == "sparse"
    del scheduler
    gc.collect()
    assert form(model) == "dense"


def test_neither_layers_nor_weights_are_kept_alive():
    model = network()
    optimizer = make(model.parameters())
    backward(model)
    layer, weight = weakref.ref(model[2]), weakref.ref(model[2].weight)
    with without_gc():
        del model
        assert layer() is None
        assert weight() is optimizer.param_groups[0]["params"][2]
        del optimizer
        assert weight() is None


def test_an_optimizer_that_could_not_be_made_asks_for_nothing():
    model = network()
    with contextlib.suppress(RuntimeError):
        wk.optim.AdamW(model.parameters(), foreach=True, fused=True)
    assert form(model) == "dense"
    optimizer = wk.optim.AdamW([model[0].weight])
    for wrong in ({"params": [model[2].weight], "capturable": True}, {"params": [model[2].weight, model[0].weight]}):
        with pytest.raises(ValueError, match=r"capturable: expected False|appear in more than one parameter group"):
            optimizer.add_param_group(wrong)
    assert form(model) == "dense"


@pytest.mark.parametrize("first", ["SGD", "AdamW"])
def test_another_optimizer_afterwards_trains_as_on_a_model_that_never_met_the_first(first):
    model, other = network(), network()
    OPTIMIZERS[first](model.parameters())
    for net in (model, other):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        for seed in range(3):
            optimizer.zero_grad()
            backward(net, seed)
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_of_two_optimizers_either_is_enough():
    model = network()
    first, second = make(model.parameters()), wk.optim.SGD(model[2].parameters(), lr=0.1)
    assert form(model) == "sparse"
    del second
    assert form(model) == "sparse"
    second = wk.optim.SGD([model[0].weight], lr=0.1)
    del first
    assert form(model) == "dense"
    del second


def test_beside_one_of_torchs_that_cannot_use_it_that_one_raises():
    model = network()
    ours, torchs = make(model[2].parameters()), torch.optim.AdamW(model.parameters())
    backward(model)
    before = [p.detach().clone() for p in model.parameters()]
    ours.step()
    assert not torch.equal(model[2].weight, before[2])
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        torchs.step()
    assert torch.equal(model[0].weight, before[0])


def test_a_layer_that_was_made_smaller_in_place_is_told_and_says_so_in_its_backward():
    """As transformers resizes a tied head. An optimizer that ends must not raise."""
    layer, x = wk.SkippableLinear(4, 12), torch.ones(2, 4)
    layer.rows = wk.Rows([2, 11])
    layer.weight.data, layer.bias.data, layer.out_features = layer.weight.data[:6], layer.bias.data[:6], 6
    optimizer = make(layer.parameters())
    assert layer.is_sparse
    with pytest.raises(ValueError, match="index: expected rows under 6, got 11"):
        layer(x).sum().backward()
    del optimizer
    gc.collect()
    assert not layer.is_sparse
