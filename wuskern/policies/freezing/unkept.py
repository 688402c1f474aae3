"""What stands for an output that was not kept, because no value that trains or leaves the model depends on it."""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten


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
        leaves, spec = tree_flatten((args, kwargs or {}))
        first = next(leaf for leaf in leaves if isinstance(leaf, Unkept))
        target = target_of(func, args)
        if needs_values(func, leaves) or not (target is None or isinstance(target, Unkept)):
            raise ReadsUnkept(first.module_name, str(func))
        try:
            shapes, made = _computed(func, spec, tuple(map(_described, leaves)))
        except (NotImplementedError, RuntimeError) as error:  # it needs values
            raise ReadsUnkept(first.module_name, str(func)) from error
        if target is not None:
            if shapes[0].shape != target.shape:
                raise ReadsUnkept(first.module_name, str(func))
            return target
        device = torch.device((kwargs or {}).get("device") or first.device)
        return tree_unflatten([cls(like.shape, like.dtype, device, first.module_name) for like in shapes], made)


class Like(NamedTuple):
    """What is known of a tensor without values."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def _described(leaf: Any) -> Like | tuple[type, Any]:
    return Like(tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else (type(leaf), leaf)


@functools.lru_cache(maxsize=2**10)
def _computed(func: Any, spec: TreeSpec, described: tuple[Any, ...]) -> tuple[list[Like], TreeSpec]:
    """The tensors that an operation gives, by its run on the meta device, which takes long, and their structure."""
    leaves = [_on_meta(one) for one in described]
    args, kwargs = tree_unflatten(leaves, spec)
    found, made = tree_flatten(func(*args, **kwargs))
    if not all(isinstance(leaf, Tensor) for leaf in found):
        raise NotImplementedError(f"{func} gives no tensors alone")
    return [Like(tuple(leaf.shape), leaf.dtype) for leaf in found], made


def _on_meta(described: Any) -> Any:
    if isinstance(described, Like):
        return torch.empty(described.shape, dtype=described.dtype, device="meta")
    value = described[1]
    return torch.device("meta") if isinstance(value, torch.device) else value


def needs_values(func: Any, inputs: Iterable[Any]) -> bool:
    """Whether an operation does more than to compute tensors from ``inputs``: it takes part in training, draws random numbers,
    may update statistics, or writes elsewhere than to its first argument."""
    random = torch.Tag.nondeterministic_seeded in func.tags
    written = [argument.alias_info is not None and argument.alias_info.is_write for argument in func._schema.arguments]
    trains = any(isinstance(x, Tensor) and x.requires_grad for x in inputs)
    return random or trains or any(written[1:]) or "batch_norm" in func.name()


def target_of(func: Any, args: Any) -> Tensor | None:
    """The tensor to which an operation in place writes; None for other operations."""
    return args[0] if func._schema.is_mutable and args and isinstance(args[0], Tensor) else None
