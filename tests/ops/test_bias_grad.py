"""The op bias_grad, on every backend that runs here."""

import pytest
import torch
from hypothesis import given, settings
from torch.utils.flop_counter import FlopCounterMode

from tests.accuracy import FEW, assert_as_right_as_stock, exact_channel_sums
from tests.cases import GRADIENTS, LONG_SUMS
from tests.conftest import backends_that_run, on_backend
from tests.strategies import strided_gradients
from wuskern import ops
from wuskern.kernels import backends, reference

DTYPES = list(ops.DTYPES)


def check(dy: torch.Tensor, dim: int) -> None:
    exact, magnitudes = exact_channel_sums(dy, dim), exact_channel_sums(dy, dim, torch.abs)
    assert_as_right_as_stock(ops.bias_grad(dy, dim), reference.bias_grad(dy, dim), exact, magnitudes)


def test_hand_worked(backend):
    dy = torch.tensor([[1.0, 2, 3, 4], [10, 20, 30, 40], [100, 200, 300, 400], [-1, 0, 1, 2]])
    assert ops.bias_grad(dy, -1).tolist() == [110, 222, 334, 446]
    assert ops.bias_grad(dy, 0).tolist() == [10, 100, 1000, 2]
    assert ops.bias_grad(dy.view(2, 2, 2, 2), 1).tolist() == [1010, 102]


@pytest.mark.pairs
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", GRADIENTS, ids=str)
def test_cases(case, dtype, backend, device):
    if backend == "emulated" and case.name == "conv large plane":
        pytest.skip("smaller ones take the same way, in less time")
    check(case.make(dtype, device), case.dim)


@pytest.mark.pairs
@pytest.mark.parametrize("shape", LONG_SUMS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_long_sums_are_as_exact_as_stock(shape, dtype, backend):
    """Over so many outputs together that the largest error is no luck."""
    drawn = [torch.randn(shape).to(dtype) for _ in range(FEW // shape[1])]
    results = [(ops.bias_grad(dy, 1), reference.bias_grad(dy, 1), exact_channel_sums(dy, 1)) for dy in drawn]
    assert_as_right_as_stock(*(torch.cat(vectors) for vectors in zip(*results, strict=True)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_not_finite_values_reach_the_result(value, backend):
    dy = torch.randn(40, 6, 5, 5)
    dy[3, 2, 1, 1] = value
    db = ops.bias_grad(dy, 1)
    torch.testing.assert_close(db[2], torch.tensor(value), equal_nan=True)
    assert db[[0, 1, 3, 4, 5]].isfinite().all()


def test_same_bits_whatever_the_number_of_threads(backend):
    if backend == "triton":
        pytest.skip("its interpreter asks nobody for a number of threads")
    dy = torch.randn(3000, 333)
    before, first = torch.get_num_threads(), ops.bias_grad(dy, -1)
    try:
        torch.set_num_threads(1)
        assert torch.equal(ops.bias_grad(dy, -1), first)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(ops.bias_grad(dy, -1), first)


@settings(max_examples=30, deadline=None)
@given(strided_gradients(DTYPES))
def test_any_shape_and_strides(drawn):
    for name in backends_that_run("bias_grad"):
        with on_backend(name):
            check(*drawn)


# ---- what PyTorch asks of an op --------------------------------------------------------------------------------------


@pytest.mark.pairs
@pytest.mark.parametrize(
    "case", [c for c in GRADIENTS if c.shape in ((5, 123), (0, 12), (4, 24, 9, 9), (3, 16, 5, 6))], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_opcheck(case, dtype, backend):
    torch.library.opcheck(torch.ops.wuskern.bias_grad.default, (case.make(dtype), case.dim))


def test_opcheck_of_the_compiled_op():
    if obstacle := backends.library_obstacle("cpu"):
        pytest.skip(obstacle)
    for case in GRADIENTS:
        torch.library.opcheck(torch.ops.wuskern_native.bias_grad.default, (case.make(torch.float32), case.dim))


def test_flops():
    with FlopCounterMode(display=False) as counter:
        ops.bias_grad(torch.randn(8, 3, 5, 5), 1)
    assert counter.get_total_flops() == 3 * (8 * 5 * 5 - 1)


def test_compiles_into_a_graph():
    compiled = torch.compile(lambda dy: ops.bias_grad(dy * 2, 1), fullgraph=True, backend="aot_eager")
    dy = torch.randint(-4, 5, (4, 6, 5, 5)).float()
    torch.testing.assert_close(compiled(dy), 2 * dy.sum((0, 2, 3)))


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool], ids=str)
def test_wrong_dtype(dtype):
    with pytest.raises(TypeError, match=f"dy: expected float64, float32, float16 or bfloat16, got {dtype}"):
        ops.bias_grad(torch.zeros(3, 4, dtype=dtype), -1)


@pytest.mark.parametrize(("shape", "dim"), [((3, 4), 2), ((3, 4), -3), ((), 0)])
def test_wrong_dim(shape, dim):
    with pytest.raises(ValueError, match=f"dim: expected a dimension of dy, which has {len(shape)}, got {dim}"):
        ops.bias_grad(torch.zeros(shape), dim)


def test_the_compiled_op_guards_its_memory():
    if obstacle := backends.library_obstacle("cpu"):
        pytest.skip(obstacle)
    for dy, dim in ((torch.zeros(3, 4), 2), (torch.zeros(3, 4), -3), (torch.zeros(3, 4, dtype=torch.int32), 0)):
        with pytest.raises(RuntimeError, match=r"dim: expected|dy: expected"):
            torch.ops.wuskern_native.bias_grad(dy, dim)
