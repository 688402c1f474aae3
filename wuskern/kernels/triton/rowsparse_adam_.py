"""The op rowsparse_adam_ in Triton: one pass over the chosen rows of a parameter and its moments."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from wuskern.kernels.triton.row_update import Update, accumulator, places


@triton.jit
def update_adam(
    param, first, second, most, rows, values, numbers, corrections, elements, row_channels, taps,
    CHANNELS_LAST: tl.constexpr, COMPACT: tl.constexpr, GATHERED: tl.constexpr, AMSGRAD: tl.constexpr,
    COUPLED: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """numbers: beta1, 1 - beta1, beta2, 1 - beta2, eps, coupled decay, what decoupled decay leaves, sign of a gradient;
    corrections: lr and 1, each over its bias correction"""
    place, kept, source, mask = places(rows, elements, row_channels, taps, CHANNELS_LAST, COMPACT, GATHERED, BLOCK)
    p = tl.load(param + place, mask=mask).to(ACC)
    gradient = tl.load(values + source, mask=mask).to(ACC) * tl.load(numbers + 7).to(ACC)
    if COUPLED:
        gradient += tl.load(numbers + 5).to(ACC) * p
    p *= tl.load(numbers + 6).to(ACC)
    m = tl.load(numbers).to(ACC) * tl.load(first + kept, mask=mask).to(ACC) + tl.load(numbers + 1).to(ACC) * gradient
    v = tl.load(numbers + 2).to(ACC) * tl.load(second + kept, mask=mask, other=0.0).to(ACC)
    v += tl.load(numbers + 3).to(ACC) * (gradient * gradient)
    tl.store(first + kept, m.to(first.dtype.element_ty), mask=mask)
    tl.store(second + kept, v.to(second.dtype.element_ty), mask=mask)
    if AMSGRAD:
        w = tl.load(most + kept, mask=mask, other=0.0).to(ACC)
        v = tl.where((v > w) | (v != v), v, w)
        tl.store(most + kept, v.to(most.dtype.element_ty), mask=mask)
    root = tl.sqrt(v) * tl.load(corrections + 1).to(ACC)
    p -= tl.load(corrections).to(ACC) * (m / (root + tl.load(numbers + 4).to(ACC)))
    tl.store(param + place, p.to(param.dtype.element_ty), mask=mask)


def rowsparse_adam_(
    param: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    step: Tensor,
    rows: Tensor,
    values: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    maximize: bool,
) -> None:
    """The op :func:`wuskern.ops.rowsparse_adam_`."""
    with torch.cuda.device_of(param), Update(param, (exp_avg, exp_avg_sq, max_exp_avg_sq), rows, values) as update:
        steps = step.add_(1).double()
        if update.empty:
            return
        coupled, kept = (0.0, 1 - lr * weight_decay) if decoupled else (weight_decay, 1.0)
        sign = -1 if maximize else 1
        numbers = update.numbers(beta1, 1 - beta1, beta2, 1 - beta2, eps, coupled, kept, sign)
        corrections = torch.stack((lr / (1 - beta1**steps), (1 - beta2**steps).rsqrt())).to(param.device, non_blocking=True)
        p, first, second, most = update.tensors
        update_adam[update.grid](
            p, first, second, p if most is None else most, update.rows, update.values, numbers, corrections,
            *update.sizes, **update.layout, AMSGRAD=most is not None, COUPLED=coupled != 0, ACC=accumulator(param.dtype),
            BLOCK=update.tile.block, num_warps=update.tile.num_warps, enable_fp_fusion=False,
        )  # fmt: skip
