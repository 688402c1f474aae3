"""Sparse gradients of several micro-batches and of weights that several layers use, against the dense form's sums."""

import pytest
import torch
import torch.nn as nn
from torch import Tensor

import wuskern as wk
from wuskern.delivery import dense_grad
from wuskern.sparse_grad import to_rows

OUT, IN = 12, 6
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
LAYERS = {
    "linear": lambda: (nn.Linear(IN, OUT), (5, IN)),
    "conv2d": lambda: (nn.Conv2d(4, OUT, 3), (2, 4, 5, 5)),
    "conv2d-last": lambda: (nn.Conv2d(4, OUT, 3).to(memory_format=torch.channels_last), (2, 4, 5, 5)),
}
each_layer = pytest.mark.parametrize("kind", LAYERS)


def twins(kind: str, dtype: torch.dtype, *changes) -> tuple[nn.Module, nn.Module, tuple[int, ...]]:
    """A layer with sparse gradients and one with the dense form, of the same values; the shape of an input."""
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        layer, shape = LAYERS[kind]()
        made.append(wk.convert(layer).to(dtype))
    return *made, shape


def backward(layer: nn.Module, shape: tuple[int, ...], seed: int) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(layer.weight.dtype)
    y = layer(x)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed + 50)).to(y.dtype)
    y.backward(dy)


def accumulate(ours: nn.Module, dense: nn.Module, shape: tuple[int, ...], choices: list) -> None:
    """A micro-batch for each choice; a choice is made with ``sparse`` of the twin."""
    for seed, choice in enumerate(choices):
        for layer, sparse in ((ours, True), (dense, False)):
            layer.rows = choice(sparse)
            backward(layer, shape, seed)


def fixed(*rows: int):
    return lambda sparse: wk.Rows(list(rows), sparse=sparse)


def none(_: bool) -> None:
    return None


def assert_same_bits(ours: Tensor, dense: Tensor) -> None:
    """Each number is a sum of the same parts in the same order, and rounded as often."""
    assert (ours.dtype, ours.shape) == (dense.dtype, dense.shape)
    assert torch.equal(ours.to_dense(), dense)


@each_dtype
@each_layer
def test_fixed_rows_stay_as_many(kind, dtype):
    ours, dense, shape = twins(kind, dtype)
    choice = {sparse: wk.Rows([1, 4, 7], sparse=sparse) for sparse in (True, False)}
    accumulate(ours, dense, shape, [choice.get] * 4)
    assert ours.weight.grad._indices().tolist() == [[1, 4, 7]]
    assert_same_bits(ours.weight.grad, dense.weight.grad)


@each_dtype
@each_layer
def test_the_largest_rows_are_united(kind, dtype):
    ours, dense, shape = twins(kind, dtype)
    accumulate(ours, dense, shape, [lambda sparse: wk.TopK(k=2, sparse=sparse)] * 3)
    grad = to_rows(ours.weight.grad)
    assert 2 < len(grad.rows) <= 6
    assert grad.rows.tolist() == dense.weight.grad.flatten(1).any(1).nonzero().flatten().tolist()
    assert ours.weight.grad._nnz() == len(grad.rows)
    assert_same_bits(ours.weight.grad, dense.weight.grad)


@each_dtype
def test_past_half_of_the_rows_it_is_dense_and_stays_so(dtype):
    ours, dense, shape = twins("linear", dtype)
    for rows, is_sparse in [((0, 1, 2), True), ((3, 4, 5), True), ((0, 6), False), ((0,), False)]:
        ours.rows, dense.rows = (wk.Rows(list(rows), sparse=sparse) for sparse in (True, False))
        for layer in (ours, dense):
            backward(layer, shape, rows[-1])
        assert ours.weight.grad.is_sparse == is_sparse
        assert_same_bits(ours.weight.grad, dense.weight.grad)
    assert ours.weight.grad.stride() == ours.weight.stride()
    ours.weight.grad = None
    backward(ours, shape, 0)
    assert ours.weight.grad.is_sparse


@pytest.mark.parametrize("hooked", [False, True])
@each_layer
def test_rows_are_added_to_the_dense_form_that_uses_its_memory_again(kind, hooked, monkeypatch):
    """It is a lazy copy, to which torch cannot add a sparse tensor in channels_last."""
    monkeypatch.setattr(dense_grad, "LEAST", 0)
    ours, dense, shape = twins(kind, torch.float32)
    if hooked:
        ours.weight.register_hook(lambda grad: None)
    for sparse in (False, True):
        ours.rows, dense.rows = (wk.Rows([1, 4], sparse=form) for form in (sparse, False))
        for layer in (ours, dense):
            backward(layer, shape, 3 + sparse)
    assert_same_bits(ours.weight.grad, dense.weight.grad)


@pytest.mark.filterwarnings("ignore:grad and param do not obey the gradient layout")  # torch adds a channels_last one to ours
@pytest.mark.parametrize("choices", [(none, fixed(1, 4)), (fixed(1, 4), none), (fixed(1, 4), none, fixed(0, 1))])
@each_dtype
@each_layer
def test_a_dense_micro_batch_makes_it_dense(kind, dtype, choices):
    ours, dense, shape = twins(kind, dtype)
    accumulate(ours, dense, shape, list(choices))
    assert not ours.weight.grad.is_sparse
    assert_same_bits(ours.weight.grad, dense.weight.grad)


