"""What one forward keeps for backward, and which layers keep it."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from wuskern.common.example import Example, arguments
from wuskern.common.untouched import untouched
from wuskern.memory.layers import LEAN

FUNCTIONS = ("relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "dropout", "dropout_", "batch_norm")


@dataclass
class Kept:
    """The storages that autograd keeps, each counted once, without parameters and buffers.

    Attributes:
        holders: of each storage the modules, of those that were asked about, in whose forward it was kept; None for the rest.
        calls: how often a function that has a layer was called outside of these modules, by name.
    """

    holders: dict[int, set[nn.Module | None]] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    _alive: list[Any] = field(default_factory=list)  # what keeps an address from being used again

    def add(self, t: Tensor, holder: nn.Module | None) -> None:
        storage = t.untyped_storage()
        self._alive.append(storage)
        self.holders.setdefault(storage._cdata, set()).add(holder)
        self.sizes[storage._cdata] = storage.nbytes()

    @property
    def total(self) -> int:
        """The bytes of all."""
        return sum(self.sizes.values())

    def alone(self, layers: Collection[nn.Module]) -> dict[nn.Module, int]:
        """The bytes that nobody but these layers keeps, by layer; what several keep is one's."""
        found = dict.fromkeys(layers, 0)
        for key, holders in self.holders.items():
            inside = [layer for layer in layers if layer in holders]
            if len(inside) == len(holders):
                found[inside[0]] += self.sizes[key]
        return found


def kept_by(model: nn.Module, example: Example, layers: Collection[nn.Module] = ()) -> Kept:
    """What a forward of the model, in the mode that it is in, keeps of an example; the model stays as it was."""
    kept, inside = Kept(), list[nn.Module]()
    given, named = arguments(example)
    with untouched(model), torch.enable_grad(), _told(layers, inside):
        own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}

        def pack(t: Tensor) -> Tensor:
            if t.layout is torch.strided and t.untyped_storage()._cdata not in own:
                kept.add(t, inside[-1] if inside else None)
            return t

        with saved_tensors_hooks(pack, lambda t: t), _Calls(kept, inside):
            model(*given, **named)
    return kept


def savings(model: nn.Module, example: Example, layers: Collection[nn.Module]) -> tuple[dict[nn.Module, int], dict[str, int]]:
    """The bytes that each of the layers keeps less as a lean one than as PyTorch's, of what nobody else keeps, as the other
    layers are; and the calls of functions that have a layer."""
    with untouched(model):
        _switch(layers, {lean: stock for stock, lean in LEAN.items()})
        stock = kept_by(model, example, layers)
        before = stock.alone(layers)
        _switch(layers, LEAN)  # type: ignore[arg-type]
        after = kept_by(model, example, layers).alone(layers)
    return {layer: before[layer] - after[layer] for layer in layers}, stock.calls


def _switch(layers: Collection[nn.Module], to: dict[type[nn.Module], type[nn.Module]]) -> None:
    for layer in layers:
        layer.__class__ = to.get(type(layer), type(layer))


@contextmanager
def _told(layers: Collection[nn.Module], inside: list[nn.Module]) -> Iterator[None]:
    """A block in which ``inside`` ends with the layer, of these, whose forward is running."""

    def enter(layer: nn.Module, *_: Any) -> None:
        inside.append(layer)

    def leave(*_: Any) -> None:
        inside.pop()

    hooks = [layer.register_forward_pre_hook(enter, prepend=True) for layer in layers]
    hooks += [layer.register_forward_hook(leave, always_call=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Calls(TorchFunctionMode):
    """Counts calls of :data:`FUNCTIONS` outside of the layers that change something."""

    def __init__(self, kept: Kept, inside: list[nn.Module]) -> None:
        super().__init__()
        self.kept, self.inside = kept, inside

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result, name = func(*args, **(kwargs or {})), getattr(func, "__name__", "")
        if name in FUNCTIONS and not self.inside and not (name == "dropout" and result is args[0]):
            self.kept.calls[name] = self.kept.calls.get(name, 0) + 1
        return result
