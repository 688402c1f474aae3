"""An adaptive ratio of rows, after TinyProp (arXiv 2308.09201).

The paper: a layer trains more of its rows the larger its gradient is, and less the further it is from the output. In unified
form, with Y the sum of |dY| over batch, space and rows, Y_max its running maximum, and l counted from 1 to L:

    ratio = (s_min + Y (s_max - s_min) / Y_max) * zeta ** (L - l)

Ours: Y of the step before instead of the step's own, the unified form, at most four numbers of rows for a layer, and that the
maximum is the layer's own.
"""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from wuskern.choices import Plan, TopK
from wuskern.common import states
from wuskern.common.arguments import share
from wuskern.policies.by_scores import ByScores

LEVELS = 4


@dataclass(eq=False, kw_only=True)
class TinyProp(ByScores):
    """Trains as many rows of a layer as its last gradient asks for: those with the largest scores of the step before.

    The ratio is taken from four values, evenly spaced from s_min to s_max (times the layer's power of zeta), the nearest one.
    The first choice has the largest.

    Args:
        model, reuse, scope, block, bias, dense: as for :class:`ByScores`.
        s_min, s_max: shares of the rows, over 0 and under 1 (a layer that trains all of its rows gives no scores), s_min at
            most s_max. zeta: over 0, up to 1. Their defaults are ours.

    Attributes:
        largest: by layer, the running maximum of Y.

    Raises:
        ValueError, TypeError: an argument out of its range, or a layer that cannot have so many rows, by name. No layer is then
            changed.
    """

    name = "tinyprop"
    source = "Rüb et al.: TinyProp. arXiv 2308.09201"
    reported = "TinyProp: for fine-tuning on microcontrollers. Here from scratch, unified over the batch, four ratios."

    s_min: float = 0.05
    s_max: float = 0.5
    zeta: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("s_min", self.s_min), ("s_max", self.s_max), ("zeta", self.zeta)):
            share(name, value)
        if self.s_max == 1:
            raise ValueError(f"s_max: expected a number under 1, got {self.s_max!r}")
        if self.s_min > self.s_max:
            raise ValueError(f"s_min: expected at most s_max = {self.s_max}, got {self.s_min}")
        self.depth = {name: len(self.layers) - 1 - i for i, name in enumerate(self.layers)}  # L - l
        for name in self.observers:
            self.check_choice(name, Plan(rows=self._amount(name, 1.0)))
        self.largest: dict[str, float] = dict.fromkeys(self.observers, 0.0)
        self._choose({})
        self.apply()

    def _amount(self, name: str, size: float) -> TopK:
        """The number of rows of a layer whose gradient is ``size`` times its largest so far."""
        level = round(size * (LEVELS - 1)) / (LEVELS - 1)
        ratio = (self.s_min + level * (self.s_max - self.s_min)) * self.zeta ** self.depth[name]
        return TopK(ratio=ratio, block=self.block)

    def _first_count(self, name: str) -> int:
        return self._amount(name, 1.0).count(*self.rows_of(name))

    def _counts(self, name: str) -> set[int]:
        sizes = (level / (LEVELS - 1) for level in range(LEVELS))
        return {self._amount(name, size).count(*self.rows_of(name)) for size in sizes}

    def _index(self, name: str, scores: Tensor) -> Tensor:
        y, size = scores.sum().item(), 1.0
        if math.isfinite(y):  # it is not where a GradScaler leaves the step out
            self.largest[name] = max(self.largest[name], y)
            size = y / self.largest[name] if self.largest[name] > 0 else 1.0
        return self._largest(name, scores, self._amount(name, size).count(*self.rows_of(name)))

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"largest": dict(self.largest)}

    def check_state(self, state: dict[str, Any]) -> None:
        super().check_state(state)
        states.names("largest", state["largest"], self.largest)
        for name, value in state["largest"].items():
            states.positive(f"largest of {name!r}", value)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.largest = {name: float(value) for name, value in state["largest"].items()}
