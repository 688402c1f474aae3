"""The method SpFDE (Yuan et al., NeurIPS 2022, arXiv 2209.11204): a sparse network, on sieved data, whose front layers freeze.

The paper: at first a sparse structure and a split of the data are drawn at random. Then a sparse trainer (MEST) trains on a
part of the data, which circular sieving renews. At last layers freeze from the front, one after the other: their masks and
values stay, and their backward disappears, while sieving goes on. Unknown: epochs, intervals and shares; the defaults are ours.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal

from wuskern.common.arguments import whole
from wuskern.common.example import Example
from wuskern.policies.base import KEEPS
from wuskern.policies.compose import Compose
from wuskern.policies.freezing import ProgressiveFreezing
from wuskern.policies.sieving import SievingSampler
from wuskern.policies.sparse import MEST


@dataclass(eq=False, kw_only=True)
class SpFDE(Compose):
    """The methods :class:`MEST`, :class:`ProgressiveFreezing` and :class:`SievingSampler` in one. Give ``sampler`` to the data
    loader, and report each batch to its ``record``; ``after_epoch`` goes on with all three, and the state holds all three.

    Args:
        model: a model with converted layers. example: its input, of one sample or more, or a sequence of its inputs.
        epochs: how many the run has. samples: how many the data set has.
        sparsity, variant, distribution, pattern, block, dense: as for :class:`MEST`. interval: its epochs between two changes.
        start, end, share, power, saving: as for :class:`ProgressiveFreezing`. None: a quarter of ``epochs``, three quarters.
        keep, rate: as for :class:`SievingSampler`. sieve_interval: its epochs between two exchanges.
        seed: of masks, split and order. rank, world: which process this is, of how many.

    Attributes:
        trainer, freezing, sampler: the parts.

    Raises:
        ValueError, TypeError: what a part raises. Masks come last: no weight has changed then.
    """

    name = "spfde"
    source = "Yuan et al.: SpFDE. arXiv 2209.11204; NeurIPS 2022"
    reported = (
        "SpFDE: the three levers together, on sparse ImageNet nets, with a sparse kernel's FLOPs counted. Here the zeros "
        "are multiplied: what remains is sieving and freezing."
    )
    decides = ("frozen", KEEPS, "zeros", "data")
    needs = ("before_step", "after_step", "after_epoch", "attach")
    trial = "interval=1:start=0:end=2"

    example: Example = field(kw_only=False, repr=False)
    epochs: int
    samples: int
    sparsity: float | None = None
    variant: Literal["em", "ems"] = "em"
    distribution: Literal["uniform", "erk"] = "uniform"
    pattern: str = "unstructured"
    block: int = 16
    interval: int = 5
    start: int | None = None
    end: int | None = None
    share: float | None = None
    power: float = 1.0
    saving: float | None = None
    keep: float = 0.8
    rate: float = 0.2
    sieve_interval: int = 5
    dense: Collection[str] | None = None
    seed: int = 0
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        whole("epochs", self.epochs)
        self.sampler = self._sampler()
        self.freezing = self._freezing()
        self.trainer = self._trainer()
        super().__post_init__()
        self._take([self.trainer, self.freezing])

    def _sampler(self) -> SievingSampler:
        return SievingSampler(
            self.samples,
            keep=self.keep,
            rate=self.rate,
            interval=self.sieve_interval,
            seed=self.seed,
            rank=self.rank,
            world=self.world,
        )

    def _freezing(self) -> ProgressiveFreezing:
        return ProgressiveFreezing(
            self.model,
            self.example,
            start=self.epochs // 4 if self.start is None else self.start,
            end=max(1, 3 * self.epochs // 4) if self.end is None else self.end,
            share=self.share,
            power=self.power,
            saving=self.saving,
            epochs=None if self.saving is None else self.epochs,
        )

    def _trainer(self) -> MEST:
        return MEST(
            self.model,
            epochs=self.epochs,
            sparsity=self.sparsity,
            variant=self.variant,
            distribution=self.distribution,
            pattern=self.pattern,
            block=self.block,
            interval=self.interval,
            dense=self.dense,
            seed=self.seed,
        )

    def on_epoch_end(self) -> None:
        """Counts an epoch, in the sampler too."""
        self.sampler.step()
        super().on_epoch_end()

    def state_dict(self) -> dict[str, Any]:
        """The states of the three parts. Take it between epochs, for the sampler's sake."""
        return super().state_dict() | {"sampler": self.sampler.state_dict()}

    def check_state(self, state: dict[str, Any]) -> None:
        super().check_state(state)
        self.sampler.check_state(state["sampler"])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where the state was taken. Raises ``ValueError`` for what is no such state; nothing has changed then."""
        super().load_state_dict(state)
        self.sampler.load_state_dict(state["sampler"])
