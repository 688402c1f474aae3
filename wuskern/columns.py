"""What forward keeps of its input where only some columns of the weight train, and the gradient that comes of it."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wuskern import ops
from wuskern.choices import Columns, Plan, TopColumns
from wuskern.kinds import Kind


class Saved(NamedTuple):
    """What a forward kept for its backward.

    Attributes:
        x: the input, or the columns of it; None where the weight's gradient is not wanted.
        weight: in the dtype of x; None where nothing needs it. like: how the gradient of x has to lie in memory.
        columns: ``[k]``, int64, ascending, those of x; None: all.
    """

    x: Tensor | None
    weight: Tensor | None
    like: Any
    columns: Tensor | None = None

    @property
    def input(self) -> Tensor:
        """The input, where it is there."""
        assert self.x is not None
        return self.x

    def part(self, kind: Kind) -> Tensor:
        """A tensor of the shape and layout of the weight's part that has a gradient; its values are nobody's."""
        assert self.weight is not None
        return self.weight if self.columns is None else kind.part(self.weight, self.columns)


@dataclass(frozen=True)
class ColumnGrad:
    """A gradient of a weight ``[out, in / groups, ...]`` that is zero outside of some input units, and of some rows.

    Attributes:
        columns: ``[k]``, int64, ascending, as many of each group. rows: ``[k_rows]``, int64, ascending; None: all.
        values: ``[out or k_rows, k / groups, ...]``. groups: of the layer.
    """

    columns: Tensor
    values: Tensor
    groups: int = 1
    rows: Tensor | None = None

    def write(self, target: Tensor) -> Tensor:
        """The target ``[out, in / groups, ...]`` with the values in their places; the rest stays as it was."""
        return self._put(target, self.values.to(target.dtype))

    def clear(self, target: Tensor) -> Tensor:
        """The target with zeros in the places of the values."""
        return self._put(target, target.new_zeros(()))

    def _put(self, target: Tensor, values: Tensor) -> Tensor:
        if self.groups == 1 and self.rows is None:
            return target.index_copy_(1, self.columns, values) if values.ndim else target.index_fill_(1, self.columns, values)
        out, of_group = target.shape[:2]
        rows = torch.arange(out, device=target.device) if self.rows is None else self.rows
        within = self.columns.view(self.groups, -1) % of_group
        return target.index_put_((rows[:, None], within[rows * self.groups // out]), values)

    def dense(self, weight: Tensor) -> Tensor:
        """A tensor of the weight's shape in the dtype of the values: these, and zeros elsewhere."""
        return self.write(self.values.new_zeros(weight.shape))


def save(kind: Kind, plan: Plan, x: Tensor, weight: Tensor, like: Any) -> Saved:
    """What a backward by that plan needs, with a gradient of the weight: of x the chosen columns, gathered, or all of it."""
    choice = plan.columns
    if choice is None or plan.skip:
        return Saved(x, weight, like)
    columns = choice.index.to(x.device) if isinstance(choice, Columns) else _largest(kind, choice, x, weight)
    return Saved(ops.gather_rows(x, columns, kind.dim), weight, like, columns)


def _largest(kind: Kind, choice: TopColumns, x: Tensor, weight: Tensor) -> Tensor:
    units = kind.units(weight)
    if choice.score == "random":
        scores = torch.rand(units.inputs, device=x.device)
    else:
        scores = kind.column_sums(x) if choice.score == "input" else kind.weight_sums(weight.detach())
    return ops.select_rows(scores, choice.count(units.inputs, units.groups), choice.block, units.groups)
