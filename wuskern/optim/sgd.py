"""The SGD that moves only the part of a weight that trains."""

from collections.abc import Sequence

import torch
from torch import Tensor

from wuskern.ops.updates import rowsparse_sgd_
from wuskern.optim.base import PartwiseOptimizer
from wuskern.optim.moves import Group, Target


class SGD(PartwiseOptimizer, torch.optim.SGD):
    """``torch.optim.SGD`` that moves only the part of a weight that its layer trains, with momentum for a fixed part alone.

    Arguments and defaults are torch's; ``differentiable`` is refused. Which gradients are of a part, ``on_change``, and what a
    state holds are as for :class:`Adam`. The part takes torch's step by a kernel of its own, and lazily:

    - What lies outside of it does not move: neither decay nor momentum touches it. Its momentum is not damped while it waits,
      and goes on from there when it is chosen again.
    - The first step of a parameter makes its ``momentum_buffer``: the gradient of the part, undampened as torch's, and zero
      elsewhere. What is chosen later starts from that zero, with dampening.

    This equals torch's SGD on the dense form, zero elsewhere, only while the part stays the same or there is neither momentum
    nor decay.

    Raises:
        ValueError, TypeError: as torch's; ``differentiable``; ``on_change``.
    """

    def _moments(self, group: Group) -> Sequence[str]:
        return ("momentum_buffer",) if group["momentum"] != 0 else ()

    def _update(self, group: Group, parameter: Tensor, target: Target, is_first: bool) -> None:
        param, moments, rows, values = target
        buffer = moments[0] if moments else None
        numbers = float(group["lr"]), group["momentum"], 0 if is_first else group["dampening"], float(group["weight_decay"])
        rowsparse_sgd_(param, buffer, rows, values, *numbers, group["nesterov"], group["maximize"])
