"""Frozen parameters are constants for what runs: detached, under their own names, for as long as a forward is inside."""

import threading
from collections.abc import Collection
from typing import Any

import torch
import torch.nn as nn
from torch.nn import Parameter

_LOCK = threading.RLock()


class Inside:
    """A call that is inside of holders, until it is ``over``."""

    over = False


class Holder:
    """A module's frozen parameters. While some call is inside, the module reads each as a constant: ``module.weight`` is then
    the detached weight. What lists parameters, as ``parameters()`` and ``state_dict()`` do, sees none of it, and another thread
    may see it: what is frozen is a constant there too. Calls of any threads are inside at once, and leave in any order.
    """

    def __init__(self, module: nn.Module, names: Collection[str]) -> None:
        self.module, self.names = module, tuple(names)
        self._calls: list[Inside] = []

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy, which no call is inside of."""
        return vars(self) | {"_calls": []}

    def parameters(self) -> list[tuple[str, Parameter]]:
        own = self.module._parameters
        return [(name, parameter) for name in self.names if (parameter := own.get(name)) is not None]

    def enter(self, call: Inside) -> None:
        attributes = self.module.__dict__
        for name, parameter in self.parameters():
            attributes[name] = parameter.detach()
        self._calls.append(call)

    def leave(self) -> None:
        """Of all calls that are over, also those that an interrupt has kept from leaving."""
        self._calls = [call for call in self._calls if not call.over]
        if not self._calls:
            self.clear()

    def clear(self) -> None:
        attributes = self.module.__dict__
        for name in self.names:
            attributes.pop(name, None)


def enter(holders: Collection[Holder], call: Inside) -> None:
    with _LOCK:
        for holder in holders:
            holder.enter(call)


def leave(holders: Collection[Holder]) -> None:
    """For a call that is over; it need not have entered all of them, or any."""
    with _LOCK:
        for holder in holders:
            holder.leave()


def wanted() -> bool:
    """Whether constants make a difference: gradients are on, and no tracer or exporter is at work, which shall see the stock
    model."""
    tracing = torch.jit.is_tracing() or torch.fx._symbolic_trace.is_fx_symbolic_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return torch.is_grad_enabled() and not tracing and not torch.compiler._is_exporting_flag
