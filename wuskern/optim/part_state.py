"""A file of what trained alone: of weights with a fixed part, that part; a few per cent of the model."""

from collections.abc import Iterable, Mapping

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn import Parameter

from wuskern.common.states import said
from wuskern.delivery.part import Part
from wuskern.modules import plain_name, skippable_layers, weight_owners


def part_state_dict(model: nn.Module, frozen: Iterable[Parameter] = ()) -> dict[str, Tensor]:
    """What the plans of a model let train, by name: tensors alone, for ``torch.save`` and safetensors.

    Of a weight whose layer has fixed ``Rows`` or ``Columns`` these values, and under ``NAME:rows``, ``NAME:columns`` the
    numbers of its rows and columns. Every other parameter that requires a gradient, whole; no weight that is skipped now. All
    buffers that ``state_dict`` has. Call it with the plans of the training: what was trained under other ones is not in it.

    Names are those of ``model.state_dict()`` without what compile, checkpointing and DDP put before them. The tensors are
    copies.

    Args:
        frozen: parameters that have not trained, such as a freezing policy's ``frozen_parameters()``, and are left out.

    Raises:
        ValueError: no converted layer in the model.
    """
    parts, left_out = _parts(model), set(frozen)
    kept: dict[str, Tensor] = {}
    for name, tensor in _named(model).items():
        if isinstance(tensor, Parameter) and (not tensor.requires_grad or tensor in left_out):
            continue
        part = parts.get(tensor, _WHOLE)
        if part is None:
            continue
        kept[name] = part.take(tensor.detach()).clone(memory_format=torch.contiguous_format)
        kept |= {f"{name}:{axis}": index.clone() for axis, index in part._asdict().items() if isinstance(index, Tensor)}
    return kept


def load_part_(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Writes what :func:`part_state_dict` gave into a model, of the same shapes; what it does not name stays.

    The model may be converted or not, and have other plans.

    Raises:
        ValueError: a name that the model lacks, another shape, a row or column that there is not. Nothing is written then.
    """
    named = _named(model)
    writes = []
    for name, values in state.items():
        owner, _, axis = name.partition(":")
        if owner not in named or axis not in ("", "rows", "columns") or owner not in state:
            raise ValueError(f"state: expected names of the model's parameters and buffers, got {name!r}")
        if not axis:
            part = _part_in(state, name, named[name])
            writes.append((named[name], part, values))
    with torch.no_grad():
        for tensor, part, values in writes:
            part.put(tensor, values.to(tensor.device, tensor.dtype))


_WHOLE = Part(None, None)


def _named(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of ``state_dict``, tied ones once, by plain names."""
    tensors = model.state_dict(keep_vars=True)
    first: dict[int, str] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor):
            first.setdefault(id(tensor), name)
    return {plain_name(model, name): tensors[name] for name in first.values()}


def _parts(model: nn.Module) -> dict[Tensor, Part | None]:
    """The part of each weight that belongs to converted layers alone; None: nothing of it trains."""
    parts: dict[Tensor, Part | None] = {}
    for weight, layers in weight_owners(model, skippable_layers(model)):
        of_layers = [layer.part_of(layer.plan, weight.device) for layer in layers if not layer.skip]
        agree = all(part.same(of_layers[0]) for part in of_layers)
        parts[weight] = None if not of_layers else of_layers[0] if agree else _WHOLE
    return parts


def _part_in(state: Mapping[str, Tensor], name: str, tensor: Tensor) -> Part:
    """The part of a tensor that a state holds, checked against the tensor."""
    values, rows, columns = state[name], state.get(f"{name}:rows"), state.get(f"{name}:columns")
    groups = 1 if columns is None else max(1, len(columns) // max(1, values.shape[1:2].numel()))
    for axis, index, size in (
        ("rows", rows, tensor.shape[:1].numel()),
        ("columns", columns, tensor.shape[1:2].numel() * groups),
    ):
        if index is None:
            continue
        if not (isinstance(index, Tensor) and index.dtype is torch.int64 and index.ndim == 1 and len(index)):
            raise ValueError(f"{name}:{axis}: expected numbers in one dimension, int64, got {said(index)}")
        if not 0 <= int(index.min()) <= int(index.max()) < size:
            raise ValueError(f"{name}:{axis}: expected numbers from 0 to {size - 1}, got {said(index.tolist())}")
    device = tensor.device
    part = Part(None if rows is None else rows.to(device), None if columns is None else columns.to(device), groups)
    if not isinstance(values, Tensor) or values.shape != part.shape(tensor):
        raise ValueError(f"{name}: expected {list(part.shape(tensor))}, got {said(values)}")
    return part
