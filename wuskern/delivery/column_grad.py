"""The gradient of a weight of which only some input units train: no layout of torch's holds it, so it becomes dense."""

from dataclasses import dataclass

from torch import Tensor

from wuskern.delivery.part import Part
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

    @property
    def part(self) -> Part:
        """Where the values belong."""
        return Part(self.rows, self.columns, self.groups)

    def write(self, target: Tensor) -> Tensor:
        """The target ``[out, in / groups, ...]`` with the values in their places; the rest stays as it was."""
        return self.part.put(target, self.values.to(target.dtype))

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
