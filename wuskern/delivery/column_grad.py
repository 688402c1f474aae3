"""The gradient of a weight of which only some input units train: no layout of torch's holds it, so it becomes dense."""

from dataclasses import dataclass

import torch
from torch import Tensor


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
