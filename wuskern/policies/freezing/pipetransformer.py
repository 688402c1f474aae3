"""The freezing of PipeTransformer (He et al., ICML 2021, arXiv 2102.03161).

The paper: after t freezing steps ``(1 - a)^t [L a / (1 - a) + sum over e = 2..t of L a / (1 - a)^e]`` layers are frozen, each
time a share a of those that still train; layers then move between GPUs. Ours is the formula alone: gradients take no part, and
nothing moves. That a freezing step is taken every ``interval`` epochs, and that the number is rounded down, is ours.
"""

from dataclasses import dataclass

from wuskern.common.arguments import number, whole
from wuskern.policies.freezing.base import Freezing


@dataclass(eq=False, kw_only=True)
class PipeTransformerFreezing(Freezing):
    """Freezes ``floor(L * (1 - (1 - alpha) ** t))`` layers, which is the paper's sum, for ``t = epoch // interval``.

    Args:
        model, example: as for :class:`Freezing`. alpha: between 0 and 1; 1/3 is the paper's. interval: epochs between two
            freezing steps.

    Raises:
        ValueError, TypeError: an argument out of its range.
    """

    name = "pipetransformer"
    source = "He et al.: PipeTransformer. arXiv 2102.03161; ICML 2021"
    reported = "PipeTransformer: up to 2.83x on ViT and BERT over many GPUs, most of it by pipelines, not by freezing."
    trial = "interval=1"

    alpha: float = 1 / 3
    interval: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        number("alpha", self.alpha)
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha: expected a number between 0 and 1, got {self.alpha!r}")
        whole("interval", self.interval)
        self.apply()

    def wanted(self, epoch: int) -> int:
        return self.floor(self.count * (1 - (1 - self.alpha) ** (epoch // self.interval)))
