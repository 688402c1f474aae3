"""A GradScaler's unscaling of gradients where there may be none."""

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer


@torch.no_grad()
def unscale_(scaler: GradScaler, optimizer: Optimizer) -> None:
    """Does ``scaler.unscale_(optimizer)``, for an optimizer that may hold no gradient at all because its weights are skipped.

    An optimizer without a gradient then counts as one without inf, so that ``scaler.step`` and ``scaler.update`` work, which
    would otherwise raise.

    Works for every optimizer of torch, once between ``backward`` and ``scaler.step``. Does nothing if the scaler is off.

    Raises:
        RuntimeError: as torch's, for a second call before ``scaler.update``, or one after ``scaler.step``.
        ValueError: as torch's, for gradients in float16.
    """
    if not scaler.is_enabled():
        return
    scaler.unscale_(optimizer)
    scale: Tensor = scaler._scale  # type: ignore[assignment]  # unscale_ has seen to it
    found_inf = scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"]
    if not found_inf:
        found_inf[scale.device] = torch.zeros((), device=scale.device)
