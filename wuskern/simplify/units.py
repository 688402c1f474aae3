"""The output units and what is known of them: what flows along the graph, and the ledger of all units."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

ONE_STAYS = "a layer keeps at least one row"


@dataclass(frozen=True)
class Units:
    """Which units a tensor holds, along one dimension.

    Attributes:
        dim: the dimension, from 0.
        ids: ``[n]``, int64, the unit of each place; -1: none that is known.
        constant: ``[n]``, float64, the value that the place has for every input, in evaluation; NaN where it varies.
    """

    dim: int
    ids: Tensor
    constant: Tensor

    @property
    def known(self) -> Tensor:
        return ~self.constant.isnan()


@dataclass(frozen=True)
class Cut:
    """Tensors of a module that have one index per unit along ``dim``, and the attributes that hold their length."""

    module: str
    tensors: tuple[str, ...]
    dim: int
    ids: Tensor
    attributes: tuple[str, ...]
    rows: bool = False  # whether these are the rows of a Linear or Conv2d


@dataclass(frozen=True)
class Fold:
    """A layer whose bias takes up what constant inputs give. ``inputs``: the units that its columns read."""

    module: str
    inputs: Units


@dataclass
class Ledger:
    """A record of all units, by number: which are tied together, may not go, or are dead.

    ``own_sizes``: whether numbers that a view has for a dimension of units are sizes of its own, and not computed from those of
    its input, which a graph does not tell apart. ``open``: views where that makes a difference.
    """

    own_sizes: bool = True
    open: list[str] = field(default_factory=list)
    count: int = 0
    dead: set[int] = field(default_factory=set)
    pinned: set[int] = field(default_factory=set)
    reasons: dict[int, str] = field(default_factory=dict)  # the first reason found for each unit
    ties: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)
    folds: list[Fold] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)  # layers that have no units, with the reason
    without_norm: set[int] = field(default_factory=set)  # units whose norm cannot be named: it is shared, or computed

    def new(self, length: int) -> Tensor:
        ids = torch.arange(self.count, self.count + length)
        self.count += length
        return ids

    def die(self, ids: Tensor, dead: Tensor) -> None:
        self.dead.update(ids[dead].tolist())

    def blame(self, ids: Tensor, reason: str) -> None:
        """Notes why these units stay, should somebody ask; the first reason counts."""
        for unit in ids.tolist():
            self.reasons.setdefault(unit, reason)

    def pin(self, value: Units, reason: str, where: Tensor | None = None) -> None:
        """Marks units as such that may not go; ``where``: in which places, ``[n]`` bool."""
        ids = value.ids if where is None else value.ids[where]
        ids = ids[ids >= 0]
        self.blame(ids, reason)
        self.pinned.update(ids.tolist())

    def tie(self, a: Units, b: Units, reason: str) -> None:
        """Ties units at the same places: they go together or not at all."""
        alone = (a.ids < 0) != (b.ids < 0)
        self.pin(a, reason, alone)
        self.pin(b, reason, alone)
        tied = (a.ids >= 0) & (b.ids >= 0) & (a.ids != b.ids)
        if tied.any():
            self.ties.append((a.ids[tied], b.ids[tied]))

    # ---- the decision -------------------------------------------------------------------------------------------------

    def gone(self) -> Tensor:
        """The units that go, ``[count]`` bool: they, and all units tied to them, are dead or tied to dead ones, and none is
        pinned. A row of each layer stays."""
        labels = self._labels()
        pinned = self._marks(self.pinned)
        gone = self._any(labels, self._marks(self.dead)) & ~self._any(labels, pinned)
        self._explain(labels, pinned)
        while emptied := [cut for cut in self.cuts if cut.rows and gone[cut.ids].all()]:
            for cut in emptied:
                stays = labels == labels[cut.ids[0]]
                gone &= ~stays
                self.blame(stays.nonzero()[:, 0], ONE_STAYS)
        return gone

    def _marks(self, units: set[int]) -> Tensor:
        return torch.zeros(self.count, dtype=torch.bool).index_fill_(0, torch.tensor(sorted(units), dtype=torch.int64), True)

    @staticmethod
    def _any(labels: Tensor, marks: Tensor) -> Tensor:
        return torch.zeros_like(marks).index_fill_(0, labels[marks], True)[labels]

    def _labels(self) -> Tensor:
        """The lowest unit that each unit is tied to, directly or through others."""
        labels = torch.arange(self.count)
        while True:
            before = labels.clone()
            for a, b in self.ties:
                low = torch.minimum(labels[a], labels[b])
                labels.scatter_reduce_(0, a, low, "amin").scatter_reduce_(0, b, low, "amin")
            if torch.equal(labels, before):
                return labels

    def _explain(self, labels: Tensor, pinned: Tensor) -> None:
        """Gives a dead unit that stays because it is tied to a pinned one that one's reason."""
        of_label: dict[int, str] = {}
        names = labels.tolist()
        for unit in pinned.nonzero()[:, 0].tolist():
            of_label.setdefault(names[unit], self.reasons[unit])
        for unit in self.dead:
            if names[unit] in of_label:
                self.reasons.setdefault(unit, f"what it is combined with stays: {of_label[names[unit]]}")


def varying(length: int) -> Tensor:
    return torch.full((length,), float("nan"), dtype=torch.float64)


def joined(parts: Sequence[tuple[Units | None, int]], dim: int) -> Units:
    """The units of a concatenation of parts, each with its length; None for a part without units."""
    ids = [torch.full((n,), -1) if part is None else part.ids for part, n in parts]
    constants = [varying(n) if part is None else part.constant for part, n in parts]
    return Units(dim, torch.cat(ids), torch.cat(constants))
