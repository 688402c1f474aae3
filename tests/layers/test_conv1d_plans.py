"""Every plan of a Conv1D: the gradients of the same nn.Linear, whose weight is the transpose, by stock autograd in float64."""

import itertools

import pytest
import torch
import torch.nn as nn
from torch import Tensor
from torch._dynamo.utils import counters

import wuskern as wk
from tests.layers.stand_in import converted, linear_of
from wuskern.delivery import dense_grad

OUT, INPUTS = 10, 8
ROWS, COLUMNS = [1, 2, 7], [0, 3, 4]


def gradients(layer: nn.Module, x: Tensor, dy: Tensor) -> list[Tensor | None]:
    """The gradients of x, weight and bias; those of the parameters are let go of."""
    leaf = x.clone().requires_grad_()
    layer(leaf).backward(dy)
    found = [leaf.grad, layer.weight.grad, layer.bias.grad]
    layer.zero_grad()
    return found


def as_transposed(grads: list[Tensor | None]) -> list[Tensor | None]:
    """The gradients of a Conv1D, of those of a Linear."""
    dx, dw, db = grads
    return [dx, None if dw is None else dw.t(), db]


def assert_close(found: list[Tensor | None], expected: list[Tensor | None]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if theirs is not None:
            torch.testing.assert_close(ours.to_dense(), theirs, rtol=1e-12, atol=1e-12)


# ---- fixed choices, by a mask on stock's gradients ------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8,), (5, 8), (2, 3, 8), (0, 8)], ids=str)
@pytest.mark.parametrize("scope", ["weight", "both"])
@pytest.mark.parametrize(("rows", "columns"), list(itertools.product([None, ROWS], [None, COLUMNS])))
def test_fixed_rows_and_columns_are_stocks_gradient_in_their_places(rows, columns, scope, shape):
    layer = converted(OUT, INPUTS)
    stock = linear_of(layer)
    x = torch.randn(shape, dtype=torch.float64)
    dy = torch.randn_like(layer(x))
    dx, dw, db = gradients(stock, x, dy)
    mask = torch.ones(OUT, INPUTS)
    if rows is not None:
        mask[[i for i in range(OUT) if i not in rows]] = 0
        layer.rows = wk.Rows(rows, scope=scope, bias="rows")
        db = torch.where(mask[:, 0] > 0, db, 0)
        if scope == "both":
            dx = gradients(stock, x, torch.where(mask[:, 0] > 0, dy, 0))[0]
    if columns is not None:
        mask[:, [i for i in range(INPUTS) if i not in columns]] = 0
        layer.columns = wk.Columns(columns)
    found = gradients(layer, x, dy)
    assert_close(found, as_transposed([dx, dw * mask, db]))
    assert found[1].stride() == layer.weight.stride()


def test_a_case_worked_by_hand():
    """Two tokens, 4 inputs, 4 outputs: dW = X^T dY."""
    layer = converted(4, 4)
    x = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]], dtype=torch.float64)
    dy = torch.tensor([[1.0, 0, 2, 0], [0, 1, 0, 3]], dtype=torch.float64)
    whole = [[1, 5, 2, 15], [2, 6, 4, 18], [3, 7, 6, 21], [4, 8, 8, 24]]
    assert gradients(layer, x, dy)[1].tolist() == whole
    layer.rows = wk.Rows([1, 2])
    assert gradients(layer, x, dy)[1].tolist() == [[0, 5, 2, 0], [0, 6, 4, 0], [0, 7, 6, 0], [0, 8, 8, 0]]
    layer.columns = wk.Columns([0, 3])
    assert gradients(layer, x, dy)[1].tolist() == [[0, 5, 2, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 8, 8, 0]]
    layer.rows = None
    assert gradients(layer, x, dy)[1].tolist() == [whole[0], [0] * 4, [0] * 4, whole[3]]
    layer.rows = wk.TopK(k=1)  # of output 3, whose |dY| is largest
    assert gradients(layer, x, dy)[1].tolist() == [[0, 0, 0, 15], [0] * 4, [0] * 4, [0, 0, 0, 24]]
    layer.skip = True
    assert gradients(layer, x, dy)[1] is None
    assert gradients(layer, x, dy)[2].tolist() == [1, 1, 2, 3]


# ---- every choice, by a SkippableLinear -----------------------------------------------------------------------------

