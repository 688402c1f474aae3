"""What a forward keeps for its backward: of the input only some columns, where the weights of others do not train."""

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
