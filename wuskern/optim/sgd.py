"""The SGD that moves only the rows that have a gradient."""

from collections.abc import Sequence

import torch
from torch import Tensor

from wuskern.ops.updates import rowsparse_sgd_
from wuskern.optim.base import PartwiseOptimizer
from wuskern.optim.moves import Group, Target


class SGD(PartwiseOptimizer, torch.optim.SGD):
    """``torch.optim.SGD`` that asks row-sparse layers for sparse gradients, and moves only those rows.

    Arguments, defaults and ``state_dict`` are torch's, both ways; ``differentiable`` is refused. A parameter with a dense
    gradient takes torch's own step, bit for bit, whatever ``foreach`` and ``fused`` say. One with rows alone takes the same
    step in those rows, by a kernel of its own, and lazily:

    - A row outside of them does not move: neither decay nor momentum touches it. Its momentum is not damped while it waits,
      and goes on from there when the row is chosen again.
    - The first step of a parameter makes its ``momentum_buffer``: the gradient in the chosen rows, undampened as torch's,
      and zero elsewhere. A row that is chosen later starts from that zero, with dampening.

    This equals torch's SGD on the dense form, zero in the other rows, only while the rows stay the same or there is neither
    momentum nor decay.

    A dense micro-batch and a row-sparse one, or the uses of a tied weight, add up to a dense gradient; rows of several
    micro-batches to a sparse one, up to half of all rows. ``torch.nn.utils.clip_grad_norm_`` and GradScaler work.

    Raises:
        ValueError, TypeError: as torch's; ``differentiable``.
    """

    def _moments(self, group: Group) -> Sequence[str]:
        return ("momentum_buffer",) if group["momentum"] != 0 else ()

    def _update(self, group: Group, parameter: Tensor, target: Target, is_first: bool) -> None:
        param, moments, rows, values = target
        buffer = moments[0] if moments else None
        numbers = float(group["lr"]), group["momentum"], 0 if is_first else group["dampening"], float(group["weight_decay"])
        rowsparse_sgd_(param, buffer, rows, values, *numbers, group["nesterov"], group["maximize"])
