"""The dense form of a gradient on a GPU: its rows and the zeros around them in one launch, on the emulation."""

import pytest
import torch

from tests import emulation
from tests.rowsparse import some_rows
from wuskern import ops
from wuskern.delivery import dense_grad
from wuskern.sparse_grad import RowGrad


@pytest.fixture(autouse=True)
def _emulation():
    if obstacle := emulation.obstacle():
        pytest.skip(obstacle)
    yield
    emulation.configure()


def spread(target: torch.Tensor, rows: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    emulation.op("spread_rows")(target, rows, values)
    return target


@pytest.mark.parametrize("dtype", ops.DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 1), (9, 5), (40, 8), (7, 3000), (300, 24), (12,), (6, 4, 3, 3), (5, 3, 1, 2), (3, 0)], ids=str
)
def test_it_is_zeros_and_an_index_copy(shape, dtype):
    for k in {0, 1, shape[0] // 2, shape[0]}:
        rows, values = some_rows(shape[0], k), torch.randn(k, *shape[1:]).to(dtype)
        for like in (torch.contiguous_format, *([torch.channels_last] if len(shape) == 4 else [])):
            target = torch.full(shape, torch.nan, dtype=dtype).contiguous(memory_format=like)
            exact = torch.zeros(shape, dtype=dtype).index_copy_(0, rows, values)
            assert torch.equal(spread(target, rows, values), exact)


def test_memory_that_is_not_aligned():
    target, values = torch.full((4 * 8 + 1,), torch.nan)[1:].view(4, 8), torch.randn(2 * 8 + 1)[1:].view(2, 8)
    exact = torch.zeros(4, 8).index_copy_(0, torch.tensor([1, 3]), values)
    assert torch.equal(spread(target, torch.tensor([1, 3]), values), exact)


def test_a_row_out_of_range_writes_nothing_beside_the_target():
    assert not spread(torch.full((3, 4), torch.nan), torch.tensor([-1, 7]), torch.ones(2, 4)).any()


def test_a_dense_gradient_is_one_launch(monkeypatch):
    monkeypatch.setattr(dense_grad, "_native_spreads", lambda *_: True)
    weight, rows, values = torch.randn(40, 24, dtype=torch.bfloat16), some_rows(40, 5), torch.randn(5, 24)
    with emulation.emulated(), emulation.traced() as trace:
        found = dense_grad.dense_grad(weight, RowGrad(rows, values))
    assert trace.kernels == ["spread"]
    assert torch.equal(found, torch.zeros_like(weight).index_copy_(0, rows, values.bfloat16()))


@pytest.mark.parametrize(
    ("target", "rows", "values"),
    [
        (torch.zeros(4, 3), torch.tensor([0]), torch.zeros(2, 3)),
        (torch.zeros(4, 3), torch.tensor([0.0]), torch.zeros(1, 3)),
        (torch.zeros(4, 3), torch.tensor([0]), torch.zeros(1, 3).double()),
        (torch.zeros(3, 4).t(), torch.tensor([0]), torch.zeros(1, 3)),
    ],
)
def test_what_does_not_fit_is_refused(target, rows, values):
    with pytest.raises(RuntimeError, match="expected"):
        spread(target, rows, values)
