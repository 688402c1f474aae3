"""The op scale_by_bits in Triton: one read of dY and its bits, one write."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from wuskern.common.shapes import new_filled
from wuskern.kernels.triton.bias_grad import accumulator
from wuskern.kernels.triton.pack_bits import filled, numbers_in_memory
from wuskern.kernels.triton.tiles import BYTES_OF_BITS


@triton.jit
def scale_set(dy, bits, numbers, out, elements, ACC: tl.constexpr, ZERO: tl.constexpr, BLOCK: tl.constexpr):
    """numbers: the factor where a bit is set, and the one elsewhere, unless that is zero, in memory."""
    byte = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    bit = tl.arange(0, 8)[None, :]
    element = byte[:, None] * 8 + bit
    inside = element < elements
    is_set = (tl.load(bits + byte, mask=byte * 8 < elements, other=0).to(tl.int32)[:, None] >> bit) & 1
    value = tl.load(dy + element, mask=inside, other=0).to(ACC)
    on = value * tl.load(numbers).to(ACC)
    off = value * tl.load(numbers + 1).to(ACC)
    if ZERO:
        off = tl.zeros_like(off)
    tl.store(out + element, tl.where(is_set == 1, on, off).to(out.dtype.element_ty), mask=inside)


def scale_by_bits(dy: Tensor, bits: Tensor, on: float, off: float | None) -> Tensor:
    """The op :func:`wuskern.ops.scale_by_bits`."""
    dy, n, tile = filled(dy), dy.numel(), BYTES_OF_BITS
    out = new_filled(dy)
    if n == 0:
        return out
    with torch.cuda.device_of(dy):
        scale_set[(triton.cdiv(bits.numel(), tile.block),)](
            dy, bits, numbers_in_memory(dy, on, 0.0 if off is None else off), out, n,
            ACC=accumulator(dy.dtype), ZERO=off is None, BLOCK=tile.block, num_warps=tile.num_warps, enable_fp_fusion=False,
        )  # fmt: skip
    return out
