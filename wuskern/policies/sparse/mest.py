"""The method MEST (Yuan et al., NeurIPS 2021, arXiv 2110.14032; code boone891214/MEST): prunes by size, grows at random.

The code: every five epochs each layer loses its smallest weights, down to a lower bound (a larger sparsity), and then as many
of the zeros as bring it to the upper bound train, from zero. EM, elastic mutation: lower bounds .92/.91/.90, upper .90. EM&S,
and shrinking: lower .90, upper .85/.875/.90, so that it trains more weights than it ends with. The bounds switch at epochs 90
and 120 of 160. For .95 it has .96/.955/.95 and .90/.925/.95. Gradients and weights are multiplied with the mask in each step.
SpFDE (arXiv 2209.11204) takes it as its sparse trainer, from a random structure.

Ours: the bounds of other sparsities and of layers that differ; the start at random with the first upper bound, where the
code has the largest of the initial weights; counts that round alike everywhere (the code's percentile keeps the same number or
one less); a change also where the bounds switch; momenta of what was pruned become zero; the block and n:m forms.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from wuskern.common.arguments import number, one_of, whole
from wuskern.policies.sparse.base import SparseTraining
from wuskern.policies.sparse.distribution import check_sparsity
from wuskern.policies.sparse.patterns import largest, remaining

VARIANTS = ("em", "ems")
PRUNED = (0.2, 0.1, 0.0)  # em: the share of the weights in training that is replaced, by phase
EXTRA = (0.05, 0.025, 0.0)  # ems: the share of all weights that trains beyond the sparsity, by phase


@dataclass(eq=False, kw_only=True)
class MEST(SparseTraining):
    """Prunes each layer's smallest weights every ``interval`` epochs, and grows others at random, which start from zero.

    With ``n:m`` the layer's smallest weights are pruned, and each group grows back to n.

    Args:
        model, epochs, sparsity, distribution, pattern, block, dense, seed: as for :class:`SparseTraining`.
        variant: "em": prunes to more than the sparsity, grows back to it. "ems": grows to less than the sparsity, prunes to it;
            not with ``n:m``.
        lower, upper: the sparsities to prune to and to grow to, a number or one for each phase, ``upper`` no larger than
            ``lower``; not with ``n:m``. None: em replaces .2, .1 and 0 of the weights that train; ems grows to a sparsity that
            is .05, .025 and 0 less, which with .9 and .95 are the code's. A layer with a sparsity of its own has bounds of its
            own, by the same ratios of weights that train.
        switches: when the second phase begins, and each after it: epochs if whole numbers, shares of ``epochs`` if under 1.
        interval: epochs.

    Attributes:
        lower, upper: one for each phase. switches: epochs.
    """

    name = "mest"
    source = "Yuan et al.: MEST. arXiv 2110.14032; NeurIPS 2021; code boone891214/MEST"
    reported = (
        "MEST: ResNet-32 on CIFAR-10 at 90 % zeros, whose accuracy is the claim. No kernel of PyTorch's trains faster for "
        "them: its time is dense training's and what the masks cost."
    )

    variant: Literal["em", "ems"] = "em"
    lower: float | Sequence[float] | None = None
    upper: float | Sequence[float] | None = None
    switches: Sequence[float] = (0.5625, 0.75)
    interval: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("variant", self.variant, VARIANTS)
        whole("interval", self.interval)
        if self.layout.m and (self.variant != "em" or self.lower is not None or self.upper is not None):
            raise ValueError("pattern: expected variant em without lower and upper for n:m, whose groups always have n weights")
        if isinstance(self.switches, str) or not isinstance(self.switches, Sequence):
            raise TypeError(f"switches: expected a list of numbers, got {self.switches!r}")
        switches, self.switches = self.switches, tuple(self._switch(value) for value in self.switches)
        if list(self.switches) != sorted(self.switches):
            raise ValueError(f"switches: expected them in their order, got {switches}")
        s = self._zeros
        em, ems = [s + (1 - s) * share for share in PRUNED], [max(0.0, s - extra) for extra in EXTRA]
        self._lower = self._phases("lower", self.lower, em if self.variant == "em" else [s])
        self._upper = self._phases("upper", self.upper, ems if self.variant == "ems" else [s])
        self.lower, self.upper = self._lower, self._upper
        for high, low in zip(self._lower, self._upper, strict=True):
            if low > high:
                raise ValueError(f"upper: expected no more than lower = {high}, got {low}")
        self._begin()

    def _switch(self, value: float) -> float:
        number("switches", value)
        if not 0 < value < math.inf:
            raise ValueError(f"switches: expected numbers over 0, got {value}")
        return value * self.epochs if value < 1 else value

    def _phases(self, name: str, bounds: float | Sequence[float] | None, default: list[float]) -> tuple[float, ...]:
        phases = len(self.switches) + 1
        if bounds is None:  # phases beyond the code's are as its last one
            return tuple((default + phases * default[-1:])[:phases])
        values = tuple(bounds) if isinstance(bounds, Sequence) else phases * (bounds,)
        if len(values) != phases:
            raise ValueError(f"{name}: expected one for each of {phases} phases, got {len(values)}")
        for value in values:
            check_sparsity(name, value)
        return values

    @property
    def phase(self) -> int:
        return sum(self.epoch >= switch for switch in self.switches)

    def bound(self, name: str, bound: float) -> float:
        """The bound in the layer ``name`` that has the same ratio of weights in training as ``bound`` has over all layers."""
        return 1 - min(1.0, (1 - bound) / (1 - self._zeros) * (1 - self.sparsities[name]))

    def _first_sparsity(self, name: str) -> float:
        return self.bound(name, self._upper[0])

    def _sparsities(self, name: str) -> set[float]:
        return {self.bound(name, upper) for upper in self._upper}

    def on_epoch_end(self) -> None:
        """Counts an epoch, and takes note of which layers are due."""
        before = self.phase
        super().on_epoch_end()
        if self.epoch < self.epochs and (self.epoch % self.interval == 0 or self.phase != before):
            self.due = set(self.masks)

    def on_step_begin(self) -> None:
        """Changes masks in the first step of an epoch in which it is time, or in which a layer trains again."""
        self._change()

    def _evolve(self, name: str) -> tuple[Tensor, Tensor]:
        training = int(self.layout.units(self.masks[name]).sum())
        least = remaining(self.layout.count(self.weights[name]), self.bound(name, self._lower[self.phase]))
        staying = self._without_smallest(name, min(training, least))
        wanted = self._in_groups(name, self.bound(name, self._upper[self.phase]))
        grown = largest(self._random(name).masked_fill(staying, -1.0), (wanted - staying.sum(1)).clamp(min=0))
        return staying | grown, staying
