"""PipeTransformer's freezing (He et al., ICML 2021, arXiv 2102.03161).

The paper: after t freezing steps ``(1 - a)^t [L a / (1 - a) + sum over e = 2..t of L a / (1 - a)^e]`` layers are frozen, each
time a share a of those that still train; layers then move between GPUs. Ours is the formula alone: gradients take no part, and
nothing moves. That a freezing step is taken every ``interval`` epochs, and that the number is rounded down, is ours.
"""

import torch.nn as nn

from wuskern.common.arguments import number, whole
from wuskern.policies.freezing.base import Freezing
from wuskern.policies.recorded_run import Example


class PipeTransformerFreezing(Freezing):
    """The paper's sum, which is ``L * (1 - (1 - alpha) ** t)``, rounded down, for ``t = epoch // interval``.

    Args:
        model, example: as for :class:`Freezing`. alpha: between 0 and 1; 1/3 is the paper's. interval: epochs between two
            freezing steps.

    Raises:
        ValueError, TypeError: an argument out of its range.
    """

    def __init__(self, model: nn.Module, example: Example, *, alpha: float = 1 / 3, interval: int = 1) -> None:
        super().__init__(model, example)
        number("alpha", alpha)
        if not 0 < alpha < 1:
            raise ValueError(f"alpha: expected a number between 0 and 1, got {alpha!r}")
        whole("interval", interval)
        self.alpha, self.interval = alpha, interval
        self.apply()

    def wanted(self, epoch: int) -> int:
        return self.floor(self.count * (1 - (1 - self.alpha) ** (epoch // self.interval)))
