"""The op piecewise_ in Triton: one read of x, one write, and a byte for each eight elements."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from wuskern.kernels.triton.bias_grad import accumulator
from wuskern.kernels.triton.pack_bits import numbers_in_memory
from wuskern.kernels.triton.tiles import BYTES_OF_BITS


@triton.jit
def piecewise(
    y, x, numbers, bits, elements,
    ACC: tl.constexpr, BOUNDED: tl.constexpr, NAN: tl.constexpr, CLAMPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """numbers: the lower bound, the upper one, and the factor, in memory."""
    byte = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    bit = tl.arange(0, 8)[None, :]
    element = byte[:, None] * 8 + bit
    inside = element < elements
    given = tl.load(x + element, mask=inside, other=0)
    value = given.to(ACC)
    low = tl.load(numbers).to(ACC)
    found = value > low
    elsewhere = tl.where(value < low, low, value) if CLAMPS else value * tl.load(numbers + 2).to(ACC)
    if BOUNDED:
        high = tl.load(numbers + 1).to(ACC)
        found = found & (value < high)
        if CLAMPS:
            elsewhere = tl.where(value > high, high, elsewhere)
    if NAN:
        found = found | (value != value)
    tl.store(y + element, tl.where(found, given, elsewhere.to(y.dtype.element_ty)), mask=inside)
    set_ = (found & inside).to(tl.int32)
    tl.store(bits + byte, tl.sum(set_ << bit, 1).to(tl.uint8), mask=byte * 8 < elements)


def piecewise_(y: Tensor, x: Tensor, low: float, high: float | None, nan: bool, outside: float | None) -> Tensor:
    """The op :func:`wuskern.ops.piecewise_`."""
    n, tile = x.numel(), BYTES_OF_BITS
    bits = torch.empty((n + 7) // 8, dtype=torch.uint8, device=x.device)
    if n == 0:
        return bits
    numbers = numbers_in_memory(x, low, 0.0 if high is None else high, 0.0 if outside is None else outside)
    with torch.cuda.device_of(x):
        piecewise[(triton.cdiv(bits.numel(), tile.block),)](
            y, x, numbers, bits, n,
            ACC=accumulator(x.dtype), BOUNDED=high is not None, NAN=nan, CLAMPS=outside is None,
            BLOCK=tile.block, num_warps=tile.num_warps, enable_fp_fusion=False,
        )  # fmt: skip
    return bits
