"""How a compiled backward leaves something elsewhere than in the gradients that it returns.

Compiled code cannot change a Python object. It calls an op instead, which finds the object by its key: a tensor, so that one
graph serves layers of one shape. The op says of itself that it writes to the key, which it does not, so that no compiler leaves
it out.
"""

import itertools
import weakref
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

_library = torch.library.Library("wuskern", "FRAGMENT")
_library.define("deliver(Tensor(a!) key, Tensor? home, Tensor[] parts) -> ()", tags=torch.Tag.pt2_compliant_tag)
torch.library.register_fake("wuskern::deliver", lambda key, home, parts: None, lib=_library)


class Receiver(Protocol):
    """An object with a key, to which compiled code delivers."""

    def receive(self, *parts: Tensor) -> None:
        """Takes what a compiled backward has delivered."""


class Home(Protocol):
    """The home of the layer whose backward delivers: see ``grad_home``."""

    def accumulates(self) -> bool:
        """Whether the backward that runs now adds to the weight's ``grad``."""


_targets: dict[int, "weakref.ref[Any]"] = {}
_keys = itertools.count()


def new_key(target: Any) -> Tensor:
    """A key for ``target``, which it does not keep alive: an int64 tensor on the CPU, whatever the default device is."""
    key = next(_keys)
    _targets[key] = weakref.ref(target, lambda _: _targets.pop(key, None))
    return torch.tensor(key, device="cpu")


def from_compiled(key: Tensor, home: Tensor | None, *parts: Tensor) -> None:
    """Delivers ``parts`` to the key's target, from code that a compiler traces, if the backward of the object with the key
    ``home`` adds to its weight's ``grad``; None: in any case."""
    torch.ops.wuskern.deliver(key, home, parts)


def _deliver(key: Tensor, home: Tensor | None, parts: Sequence[Tensor]) -> None:
    target: Receiver = _find(key)
    if home is None or _find(home).accumulates():
        target.receive(*(part.clone() for part in parts))  # compiled code uses its memory again


def _find(key: Tensor) -> Any:
    reference = _targets.get(int(key))
    target = reference and reference()
    if target is None:
        raise RuntimeError("key: expected that of a living layer or Observer, got one of an object that is gone")
    return target


_library.impl("deliver", _deliver, "CompositeExplicitAutograd")
