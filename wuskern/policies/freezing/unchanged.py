"""Whether modules still compute what they computed: by their values, to the bit, and all else that outputs depend on."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn as nn
import torch.nn.modules.module as globally
from torch import Tensor

from wuskern.common.example import tensors
from wuskern.modules import PLAN_ATTRIBUTES
from wuskern.policies.freezing.forwards import Forward

HOOKS = ("_forward_hooks", "_forward_pre_hooks")
TABLES = ("_parameters", "_buffers", "_modules")
# Attributes that are looked at in another way, that the outputs of a frozen module do not depend on, or that freezing sets.
LEFT_OUT = {*HOOKS, *TABLES, *PLAN_ATTRIBUTES, "forward", "training", "reset_running_stats", "_replicate_for_data_parallel"}
LARGE = 2**12  # elements from which on a tensor is not read as a whole in each call
SLICES = 32
CONTAINERS = (dict, list, tuple)


class Unchanged:
    """What the outputs of modules depended on when this was made: copies of their parameters, buffers and other tensors among
    their attributes; attributes that are numbers, words, functions, and tuples, lists and dicts of such; forward hooks, also
    the global ones; the modules themselves, and their forwards. Not seen: what hooks and functions depend on in turn, and
    attributes of other kinds.

    Args:
        modules: with all that is inside of them. parents: without what is inside of them, and without their parameters.
        parameters: those of the parents that count; what the modules have of them counts once.
    """

    def __init__(
        self, modules: Sequence[nn.Module], parents: Sequence[nn.Module] = (), parameters: Sequence[Tensor] = ()
    ) -> None:
        inside = {id(p) for module in modules for p in module.parameters()}
        self._looked_at = modules, parents, [p for p in parameters if id(p) not in inside]
        self._settings, self._values = _look(*self._looked_at)
        self._kept = [value.detach().clone() for value in self._values]
        self._writes = _writes(self._values)
        self._remember(_objects(*self._looked_at))
        self._call = 0

    def __call__(self) -> bool:
        """Whether all is as it was. Of a tensor with more than ``LARGE`` elements that torch has written nothing to by its own
        account, a slice is read, another one in each of ``SLICES`` calls; of the others, all values. A GPU is waited for
        once."""
        objects = _objects(*self._looked_at)
        if list(map(id, objects)) != self._ids:  # another object may still be equal
            settings, values = _look(*self._looked_at)
            if settings != self._settings:
                return False
            self._remember(objects)
            self._values = values
        writes = _writes(self._values)
        whole = writes != self._writes
        pairs = [_slices(a, b, self._call, whole) for a, b in zip(self._values, self._kept, strict=True)]
        self._call += 1
        if not _equal(pairs):
            return False
        self._writes = writes
        return True

    def _remember(self, objects: list[Any]) -> None:
        self._objects = objects  # kept alive, so that nothing else gets their numbers
        self._ids = list(map(id, objects))


def _objects(modules: Sequence[nn.Module], parents: Sequence[nn.Module], parameters: Sequence[Tensor]) -> list[Any]:
    """All objects that are looked at, which is quicker than to look at them: as long as they are the same, only values
    change."""
    inside = [module for top in modules for module in top.modules()]
    objects: list[Any] = [*parameters, *map(type, inside)]
    todo: list[Any] = [
        globally._global_forward_hooks,
        globally._global_forward_pre_hooks,
        *map(vars, inside),
        *map(vars, parents),
    ]
    while todo:
        parts = todo.pop()
        if isinstance(parts, dict):
            objects += parts
            parts = parts.values()
        objects += parts
        todo += [part for part in parts if isinstance(part, CONTAINERS) and part]
    return objects


def _look(
    modules: Sequence[nn.Module], parents: Sequence[nn.Module], parameters: Sequence[Tensor]
) -> tuple[list[Any], list[Tensor]]:
    settings: list[Any] = [tuple(hooks) for hooks in (globally._global_forward_hooks, globally._global_forward_pre_hooks)]
    values: list[Tensor] = []
    for module in dict.fromkeys(inside for top in modules for inside in top.modules()):
        attributes = _look_at(module, settings)
        values += tensors([module._parameters, module._buffers, attributes])
    for module in parents:
        attributes = _look_at(module, settings)
        settings.append(tuple(module._modules.values()))
        values += tensors([module._buffers, attributes])
    values += parameters
    settings += [(value.shape, value.dtype, value.device) for value in values]
    return settings, values


def _look_at(module: nn.Module, settings: list[Any]) -> dict[str, Any]:
    """Adds to ``settings`` what can be compared of a module; returns its attributes."""
    forward = module.__dict__.get("forward")
    forward = forward.replaced if isinstance(forward, Forward) else forward
    settings.append((module, type(module), forward, *(tuple(getattr(module, hooks)) for hooks in HOOKS)))
    attributes = {name: value for name, value in vars(module).items() if name not in LEFT_OUT}
    settings += [(name, *_plain(value)) for name, value in attributes.items()]
    return attributes


def _plain(value: Any) -> Iterator[Any]:
    """The parts of an attribute that can be compared with ``==``, each with its type."""
    if isinstance(value, dict):
        value = [part for item in value.items() for part in item]
    if isinstance(value, list | tuple):
        yield type(value), len(value)
        for part in value:
            yield from _plain(part)
    elif value is None or callable(value) or isinstance(value, bool | int | float | str | torch.dtype):
        yield type(value), value


def _writes(values: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Numbers that change with every write that torch counts, and with other memory."""
    return [(value.data_ptr(), value._version if not value.is_inference() else 0) for value in values]


def _slices(value: Tensor, kept: Tensor, call: int, whole: bool) -> tuple[Tensor, Tensor]:
    if whole or value.numel() <= LARGE or not (value.is_contiguous() and kept.is_contiguous()):
        return value, kept
    size = -(-value.numel() // SLICES)
    begin = call % SLICES * size
    return value.view(-1)[begin : begin + size], kept.view(-1)[begin : begin + size]


def _equal(pairs: Sequence[tuple[Tensor, Tensor]]) -> bool:
    if all(value.device.type == "cpu" for value, _ in pairs):
        return all(torch.equal(value, kept) for value, kept in pairs)
    return not torch.stack([(value != kept).any().cpu() for value, kept in pairs]).any()
