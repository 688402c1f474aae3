"""The Adam and AdamW that move only the rows that have a gradient."""

from typing import Any

import torch
from torch import Tensor

from wuskern.ops.updates import rowsparse_adam_
from wuskern.optim.base import Group, RowSparse
from wuskern.optim.state import zeros_like
from wuskern.sparse_grad import RowGrad


class _RowSparseAdam(RowSparse):
    def _update(self, group: Group, parameter: Tensor, grad: RowGrad) -> None:
        state = self.state[parameter]
        if not state:
            state.update(_new_state(group, parameter))
        max_exp_avg_sq = state["max_exp_avg_sq"] if group["amsgrad"] else None
        beta1, beta2 = map(float, group["betas"])
        numbers = float(group["lr"]), beta1, beta2, group["eps"], group["weight_decay"]
        flags = group["decoupled_weight_decay"], group["maximize"]
        moments = state["exp_avg"], state["exp_avg_sq"], max_exp_avg_sq
        rowsparse_adam_(parameter, *moments, state["step"], grad.rows, grad.values, *numbers, *flags)


def _new_state(group: Group, parameter: Tensor) -> dict[str, Any]:
    """The state that torch's Adam makes at the first gradient of a parameter: the step count is on the CPU unless ``fused``."""
    in_float64 = torch.get_default_dtype() == torch.float64 and not group["fused"]
    device = parameter.device if group["fused"] else "cpu"
    names = ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if group["amsgrad"] else ()))
    step = torch.zeros((), dtype=torch.float64 if in_float64 else torch.float32, device=device)
    return {"step": step} | {name: zeros_like(parameter) for name in names}


class Adam(_RowSparseAdam, torch.optim.Adam):
    """``torch.optim.Adam`` that asks row-sparse layers for sparse gradients, and moves only those rows.

    Arguments, defaults and ``state_dict`` are torch's, both ways; ``capturable`` and ``differentiable`` are refused. A
    parameter with a dense gradient takes torch's own step, bit for bit, whatever ``foreach`` and ``fused`` say. One with rows
    alone takes the same step in those rows, by a kernel of its own, and lazily, as ``torch.optim.SparseAdam`` does:

    - A row outside of them does not move, nor do its moments (``exp_avg``, ``exp_avg_sq``, ``max_exp_avg_sq``); they are not
      damped while it waits. Weight decay, which here goes into the gradient, is that of the chosen rows.
    - ``step``, of which the bias corrections are made, counts the steps in which the parameter had a gradient in any row.

    This equals torch's Adam on the dense form, zero in the other rows, only while the rows stay the same.

    A dense micro-batch and a row-sparse one, or the uses of a tied weight, add up to a dense gradient; rows of several
    micro-batches to a sparse one, up to half of all rows. ``torch.nn.utils.clip_grad_norm_`` and GradScaler work.
    An ``lr`` or ``betas`` on a GPU is waited for.

    Raises:
        ValueError, TypeError: as torch's; ``capturable`` or ``differentiable``.
    """


class AdamW(_RowSparseAdam, torch.optim.AdamW):
    """``torch.optim.AdamW`` that asks row-sparse layers for sparse gradients, and moves only those rows.

    It does as :class:`Adam` does, but for the decay: a row shrinks by ``lr * weight_decay`` of itself each time it is chosen,
    and not at all while it is not.
    """
