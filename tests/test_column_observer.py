"""What an observer hears of the columns of the input."""

import copy

import pytest
import torch
import torch.nn as nn

import wuskern as wk

LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (3, 5, 6), (0, 1)),
    "conv": (lambda: nn.Conv2d(6, 4, 3, groups=2), (2, 6, 5, 5), (0, 2, 3)),
}
CHOICES = [wk.Columns([1, 4]), wk.TopColumns(k=2), wk.TopColumns(k=2, score="weight")]


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by torch's compiler
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize(("make", "shape", "others"), LAYERS.values(), ids=LAYERS)
def test_the_sums_of_the_squares_of_all_columns(make, shape, others, choice, compiled):
    torch._dynamo.reset()
    layer, observer = wk.convert(make()).double(), wk.ColumnObserver()
    layer.plan = wk.Plan(columns=choice, column_observer=observer)
    call, expected = torch.compile(layer, backend="aot_eager", fullgraph=True) if compiled else layer, 0
    for _ in range(3):
        x = torch.randn(shape, dtype=torch.float64)
        call(x).sum().backward()
        expected += x.square().sum(others)
    torch.testing.assert_close(observer.total, expected)
    observer.clear()
    assert not observer.total.any()


def test_only_a_backward_that_adds_to_the_gradient_is_heard():
    layer, x = wk.convert(nn.Linear(6, 4)), torch.randn(3, 6, requires_grad=True)
    observer = wk.ColumnObserver()
    layer.plan = wk.Plan(columns=wk.Columns([1]), column_observer=observer)
    layer(x)
    torch.autograd.grad(layer(x).sum(), x)
    torch.autograd.grad(layer(x).sum(), layer.weight)
    with torch.no_grad():
        layer(x)
    layer.skip = True
    layer(x).sum().backward()
    assert observer.total is None
    layer.skip = False
    torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False).sum().backward()
    torch.testing.assert_close(observer.total, x.detach().square().sum(0))


def test_it_is_no_part_of_what_a_plan_is():
    observed = wk.Plan(columns=wk.Columns([1]), column_observer=wk.ColumnObserver())
    assert observed == wk.Plan(columns=wk.Columns([1]))
    assert observed.replace(rows=wk.Rows([1])).column_observer is observed.column_observer
    assert observed.replace(columns=wk.Columns([1])).column_observer is None, "it was told of the columns before"
    with pytest.raises(TypeError, match="column_observer: expected a ColumnObserver, or None, got 3"):
        wk.Plan(column_observer=3)


def test_sums_are_loaded_and_copied():
    observer = wk.ColumnObserver()
    observer.load(torch.tensor([1.0, 2]))
    again = copy.deepcopy(observer)
    again.saw(torch.tensor([1.0, 1]))
    assert (observer.total.tolist(), again.total.tolist()) == ([1, 2], [2, 3])
    assert int(observer.key) != int(again.key)
    observer.load()
    assert observer.total.tolist() == [0, 0]
