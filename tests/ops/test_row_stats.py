"""The op row_stats, on every backend that runs here."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from tests.accuracy import FEW, assert_as_right_as_stock, exact_channel_sums
from tests.cases import GRADIENTS, LONG_SUMS
from tests.conftest import backends_that_run, obstacle_to, on_backend
from tests.strategies import strided_gradients
from wuskern import ops
from wuskern.kernels import reference

pytestmark = pytest.mark.op("row_stats")
DTYPES = list(ops.DTYPES)


def exact_stats(dy: torch.Tensor, dim: int, score: str) -> tuple[torch.Tensor, torch.Tensor]:
    return exact_channel_sums(dy, dim), exact_channel_sums(dy, dim, torch.abs if score == "l1" else torch.square)


STATS = ops.row_stats, reference.row_stats, exact_stats


def check(dy: torch.Tensor, dim: int, score: str) -> None:
    """Both results; what a score adds up is never negative."""
    results = [stats(dy, dim, score) for stats in STATS]
    magnitudes = exact_channel_sums(dy, dim, torch.abs), results[2][1]
    for ours, stock, exact, most in zip(*results, magnitudes, strict=True):
        assert_as_right_as_stock(ours, stock, exact, most)


def test_hand_worked(backend):
    dy = torch.tensor([[1.0, -2, 3, 0], [-10, 20, -30, 0], [100, -200, 300, 0], [-1, 0, 1, 2]])
    bias, scores = ops.row_stats(dy, -1, "l1")
    assert (bias.tolist(), scores.tolist()) == ([90, -182, 274, 2], [112, 222, 334, 2])
    bias, scores = ops.row_stats(dy, 0, "l2")
    assert (bias.tolist(), scores.tolist()) == ([2, -20, 200, 2], [14, 1400, 140000, 6])
    bias, scores = ops.row_stats(dy.view(2, 2, 2, 2), 1)
    assert (bias.tolist(), scores.tolist()) == ([202, -18], [606, 64])


@pytest.mark.pairs
@pytest.mark.parametrize("score", ops.SCORES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", GRADIENTS, ids=str)
def test_cases(case, dtype, score, backend, device):
    if backend == "emulated" and case.name == "conv large plane":
        pytest.skip("smaller ones take the same way, in less time")
    check(case.make(dtype, device), case.dim, score)


@pytest.mark.pairs
@pytest.mark.parametrize("score", ops.SCORES)
@pytest.mark.parametrize("shape", LONG_SUMS, ids=str)
def test_long_sums_are_as_exact_as_stock(shape, score, backend):
    """Over so many outputs together that the largest error is no luck."""
    drawn = [torch.randn(shape) for _ in range(FEW // shape[1])]
    ours, stock, exact = (map(torch.cat, zip(*(stats(dy, 1, score) for dy in drawn), strict=True)) for stats in STATS)
    for results in zip(ours, stock, exact, strict=True):
        assert_as_right_as_stock(*results)


@pytest.mark.parametrize(("dtype", "expected"), [
    (torch.float64, torch.float64), (torch.float32, torch.float32), (torch.float16, torch.float32),
    (torch.bfloat16, torch.float32),
], ids=str)  # fmt: skip
def test_scores_are_wide(dtype, expected, backend):
    dy = torch.full((300, 4), 60000.0, dtype=dtype)
    dy[::2] *= -1  # the sum of magnitudes overflows float16, the bias gradient does not
    bias, scores = ops.row_stats(dy, -1, "l1")
    assert (bias.dtype, scores.dtype) == (dtype, expected)
    assert bias.tolist() == [0] * 4
    assert scores.tolist() == [300 * dy[1, 0].item()] * 4


@pytest.mark.pairs
@pytest.mark.parametrize("score", ops.SCORES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_not_finite_values_reach_both_results(value, score, backend):
    dy = torch.randn(40, 6, 5, 5)
    dy[3, 2, 1, 1] = value
    bias, scores = ops.row_stats(dy, 1, score)
    torch.testing.assert_close(bias[2], torch.tensor(value), equal_nan=True)
    torch.testing.assert_close(scores[2], torch.tensor(abs(value)), equal_nan=True)
    assert bias[[0, 1, 3, 4, 5]].isfinite().all()
    assert scores[[0, 1, 3, 4, 5]].isfinite().all()


@pytest.mark.pairs
@pytest.mark.parametrize("score", ops.SCORES)
@pytest.mark.parametrize(("shape", "dim"), [((3000, 333), -1), ((70, 40, 9, 9), 1), ((2, 5, 300, 301), 1), ((3000, 20), 1)])
def test_same_bits_whatever_the_number_of_threads(shape, dim, score, backend):
    if backend == "triton":
        pytest.skip("its interpreter asks nobody for a number of threads")
    dy = torch.randn(shape)
    before, first = torch.get_num_threads(), ops.row_stats(dy, dim, score)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert all(map(torch.equal, ops.row_stats(dy, dim, score), first))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("case", GRADIENTS, ids=str)
@pytest.mark.parametrize("name", ["native", "emulated"])
def test_the_compiled_bias_gradient_has_the_bits_of_bias_grad(case, name):
    if obstacle := obstacle_to("row_stats", name):
        pytest.skip(obstacle)
    for dtype in DTYPES:
        dy = case.make(dtype)
        with on_backend(name):
            assert torch.equal(ops.row_stats(dy, case.dim, "l2")[0], ops.bias_grad(dy, case.dim))


@settings(max_examples=30, deadline=None)
@given(strided_gradients(DTYPES), st.sampled_from(ops.SCORES))
def test_any_shape_and_strides(drawn, score):
    for name in backends_that_run("row_stats"):
        with on_backend(name):
            check(*drawn, score)


# ---- what PyTorch asks of an op --------------------------------------------------------------------------------------


@pytest.mark.pairs
@pytest.mark.parametrize(
    "case", [c for c in GRADIENTS if c.shape in ((5, 123), (0, 12), (4, 24, 9, 9), (3, 16, 5, 6))], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_opcheck(case, dtype, backend):
    torch.library.opcheck(torch.ops.wuskern.row_stats.default, (case.make(dtype), case.dim, "l1"))


def test_opcheck_of_the_compiled_op():
    if obstacle := obstacle_to("row_stats", "native"):
        pytest.skip(obstacle)
    for case in GRADIENTS:
        torch.library.opcheck(torch.ops.wuskern_native.row_stats.default, (case.make(torch.float32), case.dim, "l2"))


@pytest.mark.parametrize(("score", "products"), [("l1", 0), ("l2", 600)])
def test_flops(score, products):
    with FlopCounterMode(display=False) as counter:
        ops.row_stats(torch.randn(8, 3, 5, 5), 1, score)
    assert counter.get_total_flops() == 2 * 3 * (8 * 5 * 5 - 1) + products


def test_compiles_into_a_graph():
    compiled = torch.compile(lambda dy: ops.row_stats(dy * 2, 1), fullgraph=True, backend="aot_eager")
    dy = torch.randint(-4, 5, (4, 6, 5, 5)).float()
    torch.testing.assert_close(compiled(dy), (2 * dy.sum((0, 2, 3)), 2 * dy.abs().sum((0, 2, 3))))


def test_calls_lose_no_memory():
    """What converts the score's name must free it: 200 000 lost names would be 10 MB."""
    if obstacle := obstacle_to("row_stats", "native"):
        pytest.skip(obstacle)
    dy = torch.ones(1, 1)

    def pages_after(calls: int) -> int:
        for _ in range(calls):
            torch.ops.wuskern_native.row_stats(dy, 1, "l1")
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1])

    before = pages_after(1000)
    assert (pages_after(200_000) - before) * os.sysconf("SC_PAGE_SIZE") < 4e6


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool], ids=str)
def test_wrong_dtype(dtype):
    with pytest.raises(TypeError, match=f"dy: expected float64, float32, float16 or bfloat16, got {dtype}"):
        ops.row_stats(torch.zeros(3, 4, dtype=dtype), -1)


@pytest.mark.parametrize(("shape", "dim"), [((3, 4), 2), ((3, 4), -3), ((), 0)])
def test_wrong_dim(shape, dim):
    with pytest.raises(ValueError, match=f"dim: expected a dimension of dy, which has {len(shape)}, got {dim}"):
        ops.row_stats(torch.zeros(shape), dim)


def test_wrong_score():
    with pytest.raises(ValueError, match="score: expected one of l1, l2, got 'max'"):
        ops.row_stats(torch.zeros(3, 4), -1, "max")


def test_the_compiled_op_guards_its_memory():
    if obstacle := obstacle_to("row_stats", "native"):
        pytest.skip(obstacle)
    integers = torch.zeros(3, 4, dtype=torch.int32)
    for dy, dim, score in ((torch.zeros(3, 4), 2, "l1"), (torch.zeros(3, 4), -3, "l2"), (integers, 0, "l1")):
        with pytest.raises(RuntimeError, match=r"dim: expected|dy: expected"):
            torch.ops.wuskern_native.row_stats(dy, dim, score)
    with pytest.raises(RuntimeError, match="score: expected l1 or l2, got max"):
        torch.ops.wuskern_native.row_stats(torch.zeros(3, 4), 1, "max")
