"""torch's own optimizers on sparse gradients that a layer was asked for explicitly: right, or an error."""

import copy
import inspect

import pytest
import torch
import torch.nn as nn
from torch import Tensor

import wuskern as wk
from tests.optim.models import row_grad, sparse_tensor, weight

OPTIMIZERS = [
    value
    for value in vars(torch.optim).values()
    if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
]
RIGHT = {"SGD", "Adagrad", "SparseAdam", "LBFGS"}
TOO_LONG = "whose buffer would grow in each step"


def layer(choice: type | None = None, sparse: bool | None = True, seed: int = 0) -> wk.SkippableLinear:
    torch.manual_seed(seed)
    made = wk.SkippableLinear(6, 8, bias=False)
    made.rows = wk.TopK(k=2, sparse=sparse) if choice is wk.TopK else wk.Rows([1, 4], sparse=sparse)
    return made


def backward(model: nn.Module, seed: int = 0) -> Tensor:
    loss = model(torch.randn(3, 6, generator=torch.Generator().manual_seed(seed))).square().sum()
    loss.backward()
    return loss


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 4) -> Tensor:
    for seed in range(steps):
        optimizer.zero_grad()
        backward(model, seed)
        optimizer.step()
    return model.weight.detach()


# ---- SGD ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [dict(), dict(foreach=True), dict(foreach=False), dict(maximize=True)], ids=str)
@pytest.mark.parametrize("choice", [wk.Rows, wk.TopK])
def test_sgd_without_momentum_moves_as_on_the_dense_form(choice, options):
    found = []
    for sparse in (True, False):
        model = layer(choice, sparse)
        found.append(train(model, torch.optim.SGD(model.parameters(), lr=0.1, **options)))
        assert model.weight.grad.is_sparse == sparse
    assert not torch.equal(found[0], layer().weight)
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(weight_decay=0.1), RuntimeError, r"add\(sparse, dense\) is not supported"),
        (dict(fused=True), RuntimeError, "`_fused_sgd` does not support sparse gradients"),
        (dict(momentum=0.9), ValueError, TOO_LONG),
        (dict(momentum=0.9, nesterov=True, foreach=True), ValueError, TOO_LONG),
        (dict(momentum=0.9, dampening=0.5, foreach=False), ValueError, TOO_LONG),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("choice", [wk.Rows, wk.TopK])
def test_other_kinds_of_sgd_raise_before_the_weight_moves(choice, options, error, message):
    model = layer(choice)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, **options)
    backward(model)
    with pytest.raises(error, match=message):
        optimizer.step()
    assert torch.equal(model.weight, layer().weight)


@pytest.mark.parametrize("choice", [wk.Rows, wk.TopK])
def test_momentum_is_refused_in_a_step_with_a_closure(choice):
    """The gradients are there only within the step: it has been taken, once, when its buffer is seen."""
    model = layer(choice)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def closure() -> Tensor:
        optimizer.zero_grad()
        return backward(model)

    with pytest.raises(ValueError, match=TOO_LONG):
        optimizer.step(closure)
    with pytest.raises(ValueError, match=TOO_LONG):
        optimizer.step(closure)


def test_momentum_of_a_convolution_and_of_a_group_is_refused():
    conv = wk.SkippableConv2d(2, 6, 3)
    conv.rows = wk.TopK(k=2, sparse=True)
    optimizer = torch.optim.SGD([{"params": [conv.bias]}, {"params": [conv.weight], "momentum": 0.9}], lr=0.1)
    conv(torch.randn(2, 2, 5, 5)).sum().backward()
    before = conv.bias.detach().clone()
    with pytest.raises(ValueError, match=TOO_LONG):
        optimizer.step()
    assert torch.equal(conv.bias, before)
    optimizer.param_groups[1]["momentum"] = 0
    optimizer.step()


class Own(torch.optim.SGD):
    """Somebody's."""


def test_momentum_of_a_subclass_is_refused_and_that_of_ours_is_not():
    model = layer()
    backward(model)
    with pytest.raises(ValueError, match=r"expected wuskern\.optim\.SGD for a sparse gradient, got Own of torch"):
        Own(model.parameters(), lr=0.1, momentum=0.9).step()
    wk.optim.SGD(model.parameters(), lr=0.1, momentum=0.9).step()
    assert not torch.equal(model.weight, layer().weight)


