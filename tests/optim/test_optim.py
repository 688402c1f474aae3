"""wk.optim: torch's optimizers where gradients are dense, and lazily in some rows where they are not."""

import math

import pytest
import torch
from torch import nn
from torch.nn import Parameter

import wuskern as wk
from tests.optim.models import ROWS, backward, network, row_grad, sparse_tensor, weight

SETTINGS = [
    ("SGD", dict(lr=0.1)),
    ("SGD", dict(lr=0.1, momentum=0.9, dampening=0.3, weight_decay=0.01)),
    ("SGD", dict(lr=torch.tensor(0.1), momentum=0.9, nesterov=True, maximize=True)),
    ("Adam", dict(lr=0.01, weight_decay=0.1, amsgrad=True)),
    ("Adam", dict(lr=torch.tensor(0.01), betas=(0.5, 0.9), maximize=True)),
    ("AdamW", dict(lr=0.01, weight_decay=0.2)),
    ("AdamW", dict(lr=0.01, betas=(torch.tensor(0.8), torch.tensor(0.9)), amsgrad=True)),
]
IDS = [f"{name}{i}" for i, (name, _) in enumerate(SETTINGS)]
LOOPS = [dict(), dict(foreach=True), dict(foreach=False), dict(fused=True)]
each_setting = pytest.mark.parametrize(("name", "options"), SETTINGS, ids=IDS)


def both(name: str, options: dict, ours: nn.Module, stock: nn.Module):
    made = getattr(wk.optim, name)(ours.parameters(), **options)
    return made, getattr(torch.optim, name)(stock.parameters(), **options)


def assert_same(ours: nn.Module, stock: nn.Module) -> None:
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), stock.parameters(), strict=True))


def skip_what_torch_refuses(name: str, options: dict, loop: dict) -> None:
    tensors = any(isinstance(v, torch.Tensor) for v in (options["lr"], *options.get("betas", ())))
    if loop.get("foreach") and tensors and name != "SGD":
        pytest.skip("torch refuses tensors with foreach")


# ---- as torch -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", LOOPS, ids=str)
@each_setting
def test_dense_gradients_take_torchs_step_bit_for_bit(name, options, loop):
    skip_what_torch_refuses(name, options, loop)
    ours, stock = network(), network()
    for model in (ours, stock):
        model[2].rows = None
    optimizers = both(name, options | loop, ours, stock)
    for seed in range(3):
        for model, optimizer in zip((ours, stock), optimizers, strict=True):
            optimizer.zero_grad()
            backward(model, seed)
            optimizer.step()
    assert_same(ours, stock)


@pytest.mark.parametrize("loop", LOOPS, ids=str)
@each_setting
def test_equal_to_torch_on_the_dense_form_while_the_rows_stay_the_same(name, options, loop):
    """In those rows. Elsewhere torch decays the weight, and ours does not."""
    skip_what_torch_refuses(name, options, loop)
    ours, stock = network(), network()
    start = ours[2].weight.detach().clone()
    optimizer, torchs = both(name, options | loop, ours, stock)
    for seed in range(4):
        optimizer.zero_grad()
        torchs.zero_grad()
        backward(ours, seed)
        assert ours[2].weight.grad.is_sparse
        for parameter, other in zip(stock.parameters(), ours.parameters(), strict=True):
            parameter.grad = other.grad.clone().to_dense()
        optimizer.step()
        torchs.step()
    others = [i for i in range(8) if i not in ROWS]
    torch.testing.assert_close(ours[2].weight[ROWS], stock[2].weight[ROWS])
    assert torch.equal(ours[2].weight[others], start[others])
    for i in (0, 4):
        assert torch.equal(ours[i].weight, stock[i].weight)
        assert torch.equal(ours[i].bias, stock[i].bias)
    for value in optimizer.state[ours[2].weight].values():
        assert value.ndim == 0 or len(value) == len(ROWS)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch 2.11's own
def test_changing_rows_as_sparse_adam_moves_them():
    ours, stock = weight(6, 5), weight(6, 5)
    optimizer = wk.optim.Adam([ours], lr=0.1, betas=(0.7, 0.9))
    sparse = torch.optim.SparseAdam([stock], lr=0.1, betas=(0.7, 0.9))
    for seed, rows in enumerate([[0, 2], [1, 2], [0], [0, 1, 2, 5], [4], [0, 2]]):
        stock.grad = row_grad(ours, rows, seed).clone()
        optimizer.step()
        optimizer.zero_grad()
        sparse.step()
    torch.testing.assert_close(ours, stock)
    assert optimizer.state[ours]["step"] == 6
    assert torch.equal(ours[3], weight(6, 5)[3])


# ---- worked by hand -------------------------------------------------------------------------------------------------


def steps_of(optimizer, parameter: Parameter, gradients: list[dict[int, float]]) -> list[list[float]]:
    """The parameter [rows, 1] after each step, with these gradients by row."""
    seen = []
    for grads in gradients:
        optimizer.zero_grad()
        values = torch.tensor([[g] for g in grads.values()], dtype=torch.float64)
        parameter.grad = sparse_tensor(torch.tensor(list(grads)), values, parameter.shape)
        optimizer.step()
        seen.append(parameter.detach().flatten().tolist())
    return seen


def one_column(*values: float) -> Parameter:
    return Parameter(torch.tensor(values, dtype=torch.float64)[:, None])


