"""The op select_rows in Triton: one launch, one program for each group, no host synchronisation.

A score becomes an unsigned key of the same order. A radix select finds the key of the last row that is taken, eight bits
at a time from the top; a last pass writes the rows above it, and as many of its equals as are left to take, in order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from wuskern.kernels.triton import configs


@triton.jit
def keys_of(scores, i, n, block, stride, ACC: tl.constexpr, KEY: tl.constexpr, BITS: tl.constexpr):
    """Keys of the blocks ``i``: unsigned, larger for a larger sum, the largest for a NaN."""
    total = tl.zeros(i.shape, ACC)
    for j in range(0, block):
        total += tl.load(scores + (i.to(tl.int64) * block + j) * stride, mask=i < n, other=0.0).to(ACC)
    bits = total.to(KEY, bitcast=True)  # of a sum that began with +0: never of -0
    sign = tl.full(i.shape, 1, KEY) << (BITS - 1)
    ones = sign | (sign - 1)  # the interpreter of 3.7 and 3.8 cannot invert 64 bits
    key = tl.where((bits & sign) == 0, bits | sign, bits ^ ones)
    return tl.where(total == total, key, ones)


@triton.jit
def select(scores, out, n, k, block, stride, ACC: tl.constexpr, KEY: tl.constexpr, BITS: tl.constexpr, CHUNK: tl.constexpr):
    """``out[group, k, block]``: the rows in the k blocks of the largest sums, of the n in each group"""
    group = tl.program_id(0).to(tl.int64)
    scores += group * n * block * stride
    out += group * k * block
    left = k  # still to find, among the keys that agree with ``last`` in the bits ``known``
    last = tl.zeros((1,), KEY)
    known = tl.zeros((1,), KEY)
    shift = tl.full((1,), BITS, KEY)
    for _ in range(0, BITS // 8):
        shift -= 8
        counts = tl.zeros((256,), tl.int32)
        for start in range(0, n, CHUNK):
            i = start + tl.arange(0, CHUNK)
            key = keys_of(scores, i, n, block, stride, ACC, KEY, BITS)
            agrees = (i < n) & (((key ^ last) & known) == 0)
            counts += tl.histogram(((key >> shift) & 255).to(tl.int32), 256, mask=agrees)
        at_least = tl.cumsum(counts, 0, reverse=True)
        digit = tl.sum((at_least >= left).to(tl.int32), 0) - 1
        left -= tl.max(tl.where(at_least < left, at_least, 0), 0)
        last |= digit.to(KEY) << shift
        known |= tl.full((1,), 255, KEY) << shift

    above, equal = 0, 0  # blocks passed so far, larger than the last one taken and equal to it
    for start in range(0, n, CHUNK):
        i = start + tl.arange(0, CHUNK)
        key = keys_of(scores, i, n, block, stride, ACC, KEY, BITS)
        is_above, is_equal = (i < n) & (key > last), (i < n) & (key == last)
        both = is_above.to(tl.int64) << 32 | is_equal.to(tl.int64)  # counted in one scan
        before = tl.cumsum(both, 0) - both
        above_before = above + (before >> 32).to(tl.int32)
        equal_before = equal + before.to(tl.int32)
        to = above_before + tl.minimum(equal_before, left)
        taken = is_above | (is_equal & (equal_before < left))
        row = (group * n + i) * block
        for j in range(0, block):
            tl.store(out + to.to(tl.int64) * block + j, row + j, mask=taken)
        above += tl.sum(is_above.to(tl.int32), 0)
        equal += tl.sum(is_equal.to(tl.int32), 0)


def select_rows(scores: Tensor, k: int, block: int, groups: int) -> Tensor:
    """The op :func:`wuskern.ops.select_rows`."""
    n = scores.shape[0] // (block * groups)
    exact = scores.dtype == torch.float64
    tile = configs.select(n)
    out = scores.new_empty(k, dtype=torch.int64)
    with torch.cuda.device_of(scores):
        select[(groups,)](
            scores, out, n, k // (block * groups), block, scores.stride(0), ACC=tl.float64 if exact else tl.float32,
            KEY=tl.uint64 if exact else tl.uint32, BITS=64 if exact else 32, CHUNK=tile.chunk, num_warps=tile.num_warps,
            enable_fp_fusion=False,
        )  # fmt: skip
    return out
