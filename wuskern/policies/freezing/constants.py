"""How frozen parameters become constants: detached, under their own names, as long as a forward runs that needs it."""

import threading
from collections.abc import Collection
from typing import Any

import torch
import torch.nn as nn
from torch.nn import Parameter

_LOCK = threading.RLock()


class Inside:
    """A call for which holders make their parameters constants, until it is ``over``."""

    over = False


class Holder:
    """The frozen parameters of a module. While some call is inside, the module reads each as a constant: ``module.weight`` is
    then the detached weight. ``parameters()`` and ``state_dict()`` list the parameters themselves. Another thread may see the
    constants, too: what is frozen is a constant there as well. Calls of several threads may be inside at once.
    """

    def __init__(self, module: nn.Module, names: Collection[str]) -> None:
        self.module, self.names = module, tuple(names)
        self._calls: list[Inside] = []

    def __getstate__(self) -> dict[str, Any]:
        """The state for a copy, which no call is inside of."""
        return vars(self) | {"_calls": []}

    def parameters(self) -> list[tuple[str, Parameter]]:
        named = [(name, self.module._parameters.get(name)) for name in self.names]
        return [(name, parameter) for name, parameter in named if parameter is not None]

    def enter(self, call: Inside) -> None:
        attributes = self.module.__dict__
        for name, parameter in self.parameters():
            attributes[name] = parameter.detach()
        self._calls.append(call)

    def leave(self) -> None:
        """Lets go of all calls that are over, also of those that an interrupt kept from leaving."""
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
    """Has each holder let go of the calls that are over; a call need not have entered all of them, or any."""
    with _LOCK:
        for holder in holders:
            holder.leave()


def wanted() -> bool:
    """Whether to make constants: gradients are on, and no tracer or exporter is at work, which has to see the stock model."""
    tracing = torch.jit.is_tracing() or torch.fx._symbolic_trace.is_fx_symbolic_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return torch.is_grad_enabled() and not tracing and not torch.compiler._is_exporting_flag
