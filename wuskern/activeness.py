"""How often each row was among the chosen ones: the record that meSimp (arXiv 1711.06528) prunes neurons by."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from wuskern import deliver


@dataclass(eq=False)
class Activeness:
    """Counts of a layer's choices, over backward passes, and the rows that may be chosen.

    Attributes:
        alive: ``[out]``, bool: the rows that are chosen from; others only where there are not enough of them.
        hits: ``[out]``, int64: how often each row was chosen, in this process; None before the first backward.
        seen: int64, no dimensions: choices made: one in each backward, or with ``PerExample`` one for each example; one in each
            step where ``wuskern.distributed`` chooses.
    """

    alive: Tensor
    hits: Tensor | None = None
    seen: Tensor | None = None
    _key: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._key = deliver.new_key(self, Activeness._receive)

    def __getstate__(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return self.alive, self.hits, self.seen

    def __setstate__(self, state: tuple[Tensor, Tensor | None, Tensor | None]) -> None:  # a copy has a key of its own
        self.alive, self.hits, self.seen = state
        self._key = deliver.new_key(self, Activeness._receive)

    def among(self, scores: Tensor) -> Tensor:
        """``scores``, ``[..., out]``, none under 0, with -1 for the rows that are not alive."""
        return scores.masked_fill(~self.alive, -1)

    def add(self, chosen: Tensor) -> None:
        """Counts ``chosen``, ``[choices, out]``, bool."""
        hits = chosen.sum(0)
        seen = torch.full((), chosen.shape[0], dtype=torch.int64, device=chosen.device)
        if torch.compiler.is_compiling():
            deliver.from_compiled(self._key, hits, seen)
        else:
            self._receive(hits, seen)

    def _receive(self, hits: Tensor, seen: Tensor) -> None:
        self.hits = hits if self.hits is None else self.hits + hits
        self.seen = seen if self.seen is None else self.seen + seen

    def clear(self) -> None:
        """Forgets the counts."""
        self.hits = self.seen = None
