"""The method Weight Update Skipping (Safayenikoo, Akturk; arXiv 2012.02792; IEEE JETCAS 2021).

The paper: accuracy improves unevenly; in windows in which it hardly varies, weights are not updated and their gradients
not computed, while biases keep training. It does not say which accuracy, which statistic, threshold or window length.
Those are arguments here, and their defaults are ours.
"""

import itertools
import logging
import math
import statistics
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from wuskern.common import states
from wuskern.common.arguments import finite, one_of, positive, whole
from wuskern.plans import warn_of_nothing_left
from wuskern.policies.base import Policy, Wants

THRESHOLD, GUARD = 0.005, 0.05  # of an accuracy in [0, 1]

_log = logging.getLogger("wuskern")


def _mean_change(values: Sequence[float]) -> float:
    return statistics.fmean(abs(b - a) for a, b in itertools.pairwise(values))


def _slope(values: Sequence[float]) -> float:
    return abs(statistics.linear_regression(range(len(values)), values).slope)


STATISTICS: dict[str, Callable[[Sequence[float]], float]] = {
    "mean_change": _mean_change,
    "std": statistics.pstdev,
    "slope": _slope,
    "range": lambda values: max(values) - min(values),
}


@dataclass(eq=False, kw_only=True)
class WUS(Policy):
    """Skips all weight gradients while a metric stands still. Call ``step(metric)`` after every evaluation.

    In FULL mode everything trains. After an evaluation past ``warmup``, if the statistic of the last ``window`` changes
    (that is, of the last ``window + 1`` metrics) is under ``threshold``, the next ``patience`` periods are a skip window:
    only biases, and whatever the converted layers do not own (norm layers, embeddings), train. A window ends early when
    the metric has become worse by more than ``guard`` since the window began. After it, ``cooldown`` FULL periods pass
    before the statistic is looked at again.

    Args:
        model: a model with converted layers.
        mode: "max" for a metric that grows as the model improves (accuracy), "min" for a loss.
        threshold: in the metric's own unit; .01 is one percentage point of an accuracy in [0, 1]. With a metric over 1 and the
            defaults, which are for shares, a warning goes to the logger "wuskern".
        window: changes looked at, >= 1. patience: periods of a skip window, >= 1. cooldown: FULL periods after one, >= 1.
        warmup: evaluations before the first look, >= 0.
        guard: how much worse the metric may become inside a window, > 0; infinity never ends one early.
        statistic: "mean_change" (mean of |change|), "std", "slope" (of a least-squares line, absolute) or "range".

    Raises:
        ValueError, TypeError: an argument out of its range, a model without converted layers.
    """

    name = "wus"
    source = "Safayenikoo, Akturk: Weight Update Skipping. arXiv 2012.02792; IEEE JETCAS 2021"
    reported = (
        "WUS: 54 % / 43 % less training time on CPU for CIFAR-10 / 100, accuracy virtually the same. Here a skipped step "
        "saves what the weight gradient and update cost, and windows open only once accuracy stands still."
    )
    needs: ClassVar[Collection[str]] = ("step", "attach")
    trial = "window=1:warmup=0"

    mode: Literal["max", "min"] = "max"
    threshold: float = THRESHOLD
    window: int = 2
    patience: int = 3
    cooldown: int = 1
    warmup: int = 5
    guard: float = GUARD
    statistic: Literal["mean_change", "std", "slope", "range"] = "mean_change"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("mode", self.mode, ("max", "min"))
        one_of("statistic", self.statistic, STATISTICS)
        whole("window", self.window, 1)
        whole("patience", self.patience, 1)
        whole("cooldown", self.cooldown, 1)
        whole("warmup", self.warmup, 0)
        positive("threshold", self.threshold)
        positive("guard", self.guard, infinite=True)
        self.skipping = False
        self.left = 0  # periods left of the skip window, or of the cooldown
        self.entry = math.nan  # the metric when the window began
        self.history: list[float] = []
        self.apply()

    def on_evaluation(self, metric: float) -> bool:
        """Takes the metric of the period that just ended; returns whether the next period skips.

        Raises:
            ValueError: the metric is NaN or infinite. TypeError: it is not a number. The policy is then unchanged.
        """
        metric = finite("metric", metric)
        if metric > 1 and self._is_for_shares() and not any(before > 1 for before in self.history):
            _log.warning(
                "metric: expected a share, as threshold %g and guard %g are for, got %g: give accuracies from 0 to 1, or both "
                "arguments in the metric's unit", self.threshold, self.guard, metric,
            )  # fmt: skip
        self.history.append(metric)
        self.left = max(0, self.left - 1)
        was_skipping = self.skipping
        if self.skipping:
            if self.left == 0 or self._worse_by(metric) > self.guard:
                self.skipping, self.left, self.entry = False, self.cooldown, math.nan
        elif self.left == 0 and self._stands_still():
            self.skipping, self.left, self.entry = True, self.patience, metric
        self.apply()
        if self.skipping and not was_skipping:
            warn_of_nothing_left(self.model)
        return self.skipping

    def _is_for_shares(self) -> bool:
        return self.mode == "max" and (self.threshold, self.guard) == (THRESHOLD, GUARD)

    def _worse_by(self, metric: float) -> float:
        return self.entry - metric if self.mode == "max" else metric - self.entry

    def _stands_still(self) -> bool:
        if len(self.history) <= max(self.warmup, self.window):
            return False
        return STATISTICS[self.statistic](self.history[-self.window - 1 :]) < self.threshold

    def wants(self, name: str) -> Wants:
        return {"skip": self.skipping}

    def state_dict(self) -> dict[str, Any]:
        """The numbers, words and lists of the state, safe for ``torch.load(weights_only=True)``."""
        window = {"skipping": self.skipping, "left": self.left, "entry": self.entry}
        return {"policy": type(self).__name__, **window, "history": list(self.history)}

    def check_state(self, state: dict[str, Any]) -> None:
        states.of_policy(self, state)
        states.flag("skipping", state["skipping"])
        states.count("left", state["left"], self.patience if state["skipping"] else self.cooldown)
        states.items("history", state["history"])
        for metric in state["history"]:
            states.finite("history", metric)
        states.number("entry", state["entry"])
        if not math.isnan(state["entry"]):
            states.finite("entry", state["entry"])
        if state["history"] and state["skipping"] == math.isnan(state["entry"]):
            states.refuse("an entry in a skip window, and NaN outside of it", str(state["entry"]))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where the state was taken, and sets the layers' flags. Raises ``ValueError`` for what is no such state;
        nothing has changed then."""
        self.check_state(state)
        self.skipping, self.left, self.entry = state["skipping"], state["left"], state["entry"]
        self.history = list(state["history"])
        self.apply()