def test_momentum_of_a_row_waits_for_it():
    """Row 0 has gradient 1 at steps 1 and 3: its buffer is 1, 1, .5 * 1 + .8 * 1 = 1.3. Row 1, first chosen at step 2, starts
    from 0 with dampening: .8 * 2."""
    parameter = one_column(1.0, 1.0)
    optimizer = wk.optim.SGD([parameter], lr=0.1, momentum=0.5, dampening=0.2)
    seen = steps_of(optimizer, parameter, [{0: 1.0}, {1: 2.0}, {0: 1.0}])
    expected = [[0.9, 1.0], [0.9, 1 - 0.16], [0.9 - 0.13, 0.84]]
    torch.testing.assert_close(torch.tensor(seen), torch.tensor(expected))
    assert optimizer.state[parameter]["momentum_buffer"].flatten().tolist() == pytest.approx([1.3, 1.6])


def test_sgd_decays_the_chosen_rows_alone():
    parameter = one_column(1.0, -2.0, 3.0)
    seen = steps_of(wk.optim.SGD([parameter], lr=0.1, weight_decay=0.5), parameter, [{1: 0.0}, {0: 1.0, 1: 0.0}])
    torch.testing.assert_close(torch.tensor(seen), torch.tensor([[1.0, -1.9, 3.0], [0.85, -1.805, 3.0]]))


def test_adamw_decays_the_chosen_rows_alone_and_counts_the_steps_of_the_parameter():
    """A first gradient moves a row by lr; row 1's comes at step 2, where the corrections are 1 - .5^2 and 1 - .75^2."""
    parameter = one_column(1.0, 1.0)
    optimizer = wk.optim.AdamW([parameter], lr=0.1, betas=(0.5, 0.75), eps=0.0, weight_decay=0.2)
    seen = steps_of(optimizer, parameter, [{0: 3.0}, {1: 2.0}])
    late = (0.5 * 2 / 0.75) / math.sqrt(0.25 * 4 / 0.4375)
    torch.testing.assert_close(torch.tensor(seen), torch.tensor([[0.98 - 0.1, 1.0], [0.88, 0.98 - 0.1 * late]]))


def test_adams_decay_is_part_of_the_gradient_of_the_chosen_rows():
    parameter = one_column(2.0, 5.0)
    optimizer = wk.optim.Adam([parameter], lr=0.1, betas=(0.5, 0.5), weight_decay=0.5, eps=0.0)
    assert steps_of(optimizer, parameter, [{0: 1.0}]) == [[pytest.approx(1.9), 5.0]]
    assert optimizer.state[parameter]["exp_avg"].flatten().tolist() == [1.0, 0.0]  # half of 1 + .5 * 2


# ---- gradients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows_first", [True, False])
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_a_dense_and_a_row_sparse_micro_batch_are_one_dense_gradient(name, rows_first):
    ours, stock = network(), network()
    optimizer, torchs = both(name, dict(lr=0.1, weight_decay=0.1), ours, stock)
    for model in (ours, stock):
        for seed, rows in enumerate((rows_first, not rows_first)):
            model[2].rows = wk.Rows(ROWS) if rows else None
            backward(model, seed)
    assert not ours[2].weight.grad.is_sparse
    torch.testing.assert_close(ours[2].weight.grad, stock[2].weight.grad)
    for _ in range(2):  # the second time with the same gradient again, as torch's
        optimizer.step()
        torchs.step()
        torch.testing.assert_close(ours[2].weight, stock[2].weight)


def test_rows_add_up_over_micro_batches():
    model, other = network(), network()
    optimizer = wk.optim.SGD(model.parameters(), lr=1.0)
    model[2].rows = wk.Rows([0, 1])
    backward(model, 0)
    model[2].rows = wk.Rows([1, 5])
    backward(model, 1)
    expected = torch.zeros(8, 36)
    other[2].rows = None
    for seed, rows in ((0, [0, 1]), (1, [1, 5])):
        other.zero_grad()
        backward(other, seed)
        expected[rows] += other[2].weight.grad[rows]
    start = model[2].weight.detach().clone()
    optimizer.step()
    torch.testing.assert_close(start - model[2].weight, expected)


CLEARING = {
    "optimizer.zero_grad()": lambda model, optimizer: optimizer.zero_grad(),
    "optimizer.zero_grad(False)": lambda model, optimizer: optimizer.zero_grad(set_to_none=False),
    "model.zero_grad()": lambda model, optimizer: model.zero_grad(),
    "model.zero_grad(False)": lambda model, optimizer: model.zero_grad(set_to_none=False),
    "part by part": lambda model, optimizer: [layer.zero_grad() for layer in model],
}


@pytest.mark.parametrize("clear", CLEARING)
@pytest.mark.parametrize("choice", [wk.Rows(ROWS), wk.TopK(k=2)], ids=["Rows", "TopK"])
def test_every_way_of_clearing_gradients_trains_as_without_them(clear, choice):
    trained = []
    for cleared in (CLEARING[clear], lambda model, _: [setattr(p, "grad", None) for p in model.parameters()]):
        model = network()
        model[2].rows = choice
        optimizer = wk.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for seed in range(3):
            backward(model, seed)
            assert model[2].weight.grad._nnz() == choice.count(8)
            optimizer.step()
            cleared(model, optimizer)
            assert not any(p.grad.to_dense().any() for p in model.parameters() if p.grad is not None)
        trained.append(model)
    assert_same(*trained)


def test_after_zeros_by_hand_a_step_moves_no_row():
    model = network()
    optimizer = wk.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    backward(model)
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    before = model[2].weight.detach().clone()
    optimizer.step()
    assert torch.equal(model[2].weight, before)


def test_a_skipped_weight_stays_where_it_is():
    model = network()
    optimizer = wk.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    backward(model)
    optimizer.step()
    optimizer.zero_grad()
    wk.set_skip(model, True)
    before = [p.detach().clone() for p in model.parameters()]
    backward(model, 1)
    optimizer.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert moved == [False, True] * 3
    assert optimizer.state[model[2].weight]["step"] == 1
