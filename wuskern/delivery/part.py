"""The part of a weight that trains: some of its rows, some of its columns, or the block where these cross."""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Part(NamedTuple):
    """The part of a weight ``[out, in / groups, ...]`` in which its gradient may be other than zero.

    Attributes:
        rows: ``[k_rows]``, int64, ascending; None: all. columns: ``[k]``, int64, ascending, input units of the layer, as many
            of each group; None: all. groups: of the layer.
    """

    rows: Tensor | None
    columns: Tensor | None
    groups: int = 1

    def copied(self) -> "Part":
        """The same part, in memory that nobody else can change."""
        rows, columns = (None if index is None else index.clone() for index in (self.rows, self.columns))
        return Part(rows, columns, self.groups)

    def same(self, other: "Part") -> bool:
        """Whether the two are the same part."""
        return _equal(self.rows, other.rows) and _equal(self.columns, other.columns)

    def shape(self, weight: Tensor) -> torch.Size:
        """The shape of this part of a weight."""
        shape = list(weight.shape)
        if self.rows is not None:
            shape[0] = len(self.rows)
        if self.columns is not None:
            shape[1] = len(self.columns) // self.groups
        return torch.Size(shape)

    def take(self, t: Tensor) -> Tensor:
        """This part of ``t``, which has the shape of the weight: a copy, or ``t`` itself where it is all of it."""
        if self.columns is None:
            return t if self.rows is None else t.index_select(0, self.rows)
        if self.groups == 1 and self.rows is None:
            return t.index_select(1, self.columns)
        return t[self._places(t)]

    def put(self, target: Tensor, values: Tensor) -> Tensor:
        """The target, of the weight's shape, with the values in this part of it; the rest stays as it was."""
        if self.columns is None:
            return target.copy_(values) if self.rows is None else target.index_copy_(0, self.rows, values)
        if self.groups == 1 and self.rows is None:
            return target.index_copy_(1, self.columns, values)
        return target.index_put_(self._places(target), values)

    def clear(self, target: Tensor) -> None:
        """Sets this part of ``target`` to zero."""
        if self.columns is None:
            assert self.rows is not None
            target.index_fill_(0, self.rows, 0)
        elif self.groups == 1 and self.rows is None:
            target.index_fill_(1, self.columns, 0)
        else:
            target.index_put_(self._places(target), target.new_zeros(()))

    def _places(self, t: Tensor) -> tuple[Tensor, Tensor]:
        assert self.columns is not None
        return places(t, self.columns, self.groups, self.rows)


def places(target: Tensor, columns: Tensor, groups: int, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    """The index ``[rows, 1], [rows, k / groups]`` of these columns, in these rows or in all, of a gradient."""
    out, of_group = target.shape[:2]
    rows = torch.arange(out, device=target.device) if rows is None else rows
    return rows[:, None], (columns.view(groups, -1) % of_group)[rows * groups // out]


def _equal(a: Any, b: Any) -> bool:
    if a is None or b is None:
        return a is b
    return (len(a) == len(b) and a.data_ptr() == b.data_ptr()) or torch.equal(a, b)
