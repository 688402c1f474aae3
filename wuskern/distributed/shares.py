"""What the layers of each weight have added to its gradient since gradients were last reduced, as all processes know it."""

import torch
from torch import Tensor
from torch.nn import Parameter

from wuskern.choices import Columns, Plan, Rows, TopColumns, TopK
from wuskern.delivery.dense_grad import dense_grad
from wuskern.delivery.part import Part
from wuskern.sparse_grad import RowGrad, to_rows, to_sparse


class Trained:
    """The rows, or the columns, that forwards train together.

    Attributes:
        every: whether a forward trains all of them. some: those that other forwards train.
    """

    def __init__(self) -> None:
        self.every = False
        self.some: list[Tensor] = []

    @property
    def nothing(self) -> bool:
        """Whether no forward trains any."""
        return not self.every and not self.some

    def add(self, index: Tensor | None) -> None:
        """Adds what one forward trains; None: all."""
        if index is None:
            self.every = True
        elif not self.some or self.some[-1] is not index:
            self.some.append(index)

    def union(self, device: torch.device) -> Tensor | None:
        """The index ``[k]`` of all forwards, of which there is one, ascending, each once; None: all."""
        if self.every:
            return None
        first, *rest = self.some
        if all(index is first for index in rest):
            return first.to(device)
        return torch.cat([index.to(device) for index in self.some]).unique()


class Share:
    """What is to be sent of one weight's gradient. It is filled in forward, by plans that are the same in all processes: the
    gradients that are there would say less, for a layer that one process did not use leaves none.

    Where forwards train different parts, the smallest block of rows and columns is sent that holds all of them.

    Attributes:
        names: of the weight's layers. groups: that they have; None: they differ in it. rows, columns: what forwards train, by
            the weight's dimensions 0 and 1.
        untouched: there was no gradient when :meth:`begin` was called.
    """

    def __init__(self, names: list[str], weight: Parameter, groups: int | None = 1) -> None:
        self.names, self.weight, self.groups = names, weight, groups
        self.begin()

    def begin(self) -> None:
        """Forgets what earlier forwards train, once gradients have been reduced."""
        self.untouched = self.weight.grad is None
        self.rows, self.columns = Trained(), Trained()

    def along(self, part: str, transposed: bool) -> Trained:
        """What forwards train of a layer's "rows" or "columns": of a ``transposed`` weight, ``[in, out]``, the rows of the
        layer are columns here."""
        return self.rows if (part == "rows") != transposed else self.columns

    def add(self, plan: Plan, transposed: bool) -> None:
        """Adds what a forward with this plan trains; what all processes agree on within the step comes then."""
        if not isinstance(plan.rows, TopK):
            self.along("rows", transposed).add(plan.rows.index if isinstance(plan.rows, Rows) else None)
        if not isinstance(plan.columns, TopColumns):
            self.along("columns", transposed).add(plan.columns.index if isinstance(plan.columns, Columns) else None)

    @property
    def nothing(self) -> bool:
        """Whether the weight has no gradient in any process."""
        return self.rows.nothing or self.columns.nothing

    @property
    def dense(self) -> bool:
        """Whether all of the gradient is sent."""
        return self.rows.every and self.columns.every

    def part(self) -> Part:
        """Where the gradient is not zero, on the weight's device: a block, which may hold more than what is trained."""
        return Part(self.rows.union(self.weight.device), self._columns(), self.groups or 1)

    def _columns(self) -> Tensor | None:
        """The columns of all forwards; None where these are all, or where groups have different numbers of them."""
        columns = self.columns.union(self.weight.device)
        if columns is None or self.groups is None:
            return None
        if self.groups == 1 or len(self.columns.some) == 1:
            return columns
        of_group = (columns // self.weight.shape[1]).bincount(minlength=self.groups)
        return columns if (of_group == of_group[0]).all() else None

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
        if self.nothing or self.rows.every or self.columns.some or grad is None or grad.is_sparse:
            return
        rows = self.rows.union(self.weight.device)
        assert rows is not None
        if self.untouched or not grad.flatten(1).any(1).index_fill(0, rows, False).any():
            self.weight.grad = to_sparse(self.weight, RowGrad(rows, grad.index_select(0, rows)))
