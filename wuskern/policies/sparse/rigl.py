"""The method RigL (Evci et al., ICML 2020, arXiv 1911.11134; code google-research/rigl): as many weights grow as are dropped.

The paper: every 100 steps, until three quarters of training, each layer drops the share ``alpha / 2 * (1 + cos(pi * t / end))``
of its weights, alpha .3, those with the smallest magnitudes, and as many of the others grow, from zero, where the dense
gradient is largest. In its code counts are rounded down, and a dropped weight may grow again, and then keeps its value.
SET (Mocanu et al., 2018) grows at random.

Ours: a step that changes masks also trains, where the code leaves it out, and the first is after ``interval`` steps, not at
once; ties go to the lowest index, where the code adds noise; the block and n:m forms; and what a layer does without a gradient.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from wuskern.common import states
from wuskern.common.arguments import one_of, share, whole
from wuskern.policies.sparse.base import SparseTraining
from wuskern.policies.sparse.patterns import largest

GROWTHS = ("gradient", "random")


@dataclass(eq=False, kw_only=True)
class RigL(SparseTraining):
    """Drops each layer's smallest weights every ``interval`` steps, and grows as many others. A layer without a gradient in
    that step waits for the next step in which it has one. With ``n:m`` the layer's smallest weights are dropped, and each group
    grows as many as it lost.

    Time is counted in epochs and the steps of the last one; within the first, whose length is not known, it stands still.

    Args:
        model, epochs, sparsity, distribution, pattern, block, dense, seed: as for :class:`SparseTraining`.
        alpha: the share dropped at the start. interval: optimizer steps. until: the share of ``epochs`` after which masks stay.
        growth: "gradient"; "random" is SET.
    """

    name = "rigl"
    source = "Evci et al.: RigL. arXiv 1911.11134; ICML 2020; code google-research/rigl"
    reported = "RigL: ResNet-50 on ImageNet at 80 and 90 % zeros, FLOPs counted as if a kernel left zeros out. As MEST."
    decides = ("rows", "zeros")
    needs = ("after_step", "after_epoch", "attach")

    alpha: float = 0.3
    interval: int = 100
    until: float = 0.75
    growth: Literal["gradient", "random"] = "gradient"

    def __post_init__(self) -> None:
        super().__post_init__()
        share("alpha", self.alpha)
        share("until", self.until)
        whole("interval", self.interval)
        one_of("growth", self.growth, GROWTHS)
        self.begun = self.length = 0  # steps before this epoch, and in the epoch before it
        self._gradients: dict[str, Tensor] = {}  # of the units, in the step that changes masks
        self._begin()

    @property
    def claims(self) -> dict[str, Collection[str]]:
        """What only this policy may decide: which rows have gradients, too, because growth by the gradient needs all of it."""
        return super().claims | ({"rows": self.weights} if self.growth == "gradient" else {})

    @property
    def drop_share(self) -> float:
        """The share of each layer's weights in training that would be dropped now."""
        within = min(1.0, (self.steps - self.begun) / self.length) if self.length else 0.0
        passed = (self.epoch + within) / (self.until * self.epochs)
        return self.alpha / 2 * (1 + math.cos(math.pi * min(1.0, passed)))

    def on_epoch_end(self) -> None:
        """Counts an epoch and its steps."""
        self.length, self.begun = self.steps - self.begun, self.steps
        super().on_epoch_end()

    def observe(self) -> None:
        """Sets the gradients of zeros to zero, and remembers them where masks are about to change."""
        if self.on and self.growth == "gradient":
            ending = (self.steps + 1) % self.interval == 0
            for name in self.masks if ending else self.due:
                self._remember(name)
        super().observe()

    def _remember(self, name: str) -> None:
        grad = self.weights[name].grad
        if grad is not None:
            self._gradients[name] = self.layout.scores(grad)

    def on_step_end(self) -> None:
        """Counts a step, puts zeros back, and changes masks where it is time."""
        super().on_step_end()
        if self.steps % self.interval == 0 and self.drop_share > 0:
            self.due = set(self.masks)
        self._change()
        self._gradients = {}

    def _sparsities(self, name: str) -> set[float]:
        return {self.sparsities[name]}

    def _evolve(self, name: str) -> tuple[Tensor, Tensor] | None:
        scores = self._random(name) if self.growth == "random" else self._growth(name)
        if scores is None:
            return None
        units = self.layout.units(self.masks[name])
        training = int(units.sum())
        staying = self._without_smallest(name, training - int(training * self.drop_share))
        grown = largest(scores.masked_fill(staying, -1.0), units.sum(1) - staying.sum(1))
        return staying | grown, (staying | grown) & units

    def _growth(self, name: str) -> Tensor | None:
        """The scores by which units grow: of the gradient that the attached optimizer used, or else of the one that is there;
        None without a finite one."""
        if name not in self._gradients:
            self._remember(name)
        scores = self._gradients.get(name)
        return scores if scores is not None and scores.isfinite().all() else None

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"begun": self.begun, "length": self.length}

    def check_state(self, state: dict[str, Any]) -> None:
        super().check_state(state)
        states.count("begun", state["begun"], state["steps"])
        states.count("length", state["length"], state["begun"])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.begun, self.length = state["begun"], state["length"]
