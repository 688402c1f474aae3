"""Where the gradient of a layer's weight goes, beside autograd, and who wants it in the compact form.

A layer has a home for it: the key by which compiled code finds the layer, and the zeros that the dense form uses again.
Optimizers of ``wuskern.optim`` ask for the compact form as long as they live; nothing is kept on a Parameter.
"""

import functools
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from wuskern.common.world import is_dtensor
from wuskern.delivery import deliver
from wuskern.delivery.dense_grad import Recycled
from wuskern.delivery.part import Part
from wuskern.sparse_grad import RowGrad, accumulate, has_hooks, is_used


class Layer(Protocol):
    """A layer that may have the compact form."""

    _parameters: dict[str, Any]
    _home: Any

    def answer(self, asked: bool) -> None:
        """Takes note of whether an optimizer asks for the compact form."""

    @property
    def is_sparse(self) -> bool:
        """Whether the gradient of the layer's weight is sparse now."""

    @property
    def trains_part(self) -> bool:
        """Whether only some rows or columns of the weight train."""

    @property
    def fixed_part(self) -> Part | None:
        """The part of the weight that a fixed choice trains; None: all, or another one each time."""


_homes: "weakref.WeakSet[GradHome]" = weakref.WeakSet()
_optimizers: "weakref.WeakSet[Optimizer]" = weakref.WeakSet()


class GradHome:
    """The home of one layer's gradient. It does not keep the layer alive; a copy of the layer gets a home of its own.

    Attributes:
        key: by which compiled code finds it. recycled: the zeros that the dense form uses again.
    """

    def __init__(self, layer: Layer) -> None:
        self._layer = weakref.ref(layer)
        self.key = deliver.new_key(self)
        self.recycled = Recycled()
        _homes.add(self)

    def forget_zeros(self) -> None:
        """Gives back the memory that the dense form uses again."""
        self.recycled = Recycled()

    def __reduce__(self) -> Any:
        return type(None), ()

    def owner(self) -> Layer | None:
        """The layer, while this is its home: not once it is a stock layer again."""
        layer = self._layer()
        return layer if layer is not None and layer.__dict__.get("_home") is self else None

    def weight(self) -> Parameter | None:
        """The layer's weight, if it is a parameter of its own and not computed from others; else None."""
        layer = self._layer()
        return None if layer is None else _own_weight(layer)

    def is_watched(self) -> bool:
        """Whether a hook looks at the weight's gradient. Compiled code keeps the answer of the time when it was traced."""
        weight = self.weight()
        return weight is not None and has_hooks(weight)

    is_watched._dynamo_marked_constant = True  # type: ignore[attr-defined]  # torch.compiler's decorator imports Dynamo

    def is_asked(self) -> bool:
        """Whether an optimizer of ``wuskern.optim`` holds the weight."""
        return id(self.weight()) in _held()

    def accumulates(self) -> bool:
        """Whether the backward that runs now adds to ``weight.grad``; True for a weight that is computed from others."""
        weight = self.weight()
        return weight is None or is_used(torch.autograd.graph.get_gradient_edge(weight).node)[1]

    def receive(self, rows: Tensor, values: Tensor) -> None:
        """Adds to ``weight.grad`` what a compiled backward has computed.

        Raises:
            RuntimeError: ``autograd.grad`` asks for the weight's gradient, or a hook for a look at it.
        """
        weight = self.weight()
        if weight is None:
            raise RuntimeError("weight: expected the parameter with which the layer was compiled, got none")
        used, accumulated = is_used(torch.autograd.graph.get_gradient_edge(weight).node)
        if used and (not accumulated or has_hooks(weight)):
            who = "a hook" if accumulated else "autograd.grad"
            raise RuntimeError(
                f"weight: {who} wants its gradient, which compiled code gives in chosen rows alone: set sparse=False in the "
                "layer's rows or columns, or register hooks before the model is compiled"
            )
        if accumulated:
            accumulate(weight, RowGrad(rows, values))


