"""Columns: the weights of some input units train, against stock's gradients in float64 and a hand-worked case."""

import copy
import itertools
from typing import Any

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

import wuskern as wk
from tests.accuracy import assert_as_right_as_stock
from wuskern.delivery import dense_grad

# ---- the choices ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "inputs", "groups", "expected"),
    [
        (wk.Columns([3, 1]), 4, 1, 2),
        (wk.Columns([0, 5]), 8, 2, 2),
        (wk.TopColumns(ratio=0.05), 512, 1, 25),
        (wk.TopColumns(ratio=0.05, block=16), 512, 1, 16),
        (wk.TopColumns(ratio=0.001), 512, 1, 1),
        (wk.TopColumns(ratio=0.3), 8, 2, 2),
        (wk.TopColumns(k=4, block=2), 8, 2, 4),
        (wk.TopColumns(k=8), 8, 1, 8),
    ],
)
def test_count(choice: Any, inputs: int, groups: int, expected: int) -> None:
    assert choice.count(inputs, groups) == expected


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: wk.Columns(torch.arange(0)), ValueError, "index: expected at least one column, got none"),
        (lambda: wk.Columns([1, 1]), ValueError, "index: expected each column once, got one twice"),
        (lambda: wk.Columns([-1]), ValueError, "index: expected numbers from 0, got -1"),
        (lambda: wk.Columns([0.5]), TypeError, "index: expected a list of integers"),
        (lambda: wk.TopColumns(), ValueError, "ratio, k: expected one of the two"),
        (lambda: wk.TopColumns(ratio=1.5), ValueError, "ratio: expected a number over 0 and up to 1, got 1.5"),
        (lambda: wk.TopColumns(k=3, score="l1"), ValueError, "score: expected one of input, weight, random, got 'l1'"),
        (lambda: wk.TopColumns(k=3, block=0), ValueError, "block: expected at least 1, got 0"),
    ],
)
def test_wrong_arguments(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("layer", "parts", "message"),
    [
        (nn.Linear(4, 3), {"columns": wk.Columns([4])}, "index: expected columns under 4, got 4"),
        (nn.Linear(4, 3), {"columns": wk.TopColumns(k=5)}, "k: expected at most 4, got 5"),
        (nn.Linear(4, 3), {"columns": wk.TopColumns(ratio=0.5, block=3)}, "block: expected a divisor of 4 columns"),
        (nn.Conv2d(4, 4, 3, groups=2), {"columns": wk.Columns([0, 1])}, "index: expected as many columns in each of 2 groups"),
        (nn.Conv2d(4, 8, 3, groups=4), {"columns": wk.TopColumns(ratio=0.5)}, "columns: .*, got a depthwise convolution"),
        (
            nn.Linear(4, 3),
            {"columns": wk.Columns([0]), "rows": wk.TopK(k=1, sparse=True)},
            "sparse: expected None or False with columns, for which torch has no sparse form, got True",
        ),
    ],
)
def test_what_does_not_fit_a_layer_is_refused_at_assignment(layer: nn.Module, parts: dict[str, Any], message: str) -> None:
    converted = wk.convert(layer)
    with pytest.raises(ValueError, match=message):
        wk.set_plan(converted, **parts)
    assert converted.plan == wk.Plan()
    with pytest.raises(TypeError, match="columns: expected a Columns or TopColumns, or None, got 3"):
        converted.columns = 3


def test_a_value_is_frozen_sorted_and_survives_copies() -> None:
    index = torch.tensor([3, 0])
    columns = wk.Columns(index)
    index.zero_()
    assert columns.index.tolist() == [0, 3]
    assert columns == wk.Columns([0, 3]) != wk.Columns([0, 2])
    assert columns != wk.Rows([0, 3])
    assert copy.deepcopy(columns) == columns
    assert len({columns, wk.Columns([3, 0])}) == 1
    assert wk.Plan(columns=columns).key == wk.Plan(columns=wk.Columns([1, 2])).key != wk.Plan(columns=wk.Columns([1])).key
    assert str(wk.Plan(columns=columns)) == "columns=Columns([0, 3])"


