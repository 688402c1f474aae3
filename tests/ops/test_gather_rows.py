"""The op gather_rows, on every backend that runs here, against a stack of single rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from tests.cases import GRADIENTS, LAYOUTS
from tests.conftest import backends_that_run, obstacle_to, on_backend
from wuskern import ops
from wuskern.common.shapes import memory_format
from wuskern.kernels import backends

pytestmark = pytest.mark.op("gather_rows")
DTYPES = list(ops.DTYPES)
STATIC_TESTS = ["test_schema", "test_autograd_registration"]


def stacked(dy: torch.Tensor, rows: list[int], dim: int) -> torch.Tensor:
    """The rows one by one, dense; in channels_last where dy has four dimensions, is that and is not contiguous."""
    if not rows:
        return dy.narrow(dim, 0, 0)
    last = dy.ndim == 4 and not dy.is_contiguous() and dy.is_contiguous(memory_format=torch.channels_last)
    chosen = torch.stack([dy.select(dim, row) for row in rows], dim)
    return chosen.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def strides(tensor: torch.Tensor) -> list[int]:
    """Those that are ever stepped."""
    return [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]


def pads(name: str, dy: torch.Tensor, dim: int) -> bool:
    """Whether a backend pads the rows of a Linear's dy: on a GPU all do, and kernels for one do on the CPU, too."""
    is_last = dim % dy.ndim == dy.ndim - 1
    return is_last and memory_format(dy) is torch.contiguous_format and (dy.is_cuda or name in ("triton", "emulated"))


