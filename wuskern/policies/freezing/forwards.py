"""What stands on a module of a frozen model in place of its ``forward``: each decides for its own call, in its own thread."""

import copy
import inspect
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType
from typing import Any, NoReturn

import torch
import torch.nn as nn
from torch.nn import Parameter
from torch.utils.checkpoint import CheckpointFunction

from wuskern.modules import SkippableLinear
from wuskern.policies.freezing.constants import Holder, Inside, enter, leave, wanted


@dataclass(eq=False)
class Call(Inside):
    """Of a frozen model: whether no layer that trains has begun in it, whether gradients were on as it began, and whether the
    frozen parameters are constants in it."""

    before: bool
    gradients: bool
    constants: bool


class Calls(threading.local):
    """The calls of a frozen model that run now in this thread, outermost first."""

    def __init__(self) -> None:
        self.stack: list[Call] = []

    def __reduce__(self) -> Any:
        """A copy is of another model, which nobody has called."""
        return Calls, ()


class Boundary:
    """A pre-hook of the layers that train: behind them a call is not before the first one any more.

    Args:
        shared: whether a parameter is used on both sides, so that this matters to a compiled model.
    """

    def __init__(self, calls: Calls, shared: bool) -> None:
        self.calls, self.shared = calls, shared

    def __call__(self, *_: Any) -> None:
        if torch.compiler.is_compiling() and not self.shared:
            return
        for call in self.calls.stack:
            call.before = False
        if torch.is_grad_enabled() or not any(call.gradients for call in self.calls.stack):
            return
        if _checkpointed_without_gradients():
            raise RuntimeError(
                "model: expected no reentrant checkpointing around the first layer that trains, which gets no gradient in it, "
                "as nothing in front of it trains (use_reentrant=False works)"
            )


def _checkpointed_without_gradients() -> bool:
    """Whether this runs in a segment of reentrant checkpointing into which nothing comes that needs a gradient."""
    frame = sys._getframe()
    while frame is not None and frame.f_code is not CheckpointFunction.forward.__code__:
        frame = frame.f_back  # type: ignore[assignment]
    return frame is not None and not any(getattr(x, "requires_grad", False) for x in frame.f_locals["args"])


