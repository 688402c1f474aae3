"""The gradient of a weight of which only some input units train: no layout of torch's holds it, so it becomes dense."""

from dataclasses import dataclass

import torch
from torch import Tensor

from wuskern.sparse_grad import RowGrad


@dataclass(frozen=True)
class ColumnGrad:
    """A gradient of a weight ``[out, in / groups, ...]`` that is zero outside of some input units, and of some rows. Of a
    weight ``[in, out]``, as transformers' Conv1D has it, columns are output units, and rows are input units.

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
        if self.groups == 1 and self.rows is None:
            return target.index_copy_(1, self.columns, self.values.to(target.dtype))
        return target.index_put_(places(target, self.columns, self.groups, self.rows), self.values.to(target.dtype))

    def dense(self, weight: Tensor) -> Tensor:
        """A tensor of the weight's shape in the dtype of the values: these, and zeros elsewhere."""
        return self.write(self.values.new_zeros(weight.shape))


def transposed(grad: RowGrad | ColumnGrad | Tensor) -> RowGrad | ColumnGrad | Tensor:
    """The gradient of a weight ``[in, out]`` whose transpose has the gradient ``grad``: a view."""
    if isinstance(grad, Tensor):
        return grad.t()
    values = grad.values.t()
    if isinstance(grad, RowGrad):
        return ColumnGrad(grad.rows, values)
    return RowGrad(grad.columns, values) if grad.rows is None else ColumnGrad(grad.rows, values, rows=grad.columns)


def places(target: Tensor, columns: Tensor, groups: int, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    """The index ``[rows, 1], [rows, k / groups]`` of these columns, in these rows or in all, of a gradient."""
    out, of_group = target.shape[:2]
    rows = torch.arange(out, device=target.device) if rows is None else rows
    return rows[:, None], (columns.view(groups, -1) % of_group)[rows * groups // out]
