"""The layer freezing of SpFDE (Yuan et al., NeurIPS 2022, arXiv 2209.11204): progressive, single-shot, periodic, delayed.

The paper: layers are frozen from the front, more of them as training goes on, and the backward of the frozen prefix
disappears; it compares this with freezing at once (single-shot), for a while (single-shot and resume), in turns (periodic),
and in turns that begin later (delayed). The epochs, intervals, shares and formulas are in no source at hand: those here are
ours, and so are the defaults, that a prefix counts converted layers, and that its BatchNorm and Dropout run in evaluation mode.
``epoch`` is the number of epochs trained, L the number of converted layers.
"""

from dataclasses import dataclass

from wuskern.common.arguments import number, positive, whole
from wuskern.common.arguments import share as check_share
from wuskern.policies.freezing.base import Freezing

SOURCE = "Yuan et al.: SpFDE. arXiv 2209.11204; NeurIPS 2022"


@dataclass(eq=False, kw_only=True)
class SingleShotFreezing(Freezing):
    """Freezes ``floor(L * share)`` layers from epoch ``at`` on; with ``until``, only while ``epoch < until`` ("and resume").

    Args:
        model, example: as for :class:`Freezing`. at: epochs, >= 0. share: of the layers, over 0 and up to 1.
        until: epochs, over ``at``, or None.

    Raises:
        ValueError, TypeError: an argument out of its range.
    """

    name = "freeze-once"
    source = SOURCE
    reported = (
        "SpFDE's single-shot scheme and, with until, single-shot and resume: compared there with progressive freezing; no "
        "figure is in a source at hand."
    )
    trial = "at=1"

    at: int
    share: float = 0.5
    until: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("at", self.at, 0)
        check_share("share", self.share)
        if self.until is not None:
            whole("until", self.until, self.at + 1)
        self.apply()

    def wanted(self, epoch: int) -> int:
        return self.floor(self.count * self.share) if self.at <= epoch and (self.until is None or epoch < self.until) else 0


@dataclass(eq=False, kw_only=True)
class PeriodicFreezing(Freezing):
    """Freezes in turns from epoch ``start`` on: ``floor(L * share)`` layers for ``freeze`` epochs, none for ``train`` epochs.

    Args:
        model, example: as for :class:`Freezing`. start: epochs, >= 0. freeze, train: epochs, >= 1.
        share: of the layers, over 0 and up to 1.

    Raises:
        ValueError, TypeError: an argument out of its range.
    """

    name = "freeze-periodic"
    source = SOURCE
    reported = "SpFDE's periodic scheme: compared there with progressive freezing; no figure is in a source at hand."
    trial = "start=1"

    start: int
    freeze: int = 1
    train: int = 1
    share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("start", self.start, 0)
        whole("freeze", self.freeze)
        whole("train", self.train)
        check_share("share", self.share)
        self._check_more()
        self.apply()

    def _check_more(self) -> None:
        """Checks the arguments that a subclass adds."""

    def wanted(self, epoch: int) -> int:
        turn, within = divmod(epoch - self.start, self.freeze + self.train)
        return self.floor(self.count * self.share_of_turn(turn)) if turn >= 0 and within < self.freeze else 0

    def share_of_turn(self, turn: int) -> float:
        return self.share


@dataclass(eq=False, kw_only=True)
class DelayedFreezing(PeriodicFreezing):
    """A :class:`PeriodicFreezing` in which deeper layers join later: turn k, from 1, freezes
    ``floor(L * share * min(1, k / turns))`` layers.

    Args:
        model, example, start, freeze, train, share: as for :class:`PeriodicFreezing`.
        turns: the first that freezes the whole share, >= 1.

    Raises:
        ValueError, TypeError: an argument out of its range.
    """

    name = "freeze-delayed"
    reported = (
        "SpFDE's delayed scheme: compared there with progressive freezing; no figure is in a source at hand. The growth "
        "from turn to turn is ours."
    )

    turns: int = 3

    def _check_more(self) -> None:
        whole("turns", self.turns)

    def share_of_turn(self, turn: int) -> float:
        return self.share * min(1.0, (turn + 1) / self.turns)


@dataclass(eq=False, kw_only=True)
class ProgressiveFreezing(Freezing):
    """Freezes ``floor(L * share * clip((epoch - start) / (end - start), 0, 1) ** power)`` layers.

    Instead of ``share``, ``saving`` is the share of the FLOPs of all convolutions and matrix products of ``epochs`` epochs of
    dense training, forward and backward, that freezing is to leave out: the smallest ``share`` that reaches it is taken. A
    cache of activations saves more; it does not count here.

    Args:
        model, example: as for :class:`Freezing`. start, end: epochs, ``0 <= start < end``. power: gamma, over 0.
        share: rho, of the layers, over 0 and up to 1; 0.5 if nothing is given.
        saving: over 0 and under 1. epochs: how many the run has; with ``saving``.

    Raises:
        ValueError, TypeError: an argument out of its range, or a saving that no share reaches.
    """

    name = "freeze"
    source = SOURCE
    reported = (
        "SpFDE: freezing from front to back, its schedule unknown; on sparse ImageNet nets. The front layers of this net "
        "are its cheap ones, its last layers hold most weights."
    )
    trial = "start=0:end=2"

    start: int
    end: int
    share: float | None = None
    power: float = 1.0
    saving: float | None = None
    epochs: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("start", self.start, 0)
        whole("end", self.end, self.start + 1)
        positive("power", self.power)
        if self.share is not None and self.saving is not None:
            raise ValueError(f"saving: expected None beside share = {self.share}, got {self.saving}")
        self._rho = 0.5 if self.share is None else self.share
        check_share("share", self._rho)
        if self.saving is not None:
            number("saving", self.saving)
            whole("epochs", self.epochs)
            assert self.epochs is not None
            self._rho = self._solve(self.saving, self.epochs)
        elif self.epochs is not None:
            raise ValueError(f"epochs: expected None without saving, got {self.epochs}")
        self.share = self._rho
        self.apply()

    def wanted(self, epoch: int) -> int:
        return self._wanted(epoch, self._rho)

    def _wanted(self, epoch: int, share: float) -> int:
        return self.floor(self.count * share * self._progress(epoch))

    def _progress(self, epoch: int) -> float:
        return min(1.0, max(0.0, (epoch - self.start) / (self.end - self.start))) ** self.power

    def _solve(self, saving: float, epochs: int) -> float:
        """The smallest share that reaches ``saving``, which grows at those shares at which an epoch freezes one more layer."""
        grown = {self._progress(epoch) for epoch in range(epochs)} - {0.0}
        shares = sorted({min(1.0, k / (self.count * p)) for p in grown for k in range(1, self.floor(self.count * p) + 1)})
        most = self.saved_share(shares[-1], epochs) if shares else 0.0
        if not 0 < saving <= most:
            raise ValueError(f"saving: expected a number over 0 and up to {most:.4f}, the largest reachable, got {saving}")
        low, high = 0, len(shares) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.saved_share(shares[middle], epochs) >= saving else (middle + 1, high)
        return shares[low]

    def saved_share(self, share: float, epochs: int) -> float:
        """The share of the FLOPs of ``epochs`` epochs of dense training that freezing with this ``share`` leaves out."""
        dense = sum(cost.fprop + cost.dgrad + cost.wgrad for cost in self.prefix.costs.values())
        depths = (self.prefix.reachable(self._wanted(epoch, share)) for epoch in range(epochs))
        return sum(map(self.prefix.saved, depths)) / (epochs * dense)
