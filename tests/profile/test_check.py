"""Gradients that are not what a way says are found, one by one."""

import pytest
import torch
import torch.nn as nn

import wuskern as wk
from wuskern.modules import skippable_layers
from wuskern.profile.check import Checker
from wuskern.profile.variants import Way


@pytest.fixture
def case():
    """A model, its gradients, and what checks them."""
    torch.manual_seed(0)
    model = wk.convert(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)))
    model(torch.randn(4, 6)).square().sum().backward()
    stock = {p: p.grad.clone() for p in model.parameters()}
    return model, stock, Checker(stock, {p: name for name, p in model.named_parameters()}, rounds=False)


def obstacle(case, plan, change):
    model, stock, checker = case
    found = dict(stock)
    change(found, model)
    return checker.obstacle(Way("x", "", {"0": plan}), model, skippable_layers(model), found)


SKIP, ROWS, COLUMNS = wk.Plan(skip=True), wk.Plan(rows=wk.TopK(k=2)), wk.Plan(columns=wk.Columns([1]))
BOTH = wk.Plan(rows=wk.TopK(k=2), columns=wk.Columns([1]))


def without(found, model):
    found[model[0].weight] = None


def part(found, model, rows=slice(0, 2), columns=slice(None)):
    kept = torch.zeros_like(found[model[0].weight])
    kept[rows, columns] = found[model[0].weight][rows, columns]
    found[model[0].weight] = kept


def sparse(found, model):
    values = found[model[0].weight][[2, 5]]
    found[model[0].weight] = torch.sparse_coo_tensor(torch.tensor([[2, 5]]), values, (8, 6), check_invariants=True)


def column(found, model):
    part(found, model, slice(None), slice(1, 2))


RIGHT = {"skip": (SKIP, without), "rows": (ROWS, part), "sparse rows": (ROWS, sparse), "columns": (COLUMNS, column)}


@pytest.mark.parametrize(("plan", "change"), RIGHT.values(), ids=RIGHT)
def test_right_gradients_are_taken(case, plan, change):
    assert obstacle(case, plan, change) is None


def too_many(found, model):
    part(found, model, slice(0, 3))


def other_values(found, model):
    part(found, model)
    found[model[0].weight] = found[model[0].weight] * 1.01


def other_bias(found, model):
    without(found, model)
    found[model[0].bias] = found[model[0].bias] * 0.99


def no_second(found, model):
    without(found, model)
    found[model[2].weight] = None


def nan(found, model):
    without(found, model)
    found[model[2].bias] = found[model[2].bias] * float("nan")


WRONG = {
    "a skip with a gradient": (SKIP, lambda found, model: None, "0.weight: expected no gradient, got one"),
    "a skip that changes a bias": (SKIP, other_bias, "0.bias: expected stock's gradient, of norm"),
    "a skip that drops another": (SKIP, no_second, "2.weight: expected a gradient, got none"),
    "a skip that makes a NaN": (SKIP, nan, "2.bias: expected stock's gradient, of norm"),
    "rows that are too many": (ROWS, too_many, "0.weight: expected a gradient of at most 25.00% of the weights, got 37.50%"),
    "rows with other values": (ROWS, other_values, "0.weight: expected stock's gradient, of norm"),
    "no rows": (ROWS, without, "0.weight: expected a gradient, got none"),
    "columns that are rows": (COLUMNS, part, "0.weight: expected a gradient of at most 16.67% of the weights, got 25.00%"),
    "rows and columns that are rows": (BOTH, part, "at most 4.17% of the weights, got 25.00%"),
}


@pytest.mark.parametrize(("plan", "change", "message"), WRONG.values(), ids=WRONG)
def test_wrong_gradients_are_found(case, plan, change, message):
    assert message in obstacle(case, plan, change)


def test_a_model_that_does_not_repeat_itself_is_checked_for_presence_alone(case):
    case[2].repeats = False
    assert obstacle(case, SKIP, other_bias) is None
    assert "expected no gradient, got one" in obstacle(case, SKIP, lambda found, model: None)
