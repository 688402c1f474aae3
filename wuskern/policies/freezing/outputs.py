"""What the frozen modules of a model give in one forward: what they compute, taken note of, or what was kept of it.

Of modules inside of each other the outermost counts. A site is one call of such a module: its module, and the how many-th call
of it in the forward.
"""

import inspect
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves

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
    def of(cls, output: Any) -> "Found":
        leaves, spec = tree_flatten(output)
        copied = (isinstance(leaf, Tensor) and not isinstance(leaf, Unkept) for leaf in leaves)
        return cls(spec, tuple(leaf.detach().clone() if copy else leaf for leaf, copy in zip(leaves, copied, strict=True)))


class Recording(Outputs):
    """Takes note of the output of each site, of who reads it outside of the frozen modules, and of which inputs are read before
    the last site ends.

    Args:
        keepable: whether the output of a module can be kept. Behind the first one of which it cannot, there are no sites.

    Attributes:
        found: the output of each site, in the order of the calls. read: the parts that are read, by site and number.
        runs: how often each frozen module ran, also inside of others.
    """

    def __init__(self, keepable: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.keepable, self.closed = keepable, False
        self.found: dict[Site, Found] = {}
        self.read: set[tuple[Site, int]] = set()
        self.runs: Counter[nn.Module] = Counter()
        self._made: dict[int, tuple[Site, int]] = {}
        self._inputs: dict[int, list[str]] = {}
        self._early: dict[str, int] = {}  # how many sites had ended when an input was first read
        self._alive: list[Tensor] = []  # so that no other tensor takes their memory

    def begin(self, inputs: Mapping[str, Tensor]) -> None:
        super().begin(inputs)
        for name, tensor in inputs.items():
            self._inputs.setdefault(_memory(tensor), []).append(name)
            self._alive.append(tensor)

    def __call__(self, module: nn.Module, compute: Callable[[], Any]) -> Any:
        self.runs[module] += 1
        return super().__call__(module, compute)

    def at(self, site: Site, compute: Callable[[], Any]) -> Any:
        self.closed = self.closed or not self.keepable(site[0])
        if self.closed:
            return compute()
        output = self.whole(compute)
        self.found[site] = self.whole(lambda: Found.of(output))
        for number, leaf in enumerate(tree_leaves(output)):
            if isinstance(leaf, Tensor):
                self._made[_memory(leaf)] = site, number
                self._alive.append(leaf)
        return output

    def watching(self) -> "Watch":
        """A block around the forward, in which what is read shows."""
        return Watch(self)

    def reads(self, tensor: Tensor) -> None:
        memory = _memory(tensor)
        if self.inside == 0 and memory in self._made:
            self.read.add(self._made[memory])
        for name in self._inputs.get(memory, ()):
            self._early.setdefault(name, len(self.found))

    @property
    def needed(self) -> list[str]:
        """The names of the inputs that were read before the last site ended."""
        return [name for name, sites in self._early.items() if sites < len(self.found)]


class Watch(TorchDispatchMode):
    """A mode in which a recording hears of every tensor that an operation reads."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self.recording = recording

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self.recording.reads(leaf)
        return func(*args, **(kwargs or {}))


class Enough(BaseException):
    """Ends a forward in which all that was wanted is there; no model's ``except Exception`` stops it."""


class Computing(Outputs):
    """Takes note of the outputs of the sites ``wanted``, and ends the forward behind the last one, before anything trains.

    Args:
        kept: outputs of modules that need not run, by module, for the inputs of this forward. look: told of the inputs.

    Attributes:
        found: the outputs. known: what ``look`` gave.
    """

    def __init__(
        self, wanted: Mapping[Site, Any], kept: Mapping[nn.Module, Any], look: Callable[[Mapping[str, Tensor]], Any]
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
        self.found[site] = Found.of(output)
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


class ReadsUnkept(RuntimeError):
    """An error: something reads an output that was not kept, because nothing had read it when it was recorded."""


class Unkept(Tensor):
    """What stands for an output that nothing reads: a tensor with a shape, a dtype and a device, and without values."""

    module_name: str

    @staticmethod
    def __new__(cls, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, module_name: str) -> "Unkept":
        made = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)  # type: ignore[attr-defined]
        made.module_name = module_name
        return made  # type: ignore[no-any-return]

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Unkept({self.module_name}, {tuple(self.shape)})"

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        name = next(leaf.module_name for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Unkept))
        raise ReadsUnkept(
            f"cache: expected nothing behind the frozen part to read the output of {name}, as nothing did in evaluation mode, "
            f"when it was recorded, got {func}"
        )


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


def _memory(tensor: Tensor) -> int:
    """A number of the memory that a tensor lies in, which its views share; of one without memory, its own."""
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return id(tensor)
