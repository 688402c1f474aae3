"""The CUDA kernels of the row-sparse products on the emulation: every tile, source, tail and split, with mma.sync (8.0) and
wgmma (9.0). tests/ops/test_rowsparse_*.py run them too, as one backend among others."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests import emulation
from tests.accuracy import assert_as_right_as_stock
from tests.cases import LAYOUTS, MEMORY_FORMATS, Conv
from tests.rowsparse import (
    ConvTensors,
    assert_exact,
    conv_tensors,
    dgrad_answers,
    integers,
    linear_wgrad_answers,
    some_rows,
    stock_dgrad,
    stock_wgrad,
    wgrad_answers,
)
from wuskern.common.shapes import memory_format

HALVES = [torch.bfloat16, torch.float16]
CAPABILITIES = [80, 90]
capabilities = st.sampled_from(CAPABILITIES)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _emulation():
    if obstacle := emulation.obstacle():
        pytest.skip(obstacle)
    yield
    emulation.configure()


def wgrad(dy, x, rows):
    return emulation.op("rowsparse_wgrad")(dy, x, rows)


def dgrad(dy, weight, rows):
    return emulation.op("rowsparse_dgrad")(dy, weight, rows)


def wgrad_conv(t: ConvTensors, dy: torch.Tensor) -> torch.Tensor:
    return emulation.op("rowsparse_wgrad_conv2d")(
        dy, t.x, t.rows, list(t.weight.shape[2:]), *map(list, t.geometry[:3]), t.groups
    )


def dgrad_conv(t: ConvTensors, dy: torch.Tensor) -> torch.Tensor:
    return emulation.op("rowsparse_dgrad_conv2d")(
        dy, t.weight, t.rows, list(t.x.shape[2:]), *map(list, t.geometry[:3]), t.groups
    )


def check_linear(tokens, n, inputs, k, dtype, gathered=False, layout="contiguous"):
    dy, x, weight = integers(tokens, n, dtype=dtype), integers(tokens, inputs, dtype=dtype), integers(n, inputs, dtype=dtype)
    rows = some_rows(n, k)
    chosen = dy.double()[:, rows]
    dy, x, weight = LAYOUTS[layout](dy[:, rows] if gathered else dy), LAYOUTS[layout](x), LAYOUTS[layout](weight)
    if layout == "expanded":
        chosen = chosen[:1].expand(chosen.shape)
    assert_exact(wgrad(dy, x, rows), chosen.t() @ x.double())
    assert_exact(dgrad(dy, weight, rows), chosen @ weight.double()[rows])


def check_conv(t: ConvTensors) -> None:
    for dy in (t.dy, t.gathered()):
        assert_exact(wgrad_conv(t, dy), stock_wgrad(t.double()))
        dx = dgrad_conv(t, dy)
        assert dx.is_contiguous(memory_format=memory_format(dy))
        assert_exact(dx, stock_dgrad(t.double()))


# ---- Linear ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("k", [1, 24, 48, 90, 100, 136, 180, 200, 250])
def test_every_tile_with_every_tail_of_its_sum(k, capability):
    """1 to 6 steps of 64 tokens, the last one of 1 to 64."""
    emulation.configure(processors=1, capability=capability)
    for i, tokens in enumerate([1, 16, 17, 63, 64, 65, 100, 128, 150, 192, 230, 330]):
        check_linear(tokens, k + i, 8 * (i + 1), k, HALVES[i % 2], gathered=i % 3 == 0)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("features", [8, 64, 128, 136, 264, 520])
def test_every_tile_of_an_input_gradient_with_every_tail(features, capability):
    emulation.configure(processors=1, capability=capability)
    dy, weight = integers(140, 610, dtype=torch.bfloat16), integers(610, features, dtype=torch.bfloat16)
    for k in (3, 16, 40, 64, 72, 130, 520, 600):
        rows = some_rows(610, k)
        assert_exact(dgrad(dy, weight, rows), dy.double()[:, rows] @ weight.double()[rows])


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 400), n=st.integers(1, 200), inputs=st.integers(1, 200), share=st.floats(0, 1),
    dtype=st.sampled_from(HALVES), gathered=st.booleans(), layout=st.sampled_from([*LAYOUTS][2:]),
    capability=capabilities, processors=st.integers(1, 40), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_linear(tokens, n, inputs, share, dtype, gathered, layout, capability, processors, seed):
    torch.manual_seed(seed)
    emulation.configure(processors, seed, capability=capability)
    check_linear(tokens, n, inputs, max(1, int(share * n)), dtype, gathered, layout)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_long_sums_are_as_exact_as_stock(dtype, capability):
    emulation.configure(capability=capability)
    dy, x, rows = torch.randn(3000, 24).to(dtype), torch.randn(3000, 40).to(dtype), some_rows(24, 9)
    stock, exact = linear_wgrad_answers(dy, x, rows)
    assert_as_right_as_stock(wgrad(dy, x, rows), stock, exact, (dy.double().abs().t() @ x.double().abs())[rows])
    weight, rows = torch.randn(24, 3000).t().contiguous().to(dtype), some_rows(3000, 1000)
    dy = torch.randn(50, 3000).to(dtype)
    assert_as_right_as_stock(dgrad(dy, weight, rows), dy[:, rows] @ weight[rows], dy.double()[:, rows] @ weight.double()[rows])


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_order_of_threads_and_blocks_changes_no_bit(capability):
    """Of sums that are split: random numbers, whose every order of addition would give other bits."""
    dy, x, rows = torch.randn(2000, 20).bfloat16(), torch.randn(2000, 136).bfloat16(), some_rows(20, 9)
    results = []
    for seed in range(3):
        emulation.configure(processors=8, seed=seed, capability=capability)
        results.append(wgrad(dy, x, rows))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_what_lies_beside_the_chosen_rows_is_not_read():
    """NaN in the other rows of dy and of the weight, and beyond the last token."""
    dy, weight, x = torch.full((70, 40), torch.nan), torch.full((40, 24), torch.nan), torch.randn(70, 24)
    rows = some_rows(40, 11)
    dy[:, rows], weight[rows] = integers(70, 11), integers(11, 24)
    for dtype in HALVES:
        beyond = torch.full((300, 24), torch.nan, dtype=dtype)
        beyond[:70] = x.to(dtype)
        assert wgrad(dy.to(dtype), beyond[:70], rows).isfinite().all()
        assert dgrad(dy.to(dtype), weight.to(dtype), rows).isfinite().all()


# ---- Conv2d ----------------------------------------------------------------------------------------------------------

SOURCES = [
    Conv("eights", 3, 16, 24, 9, 3, padding=1),
    Conv("eights strided", 2, 24, 16, (9, 12), 3, stride=2, padding=1),
    Conv("eights dilated", 2, 8, 16, 11, (3, 2), stride=(3, 2), padding=2, dilation=(2, 3)),
    Conv("more strides than taps", 2, 8, 8, 12, 2, stride=3),
    Conv("1x1", 3, 32, 40, 9, 1),
    Conv("1x1 strided", 3, 16, 24, 9, 1, stride=2),
    Conv("groups of eights", 2, 32, 48, 7, 3, padding=1, groups=2),
    Conv("many channels", 2, 136, 150, 5, 3, padding=1),
    Conv("many pixels", 5, 8, 16, 20, 3, padding=1),
    Conv("depthwise", 2, 8, 16, 6, 3, padding=1, groups=8),
]


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("case", SOURCES, ids=str)
def test_every_source_of_a_conv(case, capability):
    """Read where they lie and packed, whole and gathered; dy in steps of 8 rows and between them."""
    emulation.configure(capability=capability)
    for i, k in enumerate({case.groups, case.out // 3 // case.groups * case.groups, case.out}):
        if k:
            check_conv(conv_tensors(case, HALVES[i % 2], "NHWC", k))


@settings(max_examples=40, deadline=None)
@given(data=st.data(), capability=capabilities, seed=st.integers(0, 99))
def test_any_conv(data, capability, seed):
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    size = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    kernel, stride, dilation = data.draw(pair), data.draw(pair), data.draw(pair)
    padding = data.draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    assume(all(n + 2 * p >= d * (k - 1) + 1 for n, p, d, k in zip(size, padding, dilation, kernel, strict=True)))
    groups, unit = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 8]))
    channels, each = unit * groups * data.draw(st.integers(1, 5)), unit * data.draw(st.integers(1, 5))
    k = groups * data.draw(st.integers(1, each))
    case = Conv("", data.draw(st.integers(1, 4)), channels, groups * each, size, kernel, stride, padding, dilation, groups)
    torch.manual_seed(seed)
    emulation.configure(data.draw(st.integers(1, 40)), seed, capability=capability)
    dtype = data.draw(st.sampled_from([*HALVES, torch.float32]))
    check_conv(conv_tensors(case, dtype, data.draw(st.sampled_from(list(MEMORY_FORMATS))), k))


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_conv_is_as_exact_as_stock(dtype, capability):
    emulation.configure(capability=capability)
    t = conv_tensors(Conv("", 4, 24, 32, 16, 3, padding=1), dtype, "NHWC", make=torch.randn)
    assert_as_right_as_stock(wgrad_conv(t, t.dy), *wgrad_answers(t))
    assert_as_right_as_stock(dgrad_conv(t, t.dy), *dgrad_answers(t))


@pytest.mark.parametrize("layout", ["sliced", "permuted", "expanded", "unaligned", "transposed"])
def test_a_conv_on_tensors_that_lie_otherwise(layout):
    t = conv_tensors(Conv("", 3, 8, 16, (7, 9), 3, padding=1), torch.bfloat16, "NHWC")
    odd = ConvTensors(LAYOUTS[layout](t.dy), LAYOUTS[layout](t.x), LAYOUTS["sliced"](t.weight), t.rows, *t.geometry)
    same = ConvTensors(odd.dy.contiguous(), odd.x.contiguous(), t.weight, t.rows, *t.geometry).double()
    assert_exact(wgrad_conv(odd, odd.dy), stock_wgrad(same))
    assert_exact(dgrad_conv(odd, odd.dy), stock_dgrad(same))


@pytest.mark.parametrize("side", [(2, 2), (4, 16), (8, 9), (7, 7), (1, 68), (14, 14)], ids=str)
@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (12, 3), (70, 1), (130, 2)])
def test_planes_are_packed_in_vectors_where_they_are_aligned(side, channels, groups):
    """Whole and gathered, of one tile of 64 pixels and channels and of parts of several."""
    case = Conv("", 3, channels, 8 * groups * 9, side, 1, groups=groups)
    with emulation.traced() as trace:
        for i, k in enumerate((groups, 5 * groups, 72 * groups)):
            check_conv(conv_tensors(case, HALVES[i % 2], "NCHW", k))
    in_vectors = side[0] * side[1] % 4 == 0
    assert ("copy_planes" in trace.kernels, "copy_channels" in trace.kernels) == (in_vectors, not in_vectors)
