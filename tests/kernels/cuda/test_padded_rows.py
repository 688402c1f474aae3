"""The rows of a Linear's dy that gather_rows has padded, by every way: read where they lie, whatever lies between them.

A slice of a larger gradient has the same strides, and between its rows what is no zero: so here NaN lies there.
"""

import pytest
import torch
from torch import Tensor

from tests import emulation
from tests.rowsparse import assert_exact, integers, some_rows
from wuskern.common.shapes import ROW_UNIT, gathered_like, with_padding
from wuskern.kernels import backends, reference
from wuskern.kernels.cuda import library

pytestmark = pytest.mark.usefixtures("one_thread")
EVERY_TAIL = [1, 7, 8, 9, 15, 16, 17, 24, 31, 33, 47, 100, 130]


@pytest.fixture
def emulated():
    if obstacle := emulation.obstacle():
        pytest.skip(obstacle)
    yield
    emulation.configure()


def padded(dy: Tensor, rows: Tensor) -> Tensor:
    """The chosen rows in the memory that gather_rows gives them, with NaN behind those of each token."""
    out, whole = gathered_like(dy, len(rows), -1, True)
    whole.fill_(torch.nan)
    return out.copy_(dy[..., rows])


def problem(k: int, dtype: torch.dtype, *leading: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n = k + 5
    return (
        integers(*leading, n, dtype=dtype),
        integers(*leading, 24, dtype=dtype),
        integers(n, 24, dtype=dtype),
        some_rows(n, k),
    )


def check(wgrad, dgrad, k: int, dtype: torch.dtype, *leading: int) -> None:
    dy, x, weight, rows = problem(k, dtype, *leading)
    chosen, exact = padded(dy, rows), dy.double()[..., rows]
    assert_exact(wgrad(chosen, x, rows), exact.flatten(0, -2).t() @ x.double().flatten(0, -2))
    assert_exact(dgrad(chosen, weight, rows), exact @ weight.double()[rows])


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("k", EVERY_TAIL)
def test_the_cuda_kernels_copy_nothing(k, capability, emulated):
    emulation.configure(capability=capability)
    products = emulation.op("rowsparse_wgrad"), emulation.op("rowsparse_dgrad")
    with emulation.traced() as trace:
        check(*products, k, torch.bfloat16, 150)
        check(*products, k, torch.float16, 3, 50)
        check(*products, k, torch.float32, 70)
    assert "copy_channels" not in trace.kernels
    assert "wgrad" in trace.kernels


def test_rows_that_are_not_padded_are_copied(emulated):
    dy, x, _, rows = problem(9, torch.bfloat16, 50)
    with emulation.traced() as trace:
        emulation.op("rowsparse_wgrad")(dy[:, rows], x, rows)
    assert trace.kernels[0] == "copy_channels"


@pytest.mark.parametrize("k", EVERY_TAIL)
def test_triton(k):
    if obstacle := backends.triton_obstacle("cpu"):
        pytest.skip(obstacle)
    runs = [backends._BACKENDS["triton"](f"rowsparse_{part}", "cpu") for part in ("wgrad", "dgrad")]
    for dtype in (torch.float16, torch.float32):
        check(*runs, k, dtype, 5, 30)


@pytest.mark.parametrize("k", EVERY_TAIL)
def test_the_library(k):
    runs = [library.runner(f"rowsparse_{part}", reference.gather_rows) for part in ("wgrad", "dgrad")]
    check(*runs, k, torch.float32, 5, 30)


def test_what_is_read_between_the_rows_is_there():
    """Not behind the last token of a slice that ends with its tensor; nor in rows that lie further apart."""
    memory = torch.zeros(5 * ROW_UNIT)
    assert with_padding(memory.view(5, ROW_UNIT)[:, :9]).shape == (5, ROW_UNIT)
    assert with_padding(memory.view(5, ROW_UNIT)[:, 7:]).shape == (5, 9)
    for apart in (
        torch.zeros(4, 2 * ROW_UNIT)[:, :9],
        torch.zeros(4, 11)[:, :9],
        torch.zeros(9, ROW_UNIT).t(),
        torch.zeros(4, 9),
    ):
        assert with_padding(apart) is apart


@pytest.mark.parametrize("k", [1, 15, 16, 17])
def test_memory_for_rows(k):
    dy = torch.zeros(2, 3, 40)
    out, whole = gathered_like(dy, k, -1, True)
    assert out.shape == (2, 3, k)
    assert out.data_ptr() == whole.data_ptr()
    assert out.stride() == whole.stride() == (3 * whole.shape[-1], whole.shape[-1], 1)
    assert whole.shape[-1] == {1: 16, 15: 16, 16: 16, 17: 32}[k]
    assert gathered_like(dy, k, -1, False)[0].is_contiguous()
    assert gathered_like(dy, 2, 1, True)[0].shape == (2, 2, 40)
