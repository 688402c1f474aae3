"""The op pack_bits in Triton: one read of x, and a byte for each eight elements."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from wuskern.common.shapes import fills_memory
from wuskern.kernels.triton.bias_grad import accumulator
from wuskern.kernels.triton.tiles import BYTES_OF_BITS


@triton.jit
def pack(x, numbers, out, elements, ACC: tl.constexpr, BOUNDED: tl.constexpr, NAN: tl.constexpr, BLOCK: tl.constexpr):
    """numbers: the lower bound and the upper one, in memory."""
    byte = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    bit = tl.arange(0, 8)[None, :]
    element = byte[:, None] * 8 + bit
    value = tl.load(x + element, mask=element < elements, other=0).to(ACC)
    found = value > tl.load(numbers).to(ACC)
    if BOUNDED:
        found = found & (value < tl.load(numbers + 1).to(ACC))
    if NAN:
        found = found | (value != value)
    found = found & (element < elements)
    tl.store(out + byte, tl.sum(found.to(tl.int32) << bit, 1).to(tl.uint8), mask=byte * 8 < elements)


def numbers_in_memory(like: Tensor, *numbers: float) -> Tensor:
    """The numbers in float64: one that Triton takes as an argument becomes float32."""
    return torch.tensor(numbers, dtype=torch.float64).to(like.device, non_blocking=True)


def filled(t: Tensor) -> Tensor:
    """The tensor, or a contiguous copy where it does not fill its memory."""
    return t if fills_memory(t) else t.contiguous()


def pack_bits(x: Tensor, low: float, high: float | None, nan: bool) -> Tensor:
    """The op :func:`wuskern.ops.pack_bits`."""
    x, n, tile = filled(x), x.numel(), BYTES_OF_BITS
    out = torch.empty((n + 7) // 8, dtype=torch.uint8, device=x.device)
    if n == 0:
        return out
    with torch.cuda.device_of(x):
        pack[(triton.cdiv(out.numel(), tile.block),)](
            x, numbers_in_memory(x, low, 0.0 if high is None else high), out, n,
            ACC=accumulator(x.dtype), BOUNDED=high is not None, NAN=nan,
            BLOCK=tile.block, num_warps=tile.num_warps, enable_fp_fusion=False,
        )  # fmt: skip
    return out
