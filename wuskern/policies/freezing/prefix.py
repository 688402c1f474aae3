"""The mechanism of all freezing methods: what runs before the first layer that trains has no backward at all."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn import Parameter
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from wuskern.modules import skippable_layers
from wuskern.policies.costs import costs
from wuskern.policies.freezing.trace import trace


class Prefix:
    """The first ``depth`` converted layers of a model, in the order of execution, and all else that runs before the next one.

    While the depth is over 0, each forward of the model begins with gradients off, and the first converted layer behind the
    prefix turns them on again. So nothing before that layer has a backward or keeps anything for one, whatever it is: norm
    layers, embeddings, the part of a residual block, parameters that a parent module holds, operations between modules; and
    the layer itself computes no input gradient. ``requires_grad`` is never touched. Modules of the prefix (BatchNorm, Dropout)
    run in evaluation mode, which each forward sets again; a module that runs on behind the prefix too does not.

    Call the model itself: a part of it called alone (``model.features(x)``) trains as always. Where gradients are off in
    the surroundings, they stay off. Non-reentrant activation checkpointing works, reentrant does not. Plain DDP needs
    ``find_unused_parameters=True``.

    A layer that runs again behind the next one cannot be frozen without it: the depth then stays below
    (:meth:`reachable`). A parameter that is also used behind the prefix, such as a tied embedding, goes on training by what
    that use gives it.

    Args:
        model: with converted layers.
        example: the model's input, or a sequence of its positional inputs. It runs twice, in evaluation mode; the model is
            left as it was, and no random state moves.

    Attributes:
        order: names of the layers, by their first run. costs: of each, by name. depth: layers frozen now.
        modules, parameters: those that are frozen now, the layers' included; these parameters get no gradient.

    Raises:
        ValueError: no converted layer runs, one runs where gradients are off, another prefix of the model is frozen, or it is
            what DDP or ``torch.compile`` made of a model: give the model inside.
    """

    def __init__(self, model: nn.Module, example: Tensor | Sequence[Any]) -> None:
        _check(model)
        self.model = model
        self.costs = costs(model, example)
        self.order = tuple(self.costs)
        self._layers = [skippable_layers(model)[name] for name in self.order]
        self._trace = trace(model, example)
        self.depth = 0
        self.modules: tuple[nn.Module, ...] = ()
        self.parameters: tuple[Parameter, ...] = ()
        self._frozen: frozenset[Parameter] = frozenset()
        self._switched: list[nn.Module] = []  # from training to evaluation mode, by this
        self._handles: list[RemovableHandle] = []
        self._outside = False  # whether gradients were on when the forward began
        self._before = False  # the first layer that trains

    def reachable(self, depth: int) -> int:
        """The largest depth up to this one at which something trains and no frozen layer runs again behind the prefix."""
        for d in range(min(depth, len(self.order) - 1), 0, -1):
            if all(self._trace.ended[layer] < self._begin_of_rest(d) for layer in self._layers[:d]):
                return d
        return 0

    def _begin_of_rest(self, depth: int) -> float:
        return self._trace.began[self._layers[depth]]

    def saved(self, depth: int) -> int:
        """FLOPs of one sample's backward that freezing so many layers leaves out: both gradients of the frozen ones, and input
        gradients of those that are fed by the prefix alone."""
        if depth == 0:
            return 0
        begin, saved = self._begin_of_rest(depth), 0
        for i, (layer, cost) in enumerate(zip(self._layers, self.costs.values(), strict=True)):
            frozen = i < depth
            saved += cost.wgrad * frozen + cost.dgrad * (frozen or self._trace.fed[layer] < begin)
        return saved

    def set(self, depth: int) -> None:
        """Freezes the first ``depth`` layers, or as many as are reachable, and no others; 0 leaves the model without a hook.
        Idempotent."""
        depth = self.reachable(depth)
        if depth == self.depth:
            return
        self._remove_hooks()
        self.depth, self.modules, self.parameters, self._frozen = depth, (), (), frozenset()
        if depth:
            begin = self._begin_of_rest(depth)
            self.modules = tuple(module for module, end in self._trace.ended.items() if end < begin)
            self.parameters = tuple(p for p, use in self._trace.used.items() if use < begin)
            self._frozen = frozenset(self.parameters)
            self._hook(self._layers[depth:])
            self.evaluate()
        self._give_back_modes()

    def _hook(self, training: Sequence[nn.Module]) -> None:
        """All layers that train, as one of them may not run in some forward. Ahead of hooks that compute a weight."""
        self._handles = [self.model.register_forward_pre_hook(self._begin, prepend=True)]
        self._handles += [layer.register_forward_pre_hook(self._resume, prepend=True) for layer in training]
        self._handles.append(self.model.register_forward_hook(self._end, always_call=True))

    def _remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def trains(self, parameter: Parameter) -> bool:
        """Whether the model's forward uses it behind the prefix."""
        return parameter in self._trace.used and parameter not in self._frozen

    def evaluate(self) -> None:
        """Sets the modules of the prefix to evaluation mode, as each forward of the model does."""
        for module in self.modules:
            if module.training:
                module.training = False
                self._switched.append(module)

    def _give_back_modes(self) -> None:
        """To what is frozen no more, that of the model."""
        for module in set(self._switched) - set(self.modules):
            module.training = self.model.training
        self._switched = [module for module in self._switched if module in self.modules]

    # ---- in a forward -----------------------------------------------------------------------------------------------

    @contextmanager
    def running(self) -> Iterator[None]:
        """For whoever runs parts of the model alone: what a call of the model does around them."""
        self._begin()
        try:
            yield
        finally:
            self._end()

    def _begin(self, *_: Any) -> None:
        self.evaluate()
        self._outside, self._before = torch.is_grad_enabled(), True
        torch.set_grad_enabled(False)

    def _resume(self, *_: Any) -> None:
        if self._before:
            self._before = False
            torch.set_grad_enabled(self._outside)

    def _end(self, *_: Any) -> None:
        lost = not self._before and self._outside and not torch.is_grad_enabled()
        torch.set_grad_enabled(self._outside)
        if lost:
            raise RuntimeError(
                "model: expected gradients to stay on behind the frozen layers, but the first one that trains ran inside "
                "torch.no_grad() or reentrant checkpointing (use_reentrant=False works)"
            )


def _check(model: nn.Module) -> None:
    if isinstance(model, DistributedDataParallel) or hasattr(model, "_orig_mod"):
        raise ValueError(f"model: expected the one inside, got {type(model).__name__} around it")
    if any(isinstance(getattr(hook, "__self__", None), Prefix) for hook in model._forward_pre_hooks.values()):
        raise ValueError("model: expected one without frozen layers, got one that another policy freezes")
