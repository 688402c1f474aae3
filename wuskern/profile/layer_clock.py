"""The seconds that each converted layer takes of a step: its forward, and the nodes of autograd that its forward made.

Measured within whole steps, so that caches and memory are as they are there. Each layer's backward is one piece of work: what
the weight's gradient adds to it is the difference to a step in which the weight is skipped.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from wuskern.modules import SkippableLayer
from wuskern.policies.recorded_run import tensors


class LayerClock:
    """A stopwatch for each layer, within :meth:`on`.

    Args:
        layers: by name. device: "cpu", or "cuda", where events are recorded between kernels. clock: seconds, on a CPU.
    """

    def __init__(
        self, layers: Mapping[str, SkippableLayer], device: str, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.layers, self.device, self.clock = layers, device, clock
        self._spans: dict[tuple[str, str], list[tuple[Any, Any]]] = {}
        self._began: dict[Any, Any] = {}
        self._claimed: set[Any] = set()  # nodes that a layer has

    @contextmanager
    def on(self) -> Iterator[None]:
        """A block whose steps are counted; the hooks are gone at its end."""
        self._handles: list[Any] = []
        for name, layer in self.layers.items():  # innermost: around the layer's forward alone
            self._handles.append(layer.register_forward_pre_hook(self._begin))
            self._handles.append(layer.register_forward_hook(self._end_of(name), with_kwargs=True, prepend=True))
        try:
            yield
        finally:
            for handle in self._handles:
                handle.remove()
            self._claimed.clear()

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
        outside, to_visit = {x.grad_fn for x in inputs}, [last]
        own = {id(parameter) for parameter in layer.parameters()}
        while to_visit:
            node = to_visit.pop()
            if node is None or node in outside or node in self._claimed:
                continue
            if hasattr(node, "variable") and id(node.variable) not in own:
                continue
            self._claimed.add(node)
            self._handles.append(node.register_prehook(self._start_of(node)))
            self._handles.append(node.register_hook(self._stop_of(name, node)))
            to_visit += [before for before, _ in node.next_functions]

    def _start_of(self, node: Any) -> Any:
        def start(_: Any) -> None:
            self._began[node] = self._now()

        return start

    def _stop_of(self, name: str, node: Any) -> Any:
        def stop(*_: Any) -> None:
            if (began := self._began.pop(node, None)) is not None:
                self._spans.setdefault((name, "backward"), []).append((began, self._now()))

        return stop

    def _now(self) -> Any:
        if self.device != "cuda":
            return self.clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, begin: Any, end: Any) -> float:
        return begin.elapsed_time(end) / 1e3 if self.device == "cuda" else end - begin
