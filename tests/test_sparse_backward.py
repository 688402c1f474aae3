"""Layers whose gradient is to be sparse, in other backwards than a step's and with other weights than their own parameter."""

import pytest
import torch
import torch.nn as nn
from torch import Tensor
from torch.func import functional_call
from torch.nn import Parameter
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

import wuskern as wk
from tests.sparse import LAYERS, dense_form, each_choice, each_layer, input_of, layer_of, loss_of

PLANS = {
    "TopK": lambda alive: wk.Plan(rows=wk.TopK(k=2, sparse=True), observer=wk.Observer("l1", alive)),
    "TopK of both": lambda alive: wk.Plan(rows=wk.TopK(k=2, scope="both", sparse=True), observer=wk.Observer("l1", alive)),
    "TopK, dense": lambda alive: wk.Plan(rows=wk.TopK(k=2, sparse=False), observer=wk.Observer("l2", alive)),
    "Rows": lambda alive: wk.Plan(rows=wk.Rows([1, 4], sparse=True), observer=wk.Observer("l1")),
    "Tokens": lambda _: wk.Plan(tokens=wk.Tokens(k=1)),
    "Rows and tokens": lambda _: wk.Plan(rows=wk.Rows([1, 4], sparse=True), tokens=wk.Tokens(k=1), observer=wk.Observer("l1")),
}


PER_EXAMPLE = {"PerExample": lambda alive: wk.Plan(rows=wk.PerExample(k=2), observer=wk.Observer(None, alive))}
CASES = [*((kind, plan) for kind in LAYERS for plan in PLANS), ("linear", "PerExample")]


def planned(kind: str, plan: str) -> nn.Module:
    layer = layer_of(kind)
    layer.plan = (PLANS | PER_EXAMPLE)[plan](torch.ones(12, dtype=torch.bool))
    return layer


def told(layer: nn.Module) -> list[list[float] | None]:
    observer = layer.plan.observer
    held = () if observer is None else (observer.total, observer.hits, observer.seen)
    return [None if value is None else value.tolist() for value in held]


ALONE = {
    "autograd.grad": lambda loss, layer, x: torch.autograd.grad(loss, x),
    "autograd.grad with a graph": lambda loss, layer, x: torch.autograd.grad(loss, x, create_graph=True),
    "autograd.grad of the bias": lambda loss, layer, x: torch.autograd.grad(loss, layer.bias),
    "autograd.grad of all": lambda loss, layer, x: torch.autograd.grad(loss, (x, *layer.parameters())),
    "backward(inputs=)": lambda loss, layer, x: loss.backward(inputs=[x]),
    "backward(inputs=) of input and bias": lambda loss, layer, x: loss.backward(inputs=[layer.bias, x]),
}


@pytest.mark.parametrize("way", ALONE)
@pytest.mark.parametrize(("kind", "plan"), CASES)
def test_gradients_of_something_else_leave_no_trace_on_the_weight(kind, plan, way):
    """Neither of the weight's own, when nothing is accumulated. An observer hears of a step's backward alone."""
    layer = planned(kind, plan)
    x = input_of(kind).requires_grad_()
    ALONE[way](loss_of(layer, x), layer, x)
    assert layer.weight.grad is None
    assert told(layer) in ([], [None] * 3)
    layer.bias.grad = None
    loss_of(layer, x).backward()
    held, before, heard = layer.weight.grad, layer.weight.grad.to_dense().clone(), told(layer)
    assert before.any()
    assert heard == [] or any(value is not None for value in heard)
    ALONE[way](loss_of(layer, x), layer, x)
    assert layer.weight.grad is held
    assert torch.equal(held.to_dense(), before)
    assert told(layer) == heard


@each_choice
@each_layer
def test_autograd_grad_of_the_weight_gives_the_dense_form(kind, choice):
    layer, x = layer_of(kind, choice), input_of(kind)
    expected = dense_form(kind, choice)
    for wanted in ([layer.weight], [layer.weight, layer.bias]):
        found = torch.autograd.grad(loss_of(layer, x), wanted)[0]
        assert found.layout is torch.strided
        assert found.stride() == expected.stride()
        assert torch.equal(found, expected)
    assert layer.weight.grad is None


@each_choice
def test_backward_of_the_weight_alone_accumulates(choice):
    layer, x = layer_of("linear", choice), input_of("linear").requires_grad_()
    for _ in range(2):
        loss_of(layer, x).backward(inputs=[layer.weight])
    assert x.grad is None
    assert layer.bias.grad is None
    assert layer.weight.grad.is_sparse
    torch.testing.assert_close(layer.weight.grad.to_dense(), 2 * dense_form("linear", choice))


