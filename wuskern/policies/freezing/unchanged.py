"""Whether modules still compute what they computed: by their values, to the bit, and all else that outputs depend on."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn as nn
import torch.nn.modules.module as globally
from torch import Tensor

from wuskern.modules import PLAN_ATTRIBUTES
from wuskern.policies.freezing.forwards import Forward
from wuskern.policies.recorded_run import tensors

HOOKS = ("_forward_hooks", "_forward_pre_hooks")
TABLES = ("_parameters", "_buffers", "_modules")
# Attributes that are looked at in another way, that the outputs of a frozen module do not depend on, or that freezing sets.
LEFT_OUT = {*HOOKS, *TABLES, *PLAN_ATTRIBUTES, "forward", "training", "reset_running_stats", "_replicate_for_data_parallel"}


class Unchanged:
    """What the outputs of modules depended on when this was made: copies of their parameters, buffers and other tensors among
    their attributes; attributes that are numbers, words, functions, and tuples, lists and dicts of such; forward hooks, also
    the global ones; the modules themselves, and their forwards. Not seen: what hooks and functions depend on in turn, and
    attributes of other kinds.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._settings, values = _look(modules)
        self._values = [value.detach().clone() for value in values]

    def __call__(self, modules: Sequence[nn.Module]) -> bool:
        """Whether ``modules`` are the same ones, and all is as it was. This reads all values, and waits for a GPU once."""
        settings, values = _look(modules)
        return settings == self._settings and _equal(values, self._values)


def _look(modules: Sequence[nn.Module]) -> tuple[list[Any], list[Tensor]]:
    settings: list[Any] = [tuple(hooks) for hooks in (globally._global_forward_hooks, globally._global_forward_pre_hooks)]
    values: list[Tensor] = []
    for module in dict.fromkeys(inside for top in modules for inside in top.modules()):
        forward = module.__dict__.get("forward")
        forward = forward.replaced if isinstance(forward, Forward) else forward
        settings.append((module, type(module), forward, *(tuple(getattr(module, hooks)) for hooks in HOOKS)))
        attributes = {name: value for name, value in vars(module).items() if name not in LEFT_OUT}
        settings += [(name, *_plain(value)) for name, value in attributes.items()]
        values += tensors([module._parameters, module._buffers, attributes])
    settings += [(value.shape, value.dtype, value.device) for value in values]
    return settings, values


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


def _equal(values: Sequence[Tensor], kept: Sequence[Tensor]) -> bool:
    if all(value.device.type == "cpu" for value in values):
        return all(map(torch.equal, values, kept))
    return not torch.stack([(a != b).any().cpu() for a, b in zip(values, kept, strict=True)]).any()
