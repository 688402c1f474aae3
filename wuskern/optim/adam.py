"""The Adam and AdamW that move only the part of a weight that trains."""

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
    """``torch.optim.Adam`` that moves only the part of a weight that its layer trains, with moments for a fixed part alone.

    Arguments and defaults are torch's; ``capturable`` and ``differentiable`` are refused. It asks layers with rows for sparse
    gradients. A parameter with any other dense gradient takes torch's own step, bit for bit, whatever ``foreach`` and ``fused``
    say. The part, the rows of a sparse gradient or a layer's fixed ``Columns``, takes the same step by a kernel of its own, and
    lazily, as ``torch.optim.SparseAdam`` does:

    - What lies outside of it does not move, nor do its moments (``exp_avg``, ``exp_avg_sq``, ``max_exp_avg_sq``); they are not
      damped while it waits. Weight decay, which here goes into the gradient, is that of the part.
    - ``step``, of which the bias corrections are made, counts the steps in which the parameter had a gradient anywhere.

    This equals torch's Adam on the dense form, zero elsewhere, only while the part stays the same. ``TopColumns``, which are
    others in each step, take torch's step: their gradient does not say where it is zero on purpose.

    A part that is fixed, by ``Rows`` or ``Columns`` of the layer, has moments of its own shape, ``[k, in]`` or ``[out, k]``;
    the state, and ``state_dict``, name it as ``rows`` and ``columns``. :meth:`full_state_dict` is torch's. Both load, into
    either kind of training. A gradient of columns to which somebody has written since is looked through: where it is not zero
    outside of them, torch's step is taken.

    A dense micro-batch and one of a part, or the uses of a tied weight, add up to a dense gradient; rows of several
    micro-batches to a sparse one, up to half of all rows. ``torch.nn.utils.clip_grad_norm_`` and GradScaler work. An ``lr`` or
    ``betas`` on a GPU is waited for.

    Args:
        on_change: what becomes of the moments where the part is another one than before. "widen": from then on they are those
            of the whole parameter, and nothing is forgotten. "keep": those stay that belong to the new part, too; the rest of
            it begins with zeros, at the same ``step``. "drop": all begin anew, and ``step`` with them, as BAdam has it.

    Raises:
        ValueError, TypeError: as torch's; ``capturable`` or ``differentiable``; ``on_change``.
    """


class AdamW(_PartwiseAdam, torch.optim.AdamW):
    """``torch.optim.AdamW`` that moves only the part of a weight that its layer trains, with moments for a fixed part alone.

    It does as :class:`Adam` does, but for the decay: the part shrinks by ``lr * weight_decay`` of itself in each of its steps,
    and nothing else does."""
