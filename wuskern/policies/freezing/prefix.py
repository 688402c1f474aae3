"""The mechanism of all freezing methods: what runs before the first layer that trains has no backward at all."""

from collections.abc import Callable, Collection
from typing import Any

import torch.nn as nn
from torch.nn import Parameter
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from wuskern.common.example import Example
from wuskern.modules import product_layers
from wuskern.policies.costs import costs
from wuskern.policies.freezing.constants import Holder
from wuskern.policies.freezing.forwards import Boundary, Calls, Forward, PrefixForward, RootForward
from wuskern.policies.freezing.norms import NormForward
from wuskern.policies.freezing.trace import Use, trace


class Prefix:
    """The first ``depth`` converted layers of a model, in the order of execution, and all else that runs before the next one.

    While the depth is over 0, the prefix's parameters are constants: for its modules, and for a parent module that reads some
    of its own between those. ``requires_grad`` is never touched. So nothing before the first layer that trains has a backward
    or keeps anything for one, and that layer computes no input gradient, as long as no input needs one.
    An input that needs one gets it: a generator in front of the model trains, and so does what an example never showed, such as
    a head that runs in training only. A frozen layer is dense, whatever it was told to skip. Modules of the prefix (BatchNorm,
    Dropout) run in evaluation mode, which each of their forwards sets again; :class:`NormForward` says when a norm layer does
    not. Nor does a module that runs behind the prefix as well.

    Each call decides for itself: threads, calls of the model inside of a call, copies and interrupted calls do not disturb one
    another. Parts of the model that are called alone are frozen, too; a parameter that another method than a ``forward`` reads
    is not. Tracers and exporters see the stock model. Activation checkpointing works around modules; the reentrant kind only
    where an input needs a gradient. Plain DDP needs ``find_unused_parameters=True``; DataParallel is refused.

    A layer that runs again behind the next one cannot be frozen without it, and one cannot be frozen whose parameters something
    reads in other ways than as ``module.name``: the depth then stays below (:meth:`reachable`). A parameter that is also used
    behind the prefix, such as a tied embedding, goes on training by what that use gives it; by both, where a module that
    contains others holds it itself.

    Args:
        model: with converted layers.
        example: the model's input, a sequence of its positional inputs, or a mapping of its keyword inputs. It runs three
            times, in evaluation mode; the model is left as it was, and no random state moves.

    Attributes:
        order: names of the layers, by their first run. costs: of each, by name. depth: how many layers are frozen now.
        modules, parameters: what is frozen now, that of the layers included; these parameters get no gradient.
        parents: the modules that begin in front of the first layer that trains, and are not frozen. shared: names, by module,
            of the parameters that are used in the prefix and behind it, and go on training.
        calls: the calls of the model that run now.

    Raises:
        ValueError: no converted layer runs, one runs where gradients are off, another prefix of the model is frozen, or it is
            what DDP or ``torch.compile`` made of a model: give the model inside. TypeError: an example of another kind.
    """

    def __init__(self, model: nn.Module, example: Example) -> None:
        check_unfrozen(model)
        self.model = model
        self.costs = costs(model, example)
        self.order = tuple(self.costs)
        self._layers = [product_layers(model)[name] for name in self.order]
        self._trace = trace(model, example)
        self._places = [
            (module, name, self._trace.used[parameter])  # its place, since another parameter may replace it
            for module in model.modules()
            for name, parameter in module._parameters.items()
            if parameter in self._trace.used
        ]
        self.depth = 0
        self.calls = Calls()
        self.modules: tuple[nn.Module, ...] = ()
        self.parents: tuple[nn.Module, ...] = ()
        self.shared: dict[nn.Module, list[str]] = {}
        self._holders: list[Holder] = []
        self._forwards: list[Forward] = []
        self._handles: list[RemovableHandle] = []

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return tuple(dict.fromkeys(parameter for holder in self._holders for _, parameter in holder.parameters()))

    def reachable(self, depth: int) -> int:
        """The largest depth up to ``depth`` at which something trains and all of the prefix can be frozen."""
        return next((d for d in range(min(depth, len(self.order) - 1), 0, -1) if self._can_be_frozen(d)), 0)

    def _can_be_frozen(self, depth: int) -> bool:
        begin = self._begin_of_rest(depth)
        ends = all(self._trace.ended[layer] < begin for layer in self._layers[:depth])
        return ends and not any(self._trace.used[p].last < begin for p in self._trace.elsewhere if p in self._trace.used)

    def _begin_of_rest(self, depth: int) -> float:
        return self._trace.began[self._layers[depth]]

    def saved(self, depth: int) -> int:
        """FLOPs of one sample's backward that freezing ``depth`` layers leaves out: both gradients of the frozen layers, and
        input gradients of the layers that get their input from the prefix alone."""
        if depth == 0:
            return 0
        begin, saved = self._begin_of_rest(depth), 0
        for i, (layer, cost) in enumerate(zip(self._layers, self.costs.values(), strict=True)):
            frozen = i < depth
            saved += cost.wgrad * frozen + cost.dgrad * (frozen or self._trace.fed[layer] < begin)
        return saved

    def set(self, depth: int) -> None:
        """Freezes the first ``depth`` layers, or as many as are reachable, and no others; 0 leaves a stock model. Idempotent.

        Raises:
            ValueError: another prefix of the model, or of a part of it, is frozen by now.
        """
        depth = self.reachable(depth)
        if depth == self.depth:
            return
        self.check()
        self._thaw()
        self.depth, self.modules, self._holders, self.parents, self.shared = depth, (), [], (), {}
        if depth:
            begin = self._begin_of_rest(depth)
            self.modules = tuple(module for module, end in self._trace.ended.items() if end < begin)
            self._holders = [
                Holder(*module_and_names) for module_and_names in self._names(lambda use: use.last < begin).items()
            ]
            self.parents = tuple(m for m, began in self._trace.began.items() if began < begin and m not in set(self.modules))
            self.shared = self._names(lambda use: use.first < begin <= use.last)
            self._freeze()

    def check(self) -> None:
        """Raises ``ValueError`` where another prefix of the model, or of a part of it, is frozen by now."""
        check_unfrozen(self.model, self._forwards)

    def _names(self, chosen: Callable[[Use], bool]) -> dict[nn.Module, list[str]]:
        """The names of the parameters whose use is ``chosen``, by the modules that hold them."""
        names: dict[nn.Module, list[str]] = {}
        for module, name, use in self._places:
            if chosen(use):
                names.setdefault(module, []).append(name)
        return names

    def _freeze(self) -> None:
        calls, prefix, shared = self.calls, set(self.modules), self.shared
        self._forwards = [RootForward(self.model, calls, self._holders, tells=bool(shared))]
        for module in self._trace.ended:
            inside = set(module.modules())
            holders = [holder for holder in self._holders if holder.module in inside]
            tied = shared.get(module, []) if len(inside) == 1 else []
            if module is not self.model and (holders or tied or module in prefix):
                self._forwards.append(_forward(module, module in prefix, calls=calls, holders=holders, shared=tied))
        boundary, frozen = Boundary(calls, bool(shared)), set(self._layers[: self.depth])
        for layer in product_layers(self.model).values():
            if layer not in frozen:
                self._handles.append(layer.register_forward_pre_hook(boundary))

    def _thaw(self) -> None:
        """Puts the stock forwards back; modules that were switched to evaluation mode get the model's mode again."""
        for handle in self._handles:
            handle.remove()
        for forward in self._forwards:
            forward.remove()
            if isinstance(forward, PrefixForward) and forward.switched:
                forward.module.training = self.model.training
        self._handles, self._forwards = [], []


def _forward(module: nn.Module, in_prefix: bool, **arguments: Any) -> Forward:
    if not in_prefix:
        return Forward(module, **arguments)
    if isinstance(module, _NormBase) and module.running_mean is not None:
        return NormForward(module, always=True, **arguments)
    return PrefixForward(module, always=True, **arguments)


def check_unfrozen(model: nn.Module, expected: Collection[Forward] = ()) -> None:
    """Raises ``ValueError`` for what DDP or ``torch.compile`` made of a model, and where others than ``expected`` freeze it."""
    if isinstance(model, DistributedDataParallel) or hasattr(model, "_orig_mod"):
        raise ValueError(f"model: expected the one inside, got {type(model).__name__} around it")
    forwards = [module.__dict__.get("forward") for module in model.modules()]
    if any(isinstance(forward, Forward) and forward.active and forward not in expected for forward in forwards):
        raise ValueError("model: expected one without frozen layers, got one that another policy freezes")
