"""What backward passes tell about the choice of rows and of columns, for methods that learn from it.

An observer belongs to a policy and is named in a layer's plan. It hears only of backward passes that add to ``weight.grad``: a
gradient of the input (an attack, a saliency map) leaves no trace.
"""

from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from wuskern.common.arguments import one_of
from wuskern.delivery import deliver

SumScore = Literal["l1", "l2"]


class _Memory:
    """Sums over backward passes, in memory that stays, with a key by which compiled code finds it."""

    sums: ClassVar[tuple[str, ...]]  # the names of what is summed
    only_eager = False  # whether compiled code has to stop and ask it in eager mode

    def __init__(self) -> None:
        for name in self.sums:
            setattr(self, name, None)
        self.key = deliver.new_key(self)

    def clear(self) -> None:
        """Sets what is summed to zero, in the memory that a captured CUDA graph adds to."""
        for name in self.sums:
            if (memory := getattr(self, name)) is not None:
                memory.zero_()

    def _load(self, **values: Tensor | None) -> None:
        self.clear()
        for name, value in values.items():
            if value is not None:
                setattr(self, name, _sum(getattr(self, name), value))

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "key"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__ |= state
        self.key = deliver.new_key(self)  # a copy has one of its own


class Observer(_Memory):
    """Sums of the scores of all rows, or counts of the choices, over backward passes; and which rows may be chosen.

    Args:
        score: "l1" or "l2", as for ``TopK``: the scores to add up, of a layer with fixed ``Rows`` too. None: none.
        alive: ``[out]``, bool: the rows to choose from; others only where there are not enough of them. With it, choices are
            counted.

    Attributes:
        total: ``[out]``, float32 (float64 of float64 gradients), of this process alone; None or zeros: of no backward.
        hits: ``[out]``, int64: how often each row was chosen, in this process; None or zeros: of no backward.
        seen: int64, no dimensions: choices made: one in each backward, or one for each example with ``PerExample``; one in each
            step where ``wuskern.distributed`` chooses.
    """

    sums = ("total", "hits", "seen")
    total: Tensor | None
    hits: Tensor | None
    seen: Tensor | None

    def __init__(self, score: SumScore | None = None, alive: Tensor | None = None) -> None:
        if score is not None:
            one_of("score", score, get_args(SumScore))
        if not isinstance(alive, Tensor | None):
            raise TypeError(f"alive: expected a tensor or None, got {type(alive).__name__}")
        super().__init__()
        self.score, self.alive = score, alive

    def load(self, total: Tensor | None = None, hits: Tensor | None = None, seen: Tensor | None = None) -> None:
        """Sets sums and counts to copies of the given ones, in the memory that there is; None: to zero."""
        self._load(total=total, hits=hits, seen=seen)

    @property
    def counts(self) -> bool:
        """Whether the observer counts the choices."""
        return self.alive is not None

    def ranked(self, scores: Tensor) -> Tensor:
        """The ``scores``, ``[..., out]`` and none under 0, with -1 in place of those of rows that are not alive."""
        return scores if self.alive is None else scores.masked_fill(~self.alive, -1)

    def saw(self, scores: Tensor | None, chosen: Tensor | None) -> None:
        """Adds the scores ``[out]`` and the choices ``[choices, out]``, bool, of one backward pass; None: nothing to add."""
        if scores is not None:
            self.total = _sum(self.total, scores)
        if chosen is not None:
            seen = torch.full((), chosen.shape[0], dtype=torch.int64, device=chosen.device)
            self.hits, self.seen = _sum(self.hits, chosen.sum(0)), _sum(self.seen, seen)

    def tell(self, scores: Tensor | None, chosen: Tensor | None, home: Tensor | None) -> None:
        """Passes on to :meth:`saw` what is wanted, from code that may be traced; ``home``: the key of the layer's home."""
        scores, chosen = scores if self.score else None, chosen if self.counts else None
        if not torch.compiler.is_compiling():
            self.saw(scores, chosen)
        elif scores is not None or chosen is not None:
            parts = [t for t in (scores, chosen) if t is not None]
            deliver.from_compiled(self.key, home, *parts)

    def receive(self, *parts: Tensor) -> None:
        """Takes what compiled code tells: scores or choices, or both, which differ in their dimensions."""
        of_ndim = {part.ndim: part for part in parts}
        self.saw(of_ndim.get(1), of_ndim.get(2))


class ColumnObserver(_Memory):
    """Sums of the squares of all columns of the input, those that are not chosen too, over backward passes. It stands in a plan
    beside a choice of columns, and takes a pass over the input in each forward.

    Attributes:
        total: ``[inputs]``, float32 (float64 of a float64 input), of this process alone; None or zeros: of no backward.
    """

    sums = ("total",)
    total: Tensor | None

    def load(self, total: Tensor | None = None) -> None:
        """Sets the sums to a copy of the given ones, in the memory that there is; None: to zero."""
        self._load(total=total)

    def ranked(self, scores: Tensor) -> Tensor:
        """The ``scores``, ``[inputs]``, by which ``TopColumns`` chooses."""
        return scores

    def saw(self, sums: Tensor) -> None:
        """Adds the sums ``[inputs]`` of one backward pass."""
        self.total = _sum(self.total, sums)

    def tell(self, sums: Tensor, dy: Tensor, home: Tensor | None) -> None:
        """Passes the sums on to :meth:`saw`, from code that may be traced. ``dy``: the gradient of the output. ``home``: the
        key of the layer's home."""
        if torch.compiler.is_compiling():
            # Without a piece of dy a compiler would do so in forward, where it has the sums, and nobody knows of a backward.
            deliver.from_compiled(self.key, home, sums, dy.narrow(0, 0, 0))
        else:
            self.saw(sums)

    def receive(self, *parts: Tensor) -> None:
        """Takes what compiled code tells."""
        self.saw(parts[0])


def _sum(total: Tensor | None, added: Tensor) -> Tensor:
    """The sum, in the memory of ``total``, which a captured CUDA graph goes on adding to; None counts as zeros."""
    return added.clone() if total is None else total.add_(added)
