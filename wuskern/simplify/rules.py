"""What each operation between layers does to units: it keeps them in place, moves them, or mixes them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from wuskern.simplify.graph import argument, operation, shape, where
from wuskern.simplify.units import ONE_STAYS, Ledger, Units, joined, varying

Rule = Callable[[Node, Units, Ledger], Units | None]

# Operations on one tensor and numbers: they make the same of a constant wherever it stands.
ELEMENTWISE = {
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid", "log_sigmoid", "tanh",
    "softplus", "softsign", "softshrink", "hardshrink", "tanhshrink", "hardtanh", "hardswish", "hardsigmoid",
    "threshold", "clamp", "clamp_min", "clamp_max", "neg", "abs", "exp", "expm1", "log1p", "sqrt", "rsqrt", "square",
    "pow", "erf", "reciprocal", "add", "sub", "rsub", "mul", "div",
}  # fmt: skip
SAME = {"contiguous", "clone", "detach", "alias", "to", "_to_copy"}
DROPOUT = {"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"}
BINARY = {"add", "sub", "mul", "div"}
POOLS = {"max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "upsample_nearest2d", "upsample_bilinear2d"}
REDUCTIONS = {"mean", "amax", "amin"}
SHAPES = {"flatten", "view", "reshape", "transpose", "permute", "unsqueeze", "squeeze", "select", "slice", "unflatten"}
VIEWS = (
    (SAME - {"clone", "_to_copy"}) | DROPOUT | SHAPES | {"expand", "unbind", "chunk", "split", "<getitem>", "narrow", "t"}
)  # that may share memory


def mixes(node: Node) -> str:
    return f"{where(node)} is not known to keep units apart"


def elementwise(node: Node, x: Units, ledger: Ledger) -> Units | None:
    function = getattr(torch.ops.aten, operation(node))
    result = function(x.constant.nan_to_num(), *node.args[1:], **node.kwargs)
    return Units(x.dim, x.ids, _finite(torch.where(x.known, result, torch.nan)))


def same(node: Node, x: Units, ledger: Ledger) -> Units | None:
    if not node.meta["val"].is_floating_point():
        ledger.pin(x, f"{where(node)} rounds it")
        return None
    return x


def dropout(node: Node, x: Units, ledger: Ledger) -> Units | None:
    if argument(node, 2, "train", False):
        ledger.pin(x, f"{where(node)} is random in evaluation too")
        return None
    return x


def pool(node: Node, x: Units, ledger: Ledger) -> Units | None:
    if x.dim != len(shape(node)) - 3:
        ledger.pin(x, mixes(node))
        return None
    if operation(node) != "avg_pool2d":
        return x
    padded = any(_pair(argument(node, 3, "padding", 0))) and argument(node, 5, "count_include_pad", True)
    if not padded and argument(node, 6, "divisor_override") is None:
        return x
    return _only_zeros(x, ledger, f"its constant meets the padding of {where(node)}")


def pad(node: Node, x: Units, ledger: Ledger) -> Units | None:
    dimensions, widths = len(shape(node)), argument(node, 1, "pad")
    if x.dim >= dimensions - len(widths) // 2:
        ledger.pin(x, mixes(node))
        return None
    if argument(node, 2, "mode", "constant") != "constant":
        return x
    value = float(argument(node, 3, "value") or 0.0)
    return _constant_where(x, x.constant == value, ledger, f"its constant meets the padding of {where(node)}")


def reduction(node: Node, x: Units, ledger: Ledger) -> Units | None:
    wanted = argument(node, 1, "dim")
    before = len(shape(node.all_input_nodes[0]))
    dims = {d % before for d in ([wanted] if isinstance(wanted, int) else wanted or range(before))}
    if x.dim in dims:
        ledger.pin(x, mixes(node))
        return None
    fewer = 0 if argument(node, 2, "keepdim", False) else sum(d < x.dim for d in dims)
    return Units(x.dim - fewer, x.ids, x.constant)


def reshaped(node: Node, x: Units, ledger: Ledger) -> Units | None:
    """The units behind an operation on shapes. It is done to the numbers of the places: these show where the units lie."""
    if len(x.ids) < 2:
        ledger.pin(x, ONE_STAYS)
        return None
    before = shape(node.all_input_nodes[0])
    places = torch.arange(len(x.ids)).view([-1 if d == x.dim else 1 for d in range(len(before))]).expand(before)
    if operation(node) == "view":
        places = places.contiguous()
        if not isinstance(argument(node, 1, "size"), list | tuple):
            ledger.pin(x, mixes(node))  # a view as another dtype
            return None
    moved = node.target(places, *node.args[1:], **node.kwargs)  # type: ignore[operator]
    dims = [d for d in range(moved.ndim) if _varies_along(moved, d)]
    if len(dims) != 1 or not _follows(node, x.dim, dims[0], before, ledger):
        ledger.pin(x, f"{where(node)} has sizes of its own")
        return None
    index = moved.movedim(dims[0], 0).flatten(1)[:, 0] if moved.ndim > 1 else moved
    return Units(dims[0], x.ids[index], x.constant[index])


def _varies_along(places: Tensor, dim: int) -> bool:
    """Whether the places vary along this dimension, and along no other."""
    rest = places.movedim(dim, 0).flatten(1) if places.ndim > 1 else places[:, None]
    return places.shape[dim] > 1 and rest.shape[1] > 0 and bool((rest == rest[:, :1]).all())


def _follows(node: Node, dim: int, moved_dim: int, before: tuple[int, ...], ledger: Ledger) -> bool:
    """Whether the operation, with the arguments that it has, also fits fewer units. A size may be computed: see the ledger."""
    name = operation(node)
    if name in ("view", "reshape"):
        sizes = argument(node, 1, "size", argument(node, 1, "shape"))
        if sizes[moved_dim] != -1:
            ledger.open.append(where(node))
        return sizes[moved_dim] == -1 or not ledger.own_sizes
    if name in ("select", "slice", "unflatten"):
        return bool(argument(node, 1, "dim", 0) % len(before) != dim)
    if name == "squeeze":
        dims = argument(node, 1, "dim")
        return dims is not None and dim not in {d % len(before) for d in ([dims] if isinstance(dims, int) else dims)}
    return True


RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    **dict.fromkeys(SAME, same),
    **dict.fromkeys(DROPOUT, dropout),
    **dict.fromkeys(POOLS, pool),
    **dict.fromkeys(SHAPES, reshaped),
    **dict.fromkeys(REDUCTIONS, reduction),
    "pad": pad,
}


# ---- of two or more tensors -------------------------------------------------------------------------------------------


def binary(node: Node, a: Units | None, b: Units | None, ledger: Ledger) -> Units | None:
    """A sum, difference, product or quotient of ``node.args[:2]``, at least one of them with units."""
    left, right = argument(node, 0, "self"), argument(node, 1, "other")
    if a is None or b is None:
        x, operand = (a, right) if a is not None else (b, left)
        assert x is not None
        behind = x.dim - len(shape(left if a is not None else right))  # from the last dimension, negative
        sizes = shape(operand) if isinstance(operand, Node) else ()
        if len(sizes) >= -behind and sizes[behind] != 1:
            ledger.pin(x, f"{where(node)} combines it with what is no layer's output")
            return None
        nothing = varying(len(x.ids))
        constants = (x.constant, nothing) if a is not None else (nothing, x.constant)
        return _combined(node, (x,), constants, len(shape(node)) + behind, ledger)
    behind = a.dim - len(shape(left))
    if behind != b.dim - len(shape(right)) or len(a.ids) != len(b.ids):
        for x in (a, b):
            ledger.pin(x, mixes(node))
        return None
    ledger.tie(a, b, f"{where(node)} combines it with what is no layer's output")
    return _combined(node, (a, b), (a.constant, b.constant), len(shape(node)) + behind, ledger)


def _combined(
    node: Node, operands: tuple[Units, ...], constants: tuple[Tensor, Tensor], dim: int, ledger: Ledger
) -> Units | None:
    result = getattr(torch.ops.aten, operation(node))(*constants, *node.args[2:], **node.kwargs)
    if operation(node) == "mul":
        result = torch.where((constants[0] == 0) | (constants[1] == 0), 0.0, result)
    result = _finite(result)
    for x in operands:
        lost = x.known & result.isnan() & (x.ids >= 0)
        ledger.blame(x.ids[lost], f"{where(node)} combines it with rows that are not dead")
    return Units(dim, operands[0].ids, result)


def concatenation(node: Node, parts: list[tuple[Units | None, Node]], ledger: Ledger) -> Units | None:
    dim = argument(node, 1, "dim", 0) % len(shape(node))
    if all(x is None or x.dim == dim for x, _ in parts):
        return joined([(x, shape(source)[dim]) for x, source in parts], dim)
    for x, _ in parts:
        if x is not None:
            ledger.pin(x, mixes(node))
    return None


# ---- constants ----------------------------------------------------------------------------------------------------------


def _finite(constant: Tensor) -> Tensor:
    return torch.where(constant.isfinite(), constant, torch.nan)


def _only_zeros(x: Units, ledger: Ledger, reason: str) -> Units:
    return _constant_where(x, x.constant == 0, ledger, reason)


def _constant_where(x: Units, stays: Tensor, ledger: Ledger, reason: str) -> Units:
    lost = x.known & ~stays & (x.ids >= 0)
    ledger.blame(x.ids[lost], reason)
    return Units(x.dim, x.ids, torch.where(stays, x.constant, torch.nan))


def _pair(value: Any) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)
