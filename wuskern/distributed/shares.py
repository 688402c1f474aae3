"""What the owners of each weight have given its gradient since gradients were last reduced, as all processes know it."""

import torch
from torch import Tensor
from torch.nn import Parameter

from wuskern.compact import wants_row_grad
from wuskern.rows import RowGrad


class Share:
    """Filled in forward, by flags that are the same everywhere: which gradients there are locally says less, for a layer that
    one process did not use leaves none.

    Attributes:
        name: of the weight's layer. dense: some forward trains all rows. rows: those that other forwards train.
        untouched: there was no gradient when all this began.
    """

    def __init__(self, name: str, weight: Parameter) -> None:
        self.name, self.weight = name, weight
        self.begin()

    def begin(self) -> None:
        self.dense, self.untouched = False, self.weight.grad is None
        self.rows: list[Tensor] = []

    @property
    def compact(self) -> bool:
        """Its rows are in ``weight.row_grad``."""
        return bool(self.rows) and wants_row_grad(self.weight)

    @property
    def nothing_dense(self) -> bool:
        return not self.dense and (not self.rows or self.compact)

    def union(self) -> Tensor:
        """``[k]``, ascending, each once, where the weight is."""
        first, *others = self.rows
        if all(rows is first for rows in others):
            return first.to(self.weight.device)
        return torch.cat([rows.to(self.weight.device) for rows in self.rows]).unique()

    def refuse_stray(self) -> None:
        """Raises ``RuntimeError`` if a gradient is there that would not be sent."""
        if self.nothing_dense and self.untouched and self.weight.grad is not None:
            raise RuntimeError(
                f"{self.name or 'the model itself'}: expected no dense gradient of a weight that is skipped or has compact "
                "rows, got one: a term of the loss reads the weight itself, or skip or rows were changed inside forward"
            )

    def values_of(self, rows: Tensor) -> Tensor:
        """Of ``weight.row_grad``, ``[k, ...]``; zeros where this process has not used the weight."""
        grad: RowGrad | None = self.weight.row_grad  # type: ignore[attr-defined]
        if grad is None:
            return self.weight.detach().new_zeros(len(rows), *self.weight.shape[1:])
        return grad.values if self._covers(grad, rows) else grad.values.index_select(0, self._place(grad, rows))

    def replace(self, rows: Tensor, values: Tensor) -> None:
        """Puts the values into ``weight.row_grad``. Rows that it has beside these are of earlier steps, and stay."""
        grad: RowGrad | None = self.weight.row_grad  # type: ignore[attr-defined]
        if grad is not None and not self._covers(grad, rows):
            values = grad.values.index_copy(0, self._place(grad, rows), values)
            rows = grad.rows
        self.weight.row_grad = RowGrad(rows, values)  # type: ignore[attr-defined]

    def _covers(self, grad: RowGrad, rows: Tensor) -> bool:
        return grad.rows is rows or (len(grad.rows) == len(rows) and bool((grad.rows == rows).all()))

    def _place(self, grad: RowGrad, rows: Tensor) -> Tensor:
        place = torch.searchsorted(grad.rows, rows).clamp_(max=len(grad.rows) - 1)
        if not bool((grad.rows[place] == rows).all()):
            raise RuntimeError(
                f"{self.name or 'the model itself'}: expected a row_grad with the rows that forward chose, got others: rows "
                "were changed inside forward, or row_grad since"
            )
        return place
