"""``fit_``: a fresh model in the sizes of a checkpoint."""

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
import torch.nn as nn
from torch import Tensor

from wuskern.simplify.surgery import replace, some

Model = TypeVar("Model", bound=nn.Module)
Sizes = dict[str, int]
NORMS = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


def fit_(model: Model, state_dict: Mapping[str, Any]) -> Model:
    """Gives the layers of a freshly built model the shapes of a simplified one's ``state_dict``, so that ``load_state_dict``
    takes it, and returns the model. Parameters stay the same objects and hold part of their values; make the optimizer's
    state, or load it, afterwards. Keys that are missing or too many are for ``load_state_dict`` to find.

    Raises:
        TypeError: ``model`` is no module, or ``state_dict`` no mapping.
        ValueError: by its name, a tensor of another shape that is no smaller one of a Linear, Conv2d, BatchNorm, GroupNorm or
            PReLU; the model is then unchanged.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict: expected a mapping of names to tensors, got {type(state_dict).__name__}")
    todo: list[tuple[nn.Module, dict[str, tuple[int, ...]], Sizes]] = []
    for name, module in model.named_modules():
        shapes = _other_shapes(name, module, state_dict)
        if shapes:
            todo.append((module, shapes, _sizes(name, module, shapes)))
    for module, shapes, sizes in todo:
        for tensor, shape in shapes.items():
            mine = getattr(module, tensor)
            replace(mine, some(mine.data, {dim: torch.arange(n) for dim, n in enumerate(shape)}))
        for attribute, size in sizes.items():
            setattr(module, attribute, size)
    return model


def _other_shapes(name: str, module: nn.Module, state_dict: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Of the module's own tensors that have another shape in the state."""
    found = {}
    for tensor, mine in (*module._parameters.items(), *module._buffers.items()):
        its = state_dict.get(f"{name}.{tensor}" if name else tensor)
        if mine is None or not isinstance(its, Tensor) or its.shape == mine.shape:
            continue
        if its.ndim != mine.ndim or any(a > b or a == 0 for a, b in zip(its.shape, mine.shape, strict=True)):
            _refuse(name, tensor, f"up to {list(mine.shape)}", its.shape)
        found[tensor] = tuple(its.shape)
    return found


def _refuse(name: str, tensor: str, expected: str, shape: tuple[int, ...]) -> None:
    where = f"{name}.{tensor}" if name else tensor
    raise ValueError(f"state_dict: expected {where} of shape {expected}, got {list(shape)}")


def _sizes(name: str, module: nn.Module, shapes: dict[str, tuple[int, ...]]) -> Sizes:
    """The module's attributes, once its tensors have these shapes."""
    tensor, shape = next(iter(shapes.items()))
    for other, its in shapes.items():
        if its[0] != shape[0]:
            _refuse(name, other, f"[{shape[0]}], as {tensor} has", its)
    if isinstance(module, nn.Linear | nn.Conv2d) and shapes.keys() <= {"weight", "bias"}:
        weight = shapes.get("weight", tuple(module.weight.shape))
        bias = None if module.bias is None else shapes.get("bias", tuple(module.bias.shape))
        if bias is not None and bias[0] != weight[0]:
            _refuse(name, "weight", f"[{bias[0]}, ...], as bias has", weight)
        return _sizes_of_layer(name, module, weight)
    together = {"weight", "bias", "running_mean", "running_var"}
    if isinstance(module, NORMS) and all(getattr(module, t) is None or t in shapes for t in together):
        return {"num_features": shape[0]}
    per_channel = isinstance(module, nn.GroupNorm) and module.num_groups == module.num_channels
    if per_channel and set(shapes) == {"weight", "bias"}:
        return {"num_groups": shape[0], "num_channels": shape[0]}
    if isinstance(module, nn.PReLU):
        return {"num_parameters": shape[0]}
    _refuse(name, tensor, f"{list(getattr(module, tensor).shape)} in a {type(module).__name__}", shape)
    raise AssertionError


def _sizes_of_layer(name: str, module: nn.Linear | nn.Conv2d, weight: tuple[int, ...]) -> Sizes:
    if isinstance(module, nn.Linear):
        return {"out_features": weight[0], "in_features": weight[1]}
    if weight[2:] != tuple(module.weight.shape[2:]):
        _refuse(name, "weight", f"[..., {', '.join(map(str, module.weight.shape[2:]))}]", weight)
    if module.groups == 1:
        return {"out_channels": weight[0], "in_channels": weight[1]}
    if module.groups == module.in_channels == module.out_channels:
        return {"out_channels": weight[0], "in_channels": weight[0], "groups": weight[0]}
    _refuse(name, "weight", f"{list(module.weight.shape)}, with {module.groups} groups", weight)
    raise AssertionError
