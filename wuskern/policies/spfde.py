"""SpFDE (Yuan et al., NeurIPS 2022, arXiv 2209.11204): a sparse network, on sieved data, whose front layers freeze.

The paper: at first a sparse structure and a split of the data are drawn at random. Then a sparse trainer (MEST) trains on a
part of the data, which circular sieving renews. At last layers freeze from the front, one after the other: their masks and
values stay, and their backward disappears, while sieving goes on. Unknown: epochs, intervals and shares; the defaults are ours.
"""

from collections.abc import Collection
from typing import Any

import torch.nn as nn

from wuskern.common.arguments import whole
from wuskern.policies.compose import Compose
from wuskern.policies.freezing import ProgressiveFreezing
from wuskern.policies.recorded_run import Example
from wuskern.policies.sieving import SievingSampler
from wuskern.policies.sparse import MEST


class SpFDE(Compose):
    """:class:`MEST`, :class:`ProgressiveFreezing` and :class:`SievingSampler` in one. Give ``sampler`` to the data loader, and
    report each batch to its ``record``; ``step`` goes on with all three, and the state holds all three.

    Args:
        model: a model with converted layers. example: its input, of one sample or more, or a sequence of its inputs.
        epochs: of the run. samples: of the data set.
        sparsity, variant, distribution, pattern, block, dense: as for :class:`MEST`. interval: its epochs between two changes.
        start, end, share, power, saving: as for :class:`ProgressiveFreezing`. None: a quarter of ``epochs``, three quarters.
        keep, rate: as for :class:`SievingSampler`. sieve_interval: its epochs between two exchanges.
        seed: of masks, split and order. rank, world: which process this is, of how many.

    Attributes:
        trainer, freezing, sampler: the parts.

    Raises:
        ValueError, TypeError: what a part raises. Masks come last: no weight has changed then.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Example,
        *,
        epochs: int,
        samples: int,
        sparsity: float | None = None,
        variant: str = "em",
        distribution: str = "uniform",
        pattern: str = "unstructured",
        block: int = 16,
        interval: int = 5,
        start: int | None = None,
        end: int | None = None,
        share: float | None = None,
        power: float = 1.0,
        saving: float | None = None,
        keep: float = 0.8,
        rate: float = 0.2,
        sieve_interval: int = 5,
        dense: Collection[str] | None = None,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        whole("epochs", epochs)
        self.sampler = SievingSampler(samples, keep=keep, rate=rate, interval=sieve_interval, seed=seed, rank=rank, world=world)
        self.freezing = ProgressiveFreezing(
            model,
            example,
            start=epochs // 4 if start is None else start,
            end=max(1, 3 * epochs // 4) if end is None else end,
            share=share,
            power=power,
            saving=saving,
            epochs=None if saving is None else epochs,
        )
        self.trainer = MEST(
            model,
            epochs=epochs,
            sparsity=sparsity,
            variant=variant,
            distribution=distribution,
            pattern=pattern,
            block=block,
            interval=interval,
            dense=dense,
            seed=seed,
        )
        super().__init__([self.trainer, self.freezing])

    def step(self, metric: float | None = None) -> bool:
        """Counts an epoch, of the sampler too. False: no step is skipped, whatever the metric."""
        self.sampler.step()
        return super().step(metric)

    def state_dict(self) -> dict[str, Any]:
        """Those of the parts. Between epochs, for the sampler."""
        return super().state_dict() | {"sampler": self.sampler.state_dict()}

    def check_state(self, state: dict[str, Any]) -> None:
        super().check_state(state)
        self.sampler.check_state(state["sampler"])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where the state was taken. Raises ``ValueError`` for what is no such state; nothing has changed then."""
        super().load_state_dict(state)
        self.sampler.load_state_dict(state["sampler"])
