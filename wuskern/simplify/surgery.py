"""What cuts the tensors of a model, their gradients and their optimizer's state, and can put everything back."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from wuskern.choices import FixedIndex
from wuskern.simplify.plan import Plan
from wuskern.sparse_grad import RowGrad, to_rows, to_sparse

Keep = dict[int, Tensor]
INPUTS = ("in_features", "in_channels")


class Surgery:
    """An operation on a model that remembers all that it does, for ``undo``."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def undo(self) -> None:
        while self._undo:
            self._undo.pop()()

    @torch.no_grad()
    def apply(self, plan: Plan, model: nn.Module, optimizer: Optimizer | None) -> None:
        modules = dict(model.named_modules())
        for name, constants in plan.folds.items():
            self._fold(modules[name], constants)
        for (name, tensor), keep in plan.keep.items():
            self._cut(getattr(modules[name], tensor), keep, optimizer)
        for (name, attribute), size in plan.sizes.items():
            self._set(modules[name], attribute, size)
        fixed = {"rows": plan.kept, "columns": {name for name, attribute in plan.sizes if attribute in INPUTS}}
        for part, names in fixed.items():
            for name in names:
                if isinstance(getattr(modules[name], part, None), FixedIndex):
                    self._set(modules[name], part, None)

    def _set(self, holder: Any, name: str, value: Any) -> None:
        before = getattr(holder, name)
        self._undo.append(lambda: setattr(holder, name, before))
        setattr(holder, name, value)

    def _fold(self, module: nn.Module, constants: Tensor) -> None:
        weight, bias = module.weight, module.bias
        assert isinstance(weight, Tensor)
        assert isinstance(bias, Tensor)
        columns = weight.detach().to("cpu", torch.float64)
        columns = columns.flatten(2).sum(2) if columns.ndim > 2 else columns
        taken_up = bias.detach().to("cpu", torch.float64) + columns @ constants
        before = bias.detach().clone()
        self._undo.append(lambda: _write(bias, before))
        _write(bias, taken_up)

    def _cut(self, tensor: Tensor, keep: Keep, optimizer: Optimizer | None) -> None:
        if optimizer is not None and tensor in optimizer.state:
            state = optimizer.state[tensor]
            for name, value in list(state.items()):
                if isinstance(value, Tensor) and value.shape == tensor.shape and value.ndim:
                    self._set_item(state, name, subset(value, keep))
        data, grad = tensor.data, tensor.grad
        self._undo.append(lambda: replace(tensor, data, grad))
        kept = subset(data, keep)
        replace(
            tensor, kept, None if grad is None else _sparse_subset(grad, kept, keep) if grad.is_sparse else subset(grad, keep)
        )

    def _set_item(self, state: dict[str, Any], name: str, value: Any) -> None:
        before = state[name]
        self._undo.append(lambda: state.__setitem__(name, before))
        state[name] = value


def check_optimizer(plan: Plan, model: nn.Module, optimizer: Optimizer) -> None:
    """Raises ``ValueError`` if the optimizer's state of a tensor that is cut has another shape than the tensor."""
    modules = dict(model.named_modules())
    for name, tensor in plan.keep:
        parameter = getattr(modules[name], tensor)
        state = optimizer.state.get(parameter, {})
        for key, value in state.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                raise ValueError(
                    f"optimizer: expected state of the parameter's shape, got {key} of {name}.{tensor}: {list(value.shape)}, "
                    f"for {list(parameter.shape)}"
                )


def _write(tensor: Tensor, values: Tensor) -> None:
    tensor.data.copy_(values)


def subset(tensor: Tensor, keep: Keep) -> Tensor:
    """A copy with the indices ``keep`` of some dimensions, in the memory format that the tensor has."""
    is_last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()
    for dim, index in keep.items():
        tensor = tensor.index_select(dim, index.to(tensor.device))
    return tensor.contiguous(memory_format=torch.channels_last if is_last else torch.contiguous_format)


def _sparse_subset(sparse: Tensor, kept: Tensor, keep: Keep) -> Tensor:
    """The :func:`subset` of a sparse gradient, in the shape of ``kept``; dense where it was sparse in several dimensions."""
    if sparse.sparse_dim() > 1:
        return subset(sparse.to_dense(), keep)
    grad = to_rows(sparse)
    values, rows = grad.values, grad.rows
    if 0 in keep:
        stay = torch.isin(rows, index := keep[0].to(rows.device))
        rows, values = torch.searchsorted(index, rows[stay]), values[stay]
    return to_sparse(kept, RowGrad(rows, subset(values, {dim: index for dim, index in keep.items() if dim > 0})))


def replace(tensor: Tensor, data: Tensor, grad: Tensor | None = None) -> None:
    """Puts other values into the same object. An old graph may hold autograd's record of its shape, which autograd forgets only
    when the dtype changes in between."""
    tensor.grad = None
    if isinstance(tensor, Parameter):
        between = torch.float32 if data.dtype != torch.float32 else torch.float16
        tensor.data = torch.empty(0, dtype=between, device=data.device)
    tensor.data = data
    tensor.grad = grad