PLANS = {
    "skip": {"skip": True, "rows": wk.TopK(k=2), "columns": wk.TopColumns(k=3)},
    "top rows": {"rows": wk.TopK(k=3)},
    "top rows of both": {"rows": wk.TopK(k=4, scope="both", score="l2", bias="rows", block=2)},
    "rows of each example": {"rows": wk.PerExample(k=3)},
    "columns by the input": {"columns": wk.TopColumns(k=3)},
    "columns by the weight": {"columns": wk.TopColumns(ratio=0.5, score="weight", block=2)},
    "rows and columns": {"rows": wk.TopK(k=3, scope="both"), "columns": wk.TopColumns(k=3)},
    "columns and each example": {"rows": wk.PerExample(k=3), "columns": wk.Columns(COLUMNS)},
    "tokens": {"tokens": wk.Tokens(k=3)},
    "tokens of rows": {"tokens": wk.Tokens(k=3), "rows": wk.TopK(k=3)},
    "tokens of columns": {"tokens": wk.Tokens(k=3), "columns": wk.Columns(COLUMNS)},
    "all": {"tokens": wk.Tokens(k=3), "columns": wk.Columns(COLUMNS), "rows": wk.Rows(ROWS)},
}


@pytest.mark.parametrize("shape", [(6, 8), (2, 3, 8)], ids=str)
@pytest.mark.parametrize("plan", PLANS)
def test_it_is_the_linear_with_the_transposed_weight(plan, shape):
    layer = converted(OUT, INPUTS)
    linear = wk.convert(linear_of(layer))
    layer.plan = linear.plan = wk.Plan(**PLANS[plan])
    x = torch.randn(shape, dtype=torch.float64)
    dy = torch.randn_like(layer(x))
    torch.testing.assert_close(layer(x), linear(x), rtol=1e-12, atol=1e-12)
    assert_close(gradients(layer, x, dy), as_transposed(gradients(linear, x, dy)))


def test_an_input_that_lies_transposed_has_its_gradient_so():
    layer, x = converted(OUT, INPUTS), torch.randn(INPUTS, 6, dtype=torch.float64).t()
    dy = torch.randn(6, OUT, dtype=torch.float64)
    dense = gradients(layer, x, dy)[0]
    for parts in ({"rows": wk.TopK(k=2)}, {"columns": wk.Columns([1])}, {"skip": True}):
        layer.plan = wk.Plan(**parts)
        found = gradients(layer, x, dy)[0]
        torch.testing.assert_close(found, dense, rtol=1e-12, atol=1e-12)
        assert found.stride() == dense.stride()


@pytest.mark.parametrize("plan", PLANS)
def test_what_does_not_train_is_not_computed(plan):
    layer = converted(OUT, INPUTS)
    layer.plan = wk.Plan(**PLANS[plan])
    layer.weight.requires_grad_(False)
    x = torch.randn(6, INPUTS, dtype=torch.float64, requires_grad=True)
    layer(x).sum().backward()
    assert (layer.weight.grad, x.grad is None, layer.bias.grad is None) == (None, False, False)
    layer.bias.requires_grad_(False)
    assert not layer(x.detach()).requires_grad


def test_what_does_not_fit_is_refused_by_name():
    layer = converted(OUT, INPUTS)
    for parts, error, message in [
        ({"rows": wk.Rows([10])}, ValueError, "index: expected rows under 10, got 10"),
        ({"columns": wk.Columns([8])}, ValueError, "index: expected columns under 8, got 8"),
        (
            {"rows": wk.TopK(k=2, sparse=True)},
            ValueError,
            "sparse: .* with rows of a Conv1D, for which torch has no",
        ),
        ({"rows": wk.TopK(k=2), "columns": wk.Columns([1], sparse=True)}, ValueError, "with rows of a Conv1D"),
    ]:
        with pytest.raises(error, match=message):
            wk.set_plan(layer, **parts)
    assert layer.plan == wk.Plan()
    with pytest.raises(ValueError, match="sparse: expected None or False with columns, for which torch has no sparse form"):
        wk.convert(nn.Linear(4, 4)).columns = wk.TopColumns(k=1, sparse=True)
    with pytest.raises(TypeError, match="sparse: expected True, False or None, got 1"):
        wk.Columns([1], sparse=1)


# ---- a skip is a constant weight ------------------------------------------------------------------------------------


