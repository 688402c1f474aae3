"""The op rowsparse_sgd_ in Triton: one pass over the chosen rows of a parameter and its momentum."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from wuskern.kernels.triton.row_update import Update, accumulator, places


@triton.jit
def update_sgd(
    param, buffer, rows, values, numbers, elements, row_channels, taps,
    CHANNELS_LAST: tl.constexpr, COMPACT: tl.constexpr, GATHERED: tl.constexpr, HAS_BUFFER: tl.constexpr,
    DECAY: tl.constexpr, NESTEROV: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """numbers: lr, momentum, share of a gradient in the buffer, weight decay, sign of a gradient"""
    place, kept, source, mask = places(rows, elements, row_channels, taps, CHANNELS_LAST, COMPACT, GATHERED, BLOCK)
    p = tl.load(param + place, mask=mask).to(ACC)
    gradient = tl.load(values + source, mask=mask).to(ACC) * tl.load(numbers + 4).to(ACC)
    if DECAY:
        gradient += tl.load(numbers + 3).to(ACC) * p
    if HAS_BUFFER:
        momentum = tl.load(numbers + 1).to(ACC)
        b = momentum * tl.load(buffer + kept, mask=mask).to(ACC) + tl.load(numbers + 2).to(ACC) * gradient
        tl.store(buffer + kept, b.to(buffer.dtype.element_ty), mask=mask)
        gradient = gradient + momentum * b if NESTEROV else b
    p -= tl.load(numbers).to(ACC) * gradient
    tl.store(param + place, p.to(param.dtype.element_ty), mask=mask)


def rowsparse_sgd_(
    param: Tensor,
    momentum_buffer: Tensor | None,
    rows: Tensor,
    values: Tensor,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
) -> None:
    """The op :func:`wuskern.ops.rowsparse_sgd_`."""
    with torch.cuda.device_of(param), Update(param, (momentum_buffer,), rows, values) as update:
        if update.empty:
            return
        p, b = update.tensors
        numbers = update.numbers(lr, momentum, 1 - dampening, weight_decay, -1 if maximize else 1)
        update_sgd[update.grid](
            p, p if b is None else b, update.rows, update.values, numbers, *update.sizes,
            **update.layout, HAS_BUFFER=b is not None, DECAY=weight_decay != 0, NESTEROV=nesterov, ACC=accumulator(param.dtype),
            BLOCK=update.tile.block, num_warps=update.tile.num_warps, enable_fp_fusion=False,
        )  # fmt: skip
