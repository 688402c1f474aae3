"""The ops rowsparse_dgrad and rowsparse_dgrad_conv2d, on every backend that runs here."""

import re

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from tests.accuracy import assert_as_right_as_stock
from tests.cases import LAYOUTS, MEMORY_FORMATS, Conv
from tests.rowsparse import (
    DTYPES,
    LARGER,
    LINEARS,
    NUMERIC,
    assert_all_as_right,
    conv_tensors,
    draws,
    kernel_of,
    need_library,
    some_rows,
    stock_dgrad,
)
from wuskern import backends, configs, native, ops
from wuskern.shapes import memory_format

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def linear(backend):
    with kernel_of("rowsparse_dgrad", backend):
        yield


@pytest.fixture
def conv(backend):
    with kernel_of("rowsparse_dgrad_conv2d", backend):
        yield


def run_conv(t, dy=None):
    return ops.rowsparse_dgrad_conv2d(t.dy if dy is None else dy, t.weight, t.rows, t.x.shape[2:], *t.geometry)


# ---- Linear -----------------------------------------------------------------------------------------------------------


def test_hand_worked_linear(linear):
    dy = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])
    weight = torch.tensor([[1.0, 10], [0, 0], [100, 1000], [0, 0]])
    assert ops.rowsparse_dgrad(dy, weight, torch.tensor([0, 2])).tolist() == [[301, 3010], [705, 7050]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "n", "inputs"), LINEARS)
def test_linear_cases(tokens, n, inputs, dtype, linear):
    dy, weight = torch.randn(tokens, n).to(dtype), torch.randn(n, inputs).to(dtype)
    for k in {1, max(1, n // 3), n}:
        rows = some_rows(n, k)
        chosen = torch.zeros_like(dy)
        chosen[:, rows] = dy[:, rows]
        stock, exact = chosen @ weight, chosen.double() @ weight.double()
        for given_dy in (dy, dy[:, rows]):
            got = ops.rowsparse_dgrad(given_dy, weight, rows)
            assert got.is_contiguous()
            assert_as_right_as_stock(got, stock, exact)


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded", "unaligned"])
def test_linear_layouts(layout, linear):
    dy, weight, rows = LAYOUTS[layout](torch.randn(70, 40)), LAYOUTS[layout](torch.randn(40, 30)), some_rows(40, 9)
    stock, exact = ((dy.to(d)[:, rows] @ weight.to(d)[rows]) for d in (torch.float32, torch.float64))
    assert_as_right_as_stock(ops.rowsparse_dgrad(dy, weight, rows), stock, exact)


@pytest.mark.parametrize("lead", [(), (2, 3, 4)])
def test_any_leading_dimensions(lead, linear):
    dy, weight, rows = torch.randn(*lead, 6), torch.randn(6, 5), torch.tensor([1, 4])
    torch.testing.assert_close(ops.rowsparse_dgrad(dy, weight, rows), dy[..., rows] @ weight[rows])


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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", MEMORY_FORMATS)
@pytest.mark.parametrize("case", NUMERIC, ids=str)
def test_conv_cases(case, layout, dtype, conv):
    triples = []
    for t in draws(case, dtype, layout):
        stock, exact = stock_dgrad(t), stock_dgrad(t.double())
        for dy in (t.dy, t.gathered()):
            dx = run_conv(t, dy)
            assert dx.shape == exact.shape
            assert dx.is_contiguous(memory_format=memory_format(dy))
            triples.append((dx, stock, exact))
    assert_all_as_right(triples)


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
    assert_as_right_as_stock(dx, stock_dgrad(same), stock_dgrad(same.double()))


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
@pytest.mark.parametrize("path", native.DGRAD)
def test_every_path(path, layout, dtype):
    need_library()
    took = 0
    for case in (c for c in NUMERIC + LARGER if c.batch):
        for k in {case.groups, case.out}:
            tensors = draws(case, dtype, layout, k)
            problem = tensors[0].problem(tensors[0].dy)
            if path not in configs.conv2d_dgrad_paths(problem):
                continue
            triples = []
            for t in tensors:
                dx = native.DGRAD[path](t.gathered(), t.weight[t.rows], problem)
                assert torch.equal(native.DGRAD[path](t.gathered(), t.weight[t.rows], problem), dx)
                assert dx.is_contiguous(memory_format=problem.memory_format)
                triples.append((dx, stock_dgrad(t), stock_dgrad(t.double())))
            assert_all_as_right(triples)
            took += 1
    assert took > 10 or (path, dtype) == ("direct", torch.bfloat16) or (path, layout) == ("images", "NHWC")


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_only_a_path_that_can_do_it_is_chosen(data):
    def pair(least, most):
        return data.draw(st.tuples(st.integers(least, most), st.integers(least, most)))

    problem = configs.ConvProblem(
        data.draw(st.sampled_from(DTYPES)), data.draw(st.integers(1, 200)), data.draw(st.integers(1, 2048)), pair(1, 300),
        data.draw(st.sampled_from(list(MEMORY_FORMATS.values()))), data.draw(st.integers(1, 2048)), pair(1, 7), pair(1, 2),
        pair(0, 3), pair(1, 2), data.draw(st.integers(1, 2)),
    )  # fmt: skip
    for capability in ("baseline", "avx2", "avx512"):
        assert configs.conv2d_wgrad_path(problem, capability) in configs.conv2d_wgrad_paths(problem)
        assert configs.conv2d_dgrad_path(problem, capability) in configs.conv2d_dgrad_paths(problem)


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
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    t = conv_tensors(case, dtype, data.draw(st.sampled_from(list(MEMORY_FORMATS))), k)
    for name in ("native", "reference"):
        if name == "reference" or backends.library_obstacle("cpu") is None:
            with backends.backend(name):
                torch.testing.assert_close(run_conv(t).double(), stock_dgrad(t.double()), rtol=1e-4, atol=1e-4)


# ---- what PyTorch asks of an op --------------------------------------------------------------------------------------


def test_opcheck(linear):
    for tokens in (0, 5):
        arguments = torch.randn(tokens, 12), torch.randn(12, 7), torch.tensor([2, 3, 11])
        torch.library.opcheck(torch.ops.wuskern.rowsparse_dgrad.default, arguments)


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


def test_rows_out_of_range(linear):
    with pytest.raises((IndexError, RuntimeError, ValueError)):
        ops.rowsparse_dgrad(torch.zeros(3, 9), torch.zeros(9, 5), torch.tensor([2, 9]))


def test_the_compiled_op_guards_its_memory():
    need_library()
    square = ((3, 3), (1, 1), (1, 1))
    for dy, weight, out in (
        (torch.zeros(2, 3, 5, 6), torch.zeros(4, 27), torch.zeros(2, 4, 6, 6)),
        (torch.zeros(2, 3, 6, 6), torch.zeros(4, 26), torch.zeros(2, 4, 6, 6)),
        (torch.zeros(2, 3, 6, 6), torch.zeros(4, 27), torch.zeros(2, 4, 6, 6, dtype=torch.float64)),
        (torch.zeros(2, 3, 6, 6), torch.zeros(4, 27), torch.zeros(2, 4, 6, 12)[..., ::2]),
    ):
        with pytest.raises(RuntimeError, match=r"(dy|weight|out): expected"):
            torch.ops.wuskern_native.direct_dgrad(dy, weight, *square, False, out)
