"""The Triton kernels that select and multiply, through Triton's interpreter where there is no GPU: float64, float32, float16.

bfloat16 is left out: the interpreter computes it wrongly. The tests of every op run on backend ``triton`` too; here is what
depends on tiles, chunks and layouts.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.accuracy import assert_as_right_as_stock
from tests.cases import LAYOUTS
from tests.conftest import OBSTACLES
from wuskern import ops
from wuskern.common.shapes import memory_format, output_size
from wuskern.kernels import backends, reference
from wuskern.kernels.triton import configs, tiles

if obstacle := OBSTACLES["triton"]("cpu"):
    pytest.skip(obstacle, allow_module_level=True)

from wuskern.kernels.triton import gemm

DTYPES = [torch.float64, torch.float32, torch.float16]
MATRIX_LAYOUTS = ["contiguous", "transposed", "sliced", "expanded", "unaligned"]
IMAGE_LAYOUTS = ["contiguous", "channels_last", "permuted", "sliced", "unaligned"]


def choose(n: int, k: int, groups: int = 1) -> torch.Tensor:
    """k random rows of n, as many in each group."""
    part = n // groups
    return torch.cat([torch.randperm(part)[: k // groups].sort()[0] + g * part for g in range(groups)])


def values(shape, dtype: torch.dtype, layout: str = "contiguous") -> torch.Tensor:
    """Random; in float64 small integers, whose sums of products are exact, so that stock PyTorch can be the oracle."""
    x = torch.randn(*shape, dtype=torch.float64)
    return LAYOUTS[layout]((16 * x).round() if dtype == torch.float64 else x.to(dtype))


def check(op: str, dy: torch.Tensor, other: torch.Tensor, *rest) -> torch.Tensor:
    with backends.backend("triton"):
        ours = getattr(ops, op)(dy, other, *rest)
    twin, exactly = getattr(reference, op), (dy.double(), other.double())
    magnitudes = twin(*map(torch.abs, exactly), *rest)
    assert_as_right_as_stock(ours, twin(dy, other, *rest), twin(*exactly, *rest), magnitudes)
    return ours


def check_linear(dtype, tokens, n, features, k, layout="contiguous", packed=False):
    rows = choose(n, k)
    dy, x, weight = (values(s, dtype, layout) for s in ((tokens, n), (tokens, features), (n, features)))
    dy = dy[:, rows] if packed else dy
    return check("rowsparse_wgrad", dy, x, rows), check("rowsparse_dgrad", dy, weight, rows)


def check_conv(dtype, shape, n, k, kernel, stride, padding, dilation, groups, layout="contiguous", packed=False):
    rows, out = choose(n, k, groups), output_size(shape[2:], kernel, stride, padding, dilation)
    dy, x = (values(s, dtype, layout) for s in ((shape[0], n, *out), shape))
    weight = values((n, shape[1] // groups, *kernel), dtype)
    dy = reference.gather_rows(dy, rows, 1) if packed else dy
    geometry = stride, padding, dilation, groups
    dw = check("rowsparse_wgrad_conv2d", dy, x, rows, kernel, *geometry)
    dx = check("rowsparse_dgrad_conv2d", dy, weight, rows, shape[2:], *geometry)
    assert dw.is_contiguous()
    assert dx.is_contiguous(memory_format=memory_format(dy))
    return dw, dx


# ---- products -------------------------------------------------------------------------------------------------------


def test_hand_worked():
    dy = torch.tensor([[1.0, 2, 3, 4], [10, 20, 30, 40]])
    x, weight = torch.tensor([[1.0, 0], [2, 1]]), torch.tensor([[1.0, 1], [2, 2], [3, 0], [0, 4]])
    rows = torch.tensor([0, 3])
    with backends.backend("triton"):
        assert ops.rowsparse_wgrad(dy, x, rows).tolist() == [[21, 10], [84, 40]]
        assert ops.rowsparse_dgrad(dy, weight, rows).tolist() == [[1, 17], [10, 170]]


@pytest.mark.pairs
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("layout", MATRIX_LAYOUTS)
def test_linear_of_any_layout(dtype, layout, packed):
    check_linear(dtype, 70, 33, 150, 7, layout, packed)


@pytest.mark.parametrize(("n", "k"), [(33, 1), (33, 33), (200, 140), (1, 1)])
def test_one_row_all_rows_and_more_than_a_tile_has(n, k):
    check_linear(torch.float32, 40, n, 20, k)


def test_leading_dimensions():
    rows, dy, x, weight = choose(9, 4), torch.randn(3, 5, 9), torch.randn(3, 5, 6), torch.randn(9, 6)
    assert check("rowsparse_wgrad", dy, x, rows).shape == (4, 6)
    assert check("rowsparse_dgrad", dy, weight, rows).shape == (3, 5, 6)
    assert check("rowsparse_wgrad", dy[0, 0], x[0, 0], rows).shape == (4, 6)
    assert check("rowsparse_dgrad", dy[0, 0], weight, rows).shape == (6,)


@pytest.mark.pairs
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize("layout", IMAGE_LAYOUTS)
def test_conv2d_of_any_layout(dtype, layout, packed):
    check_conv(dtype, (2, 6, 7, 9), 8, 4, (3, 2), (1, 1), (1, 1), (1, 1), 2, layout, packed)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "groups"),
    [
        ((1, 1), (1, 1), (0, 0), (1, 1), 1),
        ((1, 1), (2, 2), (0, 0), (1, 1), 1),
        ((3, 3), (2, 3), (1, 2), (1, 1), 1),
        ((3, 2), (1, 1), (2, 0), (2, 3), 1),
        ((3, 3), (2, 2), (3, 2), (2, 3), 2),
        ((2, 2), (1, 1), (4, 4), (1, 1), 1),
        ((3, 3), (1, 1), (1, 1), (1, 1), 4),
        ((2, 2), (3, 3), (0, 0), (1, 1), 1),
        ((3, 3), (4, 4), (1, 1), (2, 4), 1),
    ],
)
def test_conv2d_geometries(kernel, stride, padding, dilation, groups, layout):
    check_conv(torch.float32, (2, 4, 8, 11), 12, 8, kernel, stride, padding, dilation, groups, layout)


def test_channels_that_are_read_as_vectors():
    for groups in (1, 2):
        check_conv(torch.float32, (2, 32, 5, 6), 20, 6, (3, 3), (1, 1), (1, 1), (1, 1), groups, "channels_last")


@pytest.mark.parametrize("kernel", ["wgrad", "wgrad_conv2d", "dgrad", "dgrad_conv2d"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_tile(kernel, dtype, monkeypatch):
    every = [tables for kernels in tiles.PRODUCTS.values() for tables in kernels[kernel].values()]
    for tile in {(t.block_m, t.block_n, t.block_k): t for tables in every for t in tables[dtype.itemsize]}.values():
        monkeypatch.setattr(configs, "products", lambda *_, tile=tile: (tile,))
        if kernel.endswith("conv2d"):
            check_conv(dtype, (2, 3, 5, 6), 20, 18, (3, 3), (1, 1), (1, 1), (1, 1), 1)
        else:
            check_linear(dtype, 150, 50, 70, 45)


def test_offsets_of_64_bits(monkeypatch):
    monkeypatch.setattr(configs, "INT32_ELEMENTS", 0)
    check_linear(torch.float32, 70, 33, 150, 7)
    check_conv(torch.float32, (2, 6, 7, 9), 8, 4, (3, 2), (2, 1), (1, 1), (1, 1), 2)


def test_sums_are_split_and_have_the_same_bits_twice():
    dy, x, rows = torch.randn(700, 20), torch.randn(700, 30), choose(20, 5)
    tokens = configs.wgrad(configs.products("sm_80", "wgrad", 4), 700, 30, 5)[1]
    assert tokens < 350
    assert torch.equal(check("rowsparse_wgrad", dy, x, rows), check("rowsparse_wgrad", dy, x, rows))


@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")  # the interpreter's NumPy
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_values_reach_their_own_row_only(value):
    dy, x, rows = torch.randn(40, 8), torch.randn(40, 6), torch.tensor([1, 4, 6])
    dy[3, 4], dy[5, 2] = value, value
    with backends.backend("triton"):
        dw = ops.rowsparse_wgrad(dy, x, rows)
        dx = ops.rowsparse_dgrad(dy, torch.randn(8, 6), rows)
    assert not dw[1].isfinite().any()
    assert dw[[0, 2]].isfinite().all()
    assert [i for i in range(40) if not dx[i].isfinite().all()] == [3]


def test_nothing_to_add():
    rows, one = choose(6, 2), (1, 1)
    for tokens, features in ((0, 5), (4, 0)):
        dw, dx = check_linear(torch.float32, tokens, 6, features, 2)
        assert not dw.any()
        assert not dx.any()
    dy, x, weight = torch.randn(0, 6, 4, 4), torch.randn(0, 3, 4, 4), torch.randn(6, 3, 1, 1)
    with backends.backend("triton"):
        assert ops.rowsparse_wgrad_conv2d(dy, x, rows, one, one, (0, 0), one, 1).equal(torch.zeros(2, 3, 1, 1))
        assert ops.rowsparse_dgrad_conv2d(dy, weight, rows, (4, 4), one, (0, 0), one, 1).shape == (0, 3, 4, 4)
        none = torch.empty(0, dtype=torch.int64)
        assert ops.rowsparse_dgrad(torch.randn(3, 6), torch.randn(6, 4), none).equal(torch.zeros(3, 4))


@pytest.mark.parametrize("row", [-1, 6])
def test_a_row_out_of_range_raises_on_the_cpu(row):
    rows, dy, images, one = torch.tensor([row]), torch.randn(4, 6), torch.randn(2, 6, 3, 3), (1, 1)
    with backends.backend("triton"):
        for call in (
            lambda: ops.rowsparse_wgrad(dy, torch.randn(4, 5), rows),
            lambda: ops.rowsparse_dgrad(dy, torch.randn(6, 5), rows),
            lambda: ops.rowsparse_dgrad(dy[:, :1], torch.randn(6, 5), rows),
            lambda: ops.rowsparse_wgrad_conv2d(images, torch.randn(2, 5, 3, 3), rows, one, one, (0, 0), one, 1),
            lambda: ops.rowsparse_dgrad_conv2d(images, torch.randn(6, 5, 1, 1), rows, (3, 3), one, (0, 0), one, 1),
        ):
            with pytest.raises(IndexError, match=rf"rows: expected indices from 0 to 5, got \[{row}\]"):
                call()


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_linear(data):
    n = data.draw(st.integers(1, 40))
    k, tokens, features = data.draw(st.integers(1, n)), data.draw(st.integers(1, 200)), data.draw(st.integers(1, 70))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    layout, packed = data.draw(st.sampled_from(MATRIX_LAYOUTS)), data.draw(st.booleans())
    check_linear(data.draw(st.sampled_from(DTYPES)), tokens, n, features, k, layout, packed)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_conv2d(data):
    pair = lambda low, high: (data.draw(st.integers(low, high)), data.draw(st.integers(low, high)))  # noqa: E731
    groups, kernel, stride, dilation, padding = data.draw(st.integers(1, 3)), pair(1, 4), pair(1, 3), pair(1, 3), pair(0, 3)
    size = tuple(max(1, d * (s - 1) + 1 - 2 * p) + e for s, d, p, e in zip(kernel, dilation, padding, pair(0, 5), strict=True))
    n = data.draw(st.integers(1, 6))
    k, channels, batch = data.draw(st.integers(1, n)), data.draw(st.integers(1, 5)), data.draw(st.integers(1, 3))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    layout, packed = data.draw(st.sampled_from(IMAGE_LAYOUTS)), data.draw(st.booleans())
    shape = batch, channels * groups, *size
    dtype = data.draw(st.sampled_from(DTYPES))
    check_conv(dtype, shape, n * groups, k * groups, kernel, stride, padding, dilation, groups, layout, packed)


# ---- launches -------------------------------------------------------------------------------------------------------


def test_float32_is_multiplied_as_torch_is_told_to():
    tile, operand = configs.products("sm_80", "wgrad", 4)[0], (torch.zeros(3),)
    assert gemm.options(tile, torch.float32, operand, "none")["PRECISION"] == "ieee"
    assert gemm.options(tile, torch.float32, operand, "ieee")["PRECISION"] == "ieee"
    assert gemm.options(tile, torch.float32, operand, "tf32")["PRECISION"] == "tf32"
    assert gemm.options(tile, torch.float64, operand, "tf32")["PRECISION"] == "ieee"


def test_more_than_2_31_elements_are_indexed_in_64_bits():
    tile, large = configs.products("sm_80", "wgrad", 4)[0], torch.zeros(1).expand(2**31)
    sliced = torch.empty(2, 2**30, device="meta").as_strided((2, 2), (2**31, 1))
    assert [str(gemm.options(tile, torch.float32, (t,), "none")["INDEX"]) for t in (torch.zeros(9), large, sliced)] == [
        "int32", "int64", "int64",
    ]  # fmt: skip


def test_a_compact_copy_is_taken_where_single_elements_would_be_read_again():
    assert configs.gathers_first(row_stride=1, reads=2)
    assert not configs.gathers_first(row_stride=1, reads=1)
    assert not configs.gathers_first(row_stride=49, reads=9)


# ---- selection ------------------------------------------------------------------------------------------------------


def select(scores, k, block=1, groups=1):
    with backends.backend("triton"):
        rows = ops.select_rows(scores, k, block, groups)
    assert rows.tolist() == reference.select_rows(scores, k, block, groups).tolist()
    return rows.tolist()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ties_zeros_and_values_that_are_not_finite(dtype):
    nan, inf = float("nan"), float("inf")
    assert select(torch.tensor([1.0, 2, 2, 2, 0], dtype=dtype), 2) == [1, 2]
    assert select(torch.tensor([-0.0, 0.0, -1, 0.0], dtype=dtype), 2) == [0, 1]
    assert select(torch.tensor([inf, 1, nan, -nan, -inf], dtype=dtype), 2) == [2, 3]
    assert select(torch.tensor([-inf, -3, -2, -inf], dtype=dtype), 3) == [0, 1, 2]
    assert select(torch.tensor([0, 5, 1, 1, 1, 1, 9, -9], dtype=dtype), 4, 2) == [0, 1, 2, 3]
    assert select(torch.tensor([9, 8, 7, 1, 2, 3], dtype=dtype), 2, 1, 2) == [0, 5]


@pytest.mark.parametrize("n", [1024, 3000, 4096, 9000])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_more_scores_than_a_program_sees_at_once(n, dtype):
    scores = torch.randn(n).mul(4).round().to(dtype)  # many ties
    assert len(select(scores, n // 20)) == n // 20
    select(scores, n)
    select(torch.full((n,), 2.0, dtype=dtype), n - 5)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_selection(data):
    block, groups, blocks = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4)), data.draw(st.integers(1, 30))
    k = data.draw(st.integers(1, blocks)) * block * groups
    length = block * groups * blocks
    values = data.draw(st.lists(st.integers(-3, 3) | st.just(float("nan")), min_size=length, max_size=length))
    scores = torch.tensor(values, dtype=torch.float64).to(data.draw(st.sampled_from(DTYPES)))
    select(torch.stack((scores, -scores), 1)[:, 0] if data.draw(st.booleans()) else scores, k, block, groups)
