"""What the frozen modules of a model give in one forward: what they compute, taken note of, or what was kept of it.

Of modules inside of each other the outermost counts. A site is one call of such a module: its module, and the how many-th call
of it in the forward.
"""

import inspect
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn as nn
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves

from wuskern.policies.freezing.unkept import ReadsUnkept, Unkept

Site = tuple[nn.Module, int]
PLAIN = (type(None), bool, int, float, str)  # parts of an output that can be compared, beside tensors


class Outputs(ABC):
    """The frozen modules in the forwards of one thread; a subclass says what becomes of each site."""

    def __init__(self) -> None:
        self.inside = 0
        self.counts: Counter[nn.Module] = Counter()

    def begin(self, inputs: Mapping[str, Tensor]) -> None:
        """Begins a forward of the model; ``inputs``: the tensors that it got, by their names."""
        self.inside = 0
        self.counts.clear()

    def __call__(self, module: nn.Module, compute: Callable[[], Any]) -> Any:
        """The output of a frozen module, which ``compute`` computes."""
        if self.inside:
            return compute()
        site = module, self.counts[module]
        self.counts[module] += 1
        return self.at(site, compute)

    def end(self, output: Any) -> None:
        """Ends a forward of the model, which gave this output; a subclass may override this."""
        return

    @abstractmethod
    def at(self, site: Site, compute: Callable[[], Any]) -> Any:
        """The output of a site."""

    def whole(self, compute: Callable[[], Any]) -> Any:
        """What ``compute`` gives; modules in it are no sites of their own."""
        self.inside += 1
        try:
            return compute()
        finally:
            self.inside -= 1


@dataclass(frozen=True)
class Found:
    """An output of a site: its structure, and copies of its parts."""

    spec: TreeSpec
    leaves: tuple[Any, ...]

    @classmethod
    def of(cls, output: Any, read: Collection[int] | None = None) -> "Found":
        """The parts with the numbers ``read`` (None: all); of other tensors one value in their shape."""
        leaves, spec = tree_flatten(output)
        return cls(spec, tuple(_copy(leaf, read is None or number in read) for number, leaf in enumerate(leaves)))


def _copy(leaf: Any, values: bool) -> Any:
    if not isinstance(leaf, Tensor) or isinstance(leaf, Unkept):
        return leaf
    return leaf.detach().clone() if values else leaf.new_zeros(()).expand(leaf.shape)


class Enough(BaseException):
    """Ends a forward in which all that was wanted is there; no model's ``except Exception`` stops it."""


class Computing(Outputs):
    """Takes note of the outputs of the sites ``wanted``, and ends the forward behind the last one, before anything trains.

    Args:
        wanted: the numbers of the parts that are read, by site.
        kept: outputs of modules that need not run, by module, for the inputs of this forward. look: told of the inputs.

    Attributes:
        found: the outputs. known: what ``look`` gave.
    """

    def __init__(
        self, wanted: Mapping[Site, Collection[int]], kept: Mapping[nn.Module, Any], look: Callable[[Mapping[str, Tensor]], Any]
    ) -> None:
        super().__init__()
        self.wanted, self.kept, self.look = wanted, kept, look
        self.found: dict[Site, Found] = {}

    def begin(self, inputs: Mapping[str, Tensor]) -> None:
        super().begin(inputs)
        self.known = self.look(inputs)  # now: the model may write to its inputs

    def __call__(self, module: nn.Module, compute: Callable[[], Any]) -> Any:
        return super().__call__(module, (lambda: self.kept[module]) if module in self.kept else compute)

    def at(self, site: Site, compute: Callable[[], Any]) -> Any:
        if site not in self.wanted:
            return compute()
        output = self.whole(compute)
        self.found[site] = Found.of(output, self.wanted[site])
        if len(self.found) == len(self.wanted):
            raise Enough
        return output


class Serving(Outputs):
    """Gives what was kept in place of computing it.

    Args:
        outputs: those of the sites, for the inputs of this forward. check: told of the inputs; raises for others.
    """

    def __init__(
        self, outputs: Callable[[Site], "Output | None"], check: Callable[[Mapping[str, Tensor]], None] | None = None
    ) -> None:
        super().__init__()
        self.outputs, self.check = outputs, check

    def begin(self, inputs: Mapping[str, Tensor]) -> None:
        super().begin(inputs)
        if self.check is not None:
            self.check(inputs)

    def at(self, site: Site, compute: Callable[[], Any]) -> Any:
        output = self.outputs(site)
        return compute() if output is None else output.value

    def end(self, output: Any) -> None:
        for leaf in tree_leaves(output):
            if isinstance(leaf, Unkept):
                raise ReadsUnkept(leaf.module_name, "the model gives it")


@dataclass(frozen=True)
class Output:
    """An output as a model gets it."""

    value: Any


def named(signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors among a model's inputs, by the names of the arguments and their places in them."""
    bound = signature.bind(*args, **kwargs).arguments
    by_keyword = [p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]
    for name in by_keyword:
        bound |= bound.pop(name, {})
    return {
        f"{name}.{place}" if place else name: leaf
        for name, value in bound.items()
        for place, leaf in enumerate(tree_leaves(value))
        if isinstance(leaf, Tensor)
    }
