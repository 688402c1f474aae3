"""The Adam and AdamW that move only the rows that have a gradient."""

from collections.abc import Sequence

import torch
from torch import Tensor

from wuskern.ops.updates import rowsparse_adam_
from wuskern.optim.base import PartwiseOptimizer
from wuskern.optim.moves import Group, Target


class _PartwiseAdam(PartwiseOptimizer):
    def _moments(self, group: Group) -> Sequence[str]:
        return "exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if group["amsgrad"] else ())

    def _update(self, group: Group, parameter: Tensor, target: Target, is_first: bool) -> None:
        state = self.state[parameter]
        if is_first:
            state["step"] = _no_steps(group, parameter)
        param, (first, second, *most), rows, values = target
        beta1, beta2 = map(float, group["betas"])
        numbers = float(group["lr"]), beta1, beta2, group["eps"], group["weight_decay"]
        flags = group["decoupled_weight_decay"], group["maximize"]
        moments = first, second, most[0] if most else None
        rowsparse_adam_(param, *moments, state["step"], rows, values, *numbers, *flags)


def _no_steps(group: Group, parameter: Tensor) -> Tensor:
    """The step count that torch's Adam makes at the first gradient of a parameter: on the CPU unless ``fused``."""
    in_float64 = torch.get_default_dtype() == torch.float64 and not group["fused"]
    device = parameter.device if group["fused"] else "cpu"
    return torch.zeros((), dtype=torch.float64 if in_float64 else torch.float32, device=device)


class Adam(_PartwiseAdam, torch.optim.Adam):
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


class AdamW(_PartwiseAdam, torch.optim.AdamW):
    """``torch.optim.AdamW`` that asks row-sparse layers for sparse gradients, and moves only those rows.

    It does as :class:`Adam` does, but for the decay: a row shrinks by ``lr * weight_decay`` of itself each time it is chosen,
    and not at all while it is not.
    """
