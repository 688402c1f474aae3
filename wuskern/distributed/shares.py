"""What the layers of each weight have added to its gradient since gradients were last reduced, as all processes know it."""

import torch
from torch import Tensor
from torch.nn import Parameter

from wuskern.delivery.dense_grad import dense_grad
from wuskern.sparse_grad import RowGrad, to_rows, to_sparse


class Share:
    """What is to be sent of one weight's gradient. It is filled in forward, by plans that are the same in all processes: the
    gradients that are there would say less, for a layer that one process did not use leaves none.

    Attributes:
        names: of the weight's layers. dense: some forward trains all rows. rows: those that other forwards train.
        untouched: there was no gradient when :meth:`begin` was called.
    """

    def __init__(self, names: list[str], weight: Parameter) -> None:
        self.names, self.weight = names, weight
        self.begin()

    def begin(self) -> None:
        """Forgets what earlier forwards train, once gradients have been reduced."""
        self.dense, self.untouched = False, self.weight.grad is None
        self.rows: list[Tensor] = []

    @property
    def nothing(self) -> bool:
        """Whether the weight has no gradient in any process."""
        return not self.dense and not self.rows

    def union(self) -> Tensor:
        """The rows ``[k]`` of all forwards, ascending, each once, on the weight's device."""
        first, *rest = self.rows
        if all(rows is first for rows in rest):
            return first.to(self.weight.device)
        return torch.cat([rows.to(self.weight.device) for rows in self.rows]).unique()

    def refuse_stray(self) -> None:
        """Raises ``RuntimeError`` if a gradient is there that would not be sent."""
        if self.nothing and self.untouched and self.weight.grad is not None:
            raise RuntimeError(
                f"{self.names[0] or 'the model itself'}: expected no gradient of a weight that is skipped, got one: a term of "
                "the loss reads the weight itself, or skip was changed inside forward"
            )

    def make_dense(self) -> None:
        """Gives a sparse ``weight.grad`` the dense form, the only one that DDP takes."""
        if (grad := self.weight.grad) is not None and grad.is_sparse:
            self.weight.grad = dense_grad(self.weight, to_rows(grad))

    def make_sparse(self) -> None:
        """Gives ``weight.grad`` the sparse form, unless an older gradient is in it that has other rows."""
        grad = self.weight.grad
        if not self.rows or self.dense or grad is None or grad.is_sparse:
            return
        rows = self.union()
        if self.untouched or not grad.flatten(1).any(1).index_fill(0, rows, False).any():
            self.weight.grad = to_sparse(self.weight, RowGrad(rows, grad.index_select(0, rows)))
