"""When modules run and parameters are used in a forward, measured on one clock: the count of autograd's nodes."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn import Parameter

from wuskern.common.example import Example, arguments, tensors
from wuskern.modules import product_layers
from wuskern.policies.freezing.constants import Holder, Inside, enter, leave
from wuskern.policies.recorded_run import recorded_run

NEVER = float("inf")


@dataclass(frozen=True)
class Use:
    """When a parameter is first and last used in a forward."""

    first: float
    last: float


@dataclass(frozen=True)
class Trace:
    """The times of a forward, as numbers of autograd's nodes, which count up.

    Attributes:
        began: when each module first began. ended: when it last ended. used: when each parameter with a gradient was read.
        fed: when the latest input of each converted layer was computed; -1 where none has a gradient.
        elsewhere: parameters that are read in other ways than as attributes of their modules, from a list or in C++, say.
    """

    began: dict[nn.Module, float] = field(default_factory=dict)
    ended: dict[nn.Module, float] = field(default_factory=dict)
    used: dict[Parameter, Use] = field(default_factory=dict)
    fed: dict[nn.Module, float] = field(default_factory=dict)
    elsewhere: set[Parameter] = field(default_factory=set)


def trace(model: nn.Module, example: Example) -> Trace:
    """Runs the model twice, in evaluation mode, with all layers dense, and leaves it as it was; no random state moves.

    Raises:
        ValueError: a converted layer that runs where gradients are off. TypeError: an example of another kind.
    """
    arguments(example)
    times, names = Trace(), {layer: name for name, layer in product_layers(model).items()}

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module in names:
            if not torch.is_grad_enabled():
                raise ValueError(f"model: expected layers to run with gradients, got {names[module]!r} that runs without")
            times.fed[module] = max([times.fed.get(module, -1), *map(_made, tensors((args, kwargs)))])
        times.began.setdefault(module, _now())

    def end(module: nn.Module, _args: tuple[Any, ...], _output: Any) -> None:
        times.ended[module] = _now()

    # A module begins ahead of its hooks, some of which compute its weight.
    hooks = [module.register_forward_pre_hook(begin, with_kwargs=True, prepend=True) for module in model.modules()]
    hooks += [module.register_forward_hook(end) for module in model.modules()]
    times.used.update(_uses(_recorded_graph(model, example, hooks)))
    times.elsewhere.update(_read_elsewhere(model, example))
    return times


def _recorded_graph(model: nn.Module, example: Example, hooks: Iterable[Any] = ()) -> list[Any]:
    """The nodes of autograd that made the outputs of all modules."""
    graph: list[Any] = []

    def collect(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        graph.extend(x.grad_fn for x in tensors(output) if x.grad_fn is not None)

    recorded_run(model, example, [*hooks, *(module.register_forward_hook(collect) for module in model.modules())])
    return graph


def _read_elsewhere(model: nn.Module, example: Example) -> Iterable[Parameter]:
    """The parameters that still get a gradient when every module reads its own as constants."""
    holders = [Holder(module, tuple(module._parameters)) for module in model.modules()]
    call = Inside()
    try:
        enter(holders, call)
        return _uses(_recorded_graph(model, example))
    finally:
        call.over = True
        leave(holders)


def _now() -> int:
    with torch.enable_grad():
        return torch.ones((), requires_grad=True).neg().grad_fn._sequence_nr()  # type: ignore[union-attr]


def _made(x: Tensor) -> float:
    if not x.requires_grad:
        return -1
    return NEVER if x.grad_fn is None else x.grad_fn._sequence_nr()


def _uses(graph: Iterable[Any]) -> dict[Parameter, Use]:
    """When the parameters are used to which the nodes lead back."""
    times: dict[Parameter, list[float]] = {}
    todo, seen = list(graph), set()
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        for before, _ in node.next_functions:
            if type(before).__name__ == "AccumulateGrad":
                times.setdefault(before.variable, []).append(node._sequence_nr())
            elif before is not None:
                todo.append(before)
    return {parameter: Use(min(at), max(at)) for parameter, at in times.items()}
