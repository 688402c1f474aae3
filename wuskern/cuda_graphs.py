"""One CUDA graph for each setting of the flags, because a captured graph cannot read a flag."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn as nn
from torch import Tensor

from wuskern.choices import CHOICES, OBSERVERS, FixedIndex
from wuskern.delivery.observer import ColumnObserver, Observer
from wuskern.modules import SkippableLayer, skippable_layers

WARM_UP = 3  # steps before a capture, as PyTorch asks for

Key = tuple[Any, ...]


class _Captured(NamedTuple):
    replay: Callable[[], Any]
    inputs: tuple[Tensor, ...]
    fixed: dict[tuple[str, str], FixedIndex]  # by layer and part of its plan; the graph reads their index
    observers: list[Observer | ColumnObserver | None]  # that the graph tells; their ids are in its key


class GraphedStep:
    """A training step on a GPU that is captured once for each setting of the model's flags, and replayed from then on.

    ``skip``, ``TopK``, ``TopColumns``, ``Tokens``, the depth of a frozen prefix, the layers' sizes and the shapes of the inputs
    choose the graph. A changed ``Rows`` of the same length, scope and bias, or ``Columns`` of the same length, does not need
    another one: its index is copied into that which the graph reads. What an observer sums, a replay adds to. Graphs share
    their memory: what a step returned is valid until the next step.

    Args:
        model: with converted layers, all of its parameters on one GPU.
        step: takes the inputs and does all the work, ``zero_grad(set_to_none=True)``, forward, backward and the step of a
            ``capturable`` optimizer, without asking the GPU for a value. What it returns, tensors, is what a call returns.

    A call with a new kind of step runs ``step`` a few times before it captures it. Those steps train on the same inputs;
    :meth:`prepare` does so for inputs and at a time of your choice.

    Raises:
        ValueError: the model has no converted layer, or an input is not on its GPU.
    """

    def __init__(self, model: nn.Module, step: Callable[..., Any]) -> None:
        self.layers = skippable_layers(model)
        self.device = next(iter(self.layers.values())).weight.device
        self._step = step
        self._captured: dict[Key, _Captured] = {}
        self._pool: Any = None

    def __call__(self, *inputs: Tensor) -> Any:
        captured = self._captured.get(self._key(inputs)) or self.prepare(*inputs)
        for static, current in zip(captured.inputs, inputs, strict=True):
            static.copy_(current, non_blocking=True)
        for (name, part), choice in captured.fixed.items():
            choice.index.copy_(getattr(self.layers[name], part).index, non_blocking=True)
        return captured.replay()

    def prepare(self, *inputs: Tensor) -> _Captured:
        """Captures the step for the flags as they are, and replaces the graph that there was."""
        for i, tensor in enumerate(inputs):
            if tensor.device != self.device:
                raise ValueError(f"inputs[{i}]: expected a tensor on {self.device}, got one on {tensor.device}")
        before = {name: layer.plan for name, layer in self.layers.items()}
        static = {
            (name, part): self._static(choice)
            for name, plan in before.items()
            for part in CHOICES
            if isinstance(choice := getattr(plan, part), FixedIndex)
        }
        copies = tuple(tensor.clone() for tensor in inputs)
        try:
            for (name, part), choice in static.items():
                self.layers[name].plan = dataclasses.replace(self.layers[name].plan, **{part: choice})
            observers = [getattr(plan, observer) for plan in before.values() for observer in OBSERVERS.values()]
            captured = _Captured(self._capture(copies), copies, static, observers)
        finally:
            for name, plan in before.items():
                self.layers[name].plan = plan
        self._captured[self._key(inputs)] = captured
        return captured

    def _static(self, choice: Any) -> Any:
        return dataclasses.replace(choice, index=choice.index.to(self.device, copy=True))

    def _key(self, inputs: tuple[Tensor, ...]) -> Key:
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        return shapes, tuple(_kind(layer) for layer in self.layers.values())

    def _capture(self, inputs: tuple[Tensor, ...]) -> Callable[[], Any]:
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._step(*inputs)
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            results = self._step(*inputs)
        self._pool = graph.pool()

        def replay() -> Any:
            graph.replay()
            return results

        return replay


def _kind(layer: SkippableLayer) -> Key:
    """What a graph depends on in this layer. A frozen prefix shows in the hooks of the layers behind it."""
    plan, weight = layer.plan, layer._parameters.get("weight")
    size = None if weight is None else tuple(weight.shape)  # another one after simplify_
    return len(layer._forward_pre_hooks), plan.key, *(id(getattr(plan, observer)) for observer in OBSERVERS.values()), size