def kept(layer: nn.Module, x: Tensor) -> int:
    """The bytes that forward keeps beside the layer's own parameters."""
    own = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    sizes: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layer(x)
    return sum(sizes.values())


def test_a_skip_keeps_no_input_and_columns_keep_theirs_alone():
    layer, x = converted(64, 256), torch.randn(4, 32, 256, dtype=torch.float64, requires_grad=True)
    assert kept(layer, x) == x.nbytes
    layer.skip = True
    assert kept(layer, x) == 0
    layer.plan = wk.Plan(columns=wk.TopColumns(ratio=0.125))
    assert kept(layer, x) <= x.nbytes // 8 + 256


def test_derivatives_of_a_skipped_layer_are_those_of_a_frozen_weight():
    layer = converted(4, 4)
    frozen = linear_of(layer)
    frozen.weight.requires_grad_(False)
    layer.skip = True
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    second = []
    for each in (layer, frozen):
        (dx,) = torch.autograd.grad(each(x).pow(3).sum(), x, create_graph=True)
        second.append(torch.autograd.grad(dx.pow(2).sum(), [x, each.bias]))
    torch.testing.assert_close(second[0], second[1])
    batched = torch.func.vmap(torch.func.jacrev(lambda row: layer(row).sin()))(x)
    torch.testing.assert_close(batched, torch.func.vmap(torch.func.jacrev(lambda row: frozen(row).sin()))(x))
    layer.plan = wk.Plan(rows=wk.Rows([0]))
    (dx,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="has no second derivative"):
        dx.sum().backward()
    with pytest.raises(RuntimeError, match="takes no part in torch"):
        torch.func.vmap(layer)(x)


# ---- surroundings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", PLANS)
def test_under_autocast_the_gradient_has_the_dtype_of_the_weight(plan):
    layer, x = converted(OUT, INPUTS, dtype=torch.bfloat16).float(), torch.randn(6, INPUTS)
    exact = linear_of(layer).double()
    with torch.autocast("cpu", torch.bfloat16):
        stock = layer(x)
        layer.plan = wk.Plan(**PLANS[plan])
        y = layer(x)
    assert torch.equal(y, stock)
    dy = torch.randn(y.shape).bfloat16()
    y.backward(dy)
    wk.convert(exact).plan = layer.plan
    expected = as_transposed(gradients(exact, x.bfloat16().double(), dy.double()))
    if expected[1] is None:
        assert layer.weight.grad is None
        return
    assert layer.weight.grad.dtype is torch.float32
    torch.testing.assert_close(layer.weight.grad.double(), expected[1], rtol=0.02, atol=0.02)


def test_storage_that_is_used_again_holds_the_last_choice_alone(monkeypatch):
    monkeypatch.setattr(dense_grad, "LEAST", 0)
    layer = converted(OUT, INPUTS)
    linear = linear_of(layer)
    x, dy = torch.randn(6, INPUTS, dtype=torch.float64), torch.randn(6, OUT, dtype=torch.float64)
    whole = gradients(linear, x, dy)[1].t()
    for rows, columns in [([1], None), ([2, 3], None), ([2, 3], None), (None, [4]), ([5], [6]), (None, [0, 1])] * 2:
        layer.plan = wk.Plan(rows=rows and wk.Rows(rows), columns=columns and wk.Columns(columns))
        mask = torch.zeros(INPUTS, OUT)
        mask[torch.tensor(columns or range(INPUTS))[:, None], torch.tensor(rows or range(OUT))] = 1
        layer(x).backward(dy)
        torch.testing.assert_close(layer.weight.grad, whole * mask, rtol=1e-12, atol=1e-12)
        layer.weight.grad = None
    assert layer._home.recycled._tensor is not None


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("plan", [*PLANS, "dense"])
def test_one_compiled_graph_gives_eagers_results(plan, fresh_compiler):
    layer = converted(OUT, INPUTS)
    layer.plan = wk.Plan(**PLANS.get(plan, {}))
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 3, INPUTS, dtype=torch.float64)
    dy = torch.randn_like(layer(x))
    expected = gradients(layer, x, dy)
    leaf = x.clone().requires_grad_()
    for _ in range(2):
        leaf.grad = None
        layer.zero_grad()
        compiled(leaf).backward(dy)
    assert_close([leaf.grad, layer.weight.grad, layer.bias.grad], expected)
    assert counters["stats"]["unique_graphs"] == 1
