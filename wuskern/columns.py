"""What a forward keeps for its backward: of the input only some columns, where the weights of others do not train."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from wuskern import ops
from wuskern.choices import Columns, Plan, TopColumns
from wuskern.delivery.column_grad import ColumnGrad, transposed
from wuskern.kinds import Kind
from wuskern.sparse_grad import RowGrad


class Saved(NamedTuple):
    """What a forward kept for its backward.

    Attributes:
        x: the input, or the columns of it that pay; None where the weight's gradient is not wanted.
        weight: in the dtype of x, its output units first; None where nothing needs it. like: how the gradient of x has to lie
            in memory.
        columns: ``[k]``, int64, ascending, of which the gradient is wanted; None: all. sums: ``[inputs]``, of the squares of
            the whole input; None where no observer hears of them.
    """

    x: Tensor | None
    weight: Tensor | None
    like: Any
    columns: Tensor | None = None
    sums: Tensor | None = None

    def operands(self, kind: Kind) -> tuple[Tensor, Tensor]:
        """The operands of the weight's gradient beside dy: the input, and a tensor of the shape and layout of the gradient,
        whose values are nobody's; of columns with as many zeros behind them as the kind wants."""
        assert self.x is not None
        assert self.weight is not None
        if self.columns is None or self._has_all(kind):
            return self.x, self.weight
        x = kind.widened(self.x, self.weight)
        return x, kind.part(self.weight, x)

    def grad(self, kind: Kind, values: Tensor, rows: Tensor | None = None) -> ColumnGrad | RowGrad | Tensor:
        """The gradient, of the weight as the layer has it, that values are which were computed of the operands, of all rows or
        of some."""
        grad: ColumnGrad | RowGrad | Tensor = values if rows is None else RowGrad(rows, values)
        if self.columns is not None:
            of_group = len(self.columns) // kind.groups
            chosen = values.index_select(1, self.columns) if self._has_all(kind) else values.narrow(1, 0, of_group)
            grad = ColumnGrad(self.columns, chosen, kind.groups, rows)
        return transposed(grad) if kind.transposed else grad

    def _has_all(self, kind: Kind) -> bool:
        """Whether x has all columns, though only some are chosen."""
        assert self.x is not None
        assert self.columns is not None
        return self.x.shape[kind.dim] > len(self.columns)


def save(kind: Kind, plan: Plan, x: Tensor, weight: Tensor, like: Any) -> Saved:
    """What a backward by that plan needs, with a gradient of the weight: of x the chosen columns, gathered, or all of it.
    ``weight``: its output units first."""
    choice = plan.columns
    if choice is None or plan.skip:
        return Saved(x, weight, like)
    observer = plan.column_observer
    sums = None if observer is None else kind.column_sums(x)
    if isinstance(choice, Columns):
        columns = choice.index.to(x.device)
    else:
        by_input, k = choice.score == "input", choice.count(weight.shape[1] * kind.groups, kind.groups)
        if by_input and observer is None:
            columns = ops.top_rows(x, kind.dim, "l2", k, choice.block, kind.groups)[2]
        else:
            scores = sums if by_input else _scores(kind, choice, x, weight)
            assert scores is not None
            ranked = scores if observer is None else observer.ranked(scores)
            columns = ops.select_rows(ranked, k, choice.block, kind.groups)
    kept = ops.gather_rows(x, columns, kind.dim) if keeps_part(kind, plan, weight) else x
    return Saved(kept, weight, like, columns, None if observer is None else sums)


def keeps_part(kind: Kind, plan: Plan, weight: Tensor) -> bool:
    """Whether forward keeps the chosen columns of x alone: where that pays, and where their norms draw tokens."""
    return plan.tokens is not None or kind.gathers_columns(weight)


def _scores(kind: Kind, choice: TopColumns, x: Tensor, weight: Tensor) -> Tensor:
    """The scores ``[inputs]`` that do not go by the input."""
    if choice.score == "random":
        return torch.rand(weight.shape[1] * kind.groups, device=x.device)
    return kind.weight_sums(weight.detach())
