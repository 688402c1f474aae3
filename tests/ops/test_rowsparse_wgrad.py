"""The ops rowsparse_wgrad and rowsparse_wgrad_conv2d, on every backend that runs here."""

import re

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from tests import emulation
from tests.accuracy import assert_as_right_as_stock
from tests.cases import LAYOUTS, MEMORY_FORMATS, Conv
from tests.rowsparse import (
    DTYPES,
    LARGER,
    LIBRARY_ROUNDS,
    LINEARS,
    LONG_SUMS,
    NUMERIC,
    assert_exact,
    conv_tensors,
    integers,
    kernel_of,
    library_rounds,
    linear_wgrad_answers,
    need_library,
    some_rows,
    stock_wgrad,
    wgrad_answers,
)
from wuskern import ops
from wuskern.kernels import backends
from wuskern.kernels.cpu import conv2d, paths

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def linear(backend, request):
    with kernel_of("rowsparse_wgrad", backend, request):
        yield


@pytest.fixture
def conv(backend, request):
    with kernel_of("rowsparse_wgrad_conv2d", backend, request):
        yield


def run_conv(t, dy=None, x=None):
    return ops.rowsparse_wgrad_conv2d(
        t.dy if dy is None else dy, t.x if x is None else x, t.rows, t.weight.shape[2:], *t.geometry
    )


# ---- Linear -----------------------------------------------------------------------------------------------------------


def test_hand_worked_linear(linear):
    dy = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])
    x = torch.tensor([[1.0, 10], [100, 1000]])
    assert ops.rowsparse_wgrad(dy, x, torch.tensor([0, 2])).tolist() == [[501, 5010], [703, 7030]]