@pytest.mark.parametrize("sparse", [False, None])
def test_momentum_on_the_dense_form_is_torchs(sparse):
    model, stock = layer(sparse=sparse), nn.Linear(6, 8, bias=False)
    stock.load_state_dict(model.state_dict())
    ours, torchs = (torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (model, stock))
    for seed in range(3):
        for net, optimizer in ((model, ours), (stock, torchs)):
            optimizer.zero_grad()
            backward(net, seed)
        stock.weight.grad[[0, 2, 3, 5, 6, 7]] = 0
        ours.step()
        torchs.step()
    torch.testing.assert_close(model.weight, stock.weight)


def test_momentum_of_an_embedding_with_sparse_gradients_is_none_of_ours():
    """Also beside a layer of ours, whose weight another optimizer has."""
    model = layer()
    embedding = nn.Embedding(5, 6, sparse=True)
    before = embedding.weight.detach().clone()
    optimizer = torch.optim.SGD([*embedding.parameters(), nn.Parameter(torch.zeros(2))], lr=0.1, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        model(embedding(torch.tensor([1, 3]))).sum().backward()
        optimizer.step()
    assert optimizer.state[embedding.weight]["momentum_buffer"].is_sparse
    assert (embedding.weight != before).any(1).tolist() == [False, True, False, True, False]


# ---- the others -----------------------------------------------------------------------------------------------------


def test_sparse_adam_moves_as_on_the_masked_dense_gradient():
    for choice in (wk.Rows, wk.TopK):
        model, stock = layer(choice), nn.Linear(6, 8, bias=False)
        stock.load_state_dict(model.state_dict())
        ours, torchs = (torch.optim.SparseAdam(list(m.parameters()), lr=0.1) for m in (model, stock))
        for seed in range(5):
            ours.zero_grad()
            torchs.zero_grad()
            backward(model, seed)
            backward(stock, seed)
            rows = model.weight.grad._indices()[0]
            stock.weight.grad = sparse_tensor(rows, stock.weight.grad[rows], (8, 6))
            ours.step()
            torchs.step()
        torch.testing.assert_close(model.weight, stock.weight)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch's own
def test_adagrad_moves_as_on_the_dense_form():
    found = []
    for sparse in (True, False):
        model = layer(wk.TopK, sparse)
        found.append(train(model, torch.optim.Adagrad(model.parameters(), lr=0.1)))
    torch.testing.assert_close(*found)


def test_lbfgs_moves_as_on_the_dense_form():
    found = []
    for sparse in (True, False):
        model = layer(wk.Rows, sparse)
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)

        def closure(model=model, optimizer=optimizer) -> Tensor:
            optimizer.zero_grad()
            return backward(model)

        optimizer.step(closure)
        found.append(model.weight.detach())
    assert not torch.equal(found[0], layer().weight)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("optimizer", [o for o in OPTIMIZERS if o.__name__ not in RIGHT], ids=lambda o: o.__name__)
def test_all_others_of_torch_raise_before_the_weight_moves(optimizer):
    model = layer()
    backward(model)
    made = optimizer(model.parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        made.step()
    assert torch.equal(model.weight, layer().weight)


def test_averages_and_copies_of_a_model_with_sparse_gradients():
    model = layer()
    averaged = torch.optim.swa_utils.AveragedModel(model)
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), 1)
    averaged.update_parameters(model)
    torch.testing.assert_close(averaged.module.weight, model.weight)
    assert torch.equal(copy.deepcopy(model).weight, model.weight)


def test_sparse_gradients_that_are_not_of_a_layer():
    """Of an embedding, one row twice: wk.optim moves its rows as SparseAdam does."""
    ours, stock = weight(6, 5), weight(6, 5)
    optimizers = wk.optim.Adam([ours], lr=0.1), torch.optim.SparseAdam([stock], lr=0.1)
    for seed in range(3):
        values = row_grad(ours, [0, 2, 4], seed)._values()
        for parameter, optimizer in zip((ours, stock), optimizers, strict=True):
            parameter.grad = torch.sparse_coo_tensor([[4, 1, 4]], values, (6, 5), check_invariants=False)
            optimizer.step()
    torch.testing.assert_close(ours, stock)