def test_a_skipped_micro_batch_adds_nothing():
    ours, dense, shape = twins("linear", torch.float32)
    accumulate(ours, dense, shape, [fixed(1, 4)])
    held = ours.weight.grad
    ours.skip = True
    backward(ours, shape, 9)
    assert ours.weight.grad is held
    assert_same_bits(held, dense.weight.grad)


def test_micro_batches_of_different_widths_of_number():
    """Under autocast the products are in bfloat16, and the gradient is added up in the dtype of the weight."""
    ours, dense, shape = twins("linear", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        accumulate(ours, dense, shape, [fixed(1, 4), fixed(4, 5)])
    assert ours.weight.grad.dtype == torch.float32
    assert ours.weight.grad.is_sparse
    assert_same_bits(ours.weight.grad, dense.weight.grad)


def test_a_gradient_that_somebody_holds_does_not_change():
    """As a new tensor is made for each sum; of dense ones, torch adds in place."""
    ours, dense, shape = twins("linear", torch.float32)
    accumulate(ours, dense, shape, [fixed(1, 4)])
    held, before = ours.weight.grad, dense.weight.grad.clone()
    accumulate(ours, dense, shape, [fixed(1, 4), fixed(1, 2)])
    assert torch.equal(held.to_dense(), before)


# ---- several uses of one weight -------------------------------------------------------------------------------------


class Twice(nn.Module):
    """Two layers of one weight, one after the other."""

    def __init__(self, sparse: bool, rows: tuple[list[int], list[int]], dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        first, second = (wk.SkippableLinear(IN, IN, bias=False, dtype=dtype) for _ in range(2))
        second.weight = first.weight
        for layer, choice in zip((first, second), rows, strict=True):
            layer.rows = wk.Rows(choice, sparse=sparse)
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


@pytest.mark.parametrize("rows", [([1, 4], [1, 4]), ([1, 4], [0, 1]), ([0, 1, 2, 3], [2, 3, 4, 5])], ids=str)
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_two_layers_of_one_weight(dtype, rows):
    ours, dense = Twice(True, rows, dtype), Twice(False, rows, dtype)
    for seed in range(2):
        x = torch.randn(3, IN, generator=torch.Generator().manual_seed(seed)).to(dtype)
        for model in (ours, dense):
            model(x).square().sum().backward()
    expected = dense.first.weight.grad
    rounding = dict(rtol=0, atol=4 * torch.finfo(dtype).eps * float(expected.abs().max()))  # of four parts, in any order
    torch.testing.assert_close(ours.first.weight.grad.to_dense(), expected, **rounding)
    if (union := sorted({*rows[0], *rows[1]})) != list(range(IN)):
        assert to_rows(ours.first.weight.grad).rows.tolist() == union
    before = ours.first.weight.detach().clone()
    wk.optim.SGD(ours.parameters(), lr=1.0).step()
    torch.testing.assert_close(before - ours.first.weight, expected, **rounding)


def test_one_layer_that_is_called_twice():
    found = []
    for sparse in (True, False):
        torch.manual_seed(0)
        layer = wk.SkippableLinear(IN, IN)
        layer.rows = wk.Rows([1, 4], sparse=sparse)
        for seed in range(3):
            x = torch.randn(3, IN, generator=torch.Generator().manual_seed(seed))
            layer(layer(x).relu()).square().sum().backward()
        found.append(layer.weight.grad)
    assert to_rows(found[0]).rows.tolist() == [1, 4]
    torch.testing.assert_close(found[0].to_dense(), found[1])


@pytest.mark.parametrize("of_embedding", [True, False], ids=["sparse embedding", "dense embedding"])
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_a_layer_tied_with_an_embedding(dtype, of_embedding):
    found = []
    for sparse in (True, False):
        torch.manual_seed(0)
        embedding = nn.Embedding(OUT, IN, sparse=sparse and of_embedding, dtype=dtype)
        layer = wk.SkippableLinear(IN, OUT, dtype=dtype)
        layer.weight = embedding.weight
        layer.rows = wk.Rows([1, 4], sparse=sparse)
        for tokens in ([3, 4, 3], [4, 0, 0]):
            layer(embedding(torch.tensor(tokens))).square().sum().backward()
        found.append(layer.weight)
    ours, dense = found
    assert ours.grad.is_sparse == of_embedding
    torch.testing.assert_close(ours.grad.to_dense(), dense.grad)
    before = ours.detach().clone()
    wk.optim.SGD([ours], lr=1.0).step()
    torch.testing.assert_close(before - ours, dense.grad)


def test_float16_on_the_cpu_where_torch_cannot_add_two_of_them():
    """Of two uses in one backward, and of a weight with hooks, which torch itself adds up: it says so."""
    model = Twice(True, ([1], [1]), torch.float16)
    with pytest.raises(RuntimeError, match="not implemented for 'Half'"):
        model(torch.ones(2, IN, dtype=torch.float16)).sum().backward()
    layer = wk.SkippableLinear(IN, OUT, dtype=torch.float16)
    layer.rows = wk.Rows([1], sparse=True)
    layer.weight.register_hook(lambda grad: None)
    backward(layer, (2, IN), 0)
    with pytest.raises(RuntimeError, match="not implemented for 'Half'"):
        backward(layer, (2, IN), 1)