def ask(optimizer: Optimizer) -> None:
    """Gives the layers whose weights the optimizer holds the compact form, from now on and as long as the optimizer lives."""
    if optimizer not in _optimizers:
        _optimizers.add(optimizer)
        weakref.finalize(optimizer, _tell_layers).atexit = False
    _tell_layers()


def _held() -> set[int]:
    """The ids of the parameters in living optimizers, which keep them alive: so no id is used twice."""
    return {id(p) for optimizer in list(_optimizers) for group in optimizer.param_groups for p in group["params"]}


class FixedPart(NamedTuple):
    """A part of a weight that trains and stays the same, and the zeros that its gradient may lie in."""

    part: Part
    recycled: Recycled


def fixed_parts() -> dict[int, FixedPart | None]:
    """The parts that fixed choices train of the weights that optimizers of ``wuskern.optim`` hold, by the id of the weight;
    None where its layers have different ones."""
    parts: dict[int, FixedPart | None] = {}
    for home in list(_homes):
        layer = home.owner()
        part = None if layer is None else layer.fixed_part
        if layer is None or part is None:
            continue
        key = id(_own_weight(layer))
        if key not in parts:
            parts[key] = FixedPart(part, home.recycled)
        elif (known := parts[key]) is not None and not known.part.same(part):
            parts[key] = None
    return parts


def refuse_sharded(optimizer: Optimizer) -> None:
    """Raises ``ValueError`` for an optimizer of ``wuskern.optim`` that holds a shard of a weight of which a part is to train:
    its gradient is dense there, and would move the rest of the weight too."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"] if type(p) is not Parameter and is_dtensor(p)}
    if not held:
        return
    for layer in _layers():
        weight = layer._parameters.get("weight")
        if id(weight) in held and layer.trains_part:
            raise ValueError(
                f"optimizer: expected torch.optim.{type(optimizer).__name__} for a DTensor of which rows or columns train, got "
                f"wuskern.optim.{type(optimizer).__name__}, which moves and remembers that part alone, and knows no shards"
            )


def _layers() -> list[Layer]:
    return [layer for home in list(_homes) if (layer := home.owner()) is not None]


def _tell_layers() -> None:
    held = _held()
    for layer in _layers():
        layer.answer(id(_own_weight(layer)) in held)


def _own_weight(layer: Layer) -> Parameter | None:
    """The layer's weight, if it is a plain Parameter; else None, as for what FSDP2 shards."""
    weight = layer._parameters.get("weight")
    return weight if type(weight) is Parameter else None


# ---- momentum of torch's SGD ----------------------------------------------------------------------------------------


@functools.cache
def refuse_momentum() -> None:
    """Has torch's SGD raise where its momentum meets a compact gradient: its buffer would grow in each step."""
    register_optimizer_step_pre_hook(_check_gradients)
    register_optimizer_step_post_hook(_check_buffers)


def _check_gradients(optimizer: Optimizer, *_: Any) -> None:
    _check(optimizer, lambda parameter: parameter.grad)


def _check_buffers(optimizer: Optimizer, *_: Any) -> None:
    """Checks buffers after the step, because the gradients may come from its closure, after ``_check_gradients`` has looked."""
    _check(
        optimizer, lambda parameter: optimizer.state[parameter].get("momentum_buffer") if parameter in optimizer.state else None
    )


def _check(optimizer: Optimizer, tensor_of: Callable[[Parameter], Tensor | None]) -> None:
    if not isinstance(optimizer, torch.optim.SGD) or optimizer in _optimizers:
        return
    with_momentum = [p for group in optimizer.param_groups if group["momentum"] for p in group["params"]]
    if not with_momentum:
        return
    ours = {id(_own_weight(layer)) for layer in _layers() if layer.is_sparse}
    for parameter in with_momentum:
        tensor = tensor_of(parameter)
        if id(parameter) in ours and tensor is not None and tensor.is_sparse:
            raise ValueError(
                f"optimizer: expected wuskern.optim.SGD for a sparse gradient, got {type(optimizer).__name__} of torch with "
                "momentum, whose buffer would grow in each step (or set sparse=False in the layer's rows or columns)"
            )
