"""The op pack_bits, on every backend that runs here, against a loop over elements."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import backends_that_run, obstacle_to, on_backend
from tests.strategies import strided_gradients
from wuskern import ops

pytestmark = pytest.mark.op("pack_bits")
DTYPES = list(ops.DTYPES)
BOUNDS = [(0.0, None, True), (0.0, 6.0, True), (0.0, None, False), (-0.5, 0.5, False)]


def in_memory(x: torch.Tensor) -> list[float]:
    """The elements as they lie in memory where they fill it, else as they are counted."""
    indices = itertools.product(*map(range, x.shape))
    places = [sum(i * step for i, step in zip(index, x.stride(), strict=True)) for index in indices]
    values = x.reshape(-1).tolist()
    if sorted(places) != list(range(x.numel())):
        return values
    return [value for _, value in sorted(zip(places, values, strict=True), key=lambda pair: pair[0])]


def expected(x: torch.Tensor, low: float, high: float | None, nan: bool) -> list[int]:
    set_ = [nan if v != v else v > low and (high is None or v < high) for v in in_memory(x)]
    return [sum(bit << i for i, bit in enumerate(set_[at : at + 8])) for at in range(0, len(set_), 8)]


def special(x: torch.Tensor) -> torch.Tensor:
    """The tensor with some values that a bound or a NaN makes special."""
    line = x.view(-1)
    for i, value in enumerate((0.0, -0.0, math.nan, math.inf, -math.inf, 6.0, 0.5)):
        line[i :: 11 + i] = value
    return x


def check(x: torch.Tensor, low: float, high: float | None, nan: bool) -> None:
    got = ops.pack_bits(x, low, high, nan)
    assert got.dtype is torch.uint8
    assert got.tolist() == expected(x, low, high, nan)


def test_hand_worked(backend):
    x = torch.tensor([1.0, -1.0, 0.0, 7.0, 2.0, 6.0, -0.0, 3.0, 0.1])
    assert ops.pack_bits(x, 0.0).tolist() == [0b10111001, 1]
    assert ops.pack_bits(x, 0.0, 6.0).tolist() == [0b10010001, 1]
    assert ops.pack_bits(x > 0, 0.0).tolist() == [0b10111001, 1]
    assert ops.pack_bits(torch.tensor([math.nan]), 0.0).tolist() == [1]
    assert ops.pack_bits(torch.tensor([math.nan]), 0.0, None, False).tolist() == [0]


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cases(dtype, bounds, backend):
    for n in (1, 7, 8, 9, 16, 17, 31, 1000):
        check(special(torch.randn(n).to(dtype)), *bounds)
    x = special(torch.randn(3, 5, 4, 6).to(dtype))
    for one in (x, x.contiguous(memory_format=torch.channels_last), x.permute(2, 0, 3, 1), x[..., ::2], x[1:, 1:]):
        check(one, *bounds)
    check(x[0].isnan(), *bounds)
    check(torch.empty(0, 3).to(dtype), *bounds)


def test_more_than_a_block(backend):
    x = torch.randn(40_003 if backend != "triton" else 9_003)
    check(x[1:], 0.0, None, True)  # unaligned, too


@settings(max_examples=40)
@given(strided_gradients(DTYPES), st.sampled_from(BOUNDS))
def test_any_layout(drawn, bounds):
    for name in backends_that_run("pack_bits"):
        with on_backend(name):
            check(drawn[0], *bounds)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bool], ids=str)
def test_opcheck(dtype, backend):
    x = torch.randn(2, 3, 4, 5)
    for one in (x, x.contiguous(memory_format=torch.channels_last), x[..., ::2], x[:0]):
        torch.library.opcheck(torch.ops.wuskern.pack_bits.default, (one.to(dtype), 0.0, 6.0, True))


def test_flops():
    with FlopCounterMode(display=False) as counter:
        ops.pack_bits(torch.randn(3, 4), 0.0)
        ops.pack_bits(torch.randn(3, 4), 0.0, 6.0)
    assert counter.get_total_flops() == 36


def test_wrong_arguments():
    with pytest.raises(TypeError, match=r"x: expected float64, float32, float16 or bfloat16, got torch.int64"):
        ops.pack_bits(torch.zeros(3).long(), 0.0)
    with pytest.raises(TypeError, match="high: expected a number or None, got 'six'"):
        ops.pack_bits(torch.zeros(3), 0.0, "six")


def test_the_compiled_op_guards_its_memory():
    if obstacle := obstacle_to("pack_bits", "native"):
        pytest.skip(obstacle)
    with pytest.raises(RuntimeError, match="x: expected"):
        torch.ops.wuskern_native.pack_bits(torch.zeros(3).int(), 0.0, None, True)