class Forward:
    """Stands for ``module.forward``: the frozen parameters in and below the module are constants in it. Nothing global changes,
    so that an interrupt leaves nothing behind. A copy of the module has a copy of it.

    Args:
        calls: of the model. holders: what is frozen, in and below the module.
        shared: parameters of the module itself that go on training, by their uses behind the prefix.
        always: it runs in the prefix alone, so that they are constants whenever it runs.
    """

    def __init__(
        self, module: nn.Module, calls: Calls, holders: Collection[Holder], shared: Collection[str] = (), always: bool = False
    ) -> None:
        self.module, self.calls, self.holders, self.shared, self.always = module, calls, holders, tuple(shared), always
        self.active = True
        self.stock = _stock(type(module))
        self.replaced = module.__dict__.get("forward")
        module.__dict__ |= {"forward": self, "_replicate_for_data_parallel": self.refuse_replicas}

    @property
    def __signature__(self) -> inspect.Signature:
        """Some trainers choose a model's inputs by it."""
        return inspect.signature(self.replaced or type(self.module).forward.__get__(self.module))

    @property
    def __code__(self) -> CodeType:
        """``torch.export`` asks for it, to say where something is."""
        return (self.replaced or type(self.module).forward).__code__  # type: ignore[no-any-return]

    def remove(self) -> None:
        """Where something else has been put around it since, it stays inside of that, and does nothing."""
        self.active = False
        for holder in self.holders:
            holder.clear()
        self.module.__dict__.pop("_replicate_for_data_parallel", None)
        if self.module.__dict__.get("forward") is self:
            del self.module.__dict__["forward"]
            if self.replaced is not None:
                self.module.__dict__["forward"] = self.replaced

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.active:
            self.prepare()
            if torch.compiler.is_compiling():
                return self.compiled(*args, **kwargs)
            stack = self.calls.stack
            if self.shared or not stack or stack[-1].over or not stack[-1].constants:
                return self.entered(*args, **kwargs)
        return self.run(self.module, *args, **kwargs)

    def entered(self, *args: Any, **kwargs: Any) -> Any:
        """Where no call of the model has made constants of everything, or of what this module shares."""
        if not wanted():
            return self.run(self.module, *args, **kwargs)
        if self.shared and self.before():
            return self.run(self.constant(), *args, **kwargs)
        call = Inside()
        try:
            enter(self.holders, call)
            return self.run(self.module, *args, **kwargs)
        finally:
            call.over = True  # first: an interrupt may come in between
            leave(self.holders)

    def prepare(self) -> None:
        """Ahead of each call."""

    def refuse_replicas(self) -> NoReturn:
        """A replica would call this module's forward in place of its own."""
        raise RuntimeError("model: expected DistributedDataParallel around a model with frozen layers, got DataParallel")

    def run(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self.replaced is not None:
            return self.replaced(*args, **kwargs)
        return (self.stock or type(module)).forward(module, *args, **kwargs)

    def before(self) -> bool:
        return self.always or (len(self.calls.stack) > 0 and self.calls.stack[-1].before)

    def constant(self) -> nn.Module:
        """The module with all its parameters as constants, for this call alone: another thread may train by them now."""
        module = copy.copy(self.module)
        module.__dict__["_parameters"] = {name: p if p is None else p.detach() for name, p in module._parameters.items()}
        return module

    def compiled(self, *args: Any, **kwargs: Any) -> Any:
        """The same in words that a compiler follows: while it looks, no other thread does."""
        if not wanted():
            return self.run(self.module, *args, **kwargs)
        holders = [*self.holders, Holder(self.module, self.shared)] if self.shared and self.before() else self.holders
        found: list[tuple[dict[str, Any], str, Parameter]] = []
        for holder in holders:
            found += [(holder.module._parameters, name, p) for name, p in holder.parameters() if p.requires_grad]
        for table, name, parameter in found:
            table[name] = parameter.detach()
        try:
            return self.run(self.module, *args, **kwargs)
        finally:
            for table, name, parameter in found:
                table[name] = parameter


def _stock(cls: type[nn.Module]) -> type[nn.Module] | None:
    """The stock class that a converted layer is derived from, or None: frozen goes over all that the layer skips or chooses."""
    owner = next(c for c in cls.__mro__ if "forward" in vars(c))
    if owner.__module__ != SkippableLinear.__module__:
        return None
    return next(c for c in owner.__mro__ if "forward" in vars(c) and c.__module__ != owner.__module__)


class PrefixForward(Forward):
    """Of a module that runs in the prefix alone: in evaluation mode, whatever ``train()`` says.

    Attributes:
        switched: whether it was in training mode and this has changed that.
    """

    switched = False

    def prepare(self) -> None:
        if self.module.training:
            self.module.training = False
            self.switched = True


class RootForward(Forward):
    """Of the model itself: a call begins before the first layer that trains.

    Args:
        tells: whether a parameter is used on both sides, so that a compiled model has to know where it is.
    """

    def __init__(self, module: nn.Module, calls: Calls, holders: Collection[Holder], tells: bool) -> None:
        super().__init__(module, calls, holders)
        self.tells = tells

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.active:
            return self.run(self.module, *args, **kwargs)
        if torch.compiler.is_compiling():
            return self.compiled(*args, **kwargs)
        call = Call(True, torch.is_grad_enabled(), wanted())
        try:
            self.begin(call)
            return self.run(self.module, *args, **kwargs)
        finally:
            call.over = True  # first: an interrupt may come in between
            self.end()

    @contextmanager
    def inside(self) -> Iterator[None]:
        """A call in which something else runs than the model's forward."""
        call = Call(True, torch.is_grad_enabled(), wanted())
        try:
            self.begin(call)
            yield
        finally:
            call.over = True
            self.end()

    def begin(self, call: Call) -> None:
        self.calls.stack.append(call)
        if call.constants:
            enter(self.holders, call)

    def end(self) -> None:
        """Of all calls that are over, also those that an interrupt has kept from ending."""
        self.calls.stack = [call for call in self.calls.stack if not call.over]
        leave(self.holders)

    def compiled(self, *args: Any, **kwargs: Any) -> Any:
        if not self.tells:
            return super().compiled(*args, **kwargs)
        self.calls.stack.append(Call(True, True, wanted()))
        try:
            return super().compiled(*args, **kwargs)
        finally:
            self.calls.stack.pop()
