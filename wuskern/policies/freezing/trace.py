"""When modules run and parameters are used in a forward, on one clock."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn import Parameter
from torch.utils._pytree import tree_leaves

from wuskern.modules import skippable_layers
from wuskern.policies.recorded_run import recorded_run

NEVER = float("inf")


@dataclass(frozen=True)
class Trace:
    """Times are numbers of autograd's nodes, which count up.

    Attributes:
        began: first begin of each module that ran. ended: last end. used: last use of each parameter that has a gradient.
        fed: of each converted layer, when the latest of its inputs was computed; -1 where none has a gradient.
    """

    began: dict[nn.Module, float] = field(default_factory=dict)
    ended: dict[nn.Module, float] = field(default_factory=dict)
    used: dict[Parameter, float] = field(default_factory=dict)
    fed: dict[nn.Module, float] = field(default_factory=dict)


def trace(model: nn.Module, example: Tensor | Sequence[Any]) -> Trace:
    """Runs the model once, in evaluation mode, with all layers dense, and leaves it as it was; no random state moves.

    Raises:
        ValueError: a converted layer that runs where gradients are off.
    """
    found, names = Trace(), {layer: name for name, layer in skippable_layers(model).items()}
    graph: list[Any] = []

    def begin(module: nn.Module, args: tuple[Any, ...]) -> None:
        if module in names:
            if not torch.is_grad_enabled():
                raise ValueError(f"model: expected layers to run with gradients, got {names[module]!r} that runs without")
            tensors = (x for x in tree_leaves(args) if isinstance(x, Tensor))
            found.fed[module] = max([found.fed.get(module, -1), *map(_made, tensors)])
        found.began.setdefault(module, _now())

    def end(module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        found.ended[module] = _now()
        graph.extend(x.grad_fn for x in tree_leaves(output) if isinstance(x, Tensor) and x.grad_fn is not None)

    handles = [module.register_forward_pre_hook(begin) for module in model.modules()]
    handles += [module.register_forward_hook(end) for module in model.modules()]
    recorded_run(model, example, handles)
    found.used.update(_last_uses(graph))
    return found


def _now() -> int:
    with torch.enable_grad():
        return torch.ones((), requires_grad=True).neg().grad_fn._sequence_nr()  # type: ignore[union-attr]


def _made(x: Tensor) -> float:
    if not x.requires_grad:
        return -1
    return NEVER if x.grad_fn is None else x.grad_fn._sequence_nr()


def _last_uses(graph: Iterable[Any]) -> dict[Parameter, float]:
    """Of the parameters that the nodes lead back to."""
    uses: dict[Parameter, float] = {}
    todo, seen = list(graph), set()
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        for before, _ in node.next_functions:
            if type(before).__name__ == "AccumulateGrad":
                uses[before.variable] = max(uses.get(before.variable, -1), node._sequence_nr())
            elif before is not None:
                todo.append(before)
    return uses