@each_choice
@each_layer
def test_a_graph_that_is_run_twice(kind, choice):
    layer = layer_of(kind, choice)
    loss = loss_of(layer, input_of(kind))
    loss.backward(retain_graph=True)
    first = layer.weight.grad
    loss.backward()
    assert torch.equal(first.to_dense(), dense_form(kind, choice))
    assert layer.weight.grad._nnz() == layer.rows.count(12)
    assert torch.equal(layer.weight.grad.to_dense(), 2 * first.to_dense())


@pytest.mark.filterwarnings("ignore:Using backward\\(\\) with create_graph=True")  # torch's own
@pytest.mark.parametrize("order", [(True,), (True, False), (False, True), (False, True, False)], ids=str)
def test_a_backward_with_a_graph_gives_the_dense_form(order):
    layer = layer_of("linear")
    for create_graph in order:
        loss_of(layer, input_of("linear")).backward(create_graph=create_graph)
    assert layer.weight.grad.layout is torch.strided
    torch.testing.assert_close(layer.weight.grad.detach(), len(order) * dense_form("linear"))


@pytest.mark.parametrize("reentrant", [True, False])
@each_choice
@each_layer
def test_checkpointing(kind, choice, reentrant):
    layer = layer_of(kind, choice)
    for _ in range(2):
        checkpoint(layer, input_of(kind).requires_grad_(), use_reentrant=reentrant).square().sum().backward()
    assert layer.weight.grad.is_sparse
    assert torch.equal(layer.weight.grad.to_dense(), 2 * dense_form(kind, choice))


def test_a_gradient_of_the_input_through_a_checkpoint():
    layer, x = layer_of("linear"), input_of("linear").requires_grad_()
    torch.autograd.grad(checkpoint(layer, x, use_reentrant=False).square().sum(), x)
    assert layer.weight.grad is None


def test_a_weight_that_was_frozen_between_forward_and_backward():
    layer = layer_of("linear")
    loss = loss_of(layer, input_of("linear"))
    layer.weight.requires_grad_(False)
    loss.backward()
    assert layer.weight.grad is None
    layer.weight.requires_grad_(True)
    loss_of(layer, input_of("linear")).backward()
    assert torch.equal(layer.weight.grad.to_dense(), dense_form("linear"))


# ---- weights that are something else than a layer's own parameter ---------------------------------------------------


class Negated(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return -weight


COMPUTED = {
    "transposed twice": lambda weight: weight.t().t(),
    "copied": lambda weight: weight.clone(),
    "a view": lambda weight: weight.view_as(weight),
    "of a wider weight": lambda weight: weight.double().float(),
}


@pytest.mark.parametrize("compute", COMPUTED.values(), ids=COMPUTED)
@each_choice
def test_a_weight_that_is_computed_has_the_dense_form(choice, compute):
    layer = layer_of("linear", choice)
    weight = compute(layer.weight)
    functional_call(layer, {"weight": weight}, input_of("linear")).square().sum().backward()
    assert layer.weight.grad.layout is torch.strided
    assert torch.equal(layer.weight.grad, dense_form("linear", choice))


def test_a_weight_that_is_computed_in_another_dtype():
    layer, dense = layer_of("linear", "Rows"), layer_of("linear", "Rows", False)
    for each in (layer, dense):
        parameters = {"weight": each.weight.bfloat16(), "bias": each.bias.bfloat16()}
        functional_call(each, parameters, input_of("linear").bfloat16()).square().sum().backward()
    assert layer.weight.grad.layout is torch.strided
    assert layer.weight.grad.dtype == torch.float32
    assert torch.equal(layer.weight.grad, dense.weight.grad)


def test_a_leaf_that_is_no_parameter_has_the_dense_form():
    layer = layer_of("linear")
    leaf = layer.weight.detach().clone().requires_grad_()
    functional_call(layer, {"weight": leaf}, input_of("linear")).square().sum().backward()
    assert torch.equal(leaf.grad, dense_form("linear"))


def test_a_parametrized_layer_has_the_dense_form():
    layer, dense = layer_of("linear"), layer_of("linear", sparse=False)
    for each in (layer, dense):
        parametrize.register_parametrization(each, "weight", Negated())
        loss_of(each, input_of("linear")).backward()
    found = layer.parametrizations.weight.original.grad
    assert found.layout is torch.strided
    assert torch.equal(found, dense.parametrizations.weight.original.grad)


def test_calls_without_a_layer():
    weight, x = Parameter(torch.randn(12, 6)), input_of("linear")
    wk.functional.linear(x, weight, rows=wk.Rows([1, 4], sparse=True)).square().sum().backward()
    assert weight.grad._indices().tolist() == [[1, 4]]
    expected = torch.autograd.grad(wk.functional.linear(x, weight, rows=wk.Rows([1, 4])).square().sum(), weight)[0]
    assert torch.equal(weight.grad.to_dense(), expected)
    weight.grad = None
    wk.functional.linear(x, weight, rows=wk.Rows([1, 4])).sum().backward()
    assert weight.grad.layout is torch.strided
