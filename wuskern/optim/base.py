"""What the row-sparse optimizers share: torch's optimizer for every dense gradient, and a row update for the others."""

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from wuskern.optim.row_grads import drop, fold, request, row_grad_of
from wuskern.rows import RowGrad

REFUSED = ("capturable", "differentiable")  # of torch's arguments
Group = dict[str, Any]
Method = TypeVar("Method", bound=Callable[..., None])


def _in_eager(method: Method) -> Method:
    """Of a method that assigns to its optimizer, which torch 2.10 and 2.11 do not compile."""
    old: bool = torch.__version__ < (2, 13)  # type: ignore[operator]
    return torch.compiler.disable(method) if old else method


class RowSparse(Optimizer):
    """Comes before one of torch's optimizers among the base classes, and says how a row is updated.

    A parameter with a ``grad`` alone is torch's; with a ``row_grad`` alone it moves in those rows; with both, their sum is a
    dense gradient. One with neither stays where it is, state included.
    """

    _amp_scaling = False  # torch's fused kernels take part in a GradScaler's step
    _unscaled: dict[Tensor, RowGrad] | None = None  # what wk.unscale_ has seen since the last step
    _spent: dict[Tensor, RowGrad] | None = None  # what the last step used, until zero_grad

    def _update(self, group: Group, parameter: Tensor, grad: RowGrad) -> None:
        """One step of the parameter in the rows of ``grad``."""
        raise NotImplementedError

    # ---- which parameters ---------------------------------------------------------------------------------------------

    def add_param_group(self, param_group: Group) -> None:
        """torch's, and asks the group's parameters for compact rows.

        Raises:
            ValueError: ``capturable`` or ``differentiable``, which row updates are not.
        """
        if isinstance(param_group, dict):
            _refuse(self.defaults | param_group)
        super().add_param_group(param_group)
        request(self.param_groups[-1]["params"])

    def __setstate__(self, state: dict[str, Any]) -> None:  # of a copy, and of a loaded state_dict
        super().__setstate__(state)
        for group in self.param_groups:
            request(group["params"])

    def zero_grad(self, set_to_none: bool = True) -> None:
        """torch's, and ``row_grad`` becomes None in both modes."""
        super().zero_grad(set_to_none)
        self._unscaled = self._spent = None
        for _, parameter in self._parameters():
            drop(parameter)

    def _parameters(self) -> list[tuple[Group, Tensor]]:
        return [(group, parameter) for group in self.param_groups for parameter in group["params"]]

    # ---- the step -----------------------------------------------------------------------------------------------------

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step. See the class for what moves.

        Args:
            closure: as for torch's optimizers; computes the gradients anew and returns the loss, which is returned.

        Raises:
            RuntimeError: a GradScaler steps this optimizer, and ``wk.unscale_`` has not seen its row gradients.
            ValueError: a row gradient in a group that is ``capturable`` or ``differentiable`` (from a loaded state_dict).
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found_inf = getattr(self, "found_inf", None)
        if found_inf is not None:
            self._refuse_scaled()
        in_rows: list[tuple[Group, Tensor, RowGrad]] = []
        dense = False
        for group in self.param_groups:
            for parameter in group["params"]:
                if (grad := fold(parameter)) is not None:
                    in_rows.append((group, parameter, grad))
                elif parameter.grad is not None:
                    dense = True
        self._look_at(in_rows)
        if dense or not in_rows:
            self._stock_step()
        if found_inf is None or not found_inf:
            for group, parameter, grad in in_rows:
                self._update(group, parameter, grad)
        self._forget_unscaled()
        return loss

    @_in_eager
    def _forget_unscaled(self) -> None:
        self._unscaled = None

    @_in_eager
    def _look_at(self, in_rows: list[tuple[Group, Tensor, RowGrad]]) -> None:
        """Before anything moves."""
        last, self._spent = self._spent, {}
        for group, parameter, grad in in_rows:
            _refuse(group)
            self._spent[parameter] = grad
            if last and last.get(parameter, grad) is not grad:
                warnings.warn(
                    "row gradients of the last step were not cleared, and new ones may have been added to them: call "
                    "optimizer.zero_grad(); Module.zero_grad does not know of row_grad",
                    stacklevel=4,
                )

    def _stock_step(self) -> None:
        """torch's, without the hooks that torch wraps around it: they run once, around :meth:`step`."""
        step = super().step.__func__  # type: ignore[attr-defined]
        (step.__wrapped__ if getattr(step, "hooked", False) else step)(self)

    # ---- under a GradScaler -------------------------------------------------------------------------------------------

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Where it is true, ``GradScaler.step`` calls :meth:`step` with ``grad_scale`` and ``found_inf`` set. So it is while
        there are row gradients that nobody has unscaled, for :meth:`step` to refuse them."""
        return self._amp_scaling or self._holds_scaled()

    @_step_supports_amp_scaling.setter
    def _step_supports_amp_scaling(self, value: bool) -> None:
        self._amp_scaling = value

    def _holds_scaled(self) -> bool:
        return any(
            (grad := row_grad_of(p)) is not None and (self._unscaled or {}).get(p) is not grad for _, p in self._parameters()
        )

    def _mark_unscaled(self) -> None:
        self._unscaled = {p: grad for _, p in self._parameters() if (grad := row_grad_of(p)) is not None}

    def _refuse_scaled(self) -> None:
        if self._holds_scaled():
            for name in ("found_inf", "grad_scale"):  # the scaler removes them only after a step that went well
                self.__dict__.pop(name, None)
            raise RuntimeError(
                "a GradScaler steps this optimizer while it holds row gradients that are still scaled: call "
                "wk.unscale_(scaler, optimizer) in place of scaler.unscale_(optimizer), before scaler.step(optimizer)"
            )


def _refuse(group: Group) -> None:
    for name in REFUSED:
        if group.get(name):
            raise ValueError(
                f"{name}: expected False, got {group[name]!r}: rows are updated outside of captured graphs and of autograd; "
                "torch.optim has optimizers for both"
            )
