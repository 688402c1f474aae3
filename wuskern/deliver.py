"""What a backward leaves somewhere else than in ``grad``: from eager and from compiled code.

A compiled backward cannot change a Python object. It calls an op instead, which finds the object by its key: a tensor, so
that one graph serves layers of one shape. The op says of itself that it writes to the key, which it does not, so that no
compiler leaves it out.
"""

import itertools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_library = torch.library.Library("wuskern", "FRAGMENT")
_library.define("deliver(Tensor(a!) key, Tensor[] parts) -> ()", tags=torch.Tag.pt2_compliant_tag)
torch.library.register_fake("wuskern::deliver", lambda key, parts: None, lib=_library)

_receivers: dict[int, tuple[weakref.ref[Any], Callable[..., None]]] = {}
_keys = itertools.count()


def new_key(target: Any, receive: Callable[..., None]) -> Tensor:
    """A key for ``target``, which is not kept alive: what is delivered to it goes to ``receive(target, *parts)``."""
    key = next(_keys)
    _receivers[key] = weakref.ref(target, lambda _: _receivers.pop(key, None)), receive
    return torch.tensor(key)


def is_key_of(key: Tensor, target: Any) -> bool:
    """False for the key that a pickled copy carries."""
    return (found := _receivers.get(int(key))) is not None and found[0]() is target


def from_compiled(key: Tensor, *parts: Tensor) -> None:
    """Delivers ``parts`` to the key's target, from code that a compiler traces."""
    torch.ops.wuskern.deliver(key, parts)


def _deliver(key: Tensor, parts: Sequence[Tensor]) -> None:
    found = _receivers.get(int(key))
    target = found and found[0]()
    if found is None or target is None:
        raise RuntimeError("key: expected that of a living weight or Scores, got one of an object that is gone")
    found[1](target, *(part.clone() for part in parts))  # compiled code uses its memory again


_library.impl("deliver", _deliver, "CompositeExplicitAutograd")
