"""The compact gradient of a Conv1D's columns, and optimizers that move these alone."""

import copy

import pytest
import torch
import torch.nn as nn
from torch import Tensor
from torch.nn import Parameter

import wuskern as wk
from tests.layers.stand_in import converted

COLUMNS = [1, 4, 6]


def layer_of(sparse: bool | None = True, seed: int = 0) -> nn.Module:
    layer = converted(5, 8, seed)
    layer.columns = wk.Columns(COLUMNS, sparse=sparse)
    return layer


def batch(seed: int) -> Tensor:
    return torch.randn(6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def dense_form(*seeds: int) -> Tensor:
    layer = layer_of(False)
    for seed in seeds:
        layer(batch(seed)).square().sum().backward()
    assert not layer.weight.grad.is_sparse
    return layer.weight.grad


def test_it_is_torchs_hybrid_tensor_of_the_chosen_columns():
    layer = layer_of()
    layer(batch(0)).square().sum().backward()
    grad = layer.weight.grad
    assert grad.layout is torch.sparse_coo
    assert (grad.sparse_dim(), grad.dense_dim()) == (1, 1)
    assert grad._indices().tolist() == [COLUMNS]
    assert grad._values().shape == (3, 5)
    assert grad._values().is_contiguous()
    torch.testing.assert_close(grad.to_dense(), dense_form(0), rtol=1e-12, atol=1e-12)


def test_micro_batches_add_up_and_a_dense_one_makes_the_sum_dense():
    layer = layer_of()
    for seed in range(3):
        layer(batch(seed)).square().sum().backward()
    assert layer.weight.grad.is_sparse
    assert layer.weight.grad._values().shape == (3, 5)
    torch.testing.assert_close(layer.weight.grad.to_dense(), dense_form(0, 1, 2))
    layer.columns = None
    layer(batch(3)).square().sum().backward()
    assert not layer.weight.grad.is_sparse


@pytest.mark.parametrize("columns", [wk.Columns(COLUMNS), wk.TopColumns(k=3), wk.TopColumns(k=3, score="weight")], ids=str)
def test_an_optimizer_of_ours_asks_for_it_and_lets_go(columns):
    layer = converted(5, 8)
    layer.columns = columns

    def is_sparse() -> bool:
        layer.zero_grad()
        layer(batch(0)).sum().backward()
        assert layer.weight.grad.is_sparse == layer.is_sparse
        return layer.is_sparse

    assert not is_sparse()
    update = wk.optim.SGD(layer.parameters(), 0.1)
    assert is_sparse()
    layer.rows = wk.TopK(k=2)
    assert not is_sparse()  # a block has no such layout
    layer.plan = wk.Plan(rows=wk.Rows([1, 2]))
    assert not is_sparse()
    layer.plan = wk.Plan(columns=wk.Columns(COLUMNS, sparse=False))
    assert not is_sparse()
    layer.columns = columns
    del update
    assert not is_sparse()


OPTIMIZERS = {
    "adamw": lambda package, p: package.AdamW(p, 0.01, weight_decay=0.1),
    "adam": lambda package, p: package.Adam(p, 0.01, weight_decay=0.1, amsgrad=True),
    "sgd": lambda package, p: package.SGD(p, 0.01, momentum=0.9, weight_decay=0.1, nesterov=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_thirty_steps_equal_stocks_on_a_slice_that_is_a_parameter_of_its_own(name):
    layer = converted(5, 8)
    start = layer.weight.detach().clone()
    part, bias = Parameter(start[COLUMNS].clone()), Parameter(layer.bias.detach().clone())
    layer.columns = wk.Columns(COLUMNS)
    ours, stock = OPTIMIZERS[name](wk.optim, layer.parameters()), OPTIMIZERS[name](torch.optim, [part, bias])
    for seed in range(30):
        x = batch(seed)
        layer(x).square().mean().backward()
        torch.addmm(bias, x, start.index_copy(0, torch.tensor(COLUMNS), part)).square().mean().backward()
        assert layer.weight.grad.is_sparse
        for update in (ours, stock):
            update.step()
            update.zero_grad()
    torch.testing.assert_close(layer.weight[COLUMNS], part, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(layer.bias, bias, rtol=1e-10, atol=1e-12)
    others = [i for i in range(8) if i not in COLUMNS]
    assert torch.equal(layer.weight[others], start[others])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute of a Tensor:UserWarning")
def test_compiled_code_delivers_it():
    torch._dynamo.reset()
    layer = layer_of()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for seed in range(2):
        compiled(batch(seed)).square().sum().backward()
    assert layer.weight.grad.is_sparse
    torch.testing.assert_close(layer.weight.grad.to_dense(), dense_form(0, 1))
    layer.columns = wk.Columns([0, 2, 3], sparse=True)  # others of the same number: the same graph
    layer.zero_grad()
    compiled(batch(0)).square().sum().backward()
    assert layer.weight.grad._indices().tolist() == [[0, 2, 3]]
    with pytest.raises(RuntimeError, match=r"autograd.grad wants its gradient, which compiled code gives in chosen rows alone"):
        torch.autograd.grad(compiled(batch(0)).sum(), layer.weight)
    torch._dynamo.reset()


def test_momentum_of_torchs_sgd_is_refused():
    layer = layer_of()
    update = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9)
    layer(batch(0)).sum().backward()
    with pytest.raises(ValueError, match="SGD for a sparse gradient, got SGD of torch with momentum"):
        update.step()


def test_hooks_clipping_and_copies():
    layer, seen = layer_of(), []
    layer.weight.register_hook(lambda grad: seen.append(grad.to_dense()))
    layer(batch(0)).square().sum().backward()
    torch.testing.assert_close(seen, [dense_form(0)])
    norm = torch.nn.utils.clip_grad_norm_([layer.weight], 1.0)
    torch.testing.assert_close(norm, dense_form(0).norm())
    torch.testing.assert_close(copy.deepcopy(layer.weight.grad).to_dense().norm().item(), 1.0, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("plan", "state", "indices"),
    [
        (dict(columns=wk.Columns([1, 4])), (2, 5), {"rows": [1, 4]}),
        (dict(rows=wk.Rows([0, 3])), (6, 2), {"columns": [0, 3]}),
        (dict(rows=wk.Rows([0, 3]), columns=wk.Columns([1, 4])), (2, 2), {"rows": [1, 4], "columns": [0, 3]}),
    ],
    ids=["columns", "rows", "both"],
)
def test_an_optimizer_keeps_the_part_by_the_dimensions_of_the_weight(plan, state, indices):
    """Moments of the part alone, which moves as torch's AdamW moves those elements by themselves."""
    layer = converted(5, 6, 0)
    wk.set_plan(layer, **plan)
    optimizer = wk.optim.AdamW([layer.weight], lr=0.1, weight_decay=0.3)
    mask = torch.zeros(6, 5, dtype=torch.bool)
    mask[torch.tensor(indices.get("rows", range(6)))[:, None], torch.tensor(indices.get("columns", range(5)))] = True
    start = layer.weight.detach().clone()
    chosen = nn.Parameter(start[mask].clone())
    stock = torch.optim.AdamW([chosen], lr=0.1, weight_decay=0.3)
    for seed in range(3):
        optimizer.zero_grad()
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        layer(x).square().sum().backward()
        grad = layer.weight.grad.to_dense() if layer.weight.grad.is_sparse else layer.weight.grad
        chosen.grad = grad[mask].clone()
        optimizer.step()
        stock.step()
    torch.testing.assert_close(layer.weight.detach()[mask], chosen.detach(), rtol=1e-12, atol=1e-14)
    assert torch.equal(layer.weight.detach()[~mask], start[~mask])
    held = optimizer.state[layer.weight]
    assert held["exp_avg"].shape == state
    assert {name: held[name].tolist() for name in ("rows", "columns") if name in held} == indices
