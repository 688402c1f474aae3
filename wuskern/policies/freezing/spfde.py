"""Layer freezing (SpFDE: Yuan et al., NeurIPS 2022, arXiv 2209.11204): progressive, single-shot, periodic, delayed.

The paper: layers are frozen from the front, more of them as training goes on, and the backward of the frozen prefix
disappears; it compares this with freezing at once (single-shot), for a while (single-shot and resume), in turns (periodic),
and in turns that begin later (delayed). The epochs, intervals, shares and formulas are in no source at hand: those here are
ours, and so are the defaults, that a prefix counts converted layers, and that its BatchNorm and Dropout run in evaluation mode.
Of ``epoch`` epochs trained, L is the number of converted layers.
"""

from typing import Any

import torch.nn as nn

from wuskern.common.arguments import number, positive, whole
from wuskern.common.arguments import share as check_share
from wuskern.policies.freezing.base import Freezing
from wuskern.policies.recorded_run import Example


class SingleShotFreezing(Freezing):
    """``floor(L * share)`` layers from epoch ``at`` on; with ``until``, only as long as ``epoch < until`` ("and resume").

    Args:
        model, example: as for :class:`Freezing`. at: epochs, >= 0. share: of the layers, over 0 and up to 1.
        until: epochs, over ``at``, or None.

    Raises:
        ValueError, TypeError: an argument out of its range.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Example,
        *,
        at: int,
        share: float = 0.5,
        until: int | None = None,
    ) -> None:
        super().__init__(model, example)
        whole("at", at, 0)
        check_share("share", share)
        if until is not None:
            whole("until", until, at + 1)
        self.at, self.share, self.until = at, share, until
        self.apply()

    def wanted(self, epoch: int) -> int:
        return self.floor(self.count * self.share) if self.at <= epoch and (self.until is None or epoch < self.until) else 0


class PeriodicFreezing(Freezing):
    """From epoch ``start`` on in turns: ``freeze`` epochs with ``floor(L * share)`` layers frozen, ``train`` epochs with none.

    Args:
        model, example: as for :class:`Freezing`. start: epochs, >= 0. freeze, train: epochs, >= 1.
        share: of the layers, over 0 and up to 1.

    Raises:
        ValueError, TypeError: an argument out of its range.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Example,
        *,
        start: int,
        freeze: int = 1,
        train: int = 1,
        share: float = 0.5,
    ) -> None:
        super().__init__(model, example)
        whole("start", start, 0)
        whole("freeze", freeze)
        whole("train", train)
        check_share("share", share)
        self.start, self.freeze, self.train, self.share = start, freeze, train, share
        if type(self) is PeriodicFreezing:
            self.apply()

    def wanted(self, epoch: int) -> int:
        turn, within = divmod(epoch - self.start, self.freeze + self.train)
        return self.floor(self.count * self.share_of_turn(turn)) if turn >= 0 and within < self.freeze else 0

    def share_of_turn(self, turn: int) -> float:
        return self.share


class DelayedFreezing(PeriodicFreezing):
    """:class:`PeriodicFreezing` in which deeper layers join later: turn k, from 1, freezes
    ``floor(L * share * min(1, k / turns))`` layers.

    Args:
        model, example, start, freeze, train, share: as for :class:`PeriodicFreezing`.
        turns: the first that freezes the whole share, >= 1.

    Raises:
        ValueError, TypeError: an argument out of its range.
    """

    def __init__(self, model: nn.Module, example: Example, *, turns: int = 3, **periodic: Any) -> None:
        super().__init__(model, example, **periodic)
        whole("turns", turns)
        self.turns = turns
        self.apply()

    def share_of_turn(self, turn: int) -> float:
        return self.share * min(1.0, (turn + 1) / self.turns)


class ProgressiveFreezing(Freezing):
    """``floor(L * share * clip((epoch - start) / (end - start), 0, 1) ** power)`` layers.

    Instead of ``share``, ``saving`` is the share of the FLOPs of all convolutions and matrix products of ``epochs`` epochs of
    dense training, forward and backward, that freezing is to leave out: the smallest ``share`` that reaches it is taken. A
    cache of activations saves more; it does not count here.

    Args:
        model, example: as for :class:`Freezing`. start, end: epochs, ``0 <= start < end``. power: gamma, over 0.
        share: rho, of the layers, over 0 and up to 1; 0.5 if nothing is given.
        saving: over 0 and under 1. epochs: that the run has; with ``saving``.

    Raises:
        ValueError, TypeError: an argument out of its range, or a saving that no share reaches.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Example,
        *,
        start: int,
        end: int,
        share: float | None = None,
        power: float = 1.0,
        saving: float | None = None,
        epochs: int | None = None,
    ) -> None:
        super().__init__(model, example)
        whole("start", start, 0)
        whole("end", end, start + 1)
        positive("power", power)
        if share is not None and saving is not None:
            raise ValueError(f"saving: expected None beside share = {share}, got {saving}")
        self.start, self.end, self.power = start, end, power
        self.share = 0.5 if share is None else share
        check_share("share", self.share)
        if saving is not None:
            number("saving", saving)
            whole("epochs", epochs)
            assert epochs is not None
            self.share = self._solve(saving, epochs)
        elif epochs is not None:
            raise ValueError(f"epochs: expected None without saving, got {epochs}")
        self.apply()

    def wanted(self, epoch: int) -> int:
        return self._wanted(epoch, self.share)

    def _wanted(self, epoch: int, share: float) -> int:
        return self.floor(self.count * share * self._progress(epoch))

    def _progress(self, epoch: int) -> float:
        return min(1.0, max(0.0, (epoch - self.start) / (self.end - self.start))) ** self.power

    def _solve(self, saving: float, epochs: int) -> float:
        """The saving grows with the share, in steps, at those shares at which an epoch freezes one more layer."""
        grown = {self._progress(epoch) for epoch in range(epochs)} - {0.0}
        shares = sorted({min(1.0, k / (self.count * p)) for p in grown for k in range(1, self.floor(self.count * p) + 1)})
        most = self.saving(shares[-1], epochs) if shares else 0.0
        if not 0 < saving <= most:
            raise ValueError(f"saving: expected a number over 0 and up to {most:.4f}, the largest reachable, got {saving}")
        low, high = 0, len(shares) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.saving(shares[middle], epochs) >= saving else (middle + 1, high)
        return shares[low]

    def saving(self, share: float, epochs: int) -> float:
        """The share of the FLOPs of ``epochs`` epochs of dense training that freezing with this ``share`` leaves out."""
        dense = sum(cost.fprop + cost.dgrad + cost.wgrad for cost in self.prefix.costs.values())
        depths = (self.prefix.reachable(self._wanted(epoch, share)) for epoch in range(epochs))
        return sum(map(self.prefix.saved, depths)) / (epochs * dense)