def check(dy: torch.Tensor, rows: list[int], dim: int, name: str = "native") -> None:
    """The same bits, NaN included, in the same layout, and in memory of their own; padding is zero, up to a multiple of 16."""
    expected, got = stacked(dy, rows, dim), ops.gather_rows(dy, torch.tensor(rows, device=dy.device).long(), dim)
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
    if pads(name, dy, dim) and got.numel():
        width = -(-len(rows) // 16) * 16
        assert got.flatten(0, -2).stride(0) == width if got.ndim > 1 else got.stride() == (1,)
        whole = got.as_strided((got.numel() // len(rows), width), (width, 1))
        assert got.untyped_storage().nbytes() == whole.numel() * got.itemsize
        assert not whole[:, len(rows) :].any()
    else:
        assert got.numel() == 0 or strides(got) == strides(expected)
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
    assert got.numel() == 0 or got.untyped_storage().data_ptr() != dy.untyped_storage().data_ptr()


def choices(n: int) -> list[list[int]]:
    """Ascending rows: a few, every second, blocks of eight, all, none."""
    some = sorted(torch.randperm(n)[: n // 3].tolist())
    blocks = [row for row in range(n) if row // 8 % 2 == 1]
    return [some, list(range(0, n, 2)), blocks, list(range(n)), []]


def test_hand_worked(backend):
    dy = torch.arange(12.0).view(3, 4)
    rows = torch.tensor([1, 3])
    assert ops.gather_rows(dy, rows, -1).tolist() == [[1, 3], [5, 7], [9, 11]]
    assert ops.gather_rows(dy, torch.tensor([0, 2]), 0).tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]]
    assert ops.gather_rows(dy.view(1, 3, 2, 2), rows[:1], 1).tolist() == [[[[4, 5], [6, 7]]]]


@pytest.mark.pairs
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", GRADIENTS, ids=str)
def test_cases(case, dtype, backend, device):
    dy = case.make(dtype, device)
    for rows in choices(case.shape[case.dim]):
        check(dy, rows, case.dim, backend)


@pytest.mark.pairs
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("side", [1, 2, 3, 4, 7, 8, 40])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "unaligned"])
def test_planes_of_every_kind(side, layout, dtype, backend):
    """One that fills a register or a few, one of an odd size, one that the processor prefetches by itself."""
    dy = LAYOUTS[layout](torch.randn(3, 48, side, side).to(dtype))
    for rows in choices(48):
        check(dy, rows, 1, backend)


@pytest.mark.pairs
@pytest.mark.parametrize("block", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_blocks_of_rows(block, dtype, backend):
    dy = torch.randn(70, 259).to(dtype)
    chosen = sorted(torch.randperm(256 // block)[: 96 // block].tolist())
    rows = [start * block + i for start in chosen for i in range(block)]
    check(dy[:, :256].contiguous(), rows, -1, backend)
    check(dy[:, 3:], rows, -1, backend)  # unaligned, and a gap between one outer index and the next


@pytest.mark.parametrize(("shape", "dim"), [((2000, 300), -1), ((1, 300, 64, 64), 1), ((64, 300, 7, 7), 1), ((1, 9000), -1)])
def test_the_work_of_several_threads(shape, dim, backend):
    dy = torch.randn(shape)
    check(dy, list(range(0, shape[dim], 3)), dim, backend)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_shape_and_strides(data):
    """A random tensor, its dimensions in a random order in memory, some of them sliced, expanded or shifted."""
    sizes = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    dim = data.draw(st.integers(-len(sizes), len(sizes) - 1))
    sizes[dim] = data.draw(st.integers(1, 40))
    order = data.draw(st.permutations(range(len(sizes))))
    steps = data.draw(st.lists(st.integers(1, 2), min_size=len(sizes), max_size=len(sizes)))
    base = torch.randn([sizes[d] * steps[d] for d in order], dtype=torch.float64).to(data.draw(st.sampled_from(DTYPES)))
    dy = base.permute([order.index(d) for d in range(len(sizes))])[tuple(slice(None, None, s) for s in steps)]
    if data.draw(st.booleans()):
        wide = data.draw(st.integers(0, len(sizes) - 1))
        dy = dy.narrow(wide, 0, 1).expand(sizes)
    rows = sorted(data.draw(st.sets(st.integers(0, sizes[dim] - 1))))
    for name in backends_that_run("gather_rows"):
        with on_backend(name):
            check(dy, rows, dim, name)


def test_strided_rows(backend):
    rows = torch.tensor([[1, 9], [3, 9]])[:, 0]
    assert ops.gather_rows(torch.arange(5.0), rows, 0).tolist() == [1, 3]


# ---- what PyTorch asks of an op --------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [c for c in GRADIENTS if c.shape in ((5, 123), (4, 24, 9, 9), (3, 16, 5, 6))], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_opcheck(case, dtype, backend):
    """What kernels for a GPU pad on the CPU, too, is no such tensor as the CPU's."""
    dy = case.make(dtype)
    tests = [*STATIC_TESTS, *(() if pads(backend, dy, case.dim) else ("test_faketensor", "test_aot_dispatch_dynamic"))]
    torch.library.opcheck(torch.ops.wuskern.gather_rows.default, (dy, torch.tensor([1, 3, 4]), case.dim), test_utils=tests)


def test_opcheck_of_the_compiled_op():
    if obstacle := obstacle_to("gather_rows", "native"):
        pytest.skip(obstacle)
    for case in GRADIENTS:
        rows = torch.arange(case.shape[case.dim])[::2]
        torch.library.opcheck(torch.ops.wuskern_native.gather_rows.default, (case.make(torch.float32), rows, case.dim))


def test_flops():
    with FlopCounterMode(display=False) as counter:
        ops.gather_rows(torch.randn(3, 4), torch.tensor([1]), -1)
    assert counter.get_total_flops() == 0


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [-1, 5, 2**40, -(2**63)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_rows_out_of_range_are_refused_before_anything_is_read(row, layout):
    if obstacle := obstacle_to("gather_rows", "native"):
        pytest.skip(obstacle)
    dy = LAYOUTS[layout](torch.randn(2, 5, 3, 3))
    with backends.backend("native"), pytest.raises(RuntimeError, match=f"rows: expected indices from 0 to 4, got {row}"):
        ops.gather_rows(dy, torch.tensor([0, row, 4]), 1)


@pytest.mark.parametrize("row", [-1, 5])
def test_rows_out_of_range_on_the_cpu(row, backend):
    if backend == "emulated":
        pytest.skip("undefined on a GPU")
    with pytest.raises((RuntimeError, IndexError)):
        ops.gather_rows(torch.randn(3, 5), torch.tensor([row]), -1)


def test_wrong_rows():
    with pytest.raises(TypeError, match=r"rows: expected int64, got torch.int32"):
        ops.gather_rows(torch.zeros(3, 4), torch.zeros(1, dtype=torch.int32), -1)
    with pytest.raises(ValueError, match="rows: expected one dimension, got 2"):
        ops.gather_rows(torch.zeros(3, 4), torch.zeros(1, 1, dtype=torch.int64), -1)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool], ids=str)
def test_wrong_dtype(dtype):
    with pytest.raises(TypeError, match=f"dy: expected float64, float32, float16 or bfloat16, got {dtype}"):
        ops.gather_rows(torch.zeros(3, 4, dtype=dtype), torch.tensor([0]), -1)


@pytest.mark.parametrize(("shape", "dim"), [((3, 4), 2), ((3, 4), -3), ((), 0)])
def test_wrong_dim(shape, dim):
    with pytest.raises(ValueError, match=f"dim: expected a dimension of dy, which has {len(shape)}, got {dim}"):
        ops.gather_rows(torch.zeros(shape), torch.tensor([0]), dim)


def test_the_compiled_op_guards_its_memory():
    if obstacle := obstacle_to("gather_rows", "native"):
        pytest.skip(obstacle)
    good, gather = torch.tensor([0]), torch.ops.wuskern_native.gather_rows
    for dy, rows, dim in [
        (torch.zeros(3, 4), good, 2), (torch.zeros(3, 4), good, -3), (torch.zeros(3, 4, dtype=torch.int32), good, 0),
        (torch.zeros(3, 4), good.int(), 0), (torch.zeros(3, 4), good[None], 0), (torch.zeros(3, 0), good, 1),
    ]:  # fmt: skip
        with pytest.raises(RuntimeError, match=r"(dim|dy|rows): expected"):
            gather(dy, rows, dim)
