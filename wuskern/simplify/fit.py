"""What gives a fresh model the sizes of a checkpoint: ``fit_``."""

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
import torch.nn as nn
from torch import Tensor

from wuskern.simplify.surgery import replace, subset

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
            full = getattr(module, tensor)
            replace(full, subset(full.data, {dim: torch.arange(n) for dim, n in enumerate(shape)}))
        for attribute, size in sizes.items():
            setattr(module, attribute, size)
    return model


def _other_shapes(name: str, module: nn.Module, state_dict: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shapes in the state of those of the module's own tensors that have another one there."""
    shapes = {}
    for tensor, present in (*module._parameters.items(), *module._buffers.items()):
        loaded = state_dict.get(f"{name}.{tensor}" if name else tensor)
        if present is None or not isinstance(loaded, Tensor) or loaded.shape == present.shape:
            continue
        if loaded.ndim != present.ndim or any(a > b or a == 0 for a, b in zip(loaded.shape, present.shape, strict=True)):
            _refuse(name, tensor, f"up to {list(present.shape)}", loaded.shape)
        shapes[tensor] = tuple(loaded.shape)
    return shapes


def _refuse(name: str, tensor: str, expected: str, shape: tuple[int, ...]) -> None:
    where = f"{name}.{tensor}" if name else tensor
    raise ValueError(f"state_dict: expected {where} of shape {expected}, got {list(shape)}")


def _sizes(name: str, module: nn.Module, shapes: dict[str, tuple[int, ...]]) -> Sizes:
    """The attributes of the module that hold sizes, with the values that fit tensors of these shapes."""
    tensor, shape = next(iter(shapes.items()))
    for other_tensor, other_shape in shapes.items():
        if other_shape[0] != shape[0]:
            _refuse(name, other_tensor, f"[{shape[0]}], as {tensor} has", other_shape)
    if isinstance(module, nn.Linear | nn.Conv2d) and shapes.keys() <= {"weight", "bias"}:
        weight = shapes.get("weight", tuple(module.weight.shape))
        bias = None if module.bias is None else shapes.get("bias", tuple(module.bias.shape))
        if bias is not None and bias[0] != weight[0]:
            _refuse(name, "weight", f"[{bias[0]}, ...], as bias has", weight)
        return _sizes_of_layer(name, module, weight)
    per_channel_tensors = {"weight", "bias", "running_mean", "running_var"}
    if isinstance(module, NORMS) and all(getattr(module, t) is None or t in shapes for t in per_channel_tensors):
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
