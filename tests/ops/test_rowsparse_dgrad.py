"""The ops rowsparse_dgrad and rowsparse_dgrad_conv2d, on every backend that runs here."""

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
    dgrad_answers,
    integers,
    kernel_of,
    library_rounds,
    need_library,
    some_rows,
    stock_dgrad,
)
from wuskern import ops
from wuskern.common.shapes import memory_format
from wuskern.kernels import backends
from wuskern.kernels.cpu import conv2d, paths

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def linear(backend, request):
    with kernel_of("rowsparse_dgrad", backend, request):
        yield


@pytest.fixture
def conv(backend, request):
    with kernel_of("rowsparse_dgrad_conv2d", backend, request):
        yield


def run_conv(t, dy=None):
    return ops.rowsparse_dgrad_conv2d(t.dy if dy is None else dy, t.weight, t.rows, t.x.shape[2:], *t.geometry)


# ---- Linear -----------------------------------------------------------------------------------------------------------


def test_hand_worked_linear(linear):
    dy = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])
    weight = torch.tensor([[1.0, 10], [0, 0], [100, 1000], [0, 0]])
    assert ops.rowsparse_dgrad(dy, weight, torch.tensor([0, 2])).tolist() == [[301, 3010], [705, 7050]]


@pytest.mark.pairs
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "n", "inputs"), LINEARS)
def test_linear_cases(tokens, n, inputs, dtype, linear):
    dy, weight = integers(tokens, n, dtype=dtype), integers(n, inputs, dtype=dtype)
    for k in {1, max(1, n // 3), n}:
        rows = some_rows(n, k)
        for given_dy in (dy, dy[:, rows]):
            dx = ops.rowsparse_dgrad(given_dy, weight, rows)
            assert dx.is_contiguous()
            assert_exact(dx, dy.double()[:, rows] @ weight.double()[rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("k", [30, 400, 1000])
def test_a_linear_is_as_exact_as_stock(k, dtype, linear):
    dy, weight, rows = torch.randn(90, 1200).to(dtype), torch.randn(1200, 80).to(dtype), some_rows(1200, k)
    stock, exact = dy[:, rows] @ weight[rows], dy.double()[:, rows] @ weight.double()[rows]
    assert_as_right_as_stock(ops.rowsparse_dgrad(dy, weight, rows), stock, exact)


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded", "unaligned"])
def test_linear_layouts(layout, linear):
    dy, weight, rows = LAYOUTS[layout](integers(70, 40)), LAYOUTS[layout](integers(40, 30)), some_rows(40, 9)
    assert_exact(ops.rowsparse_dgrad(dy, weight, rows), dy.double()[:, rows] @ weight.double()[rows])


@pytest.mark.parametrize("lead", [(), (2, 3, 4)])
def test_any_leading_dimensions(lead, linear):
    dy, weight, rows = torch.randn(*lead, 6), torch.randn(6, 5), torch.tensor([1, 4])
    torch.testing.assert_close(ops.rowsparse_dgrad(dy, weight, rows), dy[..., rows] @ weight[rows])


@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul:RuntimeWarning")  # of Triton's interpreter
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_values_reach_their_token(value, linear):
    dy, weight = torch.randn(30, 12), torch.rand(12, 7) + 1
    dy[3, 5] = value
    dy[4, 6] = value  # of a row that is not chosen
    dx = ops.rowsparse_dgrad(dy, weight, torch.tensor([2, 5, 7]))
    torch.testing.assert_close(dx[3], torch.full((7,), value), equal_nan=True)
    assert dx[[0, 4, 29]].isfinite().all()


# ---- Conv2d -----------------------------------------------------------------------------------------------------------


def test_hand_worked_conv(conv):
    weight = torch.tensor([[0.0, 0, 0, 0], [1, 2, 3, 4]]).view(2, 1, 2, 2)
    dy = torch.tensor([[1.0, 0], [0, 10]]).expand(1, 2, 2, 2)
    dx = ops.rowsparse_dgrad_conv2d(dy, weight, torch.tensor([1]), (3, 3), (1, 1), (0, 0), (1, 1), 1)
    assert dx.tolist() == [[[[1, 2, 0], [3, 14, 20], [0, 30, 40]]]]


@pytest.mark.pairs
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", MEMORY_FORMATS)
@pytest.mark.parametrize("case", NUMERIC, ids=str)
def test_conv_cases(case, layout, dtype, conv):
    t = conv_tensors(case, dtype, layout)
    for dy in (t.dy, t.gathered()):
        dx = run_conv(t, dy)
        assert dx.is_contiguous(memory_format=memory_format(dy))
        assert_exact(dx, stock_dgrad(t.double()))


@pytest.mark.parametrize("layout", MEMORY_FORMATS)
def test_one_row_keeps_the_memory_format_of_dy(layout, conv):
    t = conv_tensors(NUMERIC[0], torch.float32, layout, k=1)
    assert run_conv(t).is_contiguous(memory_format=MEMORY_FORMATS[layout])


@pytest.mark.parametrize("layout", ["transposed", "sliced", "permuted", "expanded", "unaligned"])
def test_conv_layouts(layout, conv):
    t = conv_tensors(Conv("", 3, 4, 6, (7, 9), 3, padding=1), torch.float32, "NCHW")
    dy = LAYOUTS[layout](t.dy)
    same = type(t)(dy.contiguous(), t.x, t.weight, t.rows, *t.geometry)
    weight = LAYOUTS["sliced"](t.weight)
    dx = ops.rowsparse_dgrad_conv2d(dy, weight, t.rows, t.x.shape[2:], *t.geometry)
    assert_exact(dx, stock_dgrad(same.double()))


@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul:RuntimeWarning")  # of Triton's interpreter
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_values_reach_the_pixels_around(value, conv):
    t = conv_tensors(NUMERIC[0], torch.float32, "NCHW")
    t.weight.abs_().add_(1)
    t.dy[1, t.rows[1], 4, 4] = value
    dx = run_conv(t)
    torch.testing.assert_close(dx[1, :, 3:6, 3:6], torch.full_like(dx[1, :, 3:6, 3:6], value), equal_nan=True)
    assert dx[0].isfinite().all()
    assert dx[1, :, :3].isfinite().all()


def test_same_bits_twice(conv):
    t = conv_tensors(LARGER[1], torch.float32, "NCHW")
    assert torch.equal(run_conv(t), run_conv(t))


# ---- the CPU's paths --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", MEMORY_FORMATS)
@pytest.mark.parametrize("path", conv2d.DGRAD)
def test_every_path(path, layout, dtype):
    need_library()
    if path in ("library", "channels_last") and library_rounds(dtype):
        pytest.skip(LIBRARY_ROUNDS)
    took = 0
    for case in (c for c in NUMERIC + LARGER if c.batch):
        for k in {case.groups, case.out}:
            t = conv_tensors(case, dtype, layout, k)
            problem = t.dgrad_problem
            if path in paths.conv2d_dgrad_paths(problem):
                dx = conv2d.DGRAD[path](t.gathered(), t.weight[t.rows], problem)
                assert dx.is_contiguous(memory_format=problem.memory_format)
                assert_exact(dx, stock_dgrad(t.double()))
                took += 1
    never = {("direct", torch.bfloat16), ("images", torch.float32), ("images", "NHWC"), ("channels_last", "NHWC")}
    never |= {("unfold", torch.float32)} if layout == "NCHW" else set()
    assert took > 10 or {(path, dtype), (path, layout)} & never


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", MEMORY_FORMATS)
@pytest.mark.parametrize("case", LONG_SUMS, ids=str)
def test_every_path_is_as_exact_as_stock(case, layout, dtype):
    need_library()
    t = conv_tensors(case, dtype, layout, make=torch.randn)
    problem = t.dgrad_problem
    for path in paths.conv2d_dgrad_paths(problem):
        dx = conv2d.DGRAD[path](t.gathered(), t.weight[t.rows], problem)
        assert torch.equal(conv2d.DGRAD[path](t.gathered(), t.weight[t.rows], problem), dx), path
        assert_as_right_as_stock(dx, *dgrad_answers(t))


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
                assert_exact(run_conv(t), stock_dgrad(t.double()))


# ---- what PyTorch asks of an op --------------------------------------------------------------------------------------


def test_opcheck(linear):
    for tokens in (0, 5):
        arguments = torch.randn(tokens, 12), torch.randn(12, 7), torch.tensor([2, 3, 11])
        torch.library.opcheck(torch.ops.wuskern.rowsparse_dgrad.default, arguments)


@pytest.mark.pairs
@pytest.mark.parametrize("layout", MEMORY_FORMATS)
@pytest.mark.parametrize("case", [c for c in NUMERIC if c.name in ("3x3", "3x3 stride 2", "groups", "empty batch")], ids=str)
def test_opcheck_conv(case, layout, conv):
    t = conv_tensors(case, torch.float32, layout)
    op = torch.ops.wuskern.rowsparse_dgrad_conv2d.default
    torch.library.opcheck(op, (t.dy, t.weight, t.rows, list(t.x.shape[2:]), *map(list, t.geometry[:3]), t.groups))


def test_flops(linear):
    with FlopCounterMode(display=False) as counter:
        ops.rowsparse_dgrad(torch.randn(6, 10), torch.randn(10, 7), torch.tensor([1, 4, 9]))
    assert counter.get_total_flops() == 2 * 6 * 3 * 7


def test_flops_conv(conv):
    t = conv_tensors(Conv("", 2, 4, 6, 5, 3, padding=1), torch.float32, "NCHW", k=2)
    with FlopCounterMode(display=False) as counter:
        run_conv(t)
    assert counter.get_total_flops() == 2 * (2 * 5 * 5) * 2 * (4 * 3 * 3)


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dy", "weight", "rows", "error", "message"),
    [
        (torch.zeros(3, 4).int(), torch.zeros(4, 5), torch.tensor([0]), TypeError, "dy: expected float64"),
        (torch.zeros(3, 4), torch.zeros(4, 5).half(), torch.tensor([0]), TypeError, "weight: expected torch.float32"),
        (torch.zeros(3, 4), torch.zeros(4), torch.tensor([0]), ValueError, "weight: expected two dimensions, got 1"),
        (torch.zeros(3, 3), torch.zeros(4, 5), torch.tensor([0]), ValueError, "dy: expected 4 units as weight has"),
        (torch.zeros(3, 4), torch.zeros(4, 5), torch.tensor([0.0]), TypeError, "rows: expected int64"),
    ],
)
def test_wrong_arguments_of_a_linear(dy, weight, rows, error, message):
    with pytest.raises(error, match=re.escape(message)):
        ops.rowsparse_dgrad(dy, weight, rows)


@pytest.mark.parametrize(
    ("dy", "weight", "groups", "message"),
    [
        ((2, 6, 5, 5), (6, 4, 3), 1, "weight: expected four dimensions"),
        ((2, 6, 4, 5), (6, 4, 3, 3), 1, "dy: expected ['B', 'N', 5, 5]"),
        ((2, 5, 5, 5), (6, 4, 3, 3), 1, "dy: expected 6 units"),
        ((2, 6, 5, 5), (6, 4, 3, 3), 2, "groups: expected a divisor of 3 rows"),
    ],
)
def test_wrong_arguments_of_a_conv(dy, weight, groups, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ops.rowsparse_dgrad_conv2d(
            torch.zeros(dy), torch.zeros(weight), torch.arange(3), (7, 7), (1, 1), (0, 0), (1, 1), groups
        )


def test_rows_out_of_range(linear, backend):
    if backend == emulation.NAME:
        pytest.skip("undefined on a GPU")
    with pytest.raises((IndexError, RuntimeError, ValueError)):
        ops.rowsparse_dgrad(torch.zeros(3, 9), torch.zeros(9, 5), torch.tensor([2, 9]))