@pytest.mark.pairs
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "n", "inputs"), LINEARS)
def test_linear_cases(tokens, n, inputs, dtype, linear):
    dy, x = integers(tokens, n, dtype=dtype), integers(tokens, inputs, dtype=dtype)
    for k in {1, max(1, n // 3), n}:
        rows = some_rows(n, k)
        for given_dy in (dy, dy[:, rows]):
            dw = ops.rowsparse_wgrad(given_dy, x, rows)
            assert dw.is_contiguous()
            assert_exact(dw, (dy.double().t() @ x.double())[rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [100, 512, 3000])
def test_a_linear_is_as_exact_as_stock(tokens, dtype, linear):
    dy, x, rows = torch.randn(tokens, 90).to(dtype), torch.randn(tokens, 80).to(dtype), some_rows(90, 30)
    assert_as_right_as_stock(ops.rowsparse_wgrad(dy, x, rows), *linear_wgrad_answers(dy, x, rows))


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded", "unaligned"])
def test_linear_layouts(layout, linear):
    dy, x, rows = LAYOUTS[layout](integers(70, 40)), LAYOUTS[layout](integers(70, 30)), some_rows(40, 9)
    assert_exact(ops.rowsparse_wgrad(dy, x, rows), (dy.double().t() @ x.double())[rows])


@pytest.mark.parametrize("lead", [(), (2, 3, 4)])
def test_any_leading_dimensions(lead, linear):
    dy, x, rows = torch.randn(*lead, 6), torch.randn(*lead, 5), torch.tensor([1, 4])
    expected = dy.reshape(-1, 6).t()[rows] @ x.reshape(-1, 5)
    torch.testing.assert_close(ops.rowsparse_wgrad(dy, x, rows), expected)


@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul:RuntimeWarning")  # of Triton's interpreter
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_values_reach_their_row_of_a_linear(value, linear):
    dy, x = torch.randn(30, 12), torch.rand(30, 7) + 1
    dy[3, 5] = value
    dw = ops.rowsparse_wgrad(dy, x, torch.tensor([2, 5, 7]))
    torch.testing.assert_close(dw[1], torch.full((7,), value), equal_nan=True)
    assert dw[[0, 2]].isfinite().all()


# ---- Conv2d -----------------------------------------------------------------------------------------------------------


def test_hand_worked_conv(conv):
    x = torch.arange(9.0).view(1, 1, 3, 3)
    dy = torch.tensor([[1.0, 0], [0, 10]]).expand(1, 2, 2, 2) * torch.tensor([1.0, 100]).view(1, 2, 1, 1)
    dw = ops.rowsparse_wgrad_conv2d(dy, x, torch.tensor([1]), (2, 2), (1, 1), (0, 0), (1, 1), 1)
    assert dw.tolist() == [[[[4000, 5100], [7300, 8400]]]]  # x[i, j] + 10 x[i + 1, j + 1], times 100


@pytest.mark.pairs
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", MEMORY_FORMATS)
@pytest.mark.parametrize("case", NUMERIC, ids=str)
def test_conv_cases(case, layout, dtype, conv):
    t = conv_tensors(case, dtype, layout)
    for dy in (t.dy, t.gathered()):
        dw = run_conv(t, dy)
        assert dw.is_contiguous()
        assert_exact(dw, stock_wgrad(t.double()))


@pytest.mark.parametrize("layout", MEMORY_FORMATS)
def test_all_rows_are_the_dense_gradient(layout, conv):
    t = conv_tensors(NUMERIC[0], torch.float32, layout, k=NUMERIC[0].out)
    assert_exact(run_conv(t), stock_wgrad(t.double()))


@pytest.mark.parametrize("layout", ["transposed", "sliced", "permuted", "expanded", "unaligned"])
def test_conv_layouts(layout, conv):
    t = conv_tensors(Conv("", 3, 4, 6, (7, 9), 3, padding=1), torch.float32, "NCHW")
    dy, x = LAYOUTS[layout](t.dy), LAYOUTS[layout](t.x)
    same = type(t)(dy.contiguous(), x.contiguous(), t.weight, t.rows, *t.geometry)
    assert_exact(run_conv(t, dy, x), stock_wgrad(same.double()))


@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul:RuntimeWarning")  # of Triton's interpreter
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_values_reach_their_row_of_a_conv(value, conv):
    t = conv_tensors(NUMERIC[0], torch.float32, "NCHW")
    t.x.abs_().add_(1)
    t.dy[1, t.rows[1], 4, 4] = value
    dw = run_conv(t)
    torch.testing.assert_close(dw[1], torch.full_like(dw[1], value), equal_nan=True)
    assert dw[0].isfinite().all()


def test_same_bits_twice(conv):
    t = conv_tensors(LARGER[1], torch.float32, "NCHW")
    assert torch.equal(run_conv(t), run_conv(t))


# ---- the CPU's paths --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", MEMORY_FORMATS)
@pytest.mark.parametrize("path", conv2d.WGRAD)
def test_every_path(path, layout, dtype):
    need_library()
    if path in ("library", "channels_last") and library_rounds(dtype):
        pytest.skip(LIBRARY_ROUNDS)
    took = 0
    for case in (c for c in NUMERIC + LARGER if c.batch):
        for k in {case.groups, case.out}:
            t = conv_tensors(case, dtype, layout, k)
            problem = t.wgrad_problem
            if path in paths.conv2d_wgrad_paths(problem):
                dw = conv2d.WGRAD[path](t.gathered(), t.x.contiguous(memory_format=problem.memory_format), problem)
                assert_exact(dw, stock_wgrad(t.double()))
                took += 1
    never = {("direct", torch.bfloat16), ("unfold", torch.float32), ("channels_last", "NHWC"), ("channels_last", torch.float32)}
    never |= {("groups", torch.bfloat16), ("groups", "NHWC")}
    assert took > (2 if path == "groups" else 10) or {(path, dtype), (path, layout)} & never


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", MEMORY_FORMATS)
@pytest.mark.parametrize("case", LONG_SUMS, ids=str)
def test_every_path_is_as_exact_as_stock(case, layout, dtype):
    need_library()
    t = conv_tensors(case, dtype, layout, make=torch.randn)
    problem = t.wgrad_problem
    for path in paths.conv2d_wgrad_paths(problem):
        dw = conv2d.WGRAD[path](t.gathered(), t.x.contiguous(memory_format=problem.memory_format), problem)
        assert torch.equal(
            conv2d.WGRAD[path](t.gathered(), t.x.contiguous(memory_format=problem.memory_format), problem), dw
        ), path
        assert_as_right_as_stock(dw, *wgrad_answers(t))


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_any_geometry(data):
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    size = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    kernel, stride, dilation = data.draw(pair), data.draw(pair), data.draw(pair)
    padding = data.draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    assume(all(n + 2 * p >= d * (k - 1) + 1 for n, p, d, k in zip(size, padding, dilation, kernel, strict=True)))
    groups = data.draw(st.integers(1, 3))
    channels, each = groups * data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    k = groups * data.draw(st.integers(1, each))
    case = Conv("", data.draw(st.integers(0, 4)), channels, groups * each, size, kernel, stride, padding, dilation, groups)
    dtype = data.draw(st.sampled_from([dtype for dtype in DTYPES if not library_rounds(dtype)]))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    t = conv_tensors(case, dtype, data.draw(st.sampled_from(list(MEMORY_FORMATS))), k)
    for name in ("native", "reference"):
        if name == "reference" or backends.library_obstacle("cpu") is None:
            with backends.backend(name):
                exact = stock_wgrad(t.double())
                assert_exact(run_conv(t), exact)


# ---- what PyTorch asks of an op --------------------------------------------------------------------------------------


def test_opcheck(linear):
    for tokens in (0, 5):
        arguments = torch.randn(tokens, 12), torch.randn(tokens, 7), torch.tensor([2, 3, 11])
        torch.library.opcheck(torch.ops.wuskern.rowsparse_wgrad.default, arguments)


@pytest.mark.pairs
@pytest.mark.parametrize("layout", MEMORY_FORMATS)
@pytest.mark.parametrize("case", [c for c in NUMERIC if c.name in ("3x3", "3x3 stride 2", "groups", "empty batch")], ids=str)
def test_opcheck_conv(case, layout, conv):
    t = conv_tensors(case, torch.float32, layout)
    op = torch.ops.wuskern.rowsparse_wgrad_conv2d.default
    torch.library.opcheck(op, (t.dy, t.x, t.rows, list(t.weight.shape[2:]), *map(list, t.geometry[:3]), t.groups))


def test_flops(linear):
    with FlopCounterMode(display=False) as counter:
        ops.rowsparse_wgrad(torch.randn(6, 10), torch.randn(6, 7), torch.tensor([1, 4, 9]))
    assert counter.get_total_flops() == 2 * 6 * 3 * 7


def test_flops_conv(conv):
    t = conv_tensors(Conv("", 2, 4, 6, 5, 3, padding=1), torch.float32, "NCHW", k=2)
    with FlopCounterMode(display=False) as counter:
        run_conv(t)
    assert counter.get_total_flops() == 2 * (2 * 5 * 5) * 2 * (4 * 3 * 3)


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dy", "x", "rows", "error", "message"),
    [
        (torch.zeros(3, 4).int(), torch.zeros(3, 5), torch.tensor([0]), TypeError, "dy: expected float64"),
        (torch.zeros(3, 4), torch.zeros(3, 5).half(), torch.tensor([0]), TypeError, "x: expected torch.float32"),
        (torch.zeros(3, 4), torch.zeros(2, 5), torch.tensor([0]), ValueError, "x: expected [3, 'K'], got [2, 5]"),
        (torch.zeros(3, 4), torch.zeros(3, 5), torch.tensor([0.0]), TypeError, "rows: expected int64"),
        (torch.zeros(3, 4), torch.zeros(3, 5), torch.tensor([[0]]), ValueError, "rows: expected one dimension"),
        (torch.zeros(3, 2), torch.zeros(3, 5), torch.tensor([0, 1, 2]), ValueError, "rows: expected at most 2"),
    ],
)
def test_wrong_arguments_of_a_linear(dy, x, rows, error, message):
    with pytest.raises(error, match=re.escape(message)):
        ops.rowsparse_wgrad(dy, x, rows)


@pytest.mark.parametrize(
    ("dy", "x", "k", "groups", "message"),
    [
        ((2, 6, 5, 5), (2, 4, 7), 3, 1, "x: expected"),
        ((2, 6, 5), (2, 4, 7, 7), 3, 1, "dy: expected four dimensions"),
        ((2, 6, 4, 5), (2, 4, 7, 7), 3, 1, "dy: expected ['B', 'N', 5, 5]"),
        ((2, 6, 5, 5), (2, 4, 7, 7), 3, 2, "groups: expected a divisor of 3 rows"),
        ((2, 6, 5, 5), (2, 4, 7, 7), 7, 1, "rows: expected at most 6"),
    ],
)
def test_wrong_arguments_of_a_conv(dy, x, k, groups, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ops.rowsparse_wgrad_conv2d(torch.zeros(dy), torch.zeros(x), torch.arange(k), (3, 3), (1, 1), (0, 0), (1, 1), groups)


def test_rows_out_of_range(linear, backend):
    if backend == emulation.NAME:
        pytest.skip("undefined on a GPU")
    with pytest.raises((IndexError, RuntimeError, ValueError)):
        ops.rowsparse_wgrad(torch.zeros(3, 9), torch.zeros(3, 5), torch.tensor([2, 9]))
