"""Whether modules compute what they computed: by their values, to the bit, and by what else their outputs depend on."""

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
# Of each module, what is looked at in another way, what the outputs of a frozen one do not depend on, and what freezing sets.
LEFT_OUT = {*HOOKS, *TABLES, *PLAN_ATTRIBUTES, "forward", "training", "reset_running_stats", "_replicate_for_data_parallel"}


class Unchanged:
    """What the outputs of modules depend on, as it was when this was made: the values of parameters, buffers and other tensors
    among their attributes, which are kept; attributes that are numbers, words, functions, and tuples, lists and dicts of such;
    forward hooks, also the global ones; the modules themselves, and their forwards. Not seen: what hooks and functions go by
    themselves, and objects of other kinds among the attributes.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._settings, values = _look(modules)
        self._values = [value.detach().clone() for value in values]

    def __call__(self, modules: Sequence[nn.Module]) -> bool:
        """Whether these are the same modules, and all of that is as it was. Reads all values, and waits for a GPU once."""
        settings, values = _look(modules)
        return settings == self._settings and _equal(values, self._values)


def _look(modules: Sequence[nn.Module]) -> tuple[list[Any], list[Tensor]]:
    settings: list[Any] = [tuple(hooks) for hooks in (globally._global_forward_hooks, globally._global_forward_pre_hooks)]
    values: list[Tensor] = []
    for module in dict.fromkeys(inside for top in modules for inside in top.modules()):
        forward = module.__dict__.get("forward")
        forward = forward.replaced if isinstance(forward, Forward) else forward
        settings.append((module, type(module), forward, *(tuple(getattr(module, hooks)) for hooks in HOOKS)))
        own = {name: value for name, value in vars(module).items() if name not in LEFT_OUT}
        settings += [(name, *_plain(value)) for name, value in own.items()]
        values += tensors([module._parameters, module._buffers, own])
    settings += [(value.shape, value.dtype, value.device) for value in values]
    return settings, values


def _plain(value: Any) -> Iterator[Any]:
    """What can be compared of an attribute."""
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
