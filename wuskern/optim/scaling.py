"""Unscaling of gradients under a GradScaler, those in rows among them."""

from collections import defaultdict

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from wuskern.optim.base import RowSparse
from wuskern.optim.row_grads import fold


@torch.no_grad()
def unscale_(scaler: GradScaler, optimizer: Optimizer) -> None:
    """``scaler.unscale_(optimizer)`` for ``grad`` and ``row_grad``: divides both by the scale, and has the scaler skip the step
    and lower the scale where either holds an inf or a NaN.

    For every optimizer of torch, once between ``backward`` and ``scaler.step``. An optimizer that holds no gradient at all,
    because its weights are skipped, counts as one without inf, so that ``scaler.step`` and ``scaler.update`` work. A parameter
    that holds both has their sum in ``grad`` afterwards. Does nothing where the scaler is disabled.

    Raises:
        RuntimeError: as torch's, for a second call before ``scaler.update``, or one after ``scaler.step``.
        ValueError: as torch's, for gradients in float16.
    """
    if not scaler.is_enabled():
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    values = [grad.values for p in parameters if (grad := fold(p)) is not None]
    if any(v.dtype == torch.float16 for v in values):
        raise ValueError("row_grad: expected gradients of parameters in a wider dtype, got float16, too narrow to unscale")
    scaler.unscale_(optimizer)
    scale: Tensor = scaler._scale  # type: ignore[assignment]  # unscale_ has seen to it
    found = scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"]
    groups: defaultdict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for v in values:
        groups[v.device, v.dtype].append(v)
    inverse = scale.double().reciprocal().float()
    for (device, _), of_one_kind in groups.items():
        inf = found.setdefault(device, torch.zeros((), device=device))
        torch._amp_foreach_non_finite_check_and_unscale_(of_one_kind, inf, inverse.to(device))
    if not found:
        found[scale.device] = torch.zeros((), device=scale.device)
    if isinstance(optimizer, RowSparse):
        optimizer._mark_unscaled()
