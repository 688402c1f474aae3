"""What becomes of the wish for sparse gradients in copies of model and optimizer, and where weights come and go."""

import copy
import pickle

import pytest
import torch
import torch.nn as nn
from torch.nn import Parameter
from torch.nn.utils import parametrize

import wuskern as wk
from tests.optim.models import OPTIMIZERS, ROWS, backward, form, layouts, network, without_gc

make = OPTIMIZERS["AdamW"]

# ---- copies ---------------------------------------------------------------------------------------------------------

COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda given: pickle.loads(pickle.dumps(given))}
each_copy = pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)


@each_copy
def test_a_copy_of_the_model_alone_has_no_wish(copied):
    model = network()
    optimizer = make(model.parameters())
    backward(model)
    other = copied(model)
    assert (form(other), form(model)) == ("dense", "sparse")
    assert other[2].rows == wk.Rows(ROWS)
    its = make(other.parameters())
    del optimizer
    assert (form(other), form(model)) == ("sparse", "dense")
    del its


@pytest.mark.parametrize("model_first", [True, False])
@each_copy
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_the_copy_of_an_optimizer_asks_for_its_own_weights(make, copied, model_first):
    model = network()
    optimizer = make(model.parameters())
    if model_first:
        other, its = copied((model, optimizer))
    else:
        its, other = copied((optimizer, model))
    del optimizer
    assert (form(other), form(model)) == ("sparse", "dense")
    with without_gc():
        del its
        assert form(other) == "dense"


def test_a_copied_layer_whose_choice_comes_later():
    model = network()
    model[2].rows = None
    optimizer = make(model.parameters())
    pair = copy.deepcopy((model, optimizer))
    alone = copy.deepcopy(model)
    for net in (model, pair[0], alone):
        net[2].rows = wk.Rows(ROWS)
    assert [form(net) for net in (model, pair[0], alone)] == ["sparse", "sparse", "dense"]


# ---- weights that come and go ---------------------------------------------------------------------------------------


def test_a_weight_that_took_the_place_of_one_that_is_held():
    model = network()
    optimizer, held = make(model.parameters()), model[2].weight
    model[2].weight = Parameter(held.detach().clone())
    assert form(model) == "dense"
    optimizer.add_param_group({"params": [model[2].weight]})
    assert form(model) == "sparse"
    model[2].weight = Parameter(held.detach().clone())
    assert form(model) == "dense"
    model[2].weight = held
    assert form(model) == "sparse"
    del model[2].weight
    model[2].register_parameter("weight", Parameter(held.detach().clone()))
    assert form(model) == "dense"


@pytest.mark.parametrize("swap", [True, False])
def test_a_conversion_of_the_model_keeps_the_wish_and_the_gradient(swap):
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        model = network()
        optimizer = make(model.parameters())
        assert form(model) == "sparse"
        before = model[2].weight.grad.to_dense()
        model.double()
        assert model[2].weight.grad.is_sparse
        torch.testing.assert_close(model[2].weight.grad.to_dense(), before.double())
        model.float().zero_grad()
        assert form(model) == "sparse"
        model.load_state_dict(copy.deepcopy(model.state_dict()))
        optimizer.step()
        assert form(model) == "sparse"
        del optimizer
        assert form(model) == "dense"
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


class Halved(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / 2


def test_a_weight_that_is_computed_from_another_has_a_dense_gradient():
    model = network()
    optimizer = make(model.parameters())
    parametrize.register_parametrization(model[2], "weight", Halved())
    backward(model)
    original = model[2].parametrizations.weight.original
    assert not original.grad.is_sparse
    before = original.detach().clone()
    optimizer.step()
    assert not torch.equal(before, original)
    parametrize.remove_parametrizations(model[2], "weight")
    assert model[2].weight is original
    assert form(model) == "sparse"


def test_layers_that_are_stock_again_are_nobodys_business():
    """An optimizer that is made, or gone, afterwards does not ask them; neither does torch's SGD."""
    for sparse in (None, True):
        model = network()
        model[2].rows = wk.Rows(ROWS, sparse=sparse)
        kept = make(model.parameters())
        loss = backward(model)  # whose graph knows the layer
        assert layouts(model)[1] == "sparse"
        wk.revert(model)
        model.zero_grad()
        with without_gc():
            del kept
        optimizer = make(model.parameters())
        backward(model)
        assert layouts(model) == ["dense"] * 3
        optimizer.step()
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9).step()
        del loss
        wk.convert(model)
        assert form(model) == "dense"
        model[2].rows = wk.Rows(ROWS)
        assert form(model) == "sparse"
