"""The method WUS+LR (Safayenikoo, Akturk; arXiv 2012.02792): Weight Update Skipping with a learning-rate scheduler.

The paper: WUS is combined with a learning-rate scheduler. No source at hand says which one, or when it is stepped. That it
is stepped on entering a window, that by default it halves the rates, and that biases already train at the new rate inside
the window, is ours.
"""

import copy
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ExponentialLR, LRScheduler, ReduceLROnPlateau

from wuskern.common import states
from wuskern.common.arguments import number
from wuskern.policies.base import FROM_PYTHON
from wuskern.policies.schedulers import inside, scale, schedulers_of
from wuskern.policies.wus import WUS


@dataclass(eq=False, kw_only=True)
class WUSLR(WUS):
    """A ``WUS`` that steps a learning-rate scheduler each time it enters a skip window.

    Biases train at the new rate from the window's first period on, weights from the period after its end. Other schedulers of
    torch, and so all of transformers, may act on the same optimizer, made before or after the policy: the rate is the product
    of theirs and of the policy's factor, also of one that computes it anew from the first rate (LambdaLR, OneCycleLR,
    CyclicLR, warm restarts), since the policy then scales that. A scheduler of another library that does so is warned of.
    ``attach`` the policy to the optimizer as well.

    Args:
        model: a model with converted layers.
        optimizer: its learning rates are changed, those of all groups.
        factor: what the rates are multiplied by, between 0 and 1; of no effect beside a ``scheduler``.
        min_lr: entering a window takes no rate below this; one that is lower already is left alone.
        scheduler: one of torch's, on the same optimizer, for the policy alone to step; without it,
            ``ExponentialLR(optimizer, factor)``. ReduceLROnPlateau is refused: it waits for a metric of its own.
        mode, threshold, window, patience, cooldown, warmup, guard, statistic: as for :class:`WUS`.

    Raises:
        ValueError, TypeError: an argument out of its range, a model without converted layers.
    """

    name = "wus+lr"
    source = "Safayenikoo, Akturk: Weight Update Skipping with a scheduler. arXiv 2012.02792; IEEE JETCAS 2021"
    reported = "WUS+LR: 50 % / 35 % less time. As WUS; the factor of the rate is ours."

    optimizer: Optimizer = field(kw_only=False, repr=False)
    factor: float = 0.5
    min_lr: float = 0.0
    scheduler: LRScheduler | None = field(default=None, repr=False, metadata=FROM_PYTHON)

    def __post_init__(self) -> None:
        if not isinstance(self.optimizer, Optimizer):
            raise TypeError(f"optimizer: expected one of torch's, got {type(self.optimizer).__name__}")
        number("factor", self.factor)
        number("min_lr", self.min_lr)
        if not 0 < self.factor < 1:
            raise ValueError(f"factor: expected a number between 0 and 1, got {self.factor!r}")
        if not 0 <= self.min_lr < math.inf:
            raise ValueError(f"min_lr: expected a finite number from 0, got {self.min_lr!r}")
        if self.scheduler is not None:
            _check_scheduler(self.scheduler, self.optimizer)
        super().__post_init__()
        self._reduced: tuple[list[float], list[float]] = [], []  # the rates before and after, of the last window
        self._warned = False
        self._steps_at_windows = self.scheduler or ExponentialLR(self.optimizer, self.factor)
        self.scheduler = self._steps_at_windows

    def on_evaluation(self, metric: float) -> bool:
        """Does what ``WUS.on_evaluation`` does, and changes the rates where a skip window begins."""
        was_skipping = self.skipping
        if super().on_evaluation(metric) and not was_skipping:
            self._reduce()
        elif was_skipping:
            self._warn_if_undone()
        return self.skipping

    def _reduce(self) -> None:
        before = self._rates()
        self._steps_at_windows.step()
        self._set_rates([max(new, min(old, self.min_lr)) for new, old in zip(self._rates(), before, strict=True)])
        self._reduced = before, self._rates()
        own = inside(self._steps_at_windows)
        others = [one for one in schedulers_of(self.optimizer) if one not in own]
        scale(others, self.optimizer, [self._factor(*rates) for rates in zip(*self._reduced, strict=True)])

    def _factor(self, before: float, after: float) -> float:
        """What a rate was multiplied by; of none, as at the beginning of a warm-up, what it would have been."""
        if before > 0:
            return after / before
        return self.factor if type(self._steps_at_windows) is ExponentialLR else 1.0

    def _warn_if_undone(self) -> None:
        """Warns of a rate that is nearer to the one before the window than to the reduced one, if no scheduler of torch is
        about: somebody else computes it anew from its first value."""
        rates = zip(self._rates(), *self._reduced, strict=False)
        undone = not self._warned and any(now**2 > old * new > 0 for now, old, new in rates if old > new)
        if undone and len(schedulers_of(self.optimizer)) == len(inside(self._steps_at_windows)):
            warnings.warn(
                "WUSLR: expected the learning rate to stay reduced in a window, got a scheduler that computes it anew from the "
                "first one, and is none of torch's: use one of torch.optim.lr_scheduler, or WUS without LR",
                stacklevel=4,
            )
            self._warned = True

    def _rates(self) -> list[float]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def _set_rates(self, rates: list[float]) -> None:
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def state_dict(self) -> dict[str, Any]:
        """The state of ``WUS``, the scheduler's, and the rate of each group: numbers and lists, if the scheduler's is."""
        return super().state_dict() | {"rates": self._rates(), "scheduler": copy.deepcopy(self._steps_at_windows.state_dict())}

    def check_state(self, state: dict[str, Any]) -> None:
        super().check_state(state)
        self._check_rates("rates", state["rates"])
        scheduler, loaded = self._steps_at_windows, state["scheduler"]
        present = scheduler.state_dict()
        if not isinstance(loaded, Mapping) or not present.keys() <= loaded.keys():
            states.refuse(f"a {type(scheduler).__name__} with {sorted(present)}", states.said(loaded))
        for name, value in loaded.items():
            if name not in present and hasattr(type(scheduler), str(name)):
                states.refuse(f"values of a {type(scheduler).__name__}", f"{name} in the place of its own")
            if name in ("base_lrs", "_last_lr"):
                self._check_rates(name, value)
            elif name in ("last_epoch", "_step_count"):
                states.count(name, value)
            elif not _alike(present.get(name), value):
                states.refuse(f"{name} of the scheduler like {states.said(present[name])}", states.said(value))
        if type(scheduler) is ExponentialLR and loaded["gamma"] != scheduler.gamma:
            states.refuse(f"a factor of {scheduler.gamma}", str(loaded["gamma"]))

    def _check_rates(self, what: str, rates: Any) -> None:
        states.items(what, rates, len(self.optimizer.param_groups))
        for rate in rates:
            states.positive(what, rate.item() if isinstance(rate, Tensor) and rate.numel() == 1 else rate)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where the state was taken, the optimizer's rates of that moment included, whatever they are now.

        Take the state, the optimizer's and an outer scheduler's at the same time. Raises ``ValueError`` for what is no such
        state, for another number of groups and another kind of scheduler; nothing has changed then.
        """
        super().load_state_dict(state)
        self._steps_at_windows.load_state_dict(copy.deepcopy(state["scheduler"]))
        self._set_rates(state["rates"])


def _alike(present: Any, value: Any) -> bool:
    """Whether ``value`` can replace a scheduler's ``present`` value, by its type. In place of None anything can."""
    if isinstance(present, int | float) and not isinstance(present, bool):
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
    if isinstance(present, list | tuple):
        inner = [item for item in present if isinstance(item, Mapping)]  # states of schedulers that this one steps
        return isinstance(value, list | tuple) and (
            not inner or (len(value) == len(present) and all(map(_alike, present, value)))
        )
    if isinstance(present, Mapping):
        return isinstance(value, Mapping) and all(name in value and _alike(item, value[name]) for name, item in present.items())
    return present is None or type(value) is type(present)


def _check_scheduler(scheduler: LRScheduler, optimizer: Optimizer) -> None:
    if not isinstance(scheduler, LRScheduler) or isinstance(scheduler, ReduceLROnPlateau):
        raise TypeError(f"scheduler: expected one of torch's that needs no metric, got {type(scheduler).__name__}")
    if scheduler.optimizer is not optimizer:
        raise ValueError("scheduler: expected one that acts on the given optimizer, got one of another")
