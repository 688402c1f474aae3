"""Clipping of gradients, those in rows among them."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_ as torch_clip_grad_norm_
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from wuskern.optim.row_grads import fold
from wuskern.rows import RowGrad


@torch.no_grad()
def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """``torch.nn.utils.clip_grad_norm_`` of ``grad`` and ``row_grad``: what it gives for the dense form of the rows, which is
    not formed. A parameter that holds both is clipped by their sum, which becomes its ``grad``. (One difference: where the norm
    is a NaN, torch makes NaN of all gradients, zeros among them; rows without a gradient stay without.)

    Args:
        parameters, max_norm, norm_type, error_if_nonfinite, foreach: torch's.

    Returns:
        The total norm before clipping, 0-d.

    Raises:
        RuntimeError: the norm is not finite, with ``error_if_nonfinite``; nothing was scaled.
    """
    held = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    in_rows = {i: grad for i, p in enumerate(held) if (grad := fold(p)) is not None}
    if not in_rows:  # torch warns of a generator that is used up
        return torch_clip_grad_norm_(held or parameters, max_norm, norm_type, error_if_nonfinite, foreach)
    gradients = [_normed(in_rows[i], p, norm_type) if i in in_rows else p.grad for i, p in enumerate(held)]
    total = get_total_norm([g for g in gradients if g is not None], norm_type, error_if_nonfinite, foreach)
    clip_grads_with_norm_(held, max_norm, total, foreach)
    factor = torch.clamp(float(max_norm) / (total + 1e-6), max=1.0)
    for grad in in_rows.values():
        grad.values.mul_(factor.to(grad.values.device))
    return total


def _normed(grad: RowGrad, parameter: Tensor, norm_type: float) -> Tensor:
    """A tensor of the norm that the dense form has: a zero counts where the exponent is negative."""
    if float(norm_type) >= 0 or len(grad.rows) == parameter.shape[0]:
        return grad.values
    return torch.cat((grad.values.flatten(), grad.values.new_zeros(1)))
