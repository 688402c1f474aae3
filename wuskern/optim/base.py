"""What the row-sparse optimizers share: torch's optimizer for every dense gradient, and a row update for the others."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo  # torch.compiler.disable would import all of the compiler now
from torch.optim import Optimizer

from wuskern.delivery.grad_home import ask
from wuskern.sparse_grad import RowGrad, to_rows

REFUSED = ("capturable", "differentiable")  # arguments of torch's that row updates do not have
Group = dict[str, Any]


class RowSparse(Optimizer):
    """A base class that comes before one of torch's optimizers; its subclass says how a row is updated.

    torch steps a parameter with a dense ``grad``; one whose ``grad`` is sparse, in rows, moves in those rows. A parameter
    without a gradient stays where it is, and so does its state.
    """

    def _update(self, group: Group, parameter: Tensor, grad: RowGrad) -> None:
        """Takes one step of the parameter in the rows of ``grad``."""
        raise NotImplementedError

    # ---- which parameters ---------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: Group) -> None:
        """Adds the group, as torch does, and asks the layers of its weights for sparse gradients.

        Raises:
            ValueError: ``capturable`` or ``differentiable``, which row updates are not.
        """
        if isinstance(param_group, dict):
            _refuse(self.defaults | param_group)
        super().add_param_group(param_group)
        ask(self)

    def __setstate__(self, state: dict[str, Any]) -> None:  # runs for copies, and after a state_dict is loaded
        super().__setstate__(state)
        ask(self)

    # ---- the step -----------------------------------------------------------------------------------------------------

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Takes one step and returns the closure's loss, if there is a closure. See the class for what moves.

        Args:
            closure: as for torch's optimizers: computes the gradients anew and returns the loss.

        Raises:
            ValueError: a sparse gradient in a group that is ``capturable`` or ``differentiable`` (from a loaded state_dict).
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients = [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        in_rows = [(group, p) for group, p in gradients if p.grad.is_sparse]
        if not in_rows:
            self._stock_step()
        else:
            self._step_in_rows(in_rows, has_dense=len(in_rows) < len(gradients))
        return loss

    @_disable_dynamo
    def _step_in_rows(self, in_rows: list[tuple[Group, Tensor]], has_dense: bool) -> None:
        for group, _ in in_rows:
            _refuse(group)  # before anything moves
        if has_dense:
            self._step_without([parameter for _, parameter in in_rows])
        found_inf, scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)  # set by a GradScaler
        if found_inf is not None and bool(found_inf):
            return
        for group, parameter in in_rows:
            assert parameter.grad is not None
            rows = to_rows(parameter.grad)
            self._update(group, parameter, rows if scale is None else RowGrad(rows.rows, rows.values / scale))

    def _step_without(self, parameters: list[Tensor]) -> None:
        """Takes torch's step of all parameters but these: torch passes over what has no gradient."""
        gradients = [parameter.grad for parameter in parameters]
        try:
            for parameter in parameters:
                parameter.grad = None
            self._stock_step()
        finally:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient

    def _stock_step(self) -> None:
        """Takes torch's step without the hooks that torch wraps around it: they run once, around :meth:`step`."""
        step = super().step.__func__  # type: ignore[attr-defined]
        (step.__wrapped__ if getattr(step, "hooked", False) else step)(self)


def _refuse(group: Group) -> None:
    for name in REFUSED:
        if group.get(name):
            raise ValueError(
                f"{name}: expected False, got {group[name]!r}: rows are updated outside of captured graphs and of autograd; "
                "torch.optim has optimizers for both"
            )
