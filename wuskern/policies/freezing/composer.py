"""The layer freezing of MosaicML's composer (its ``LayerFreezing`` algorithm).

Composer: ``int(level * (t - start) / (1 - start) * (L - 1))`` layers after a share t of the training, after each epoch; L
counts every module with parameters of its own, norm layers too. They get ``requires_grad=False`` and leave the optimizer, so
that a checkpoint does not resume; norm layers go on updating. Ours counts converted layers; they have no backward at all, their
BatchNorm is fixed, and a run resumes exactly.
"""

from dataclasses import dataclass

from wuskern.common.arguments import number, whole
from wuskern.common.arguments import share as check_share
from wuskern.policies.freezing.base import Freezing


@dataclass(eq=False, kw_only=True)
class ComposerFreezing(Freezing):
    """Freezes ``int(level * max(0, t - start) / (1 - start) * (L - 1))`` layers, where ``t = min(1, epoch / epochs)``.

    Args:
        model, example: as for :class:`Freezing`. epochs: how many the run has. start: the share of them before the first layer
            freezes, from 0 and under 1. level: the share of the layers that is frozen at the end, over 0 and up to 1.

    Raises:
        ValueError, TypeError: an argument out of its range.
    """

    name = "composer"
    source = "MosaicML: composer, LayerFreezing"
    reported = "composer: no figure for it by itself is in a source at hand. Its schedule ends with one layer that trains."
    trial = "start=0"

    epochs: int
    start: float = 0.5
    level: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("epochs", self.epochs)
        number("start", self.start)
        if not 0 <= self.start < 1:
            raise ValueError(f"start: expected a number from 0 and under 1, got {self.start!r}")
        check_share("level", self.level)
        self.apply()

    def wanted(self, epoch: int) -> int:
        grown = max(0.0, min(1.0, epoch / self.epochs) - self.start) / (1 - self.start)
        return self.floor(self.level * grown * (self.count - 1))