# ---- gradients ------------------------------------------------------------------------------------------------------


def test_a_case_worked_by_hand() -> None:
    """dY^T X of 2 tokens, 2 outputs, 4 inputs: columns 1 and 3."""
    layer = wk.convert(nn.Linear(4, 2)).double()
    layer.columns = wk.Columns([1, 3])
    x = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]], dtype=torch.float64)
    layer(x).backward(torch.tensor([[1.0, 10], [2, 20]], dtype=torch.float64))
    assert layer.weight.grad.tolist() == [[0, 2 + 12, 0, 4 + 16], [0, 20 + 120, 0, 40 + 160]]
    assert layer.bias.grad.tolist() == [3, 30]


LAYERS = {
    "linear": (lambda: nn.Linear(24, 10), (3, 5, 24)),
    "one token": (lambda: nn.Linear(24, 10, bias=False), (24,)),
    "conv": (lambda: nn.Conv2d(12, 8, 3, padding=1, stride=2), (2, 12, 7, 6)),
    "same": (lambda: nn.Conv2d(12, 8, (3, 2), padding="same", dilation=2), (2, 12, 7, 6)),
    "reflect": (lambda: nn.Conv2d(12, 8, 3, padding=1, padding_mode="reflect"), (2, 12, 7, 6)),
    "pointwise": (lambda: nn.Conv2d(12, 8, 1), (2, 12, 7, 6)),
    "groups": (lambda: nn.Conv2d(12, 8, 3, groups=2), (2, 12, 7, 6)),
    "unbatched": (lambda: nn.Conv2d(12, 8, 3), (12, 7, 6)),
}
CHOICES = {
    "fixed": lambda inputs: wk.Columns([0, 3, inputs // 2, inputs // 2 + 5]),
    "by the input": lambda inputs: wk.TopColumns(k=4),
    "by the weight": lambda inputs: wk.TopColumns(k=4, score="weight", block=2),
    "at random": lambda inputs: wk.TopColumns(ratio=0.4, score="random"),
}
ROWS = {"all rows": None, "fixed rows": wk.Rows([1, 6], bias="rows"), "top rows of both": wk.TopK(k=4, scope="both")}


def gradients(layer: nn.Module, x: Tensor, dy: Tensor) -> list[Tensor]:
    layer.zero_grad()
    leaf = x.clone().requires_grad_()
    layer(leaf).backward(dy)
    return [leaf.grad, *(p.grad.clone() for p in layer.parameters())]


def chosen(grad: Tensor) -> Tensor:
    """``[out, in / groups]``: where the weights have a gradient."""
    return grad.flatten(2).any(2) if grad.ndim == 4 else grad != 0


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("name", "choice", "rows"), list(itertools.product(LAYERS, CHOICES, ROWS)))
def test_chosen_columns_have_stocks_gradient_and_the_others_none(name, choice, rows, memory_format) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer, x = make().double(), torch.randn(shape, dtype=torch.float64)
    if memory_format is torch.channels_last:
        if len(shape) < 4:
            pytest.skip("no images")
        layer, x = layer.to(memory_format=memory_format), x.to(memory_format=memory_format)
    layer = wk.convert(layer)
    inputs, out, groups = layer.units.inputs, layer.units.out, layer.units.groups
    dy = torch.randn_like(layer(x))
    layer.rows = ROWS[rows]
    whole = gradients(layer, x, dy)
    layer.columns = CHOICES[choice](inputs)
    part = gradients(layer, x, dy)
    for ours, dense in zip(part[:1] + part[2:], whole[:1] + whole[2:], strict=True):
        torch.testing.assert_close(ours, dense, rtol=1e-12, atol=1e-12)
        assert ours.stride() == dense.stride()
    mask = chosen(part[1]).view(groups, out // groups, -1).any(1)  # [groups, in / groups]
    count = layer.columns.count(inputs, groups)
    assert mask.sum(1).tolist() == [count // groups] * groups
    if choice == "fixed":
        assert mask.flatten().nonzero().flatten().tolist() == list(layer.columns.numbers)
    kept = mask.repeat_interleave(out // groups, 0).view(out, -1, *[1] * (part[1].ndim - 2))
    torch.testing.assert_close(part[1], torch.where(kept, whole[1], 0), rtol=1e-12, atol=1e-12)
    assert part[1].stride() == whole[1].stride()


def test_the_largest_columns_by_input_and_by_weight() -> None:
    layer = wk.convert(nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0, 3, 1, 1], [0, 0, 1, 3]]))
    x = torch.tensor([[4.0, 0, 1, 1], [0, 1, 1, 3]])
    for score, expected in (("input", [0, 3]), ("weight", [1, 3])):
        layer.columns = wk.TopColumns(k=2, score=score)
        layer.zero_grad()
        layer(x).sum().backward()
        assert layer.weight.grad.any(0).nonzero().flatten().tolist() == expected


def test_of_equal_columns_the_first_and_a_nan_before_all() -> None:
    layer = wk.convert(nn.Linear(6, 2))
    layer.columns = wk.TopColumns(k=2)
    layer(torch.ones(3, 6)).sum().backward()
    assert layer.weight.grad.any(0).nonzero().flatten().tolist() == [0, 1]
    layer.zero_grad()
    x = torch.ones(3, 6)
    x[1, 4] = torch.nan
    layer(x).sum().backward()
    assert layer.weight.grad[:, 4].isnan().all()


def test_all_columns_are_the_dense_backward() -> None:
    layer = wk.convert(nn.Linear(6, 4))
    for columns in (wk.TopColumns(ratio=1.0), wk.Columns(range(6))):
        layer.columns = columns
        assert not layer._planned


@pytest.mark.parametrize("shape", [(0, 6), (1, 6), (2, 0, 6)])
def test_empty_batches_and_single_tokens(shape: tuple[int, ...]) -> None:
    layer, x = wk.convert(nn.Linear(6, 4)), torch.randn(shape)
    layer.columns = wk.TopColumns(k=2)
    layer(x).sum().backward()
    assert layer.weight.grad.shape == (4, 6)
    assert chosen(layer.weight.grad).any(0).sum() == (2 if x.numel() else 0)


def test_skip_wins_and_tokens_sum_over_what_is_kept() -> None:
    layer, x = wk.convert(nn.Linear(6, 4)).double(), torch.randn(8, 6, dtype=torch.float64)
    wk.set_plan(layer, columns=wk.Columns([1, 4]), skip=True)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    wk.set_plan(layer, skip=False, tokens=wk.Tokens(k=3))
    dy = torch.randn(8, 4, dtype=torch.float64)
    layer(x).backward(dy)
    best = (dy.norm(dim=1) * x[:, [1, 4]].norm(dim=1)).topk(3).indices
    torch.testing.assert_close(layer.weight.grad[:, [1, 4]], dy[best].T @ x[best][:, [1, 4]])


# ---- memory ---------------------------------------------------------------------------------------------------------


def saved_bytes(layer: nn.Module, x: Tensor) -> int:
    """What forward keeps, but for the layer's own parameters."""
    own = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layer(x)
    return sum(kept.values())


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Linear(256, 64), (128, 256)), (nn.Conv2d(64, 16, 3), (4, 64, 9, 9)), (nn.Linear(256, 64), (8, 16, 256))],
)
def test_forward_keeps_the_chosen_columns_of_the_input_alone(layer: nn.Module, shape: tuple[int, ...]) -> None:
    converted, x = wk.convert(layer), torch.randn(shape, requires_grad=True)
    inputs = converted.units.inputs
    converted.columns = wk.TopColumns(ratio=0.125)
    index = 8 * inputs // 8
    assert saved_bytes(converted, x) <= x.numel() * 4 // 8 + index


