"""What replaces the ``forward`` of modules of a frozen model; each call decides for itself, in its own thread."""

import copy
import inspect
import sys
import threading
from collections.abc import Collection
from dataclasses import dataclass
from types import CodeType
from typing import Any, NoReturn

import torch
import torch.nn as nn
from torch.nn import Parameter
from torch.utils.checkpoint import CheckpointFunction

from wuskern.layers import conv1d, embedding
from wuskern.modules import SkippableLinear
from wuskern.policies.freezing.constants import Holder, Inside, enter, leave, wanted
from wuskern.policies.freezing.outputs import Outputs, named


@dataclass(eq=False)
class Call(Inside):
    """One call of a frozen model.

    Attributes:
        before: whether no layer that trains has begun in it. gradients: whether they were on when it began.
        constants: whether the frozen parameters are constants in it.
    """

    before: bool
    gradients: bool
    constants: bool


class Calls(threading.local):
    """The calls of a frozen model that run now in this thread, outermost first, and what its frozen modules give in them, if
    they do not just compute it."""

    def __init__(self) -> None:
        self.stack: list[Call] = []
        self.outputs: Outputs | None = None

    def __reduce__(self) -> Any:
        """What a copy is made of: nothing, because it belongs to another model, which nobody has called."""
        return Calls, ()


class Boundary:
    """A pre-hook of the layers that train: from there on a call is no longer ``before`` the first one.

    Args:
        shared: whether a parameter is used in front of the first layer that trains and behind it: only then does a compiled
            model need the hook.
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
    """Whether this runs in a segment of reentrant checkpointing none of whose inputs needs a gradient."""
    frame = sys._getframe()
    while frame is not None and frame.f_code is not CheckpointFunction.forward.__code__:
        frame = frame.f_back  # type: ignore[assignment]
    return frame is not None and not any(getattr(x, "requires_grad", False) for x in frame.f_locals["args"])


class Forward:
    """A replacement of ``module.forward`` in which the frozen parameters in and below the module are constants. Nothing global
    changes, so an interrupt leaves nothing behind. A copy of the module gets a copy of it.

    Args:
        calls: those of the model that run now. holders: of what is frozen in and below the module.
        shared: names of the module's own parameters that go on training, because something behind the prefix uses them, too.
        always: whether the module runs in the prefix alone, so that ``shared`` are constants whenever it runs.
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
        """The signature of the replaced forward, by which some trainers choose a model's inputs."""
        return inspect.signature(self.replaced or type(self.module).forward.__get__(self.module))

    @property
    def __code__(self) -> CodeType:
        """The code of the replaced forward, which ``torch.export`` reads to say where something is."""
        return (self.replaced or type(self.module).forward).__code__  # type: ignore[no-any-return]

    def remove(self) -> None:
        """Puts the module's own forward back. Something wrapped around this one may keep it; it then does nothing."""
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
        """The output with the constants made here: no call of the model has made them, or not those that this module shares."""
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
        """Prepares the module for a call; a subclass overrides this."""

    def refuse_replicas(self) -> NoReturn:
        """Raises ``RuntimeError``: a replica of DataParallel would call this module's forward in place of its own."""
        raise RuntimeError("model: expected DistributedDataParallel around a model with frozen layers, got DataParallel")

    def run(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self.replaced is not None:
            return self.replaced(*args, **kwargs)
        return (self.stock or type(module)).forward(module, *args, **kwargs)

    def before(self) -> bool:
        return self.always or (len(self.calls.stack) > 0 and self.calls.stack[-1].before)

    def constant(self) -> nn.Module:
        """A copy of the module with all its parameters as constants, for this call alone: another thread may train them now."""
        module = copy.copy(self.module)
        module.__dict__["_parameters"] = {name: p if p is None else p.detach() for name, p in module._parameters.items()}
        return module

    def compiled(self, *args: Any, **kwargs: Any) -> Any:
        """The output, by code that a compiler can trace; no other thread runs the module while it is being traced."""
        if not wanted():
            return self.run(self.module, *args, **kwargs)
        holders = [*self.holders, Holder(self.module, self.shared)] if self.shared and self.before() else self.holders
        to_detach: list[tuple[dict[str, Any], str, Parameter]] = []
        for holder in holders:
            to_detach += [(holder.module._parameters, name, p) for name, p in holder.parameters() if p.requires_grad]
        for table, name, parameter in to_detach:
            table[name] = parameter.detach()
        try:
            return self.run(self.module, *args, **kwargs)
        finally:
            for table, name, parameter in to_detach:
                table[name] = parameter


def _stock(cls: type[nn.Module]) -> type[nn.Module] | None:
    """The stock class of a converted layer, whose forward a frozen layer runs whatever its plan is; None for other modules."""
    owner = next(c for c in cls.__mro__ if "forward" in vars(c))
    if owner.__module__ not in (SkippableLinear.__module__, conv1d.__name__, embedding.__name__):
        return None
    return next(c for c in owner.__mro__ if "forward" in vars(c) and c.__module__ != owner.__module__)


class PrefixForward(Forward):
    """The forward of a module that runs in the prefix alone: in evaluation mode, whatever ``train()`` says.

    Attributes:
        switched: whether the module was in training mode until this changed it.
    """

    switched = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or self.calls.outputs is None or not self.active:
            return super().__call__(*args, **kwargs)
        return self.calls.outputs(self.module, lambda: super(PrefixForward, self).__call__(*args, **kwargs))

    def prepare(self) -> None:
        if self.module.training:
            self.module.training = False
            self.switched = True


class RootForward(Forward):
    """The forward of the model itself: a call begins before the first layer that trains.

    Args:
        tells: whether a compiled model has to know if a call is ``before`` that layer: a parameter is used on both sides of it.
    """

    def __init__(self, module: nn.Module, calls: Calls, holders: Collection[Holder], tells: bool) -> None:
        super().__init__(module, calls, holders)
        self.tells = tells
        self._own_signature = self.__signature__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.active:
            return self.run(self.module, *args, **kwargs)
        if torch.compiler.is_compiling():
            return self.compiled(*args, **kwargs)
        outputs = self.calls.outputs if not self.calls.stack else None
        if outputs is not None:
            outputs.begin(named(self._own_signature, args, kwargs))
        call = Call(True, torch.is_grad_enabled(), wanted())
        try:
            self.begin(call)
            output = self.run(self.module, *args, **kwargs)
            if outputs is not None:
                outputs.end(output)
            return output
        finally:
            call.over = True  # first: an interrupt may come in between
            self.end()

    def begin(self, call: Call) -> None:
        self.calls.stack.append(call)
        if call.constants:
            enter(self.holders, call)

    def end(self) -> None:
        """Ends all calls that are over, also those that an interrupt kept from ending."""
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
