"""What stands for an output that was not kept, because no value that trains or leaves the model depends on it."""

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten


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

    An operation that needs the values (:func:`outcome`), or writes to a tensor that has some, raises :class:`ReadsUnkept`.
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
        first = next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Unkept))
        known, target = outcome(func, args, kwargs), target_of(func, args)
        if known is None or not (target is None or isinstance(target, Unkept)):
            raise ReadsUnkept(first.module_name, str(func))
        if target is not None:
            return target
        device = torch.device(kwargs.get("device") or first.device)
        leaves, spec = known
        return tree_unflatten(
            [cls(leaf.shape, leaf.dtype, device, first.module_name) if isinstance(leaf, Like) else leaf for leaf in leaves],
            spec,
        )


class Like(NamedTuple):
    """What is known of a tensor without values."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def outcome(func: Any, args: Any, kwargs: Any) -> tuple[list[Any], TreeSpec] | None:
    """What an operation gives, as far as that is known without values, and its structure. None: it needs values, because it
    takes part in training, draws random numbers, may update statistics, writes elsewhere than to its first argument or makes
    that another shape, or gives something that depends on them and is no tensor."""
    leaves, spec = tree_flatten((args, kwargs))
    written = [argument.alias_info is not None and argument.alias_info.is_write for argument in func._schema.arguments]
    trains = any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves)
    if trains or any(written[1:]) or "batch_norm" in func.name() or _is_random(func, args, kwargs):
        return None
    try:
        known = _computed(func, spec, tuple(map(_described, leaves)))
    except (NotImplementedError, RuntimeError):
        return None
    target = target_of(func, args)
    return None if target is not None and known[0][0].shape != target.shape else known


def target_of(func: Any, args: Any) -> Tensor | None:
    """The tensor to which an operation in place writes; None for other operations."""
    return args[0] if func._schema.is_mutable and args and isinstance(args[0], Tensor) else None


def _is_random(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operation draws random numbers; attention without dropout does not."""
    names = [argument.name for argument in func._schema.arguments]
    given = dict(zip(names, args, strict=False)) | kwargs
    return torch.Tag.nondeterministic_seeded in func.tags and not ("dropout_p" in names and given.get("dropout_p", 0) == 0)


def _described(leaf: Any) -> Like | tuple[type, Any]:
    return Like(tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else (type(leaf), leaf)


@functools.lru_cache(maxsize=2**10)
def _computed(func: Any, spec: TreeSpec, described: tuple[Any, ...]) -> tuple[list[Any], TreeSpec]:
    """What an operation gives, by its run on the meta device, which takes long; a number comes from shapes there."""
    args, kwargs = tree_unflatten([_on_meta(one) for one in described], spec)
    leaves, made = tree_flatten(func(*args, **kwargs))
    return [Like(tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in leaves], made


def _on_meta(described: Any) -> Any:
    if isinstance(described, Like):
        return torch.empty(described.shape, dtype=described.dtype, device="meta")
    value = described[1]
    return torch.device("meta") if isinstance(value, torch.device) else value