# ---- training -------------------------------------------------------------------------------------------------------


def test_fifty_steps_equal_a_slice_that_is_a_parameter_of_its_own() -> None:
    """PaCA's form (arXiv 2503.01905) in plain PyTorch: the chosen columns are the parameter, the rest is a constant."""
    torch.manual_seed(0)
    sizes, index = ((12, 20), (20, 6)), ([0, 4, 7], [1, 2, 11, 19])
    net = nn.Sequential(nn.Linear(*sizes[0]), nn.GELU(), nn.Linear(*sizes[1])).double()
    fixed = [layer.weight.detach().clone() for layer in (net[0], net[2])]
    slices = [nn.Parameter(weight[:, columns].clone()) for weight, columns in zip(fixed, index, strict=True)]
    biases = [nn.Parameter(layer.bias.detach().clone()) for layer in (net[0], net[2])]

    def plain(x: Tensor) -> Tensor:
        first, second = (w.index_copy(1, torch.tensor(i), s) for w, i, s in zip(fixed, index, slices, strict=True))
        return F.linear(F.gelu(F.linear(x, first, biases[0])), second, biases[1])

    wk.convert(net)
    for layer, columns in zip((net[0], net[2]), index, strict=True):
        layer.columns = wk.Columns(columns)
    ours = torch.optim.AdamW(net.parameters(), 0.01, weight_decay=0)
    stock = torch.optim.AdamW([*slices, *biases], 0.01, weight_decay=0)
    for step in range(50):
        x = torch.randn(16, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        for model, update in ((net, ours), (plain, stock)):
            model(x).square().mean().backward()
            update.step()
            update.zero_grad()
    for layer, weight, columns, part in zip((net[0], net[2]), fixed, index, slices, strict=True):
        torch.testing.assert_close(layer.weight[:, columns], part, rtol=1e-10, atol=1e-10)
        others = [i for i in range(weight.shape[1]) if i not in columns]
        assert torch.equal(layer.weight[:, others], weight[:, others])


def test_micro_batches_add_up_and_autocast_gives_the_parameters_dtype() -> None:
    layer, xs = wk.convert(nn.Linear(32, 8)), torch.randn(3, 16, 32)
    layer.columns = wk.Columns([2, 3, 30])
    with torch.autocast("cpu", torch.bfloat16):
        for x in xs:
            layer(x).sum().backward()
    assert layer.weight.grad.dtype is torch.float32
    expected = xs.sum((0, 1)).expand(8, -1)[:, [2, 3, 30]]
    torch.testing.assert_close(layer.weight.grad[:, [2, 3, 30]], expected, rtol=0.02, atol=0.2)
    assert chosen(layer.weight.grad).any(0).nonzero().flatten().tolist() == [2, 3, 30]


def test_storage_that_is_used_again_holds_the_last_choice_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns, then others, then rows, then rows of columns, of one layer whose zeros are kept."""
    monkeypatch.setattr(dense_grad, "LEAST", 0)
    torch.manual_seed(0)
    layer, x = wk.convert(nn.Linear(40, 24)).double(), torch.randn(6, 40, dtype=torch.float64)
    whole = gradients(layer, x, torch.ones(6, 24, dtype=torch.float64))[1]
    plans = [
        {"columns": wk.Columns([0, 9])}, {"columns": wk.Columns([9, 30])}, {"columns": wk.Columns([9, 30])},
        {"rows": wk.Rows([3, 4])},
        {"columns": wk.Columns([5]), "rows": wk.Rows([1, 3])}, {"columns": wk.Columns([6])}, {"rows": wk.Rows([0])},
    ]  # fmt: skip
    layer.columns = wk.Columns([1])  # the layer has a home from now on
    for parts in plans * 2:
        layer.plan = wk.Plan(**parts)
        mask = torch.zeros(24, 40, dtype=torch.bool)
        columns = list(parts["columns"].numbers) if "columns" in parts else list(range(40))
        rows = list(parts["rows"].numbers) if "rows" in parts else list(range(24))
        mask[torch.tensor(rows)[:, None], torch.tensor(columns)] = True
        grad = gradients(layer, x, torch.ones(6, 24, dtype=torch.float64))[1]
        torch.testing.assert_close(grad, torch.where(mask, whole, 0), rtol=1e-12, atol=1e-12)
        layer.weight.grad = None
        del grad


def test_an_optimizer_that_asks_for_sparse_gradients_gets_dense_ones_of_columns() -> None:
    layer = wk.convert(nn.Linear(8, 6))
    update = wk.optim.AdamW(layer.parameters(), 0.1, weight_decay=0)
    wk.set_plan(layer, rows=wk.TopK(k=2), columns=wk.Columns([1, 5]))
    before = layer.weight.detach().clone()
    layer(torch.randn(3, 8)).sum().backward()
    assert not layer.weight.grad.is_sparse
    assert not layer.is_sparse
    update.step()
    assert (layer.weight != before).sum() <= 4


def test_second_derivatives_and_transforms_raise() -> None:
    layer = wk.convert(nn.Linear(4, 3)).double()
    layer.columns = wk.Columns([0])
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    (dx,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="rows, columns or tokens has no second derivative"):
        dx.sum().backward()
    with pytest.raises(RuntimeError, match="rows, columns or tokens has no forward-mode derivative"):
        torch.func.vmap(layer)(x)


def test_the_backward_alone_gives_the_part() -> None:
    dy, x, weight = torch.randn(5, 3).double(), torch.randn(5, 6).double(), torch.randn(3, 6).double()
    columns = wk.Columns([2, 5])
    grad = wk.functional.linear_backward(dy, x, weight, columns=columns).weight
    assert isinstance(grad, wk.ColumnGrad)
    torch.testing.assert_close(grad.values, dy.T @ x[:, [2, 5]])
    torch.testing.assert_close(grad.dense(weight), (dy.T @ x) * torch.tensor([0, 0, 1, 0, 0, 1]))
    rows = wk.functional.linear_backward(dy, x, weight, wk.Rows([1]), columns=columns).weight
    assert (rows.values.shape, rows.rows.tolist(), rows.columns.tolist()) == ((1, 2), [1], [2, 5])


def test_the_same_bits_twice() -> None:
    layer, x = wk.convert(nn.Linear(300, 200)), torch.randn(64, 300)
    layer.columns = wk.TopColumns(ratio=0.1, block=4)
    first, second = (gradients(layer, x, torch.ones(64, 200))[1] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("kernel", "k"), [(3, 3), (3, 12), (1, 3), (1, 20)])
def test_few_columns_of_a_convolution_are_as_right_as_all(kernel, k, memory_format) -> None:
    """In float32, whose sums over many pixels oneDNN adds up in longer chains where there are few channels."""
    torch.manual_seed(0)
    stock = nn.Conv2d(64, 32, kernel, padding=kernel // 2).to(memory_format=memory_format)
    x, columns = torch.randn(16, 64, 32, 32).to(memory_format=memory_format), sorted(torch.randperm(64)[:k].tolist())
    dy = torch.randn(16, 32, 32, 32).to(memory_format=memory_format)
    grads = {}
    for name, dtype in (("stock", torch.float32), ("exact", torch.float64), ("sizes", torch.float64)):
        layer, size = copy.deepcopy(stock).to(dtype), torch.abs if name == "sizes" else torch.detach
        layer(size(x.to(dtype))).backward(size(dy.to(dtype)))
        grads[name] = layer.weight.grad[:, columns]
    ours = wk.convert(copy.deepcopy(stock))
    ours.columns = wk.Columns(columns)
    ours(x).backward(dy)
    assert_as_right_as_stock(ours.weight.grad[:, columns], grads["stock"], grads["exact"], grads["sizes"])


def test_few_input_channels_are_kept_whole():
    """A gather of one of three channels would cost more than it saves: the input itself is saved, and no copy of it."""
    layer = wk.convert(nn.Conv2d(3, 8, 3))
    layer.columns = wk.Columns([1])
    x, kept = torch.randn(2, 3, 9, 9), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        y = layer(x)
    assert x.data_ptr() in kept
    y.square().sum().backward()
    assert layer.weight.grad[:, 1].any()
    assert not layer.weight.grad[:, [0, 2]].any()
