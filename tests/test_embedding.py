"""Embeddings: the tokens of a plan train, against stock's gradients in float64, and a hand-worked case."""

from typing import Any

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

import wuskern as wk
from wuskern.delivery import dense_grad
from wuskern.sparse_grad import to_rows

VOCABULARY, FEATURES = 12, 5
TOKENS = torch.tensor([[3, 7, 3, 0], [11, 7, 7, 5]])


def embedding(dtype: torch.dtype = torch.float64, **options: Any) -> wk.SkippableEmbedding:
    torch.manual_seed(0)
    return wk.convert(nn.Embedding(VOCABULARY, FEATURES, dtype=dtype, **options), embeddings=True)


def gradient(layer: nn.Module, tokens: Tensor = TOKENS) -> Tensor:
    """What a backward with a fixed random dy leaves."""
    layer.weight.grad = None
    y = layer(tokens)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y))
    return layer.weight.grad


def stock_gradient(layer: nn.Module, tokens: Tensor = TOKENS) -> Tensor:
    """Stock's, dense."""
    options = layer.padding_idx, None, 2.0, layer.scale_grad_by_freq
    weight = layer.weight.detach().clone().requires_grad_()
    y = F.embedding(tokens, weight, *options)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y))
    return weight.grad


def masked(grad: Tensor, rows: list[int]) -> Tensor:
    return torch.zeros_like(grad).index_copy_(0, torch.tensor(rows), grad[rows])


# ---- what a plan means ----------------------------------------------------------------------------------------------


def test_a_case_worked_by_hand():
    """Token 2 twice and token 0 once, of which 2 and 3 train."""
    layer = wk.SkippableEmbedding(4, 2)
    layer.rows = wk.Rows([3, 2], sparse=True)
    layer(torch.tensor([2, 0, 2])).backward(torch.tensor([[1.0, 2], [10, 20], [100, 200]]))
    assert to_rows(layer.weight.grad).rows.tolist() == [2, 3]
    assert to_rows(layer.weight.grad).values.tolist() == [[101, 202], [0, 0]]


OPTIONS = {
    "plain": {},
    "padding": {"padding_idx": 7},
    "last padding": {"padding_idx": -1},
    "by frequency": {"scale_grad_by_freq": True},
    "both": {"padding_idx": 3, "scale_grad_by_freq": True},
}
SETS = {"new": [10, 11], "some": [0, 3, 7], "one": [7], "none of the batch": [1, 2], "all but one": [*range(3), *range(4, 12)]}
BATCHES = {
    "matrix": TOKENS,
    "int32": TOKENS.int(),
    "strided": TOKENS.repeat(1, 2)[:, ::2],
    "one token": torch.tensor(7),
    "cube": TOKENS[None].expand(3, 2, 4),
    "empty": torch.zeros(0, 4, dtype=torch.long),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("rows", SETS.values(), ids=SETS)
def test_tokens_of_the_set_have_the_bits_of_stocks_gradient_and_the_others_none(rows, options, sparse, dtype):
    layer = embedding(dtype, **options)
    layer.rows = wk.Rows(rows, sparse=sparse)
    for tokens in BATCHES.values():
        assert torch.equal(layer(tokens), F.embedding(tokens, layer.weight))
        found = gradient(layer, tokens)
        assert found.is_sparse == sparse
        assert found.dtype == dtype
        assert not sparse or to_rows(found).rows.tolist() == sorted(rows)
        assert torch.equal(found.to_dense(), masked(stock_gradient(layer, tokens), rows))
        assert torch.equal(gradient(layer, tokens).to_dense(), found.to_dense())


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_tokens_of_the_batch(options):
    layer = embedding(**options)
    for tokens in [*BATCHES.values(), torch.full((3,), 7)]:
        layer.rows = wk.BatchRows(sparse=True)
        found, expected = gradient(layer, tokens), stock_gradient(layer, tokens)
        present = sorted(set(tokens.flatten().tolist()) - {layer.padding_idx})
        assert to_rows(found).rows.tolist() == present
        assert torch.equal(found.to_dense(), expected)
        layer.rows = wk.BatchRows()
        assert torch.equal(gradient(layer, tokens), expected)


def test_all_tokens_are_the_dense_backward_and_no_longer_once_the_table_has_grown():
    layer = embedding()
    layer.rows = wk.Rows(range(VOCABULARY), sparse=True)
    assert torch.equal(gradient(layer), stock_gradient(layer))
    grow(layer, VOCABULARY + 3)
    assert to_rows(gradient(layer, TOKENS + 1)).rows.tolist() == list(range(VOCABULARY))


def grow(layer: nn.Module, size: int) -> None:
    """As transformers does."""
    layer.weight.data = torch.randn(size, FEATURES, dtype=layer.weight.dtype)
    layer.num_embeddings = size


def test_rows_that_a_smaller_table_lacks():
    layer = embedding()
    layer.rows = wk.Rows([2, 11])
    grow(layer, 9)
    with pytest.raises(ValueError, match="index: expected rows under 9, got 11"):
        layer(torch.tensor([2]))
    layer.eval()
    with torch.no_grad():
        layer(torch.tensor([2]))
    layer.rows = wk.Rows([2, 8])
    assert gradient(layer, torch.tensor([2, 8])).any()


def test_skip():
    layer, kept = embedding(), []
    layer.skip = True
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda x: x):
        y = layer(TOKENS)
    assert not y.requires_grad
    assert kept == []
    wk.functional.embedding(TOKENS, layer.weight, skip=True)
    with wk.skipping(layer, False):
        assert gradient(layer).any()


