"""The op scale_by_bits, on every backend that runs here, against products by a mask of floating numbers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import backends_that_run, obstacle_to, on_backend
from tests.ops.test_gather_rows import strides
from tests.strategies import strided_gradients
from wuskern import ops

pytestmark = [
    pytest.mark.op("scale_by_bits"),
    pytest.mark.filterwarnings("ignore:invalid value encountered in multiply"),  # of Triton's interpreter
]
DTYPES = list(ops.DTYPES)
FACTORS = [(1.0, None), (1.25, 0.0), (1.0, -0.3), (10 / 9, 0.2)]


def rounds(backend: str, dtype: torch.dtype) -> bool:
    """Whether a backend rounds products here: Triton's interpreter does not in bfloat16."""
    return not (backend == "triton" and dtype is torch.bfloat16 and not torch.cuda.is_available())


def check(dy: torch.Tensor, mask: torch.Tensor, on: float, off: float | None) -> None:
    """Against ``where``; the mask lies as dy does."""
    got = ops.scale_by_bits(dy, ops.pack_bits(mask, 0.0), on, off)
    wide = dy.double() if dy.dtype is torch.float64 else dy.float()
    factor = torch.tensor([on, off or 0.0], dtype=wide.dtype)
    elsewhere = torch.zeros_like(wide) if off is None else wide * factor[1]
    expected = torch.where(mask, wide * factor[0], elsewhere).to(dy.dtype)
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(torch.signbit(got), torch.signbit(expected)) or dy.isnan().any()
    dense = dy.numel() and dy.stride() in [t.stride() for t in (dy.clone(), dy.contiguous())]
    assert not dense or strides(got) == strides(dy)


def masked(dy: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(dy).bernoulli_(0.6) > 0 if dy.numel() else torch.empty_like(dy, dtype=torch.bool)


def test_hand_worked(backend):
    dy = torch.tensor([1.0, 2.0, 3.0, math.nan, math.inf, -6.0, 7.0, 8.0, 9.0])
    bits = torch.tensor([0b11000101, 1], dtype=torch.uint8)
    assert ops.scale_by_bits(dy, bits, 2.0).tolist() == [2, 0, 6, 0, 0, 0, 14, 16, 18]
    assert ops.scale_by_bits(dy[5:], bits[1:], 1.0, -0.5).tolist() == [-6, -3.5, -4, -4.5]
    assert ops.scale_by_bits(dy[3:5], bits[:1] * 0, 1.0, 0.0).isnan().all()


@pytest.mark.parametrize("factors", FACTORS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cases(dtype, factors, backend):
    if not rounds(backend, dtype):
        pytest.skip("Triton's interpreter does not round in bfloat16")
    for n in (1, 7, 8, 9, 16, 17, 31, 1000):
        dy = torch.randn(n).to(dtype)
        check(dy, masked(dy), *factors)
    dy = torch.randn(3, 5, 4, 6).to(dtype)
    dy[0, 0, 0, :3] = torch.tensor([math.nan, math.inf, -math.inf])
    for one in (dy, dy.contiguous(memory_format=torch.channels_last), dy.permute(2, 0, 3, 1), dy[1:]):
        check(one, masked(one), *factors)
    check(dy[..., ::2], masked(dy[..., ::2].contiguous()), *factors)
    check(dy[:0], masked(dy[:0]), *factors)


def test_more_than_a_block(backend):
    dy = torch.randn(40_003 if backend != "triton" else 9_003)[1:]
    check(dy, masked(dy), 1.0, None)


@settings(max_examples=40)
@given(strided_gradients(DTYPES), st.sampled_from(FACTORS))
def test_any_layout(drawn, factors):
    dy, _ = drawn
    for name in backends_that_run("scale_by_bits"):
        if not rounds(name, dy.dtype):
            continue
        with on_backend(name):
            mask = torch.empty(dy.shape).bernoulli_(0.6) > 0
            bits = ops.pack_bits(torch.empty_like(ops.scale_by_bits(dy, ops.pack_bits(mask, 0.0), 1.0)).copy_(mask), 0.0)
            got = ops.scale_by_bits(dy, bits, *factors)
            wide = dy if dy.dtype is torch.float64 else dy.float()
            on, off = (torch.tensor(f or 0.0, dtype=wide.dtype) for f in factors)
            torch.testing.assert_close(got, (wide * torch.where(mask, on, off)).to(dy.dtype), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_opcheck(dtype, backend):
    dy = torch.randn(2, 3, 4, 5).to(dtype)
    for one in (dy, dy.contiguous(memory_format=torch.channels_last), dy[..., :4][..., ::2], dy[:0]):
        bits = torch.zeros(-(-one.numel() // 8), dtype=torch.uint8)
        torch.library.opcheck(torch.ops.wuskern.scale_by_bits.default, (one, bits, 1.0, None))


def test_flops():
    with FlopCounterMode(display=False) as counter:
        ops.scale_by_bits(torch.randn(3, 4), torch.zeros(2, dtype=torch.uint8), 2.0)
    assert counter.get_total_flops() == 12


def test_wrong_arguments():
    dy, bits = torch.zeros(3, 4), torch.zeros(2, dtype=torch.uint8)
    with pytest.raises(TypeError, match=r"dy: expected float64, float32, float16 or bfloat16, got torch.int64"):
        ops.scale_by_bits(dy.long(), bits, 1.0)
    with pytest.raises(TypeError, match=r"bits: expected uint8, got torch.bool"):
        ops.scale_by_bits(dy, bits.bool(), 1.0)
    with pytest.raises(ValueError, match=r"bits: expected \[2\], got \[3\]"):
        ops.scale_by_bits(dy, torch.zeros(3, dtype=torch.uint8), 1.0)
    with pytest.raises(ValueError, match="bits: expected a contiguous tensor, got strides"):
        ops.scale_by_bits(dy, torch.zeros(4, dtype=torch.uint8)[::2], 1.0)


def test_the_compiled_op_guards_its_memory():
    if obstacle := obstacle_to("scale_by_bits", "native"):
        pytest.skip(obstacle)
    dy, bits = torch.zeros(3, 4), torch.zeros(2, dtype=torch.uint8)
    for wrong in ((dy.int(), bits), (dy, bits.bool()), (dy, bits[:1]), (dy, torch.zeros(4, dtype=torch.uint8)[::2])):
        with pytest.raises(RuntimeError, match=r"(dy|bits): expected"):
            torch.ops.wuskern_native.scale_by_bits(*wrong, 1.0, None)
