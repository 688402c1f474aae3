"""The method ssProp (Zhong et al.; arXiv 2408.12561): top-k channels in convolutions, by a schedule.

The paper: of the gradient of a convolution's output the channels with the largest mean of |dY| over batch and space survive;
weight and input gradient come from those, and in its code the bias gradient too. The "bar" schedule alternates epochs that
are dense with such ones, and is compared with constant, linear and cosine schedules and with bars of a number of iterations.
At a ratio of .2, bars save 40 % of the backward FLOPs. Ours: the first bar is dense; linear and cosine go from all channels to
the ratio and stay there; Linear layers on request; scopes, scores and blocks. Groups, dilation, bfloat16 and autocast, where
the paper's code breaks, are the layer's matter here.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from wuskern.choices import Bias, Plan, Scope, Score, TopK
from wuskern.common import states
from wuskern.common.arguments import flag, one_of, share, whole
from wuskern.modules import SkippableConv2d
from wuskern.policies.base import Policy, Wants

SCHEDULES = ("bar", "constant", "linear", "cosine")
UNITS = {"epoch": "after_epoch", "step": "after_step"}  # each with the call that counts it


@dataclass(eq=False, kw_only=True)
class SsProp(Policy):
    """Gives convolutions a ``TopK`` whose ratio follows a schedule.

    With t counted in ``unit`` from 0, and x = min(1, t / (length - 1)):

    - "constant": ratio.
    - "bar": 1 where ``t // length`` is even, ratio where it is odd.
    - "linear": 1 - (1 - ratio) x. "cosine": ratio + (1 - ratio) (1 + cos(pi x)) / 2.

    A ratio of 1 is the dense backward. Where linear and cosine change the number of channels, a compiled model makes a graph
    for each number.

    Args:
        model: a model with converted layers.
        ratio: of the channels, in (0, 1]; the paper's .2.
        schedule: one of the above. unit: "epoch", counted by ``after_epoch``, or "step", an optimizer step, by ``after_step``.
        length: of a bar, or of the descent; None: 1 for bars. Linear and cosine need it, at least 2.
        linear: whether Linear layers, but the last one, take part.
        scope, score, block, bias: as for ``wuskern.TopK``. The paper's choice: "both", "l1", 1; its code's bias: "rows".

    Raises:
        ValueError, TypeError: an argument out of its range, no layer left, or one that cannot have the choice, by name. No
            layer is then changed.
    """

    name = "ssprop"
    source = "Zhong et al.: ssProp. arXiv 2408.12561"
    reported = "ssProp: 40 % of the backward's FLOPs with bars at .2. Half of the epochs are dense, so time falls by less."
    decides = ("rows",)

    ratio: float = 0.2
    schedule: Literal["bar", "constant", "linear", "cosine"] = "bar"
    unit: Literal["epoch", "step"] = "epoch"
    length: int | None = None
    linear: bool = False
    scope: Scope = "both"
    score: Score = "l1"
    block: int = 1
    bias: Bias = "rows"

    def __post_init__(self) -> None:
        super().__post_init__()
        share("ratio", self.ratio)
        flag("linear", self.linear)
        one_of("schedule", self.schedule, SCHEDULES)
        one_of("unit", self.unit, UNITS)
        descends = self.schedule in ("linear", "cosine")
        if self.length is None and descends:
            raise ValueError(f"length: expected the {self.unit}s that a {self.schedule} schedule takes, got None")
        whole("length", 1 if self.length is None else self.length, 2 if descends else 1)
        self._length = self.length or 1
        if self.schedule != "constant":
            self.calls.needs = (UNITS[self.unit],)
        self.chosen = [n for n, layer in self.layers.items() if isinstance(layer, SkippableConv2d)]
        if self.linear:
            last = list(self.layers)[-1]
            self.chosen += [n for n in self.layers if n != last and n not in self.chosen]
        if not self.chosen:
            raise ValueError("model: expected a converted Conv2d, or linear=True and a Linear that is not the last layer")
        for name in self.chosen:
            self.check_choice(name, Plan(rows=self._rows(self.ratio)))
        self.t = 0
        self.apply()

    @property
    def current_ratio(self) -> float:
        """The share of the rows that is chosen now."""
        if self.schedule == "constant":
            return self.ratio
        if self.schedule == "bar":
            return self.ratio if self.t // self._length % 2 else 1.0
        x = min(1.0, self.t / (self._length - 1))
        excess = 1 - x if self.schedule == "linear" else (1 + math.cos(math.pi * x)) / 2
        return self.ratio + (1 - self.ratio) * excess

    def on_epoch_end(self) -> None:
        self._count("epoch")

    def on_step_end(self) -> None:
        self._count("step")

    def _count(self, unit: str) -> None:
        if unit == self.unit:
            self.t += 1
            self.apply()

    @property
    def claims(self) -> dict[str, Collection[str]]:
        return {"rows": self.chosen}

    def wants(self, name: str) -> Wants:
        if name not in self.chosen:
            return {}
        ratio = self.current_ratio
        return {"rows": None if ratio >= 1 else self._rows(ratio)}

    def _rows(self, ratio: float) -> TopK:
        return TopK(ratio=ratio, scope=self.scope, score=self.score, block=self.block, bias=self.bias)

    def state_dict(self) -> dict[str, Any]:
        """The number of epochs or steps so far."""
        return {"policy": type(self).__name__, "t": self.t}

    def check_state(self, state: dict[str, Any]) -> None:
        states.of_policy(self, state)
        states.count("t", state["t"])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where the state was taken. Raises ``ValueError`` for what is no such state; nothing has changed then."""
        self.check_state(state)
        self.t = state["t"]
        self.apply()
