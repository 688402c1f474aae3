"""The seconds that each converted layer takes of a step: its forward, and the nodes of autograd that its forward made.

Measured within whole steps, so that caches and memory are as they are there. Each layer's backward is one piece of work: what
the weight's gradient adds to it is the difference to a step in which the weight is skipped. Where something else has a gradient
for the weight, too, such as an embedding that it is tied to, autograd adds the two between its nodes: that time is the layer's,
since a skip does without.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from wuskern.common.example import tensors
from wuskern.modules import SkippableLayer


class LayerClock:
    """A stopwatch for each layer, within :meth:`on`.

    Args:
        model: of the layers. layers: by name. device: "cpu", or "cuda", where events are recorded between kernels.
        clock: seconds, on a CPU.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, SkippableLayer],
        device: str,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.layers, self.device, self.clock = layers, device, clock
        own, shared = set(layers.values()), {id(p) for layer in layers.values() for p in layer.parameters()}
        self._others = [
            module
            for module in model.modules()
            if module not in own and any(id(p) in shared for p in module._parameters.values() if p is not None)
        ]
        self._spans: dict[tuple[str, str], list[tuple[Any, Any]]] = {}
        self._began: dict[Any, Any] = {}
        self._claimed: set[Any] = set()  # nodes that a layer has
        self._arrived: set[Any] = set()  # nodes that take a parameter's gradient, once a part of it is ready
        self._latest: Any = None  # when a node that is watched ended last

    @contextmanager
    def on(self) -> Iterator[None]:
        """A block whose steps are counted; the hooks are gone at its end."""
        self._handles: list[Any] = []
        for name, layer in self.layers.items():  # innermost: around the layer's forward alone
            self._handles.append(layer.register_forward_pre_hook(self._begin))
            self._handles.append(layer.register_forward_hook(self._end_of(name), with_kwargs=True, prepend=True))
        self._handles += [module.register_forward_hook(self._other, with_kwargs=True) for module in self._others]
        try:
            yield
        finally:
            for handle in self._handles:
                handle.remove()
            self._claimed.clear()
            self._arrived.clear()

    def seconds(self) -> dict[str, tuple[float, float]]:
        """The seconds of each layer's forward and backward since the last call of this."""
        spans, self._spans = self._spans, {}
        if self.device == "cuda":
            torch.cuda.synchronize()
        of = {key: sum(self._between(*span) for span in each) for key, each in spans.items()}
        return {name: (of.get((name, "forward"), 0.0), of.get((name, "backward"), 0.0)) for name in self.layers}

    def _begin(self, layer: SkippableLayer, _args: Any) -> None:
        self._began[layer] = self._now()

    def _end_of(self, name: str) -> Any:
        def end(layer: SkippableLayer, args: Any, kwargs: Any, output: Any) -> None:
            now = self._now()
            self._spans.setdefault((name, "forward"), []).append((self._began.pop(layer), now))
            if isinstance(output, Tensor) and output.grad_fn is not None:
                self._watch(name, output.grad_fn, layer, [x for x in tensors((args, kwargs)) if x.requires_grad])

        return end

    def _watch(self, name: str, last: Any, layer: SkippableLayer, inputs: list[Tensor]) -> None:
        """Times the nodes from the layer's output back to its inputs, and where its parameters' gradients arrive."""
        for node in _nodes(layer, last, inputs):
            if node not in self._claimed:
                self._claimed.add(node)
                self._handles.append(node.register_prehook(self._start_of(node)))
                self._handles.append(node.register_hook(self._stop_of(name, node)))

    def _other(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Takes note of when another module's part of a gradient is ready."""
        if not isinstance(output, Tensor) or output.grad_fn is None:
            return
        for node in _nodes(module, output.grad_fn, [x for x in tensors((args, kwargs)) if x.requires_grad]):
            if not hasattr(node, "variable") and node not in self._claimed:
                self._handles.append(node.register_hook(lambda *_, node=node: self._hand_on(node, self._now())))

    def _hand_on(self, node: Any, now: Any) -> None:
        self._latest = now
        self._arrived.update(before for before, _ in node.next_functions if hasattr(before, "variable"))

    def _start_of(self, node: Any) -> Any:
        def start(_: Any) -> None:
            self._began[node] = self._latest if node in self._arrived else self._now()
            self._arrived.discard(node)

        return start

    def _stop_of(self, name: str, node: Any) -> Any:
        def stop(*_: Any) -> None:
            if (began := self._began.pop(node, None)) is not None:
                now = self._now()
                self._spans.setdefault((name, "backward"), []).append((began, now))
                self._hand_on(node, now)

        return stop

    def _now(self) -> Any:
        if self.device != "cuda":
            return self.clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, begin: Any, end: Any) -> float:
        return begin.elapsed_time(end) / 1e3 if self.device == "cuda" else end - begin


def _nodes(module: nn.Module, last: Any, inputs: list[Tensor]) -> list[Any]:
    """The nodes from a module's output, which is of ``last``, back to its inputs, and what takes its parameters' gradients."""
    seen, found, to_visit = {None, *(x.grad_fn for x in inputs)}, [], [last]
    own = {id(parameter) for parameter in module.parameters()}
    while to_visit:
        node = to_visit.pop()
        if node not in seen and (not hasattr(node, "variable") or id(node.variable) in own):
            found.append(node)
            to_visit += [before for before, _ in node.next_functions]
        seen.add(node)
    return found
