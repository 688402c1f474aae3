"""What stands for an output that was not kept, because no value that trains or leaves the model depends on it."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten


class ReadsUnkept(RuntimeError):
    """An error: a value depends on an output that was not kept, because none had when it was recorded.

    Args:
        where: the name of the module that gives the output. got: what depends on it.
    """

    def __init__(self, where: str, got: str) -> None:
        super().__init__(
            f"cache: expected nothing behind the frozen part to read the output of {where}, as nothing did in evaluation mode, "
            f"when it was recorded, got: {got}"
        )


class Unkept(Tensor):
    """A tensor with a shape, a dtype and a device, and without values; what is computed from it has none either.

    An operation that needs the values raises :class:`ReadsUnkept`: one that writes to a tensor that has values, gives a number,
    or does more than to compute (:func:`needs_values`).
    """

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
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        first = next(tensor for tensor in tensors if isinstance(tensor, Unkept))
        target = target_of(func, args)
        if needs_values(func, tensors) or not (target is None or isinstance(target, Unkept)):
            raise ReadsUnkept(first.module_name, str(func))
        try:
            found, spec = tree_flatten(func(*tree_map(_shape, args), **tree_map(_shape, kwargs)))
        except (NotImplementedError, RuntimeError) as error:  # it needs values
            raise ReadsUnkept(first.module_name, str(func)) from error
        if not all(isinstance(leaf, Tensor) for leaf in found) or (target is not None and found[0].shape != target.shape):
            raise ReadsUnkept(first.module_name, str(func))
        if target is not None:
            return target
        device = torch.device(kwargs.get("device") or first.device)
        return tree_unflatten([cls(tuple(leaf.shape), leaf.dtype, device, first.module_name) for leaf in found], spec)


def needs_values(func: Any, inputs: Iterable[Tensor]) -> bool:
    """Whether an operation does more than to compute tensors from ``inputs``: it takes part in training, draws random numbers,
    may update statistics, or writes elsewhere than to its first argument."""
    random = torch.Tag.nondeterministic_seeded in func.tags
    written = [argument.alias_info is not None and argument.alias_info.is_write for argument in func._schema.arguments]
    return random or "batch_norm" in func.name() or any(written[1:]) or any(tensor.requires_grad for tensor in inputs)


def target_of(func: Any, args: Any) -> Tensor | None:
    """The tensor to which an operation in place writes; None for other operations."""
    return args[0] if func._schema.is_mutable and args and isinstance(args[0], Tensor) else None


def _shape(leaf: Any) -> Any:
    """A tensor or a device as it is on the meta device; other things as they are."""
    if isinstance(leaf, torch.device):
        return torch.device("meta")
    return torch.empty(leaf.shape, dtype=leaf.dtype, device="meta") if isinstance(leaf, Tensor) else leaf
