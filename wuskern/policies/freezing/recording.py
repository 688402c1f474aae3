"""A forward in which the outputs of the frozen modules are taken note of, and what depends on them."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch.nn as nn
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wuskern.policies.freezing.outputs import Found, Outputs, Site
from wuskern.policies.freezing.unkept import outcome, target_of

Value = int | tuple[Site, int]  # what is in a piece of memory: a part of a site's output, or anything else


class Recording(Outputs):
    """Takes note of the output of each site, of those that something else than frozen modules depends on, and of which inputs
    are read before the last site ends.

    Args:
        keepable: whether the output of a module can be kept. Behind the first one of which it cannot, there are no sites.

    Attributes:
        found: the output of each site, in the order of the calls.
        runs: how often each frozen module ran, also inside of others.
    """

    def __init__(self, keepable: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.keepable, self.closed = keepable, False
        self.found: dict[Site, Found] = {}
        self.runs: Counter[nn.Module] = Counter()
        self._made: dict[int, dict[Any, tuple[Site, int]]] = defaultdict(dict)  # by memory, and by the place in it
        self._sources: dict[Value, set[Value]] = defaultdict(set)  # what a value was computed from, between the sites
        self._used: set[Value] = set()  # where they are needed, whatever becomes of them
        self._dependent: set[Value] = set()  # on outputs of sites
        self._inputs: dict[int, list[str]] = {}
        self._early: dict[str, int] = {}  # how many sites had ended when an input was first read
        self._alive: list[Tensor] = []  # so that no other tensor takes their memory

    def begin(self, inputs: Mapping[str, Tensor]) -> None:
        super().begin(inputs)
        for name, tensor in inputs.items():
            self._inputs.setdefault(_memory(tensor), []).append(name)
            self._alive.append(tensor)

    def end(self, output: Any) -> None:
        self._used |= self._values(_tensors(output))

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
                self._made[_memory(leaf)][_place(leaf)] = site, number
                self._dependent.add((site, number))
                self._alive.append(leaf)
        return output

    def watching(self) -> "Watch":
        """A block around the forward, in which the operations show."""
        return Watch(self)

    def operation(self, func: Any, args: Any, kwargs: Any, output: Any) -> None:
        """Takes note of an operation and what it gave."""
        inputs, outputs = _tensors((args, kwargs)), _tensors(output)
        for tensor in inputs:
            for name in self._inputs.get(_memory(tensor), ()):
                self._early.setdefault(name, len(self.found))
        if self.inside:
            return
        self._follow_views(inputs, outputs)
        values, computed = self._values(inputs), self._values(outputs)
        for value in computed:
            self._sources[value] |= values
        if not values.isdisjoint(self._dependent):
            target = target_of(func, args)
            writes = target is not None and self._dependent.isdisjoint(self._values([target]))
            if writes or not outputs or outcome(func, args, kwargs) is None:
                self._used |= values
            self._dependent |= computed
        self._alive += outputs

    def read(self) -> dict[Site, set[int]]:
        """The numbers of the parts of each site's output on which a value depends that trains or leaves the model."""
        read: dict[Site, set[int]] = {site: set() for site in self.found}
        waiting, seen = list(self._used), set(self._used)
        while waiting:
            value = waiting.pop()
            if isinstance(value, tuple):
                read[value[0]].add(value[1])
            waiting += self._sources[value] - seen
            seen |= self._sources[value]
        return read

    @property
    def needed(self) -> list[str]:
        """The names of the inputs that were read before the last site ended."""
        return [name for name, sites in self._early.items() if sites < len(self.found)]

    def _follow_views(self, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """A view of a part of a site's output is that part."""
        parts = {
            memory: part
            for memory, part in ((_memory(x), self._made.get(_memory(x), {}).get(_place(x))) for x in inputs)
            if part
        }
        for tensor in outputs:
            if part := parts.get(_memory(tensor)):
                self._made[_memory(tensor)][_place(tensor)] = part

    def _values(self, tensors: Iterable[Tensor]) -> set[Value]:
        """What the tensors hold: parts of outputs that lie in just their place, or else all that is in their memory."""
        values: set[Value] = set()
        for tensor in tensors:
            memory = _memory(tensor)
            made = self._made.get(memory, {})
            place = _place(tensor)
            values |= {made[place]} if place in made else {memory, *made.values()}
        return values


class Watch(TorchDispatchMode):
    """A mode in which a recording hears of every operation."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self.recording = recording

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self.recording.operation(func, args, kwargs or {}, output)
        return output


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _memory(tensor: Tensor) -> int:
    """A number of the memory that a tensor lies in, which its views share; of one without memory, its own."""
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return id(tensor)


def _place(tensor: Tensor) -> Any:
    """Where in its memory a tensor lies."""
    return tensor.storage_offset(), tensor.shape, tensor.stride()
