"""The ops rowsparse_wgrad and rowsparse_wgrad_conv2d, on every backend that runs here."""

import os
import re
import subprocess
import sys

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
    stock_wgrad,
)
from wuskern import backends, configs, native, ops

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def linear(backend):
    with kernel_of("rowsparse_wgrad", backend):
        yield


@pytest.fixture
def conv(backend):
    with kernel_of("rowsparse_wgrad_conv2d", backend):
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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "n", "inputs"), LINEARS)
def test_linear_cases(tokens, n, inputs, dtype, linear):
    dy, x = torch.randn(tokens, n).to(dtype), torch.randn(tokens, inputs).to(dtype)
    for k in {1, max(1, n // 3), n}:
        rows = some_rows(n, k)
        stock, exact = ((dy.to(d).t() @ x.to(d))[rows] for d in (dtype, torch.float64))
        for given_dy in (dy, dy[:, rows]):
            got = ops.rowsparse_wgrad(given_dy, x, rows)
            assert got.is_contiguous()
            assert_as_right_as_stock(got, stock, exact)


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded", "unaligned"])
def test_linear_layouts(layout, linear):
    dy, x, rows = LAYOUTS[layout](torch.randn(70, 40)), LAYOUTS[layout](torch.randn(70, 30)), some_rows(40, 9)
    assert_as_right_as_stock(ops.rowsparse_wgrad(dy, x, rows), (dy.t() @ x)[rows], (dy.double().t() @ x.double())[rows])


@pytest.mark.parametrize("lead", [(), (2, 3, 4)])
def test_any_leading_dimensions(lead, linear):
    dy, x, rows = torch.randn(*lead, 6), torch.randn(*lead, 5), torch.tensor([1, 4])
    expected = dy.reshape(-1, 6).t()[rows] @ x.reshape(-1, 5)
    torch.testing.assert_close(ops.rowsparse_wgrad(dy, x, rows), expected)


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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", MEMORY_FORMATS)
@pytest.mark.parametrize("case", NUMERIC, ids=str)
def test_conv_cases(case, layout, dtype, conv):
    triples = []
    for t in draws(case, dtype, layout):
        stock, exact = stock_wgrad(t), stock_wgrad(t.double())
        for dy in (t.dy, t.gathered()):
            dw = run_conv(t, dy)
            assert dw.shape == exact.shape
            assert dw.is_contiguous()
            triples.append((dw, stock, exact))
    assert_all_as_right(triples)


@pytest.mark.parametrize("layout", MEMORY_FORMATS)
def test_all_rows_are_the_dense_gradient(layout, conv):
    t = conv_tensors(NUMERIC[0], torch.float32, layout, k=NUMERIC[0].out)
    assert_as_right_as_stock(run_conv(t), stock_wgrad(t), stock_wgrad(t.double()))


@pytest.mark.parametrize("layout", ["transposed", "sliced", "permuted", "expanded", "unaligned"])
def test_conv_layouts(layout, conv):
    t = conv_tensors(Conv("", 3, 4, 6, (7, 9), 3, padding=1), torch.float32, "NCHW")
    dy, x = LAYOUTS[layout](t.dy), LAYOUTS[layout](t.x)
    same = type(t)(dy.contiguous(), x.contiguous(), t.weight, t.rows, *t.geometry)
    assert_as_right_as_stock(run_conv(t, dy, x), stock_wgrad(same), stock_wgrad(same.double()))


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
@pytest.mark.parametrize("path", native.WGRAD)
def test_every_path(path, layout, dtype):
    need_library()
    took = 0
    for case in (c for c in NUMERIC + LARGER if c.batch):
        for k in {case.groups, case.out}:
            tensors = draws(case, dtype, layout, k)
            problem = tensors[0].problem(tensors[0].x)
            if path not in configs.conv2d_wgrad_paths(problem):
                continue
            triples = []
            for t in tensors:
                x = t.x.contiguous(memory_format=problem.memory_format)
                dw = native.WGRAD[path](t.gathered(), x, problem)
                assert torch.equal(native.WGRAD[path](t.gathered(), x, problem), dw)
                triples.append((dw, stock_wgrad(t), stock_wgrad(t.double())))
            assert_all_as_right(triples)
            took += 1
    assert took > 10 or (path, dtype) in (("direct", torch.bfloat16), ("unfold", torch.float32))


@pytest.mark.parametrize("path", native.PRODUCTS)
def test_every_product(path):
    need_library()
    if path == "onednn" and native.onednn_obstacle():
        pytest.skip(native.onednn_obstacle())
    deep = torch.randn(3000, 100).t(), torch.randn(3000, 90).t()
    for a, b in ((torch.randn(9, 70), torch.randn(5, 70)), (torch.randn(70, 9).t(), torch.randn(70, 5).t()), deep):
        assert_as_right_as_stock(native.PRODUCTS[path](a, b), a @ b.t(), a.double() @ b.double().t())


def test_large_results_are_written_into_memory_of_ours(monkeypatch):
    need_library()
    monkeypatch.setattr(configs, "MAPPED_BYTES", 64)
    a, b = torch.randn(9, 70, requires_grad=True), torch.randn(5, 70)
    torch.testing.assert_close(native.PRODUCTS["mm"](a, b), (a @ b.t()).detach())


@pytest.mark.parametrize("number", ["1", "2", "3"])
def test_same_bits_whatever_the_number_of_threads(number):
    """Of our own kernels; a library's answer may depend on it."""
    need_library()
    t = conv_tensors(LARGER[2], torch.float32, "NCHW")
    problem, before = t.problem(t.x), torch.get_num_threads()
    first = native.WGRAD["direct"](t.gathered(), t.x, problem)
    try:
        torch.set_num_threads(int(number))
        assert torch.equal(native.WGRAD["direct"](t.gathered(), t.x, problem), first)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("capability", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(capability):
    program = (
        "import torch\ntorch.manual_seed(0)\ntorch.set_num_threads(1)\n"
        "from tests import test_rowsparse_dgrad as d, test_rowsparse_wgrad as w\n"
        "for layout in w.MEMORY_FORMATS:\n"
        "    w.test_every_path('direct', layout, torch.float32)\n"
        "    d.test_every_path('direct', layout, torch.float32)\n"
        "print(torch.ops.wuskern_native.cpu_capability())"
    )
    env = os.environ | {"WUSKERN_CPU_CAPABILITY": capability}
    result = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    if "expected baseline or a wider set up to this processor's" in result.stderr:
        pytest.skip(f"this processor has no {capability}")
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [capability]


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
                exact = stock_wgrad(t.double())
                torch.testing.assert_close(run_conv(t).double(), exact, rtol=1e-4, atol=1e-4)


# ---- what PyTorch asks of an op --------------------------------------------------------------------------------------


def test_opcheck(linear):
    for tokens in (0, 5):
        arguments = torch.randn(tokens, 12), torch.randn(tokens, 7), torch.tensor([2, 3, 11])
        torch.library.opcheck(torch.ops.wuskern.rowsparse_wgrad.default, arguments)


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


def test_rows_out_of_range(linear):
    with pytest.raises((IndexError, RuntimeError, ValueError)):
        ops.rowsparse_wgrad(torch.zeros(3, 9), torch.zeros(3, 5), torch.tensor([2, 9]))


def test_the_compiled_ops_guard_their_memory():
    need_library()
    compiled, x, square = torch.ops.wuskern_native, torch.zeros(2, 4, 6, 6), ((3, 3), (1, 1), (1, 1))
    for dy, given_x in (
        (torch.zeros(2, 3, 5, 6), x),
        (torch.zeros(1, 3, 6, 6), x),
        (torch.zeros(2, 3, 6, 6), x[..., ::2]),
        (torch.zeros(2, 3, 6, 6).half(), x.half()),
    ):
        with pytest.raises(RuntimeError, match=r"(dy|x): expected"):
            compiled.direct_wgrad(dy, given_x, *square, False)
    with pytest.raises(RuntimeError, match="dy: expected"):
        compiled.unfold_gradient(torch.zeros(2, 3, 5, 6), (6, 6), *square, 0)
