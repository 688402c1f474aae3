"""What ops ask of their arguments before anything is read or written, as if an enemy had called them. csrc/checks.h asks the
same of what comes past these functions."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from wuskern.common.shapes import output_size

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
SCORES = ("l1", "l2")
MOST = 2**30  # of a geometry's integers: kernels count with 32 bits, and sums of two of them fit
RANKS = {1: "one dimension", 2: "two dimensions", 4: "four dimensions"}
MOST_PIXELS = 2**31 - 1  # along a side of an image, with its padding; and taps of a kernel

_PLAIN = (Tensor, torch.nn.Parameter)
_STRIDED = torch.strided
_INTEGERS = (int, torch.SymInt)
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "int": (_INTEGERS, "an integer"),
    "float": ((int, float, torch.SymInt, torch.SymFloat), "a number"),
    "bool": ((bool, torch.SymBool), "True or False"),
    "str": ((str,), "a string"),
}

Pair = Sequence[int]
Check = Callable[..., None]


# ---- types and devices: one check for all ops -------------------------------------------------------------------------


def of_schema(schema: torch._C.FunctionSchema, elsewhere: Sequence[str] = ()) -> Check:
    """The check of an op's arguments against its schema: their types, and all tensors on the device of the first; those named
    in ``elsewhere`` may be on the CPU as well."""
    arguments = [(place, a.name, str(a.type)) for place, a in enumerate(schema.arguments)]
    (_, owner, _), *_ = arguments
    tensors = [(place, name, kind != "Tensor") for place, name, kind in arguments if kind.endswith(("Tensor", "Tensor]"))]
    others = [(place, name, *_KINDS[kind]) for place, name, kind in arguments if kind in _KINDS]
    pairs = [(place, name) for place, name, kind in arguments if kind == "List[int]"]

    def check_tensors(*given: Any) -> None:
        first = given[0]
        for place, name, optional in tensors:
            t = given[place]
            if t is None and optional:
                continue
            strided(name, t)
            if t.device != first.device and not (name in elsewhere and t.is_cpu):
                raise ValueError(f"{name}: expected it on {first.device} as {owner} is, got {t.device}")

    def check(*given: Any) -> None:
        for place, _, optional in tensors:  # most are plain ones on the CPU: each call looks
            t = given[place]
            if t is None and optional:
                continue
            if type(t) not in _PLAIN or not t.is_cpu or t.layout is not _STRIDED or t.is_nested:
                check_tensors(*given)
                break
        for place, name, types, expected in others:
            if not isinstance(given[place], types):
                raise TypeError(f"{name}: expected {expected}, got {given[place]!r}")
        for place, name in pairs:
            pair_of_integers(name, given[place])

    return check


def strided(name: str, t: Any) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{name}: expected a Tensor, got {type(t).__name__}")
    if t.layout is not torch.strided or t.is_nested:
        raise TypeError(f"{name}: expected a strided tensor, got {'a nested one' if t.is_nested else t.layout}")


def floating(name: str, t: Tensor) -> None:
    if t.dtype not in DTYPES:
        raise TypeError(f"{name}: expected float64, float32, float16 or bfloat16, got {t.dtype}")


def rank(name: str, t: Tensor, n: int) -> None:
    if t.ndim != n:
        raise ValueError(f"{name}: expected {RANKS[n]}, got {t.ndim}")


def pair_of_integers(name: str, given: Any) -> None:
    if isinstance(given, (list, tuple)) and len(given) == 2:
        h, w = given
        if isinstance(h, _INTEGERS) and isinstance(w, _INTEGERS):
            return
    raise TypeError(f"{name}: expected two integers, got {given!r}")


# ---- gradients of an output -------------------------------------------------------------------------------------------


def gradient(dy: Tensor, dim: int) -> None:
    floating("dy", dy)
    if not -dy.ndim <= dim < dy.ndim:
        raise ValueError(f"dim: expected a dimension of dy, which has {dy.ndim}, got {dim}")


def row_stats(dy: Tensor, dim: int, score: str) -> None:
    gradient(dy, dim)
    if score not in SCORES:
        raise ValueError(f"score: expected one of {', '.join(SCORES)}, got {score!r}")


def select_rows(scores: Tensor, k: int, block: int, groups: int) -> None:
    floating("scores", scores)
    rank("scores", scores, 1)
    n = scores.shape[0]
    for name, value in (("block", block), ("groups", groups)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if n % (block * groups):
        raise ValueError(f"scores: expected a multiple of block * groups = {block * groups} of them, got {n}")
    if not 1 <= k <= n or k % (block * groups):
        raise ValueError(f"k: expected a multiple of block * groups = {block * groups} from 1 to {n}, got {k}")


def indices(rows: Tensor) -> None:
    if rows.dtype is not torch.int64:
        raise TypeError(f"rows: expected int64, got {rows.dtype}")
    if rows.ndim != 1:
        rank("rows", rows, 1)


def _at_most(rows: Tensor, n: int, owner: str) -> None:
    if rows.shape[0] > n:
        raise ValueError(f"rows: expected at most {n}, as many as {owner} has, got {rows.shape[0]}")


def gather_rows(dy: Tensor, rows: Tensor, dim: int) -> None:
    gradient(dy, dim)
    indices(rows)
    if rows.shape[0] > dy.shape[dim]:
        _at_most(rows, dy.shape[dim], "dy")


# ---- products ---------------------------------------------------------------------------------------------------------


def _operands(dy: Tensor, other: Tensor, name: str, rows: Tensor) -> None:
    indices(rows)
    floating("dy", dy)
    if other.dtype != dy.dtype:
        raise TypeError(f"{name}: expected {dy.dtype} as dy has, got {other.dtype}")


def rowsparse_wgrad(dy: Tensor, x: Tensor, rows: Tensor) -> None:
    _operands(dy, x, "x", rows)
    if dy.ndim < 1 or x.ndim < 1 or dy.shape[:-1] != x.shape[:-1]:
        raise ValueError(f"x: expected {[*dy.shape[:-1], 'K']}, got {list(x.shape)}")
    _at_most(rows, dy.shape[-1], "dy")


def rowsparse_dgrad(dy: Tensor, weight: Tensor, rows: Tensor) -> None:
    _operands(dy, weight, "weight", rows)
    rank("weight", weight, 2)
    _units(dy, -1, weight, rows)


def rowsparse_wgrad_conv2d(
    dy: Tensor, x: Tensor, rows: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> None:
    _operands(dy, x, "x", rows)
    _in_groups(dy, rows, groups)
    if x.ndim != 4 or x.shape[0] != dy.shape[0] or x.shape[1] % groups:
        raise ValueError(f"x: expected {[dy.shape[0], f'a multiple of {groups}', 'H', 'W']}, got {list(x.shape)}")
    geometry(dy, x.shape[2:], kernel_size, stride, padding, dilation)
    _at_most(rows, dy.shape[1], "dy")


def rowsparse_dgrad_conv2d(
    dy: Tensor, weight: Tensor, rows: Tensor, input_size: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> None:
    _operands(dy, weight, "weight", rows)
    rank("weight", weight, 4)
    _in_groups(dy, rows, groups)
    if weight.shape[0] % groups:
        raise ValueError(f"groups: expected a divisor of {weight.shape[0]} units of weight, got {groups}")
    geometry(dy, input_size, weight.shape[2:], stride, padding, dilation)
    _units(dy, 1, weight, rows)


def _units(dy: Tensor, dim: int, weight: Tensor, rows: Tensor) -> None:
    if dy.ndim < 1 or dy.shape[dim] not in (weight.shape[0], rows.shape[0]) or weight.shape[0] < rows.shape[0]:
        expected = f"{weight.shape[0]} units as weight has, or those of {rows.shape[0]} rows"
        raise ValueError(f"dy: expected {expected}, got {list(dy.shape)}")


def _in_groups(dy: Tensor, rows: Tensor, groups: int) -> None:
    rank("dy", dy, 4)
    if groups < 1 or rows.shape[0] % groups or dy.shape[1] % groups:
        raise ValueError(f"groups: expected a divisor of {rows.shape[0]} rows and {dy.shape[1]} channels of dy, got {groups}")


def geometry(dy: Tensor, size: Pair, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair) -> None:
    """That dy, of four dimensions, has the pixels which such a convolution makes of an input of ``size``."""
    pixels, fits = dy.shape, True
    for side in (0, 1):
        k, s, p, d = kernel_size[side], stride[side], padding[side], dilation[side]
        if not (1 <= k < MOST and 1 <= s < MOST and 0 <= p < MOST and 1 <= d < MOST):
            for name, value, least in (("kernel_size", k, 1), ("stride", s, 1), ("padding", p, 0), ("dilation", d, 1)):
                if not least <= value < MOST:
                    raise ValueError(f"{name}: expected integers from {least} to 2**30, got {value}")
        n, extent = size[side], d * (k - 1) + 1
        if n < 0 or n + 2 * p > MOST_PIXELS:
            raise ValueError(f"input_size: expected from 0 to 2**31 - 1 pixels with their padding, got {tuple(size)}")
        if extent > n + 2 * p:
            raise ValueError(f"kernel_size: expected one that fits into {n + 2 * p} pixels, got {k} with dilation {d}")
        fits = fits and pixels[2 + side] == (n + 2 * p - extent) // s + 1
    if kernel_size[0] * kernel_size[1] > MOST_PIXELS:
        raise ValueError(f"kernel_size: expected fewer than 2**31 taps, got {tuple(kernel_size)}")
    if not fits:
        out = output_size(size, kernel_size, stride, padding, dilation)
        raise ValueError(f"dy: expected {['B', 'N', *out]} for an input of {list(size)}, got {list(pixels)}")


# ---- a whole backward -------------------------------------------------------------------------------------------------


def linear_backward(dy: Tensor, x: Tensor, weight: Tensor) -> None:
    _backward(dy, x, weight)
    rank("weight", weight, 2)
    if x.ndim < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x: expected {['...', weight.shape[1]]}, got {list(x.shape)}")
    if dy.shape != (*x.shape[:-1], weight.shape[0]):
        raise ValueError(f"dy: expected {[*x.shape[:-1], weight.shape[0]]}, got {list(dy.shape)}")


def conv2d_backward(dy: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> None:
    _backward(dy, x, weight)
    for name, pair in (("stride", stride), ("padding", padding), ("dilation", dilation)):
        pair_of_integers(name, pair)
    if not isinstance(groups, int) or groups < 1:
        raise ValueError(f"groups: expected an integer from 1, got {groups!r}")
    for name, t in (("dy", dy), ("x", x), ("weight", weight)):
        rank(name, t, 4)
    if weight.shape[0] % groups:
        raise ValueError(f"groups: expected a divisor of {weight.shape[0]} units of weight, got {groups}")
    if x.shape[1] != weight.shape[1] * groups:
        raise ValueError(f"x: expected {weight.shape[1] * groups} channels, got {list(x.shape)}")
    if dy.shape[:2] != (x.shape[0], weight.shape[0]):
        raise ValueError(f"dy: expected {[x.shape[0], weight.shape[0], 'HO', 'WO']}, got {list(dy.shape)}")
    if 0 in x.shape[2:]:
        raise ValueError(f"x: expected at least one pixel, got {list(x.shape)}")
    geometry(dy, x.shape[2:], weight.shape[2:], stride, padding, dilation)


def _backward(dy: Tensor, x: Tensor, weight: Tensor) -> None:
    for name, t in (("dy", dy), ("x", x), ("weight", weight)):
        strided(name, t)
        if t.device != dy.device:
            raise ValueError(f"{name}: expected it on {dy.device} as dy is, got {t.device}")
        floating(name, t)
        if t.dtype != dy.dtype:
            raise TypeError(f"{name}: expected {dy.dtype} as dy has, got {t.dtype}")


# ---- what writes to its arguments -------------------------------------------------------------------------------------


def rows_of(param: Tensor, rows: Tensor, values: Tensor) -> None:
    floating("param", param)
    if param.ndim < 1:
        raise ValueError("param: expected at least one dimension, got none")
    writable("param", param)
    indices(rows)
    _at_most(rows, param.shape[0], "param")
    _like(param, "values", values, (rows.shape[0], *param.shape[1:]))


def states_of(param: Tensor, **states: Tensor | None) -> None:
    for name, state in states.items():
        if state is not None:
            _like(param, name, state, param.shape)
            writable(name, state)


def _like(param: Tensor, name: str, other: Tensor, shape: Sequence[int]) -> None:
    if other.dtype is not param.dtype:
        raise TypeError(f"{name}: expected {param.dtype} as param has, got {other.dtype}")
    if other.shape != shape:
        raise ValueError(f"{name}: expected {list(shape)}, got {list(other.shape)}")


def writable(name: str, t: Tensor) -> None:
    """In place: torch itself writes through no negative view, and not twice to one element."""
    if t.is_neg():
        raise ValueError(f"{name}: expected a tensor that holds its numbers, got a negative view")
    if not t.is_contiguous() and any(n > 1 and step == 0 for n, step in zip(t.shape, t.stride(), strict=True)):
        raise ValueError(f"{name}: expected memory for each element, got strides {t.stride()}")


def apart(param: Tensor, *others: Tensor | None) -> None:
    """That no two are one memory; in compiled code there is none to ask for."""
    if type(param) not in _PLAIN or torch.compiler.is_compiling():
        return
    starts = [t.data_ptr() for t in (param, *others) if t is not None]
    if len(set(starts)) < len(starts):  # or some have none
        starts = [t.data_ptr() for t in (param, *others) if t is not None and t.numel() and not t.is_meta]
        if len(set(starts)) < len(starts):
            raise ValueError("param: expected it, its state, rows and values in memory of their own, got two of them in one")


def at_least_zero(below_one: bool = False, **numbers: float) -> None:
    for name, value in numbers.items():
        if not value >= 0 or (below_one and value >= 1):
            raise ValueError(f"{name}: expected at least 0{' and less than 1' * below_one}, got {value}")