def test_no_tensor_of_the_tables_size_is_formed():
    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for t in result if isinstance(result, tuple | list) else (result,):
                if isinstance(t, Tensor) and not t.is_sparse:
                    self.largest = max(self.largest, t.numel())
            return result

    layer = wk.SkippableEmbedding(10_000, 8)
    layer.rows = wk.Rows([1, 9_999], sparse=True)
    y = layer(TOKENS)
    dy = torch.ones_like(y)
    with Largest() as seen:
        y.backward(dy)
    assert layer.weight.grad.is_sparse
    assert seen.largest == dy.numel()


def test_the_dense_form_uses_its_memory_again(monkeypatch):
    monkeypatch.setattr(dense_grad, "LEAST", 0)
    layer, pointers = embedding(), set()
    layer.rows = wk.Rows([3, 7])
    for tokens in (TOKENS, TOKENS.flip(0), TOKENS[:1]):
        assert torch.equal(gradient(layer, tokens), masked(stock_gradient(layer, tokens), [3, 7]))
        pointers.add(layer.weight.grad.untyped_storage()._cdata)
        layer.weight.grad = None
    assert len(pointers) == 1 or layer._home.recycled._tensor is not None


@pytest.mark.parametrize("flag", [True, False])
def test_torchs_own_flag_sparse(flag):
    """It is stock's without a plan, and a wish for the form of what leaves the form open."""
    layer = embedding(sparse=flag)
    assert gradient(layer).is_sparse == flag
    for rows in (wk.Rows([3]), wk.BatchRows()):
        layer.rows = rows
        assert gradient(layer).is_sparse == flag
    for rows in (wk.Rows([3], sparse=False), wk.BatchRows(sparse=False)):
        layer.rows = rows
        assert not gradient(layer).is_sparse
    layer.rows = wk.BatchRows(sparse=True)
    assert gradient(layer).is_sparse


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"rows": wk.TopK(k=2)}, "rows: expected Rows, BatchRows or None for an embedding, got TopK: leave .* with filter_fn"),
        ({"rows": wk.PerExample(k=2)}, "rows: expected Rows, BatchRows or None for an embedding, got PerExample"),
        ({"columns": wk.Columns([0])}, "columns: expected None for an embedding, got Columns"),
        ({"columns": wk.TopColumns(k=1)}, "columns: expected None for an embedding, got TopColumns"),
        ({"tokens": wk.Tokens(k=1)}, "tokens: expected None for an embedding, got Tokens"),
        ({"observer": wk.Observer("l1")}, "observer: expected None for an embedding, got Observer"),
    ],
)
def test_what_an_embedding_cannot_have_is_refused_at_assignment(parts, message):
    model = nn.Sequential(nn.Embedding(9, 9), nn.Linear(9, 9))
    wk.convert(model, embeddings=True)
    with pytest.raises(TypeError, match=f"^0: {message}"):
        wk.set_plan(model, **parts)
    assert model[1].plan == wk.Plan()
    with pytest.raises(TypeError, match=f"^{message}"):
        model[0].plan = wk.Plan(**parts)
    with pytest.raises(TypeError, match=f"^{message}"):
        wk.functional.embedding(TOKENS, model[0].weight, **parts)
    wk.set_plan(model, filter_fn=lambda module, name: isinstance(module, nn.Linear), **parts)


def test_what_does_not_fit():
    layer = embedding()
    with pytest.raises(ValueError, match="index: expected rows under 12, got 12"):
        layer.rows = wk.Rows([12])
    with pytest.raises(TypeError, match="rows: expected TopK or Rows for a Linear, got BatchRows, which are tokens"):
        wk.SkippableLinear(3, 4).rows = wk.BatchRows()
    with pytest.raises(TypeError, match="sparse: expected True, False or None, got 1"):
        wk.BatchRows(sparse=1)
    layer.rows = wk.Rows([3])
    with pytest.raises(IndexError, match="index out of range"):
        layer(torch.tensor([12]))


def test_max_norm_is_refused():
    model = nn.Sequential(nn.Embedding(4, 3, max_norm=1.0), nn.Linear(3, 3))
    assert wk.survey(model, embeddings=True)[0].obstacle == "its max_norm changes the weight in forward"
    layer = wk.SkippableEmbedding(4, 3, max_norm=1.0)
    layer(torch.tensor([1]))
    layer.rows = wk.Rows([1])
    with pytest.raises(ValueError, match="max_norm: expected None in an embedding with a plan"):
        layer(torch.tensor([1]))


@pytest.mark.parametrize("rows", [wk.Rows([3, 7]), wk.BatchRows(sparse=True)], ids=["fixed", "batch"])
def test_only_first_derivatives(rows):
    layer = embedding()
    layer.rows = rows
    (grad,) = torch.autograd.grad(layer(TOKENS).square().sum(), layer.weight, create_graph=True)
    assert not grad.is_sparse
    with pytest.raises(RuntimeError, match="has no second derivative"):
        grad.sum().backward()
    with pytest.raises(RuntimeError, match=r"takes no part in torch\.func"):
        torch.func.grad(lambda w: torch.func.functional_call(layer, {"weight": w}, TOKENS).sum())(layer.weight.detach())
    y = layer(TOKENS)
    with pytest.raises(RuntimeError, match="no batched backward"):
        torch.autograd.grad(y, layer.weight, torch.ones(2, *y.shape), is_grads_batched=True)


def test_a_skip_is_a_constant_in_torch_func():
    layer = embedding()
    layer.skip = True
    grad = torch.func.grad(lambda w: torch.func.functional_call(layer, {"weight": w}, TOKENS).sum())(layer.weight.detach())
    assert not grad.any()
