"""The conditions that ops set for their arguments before anything is read or written, as if an enemy had called them;
``product_checks`` has those of the products. csrc/torch/checks.h sets the same for what comes past these functions."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from wuskern.common.shapes import fills_memory

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
SCORES = ("l1", "l2")
RANKS = {1: "one dimension", 2: "two dimensions", 4: "four dimensions"}

_PLAIN = (Tensor, torch.nn.Parameter)
_STRIDED = torch.strided
# Of the storage. data_ptr() would give a lazy copy memory of its own.
_address = torch._C._data_address  # type: ignore[attr-defined]
_INTEGERS = (int, torch.SymInt)
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "int": (_INTEGERS, "an integer"),
    "float": ((int, float, torch.SymInt, torch.SymFloat), "a number"),
    "Optional[float]": ((int, float, torch.SymInt, torch.SymFloat, type(None)), "a number or None"),
    "bool": ((bool, torch.SymBool), "True or False"),
    "str": ((str,), "a string"),
}

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
        home = None  # the device of the first tensor, where that is not the CPU
        for place, _, optional in tensors:  # most are plain ones on one device: each call looks
            t = given[place]
            if t is None and optional:
                continue
            if type(t) not in _PLAIN or t.layout is not _STRIDED or t.is_nested:
                check_tensors(*given)
                break
            if not t.is_cpu or home is not None:
                home = given[0].device if home is None else home
                if t.device != home:
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
    _choice(scores.shape[0], k, block, groups)


def top_rows(dy: Tensor, dim: int, score: str, k: int, block: int, groups: int) -> None:
    row_stats(dy, dim, score)
    _choice(dy.shape[dim], k, block, groups)


def _choice(n: int, k: int, block: int, groups: int) -> None:
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


def at_most(rows: Tensor, n: int, owner: str) -> None:
    if rows.shape[0] > n:
        raise ValueError(f"rows: expected at most {n}, as many as {owner} has, got {rows.shape[0]}")


def gather_rows(dy: Tensor, rows: Tensor, dim: int) -> None:
    gradient(dy, dim)
    indices(rows)
    if rows.shape[0] > dy.shape[dim]:
        at_most(rows, dy.shape[dim], "dy")


# ---- elementwise ------------------------------------------------------------------------------------------------------


def pack_bits(x: Tensor, *_: Any) -> None:
    if x.dtype is not torch.bool:
        floating("x", x)


def piecewise(y: Tensor, x: Tensor, low: float, high: float | None, nan: bool, outside: float | None) -> None:
    floating("x", x)
    if y.dtype is not x.dtype:
        raise TypeError(f"y: expected {x.dtype} as x has, got {y.dtype}")
    if y.shape != x.shape or any(n > 1 and a != b for n, a, b in zip(x.shape, x.stride(), y.stride(), strict=True)):
        raise ValueError(f"y: expected {list(x.shape)} in strides {x.stride()}, got {list(y.shape)} in {y.stride()}")
    if x.numel() and not fills_memory(x):
        raise ValueError(f"x: expected a tensor that fills its memory, got {list(x.shape)} in strides {x.stride()}")
    writable("y", y)
    if outside is None and not nan:
        raise ValueError("nan: expected True without outside, as NaN has passed no bound, got False")
    placed = type(x) in _PLAIN and type(y) in _PLAIN and not (x.is_meta or torch.compiler.is_compiling())
    if placed and 0 < abs(_first_byte(y) - _first_byte(x)) < x.numel() * x.itemsize:
        raise ValueError("y: expected x itself or memory of its own, got a part of the memory of x")


def scale_by_bits(dy: Tensor, bits: Tensor, *_: Any) -> None:
    floating("dy", dy)
    if bits.dtype is not torch.uint8:
        raise TypeError(f"bits: expected uint8, got {bits.dtype}")
    _line("bits", bits, (dy.numel() + 7) // 8)


def scale_channels(dy: Tensor, scale: Tensor, dim: int) -> None:
    gradient(dy, dim)
    expected = torch.promote_types(dy.dtype, torch.float32)
    if scale.dtype is not expected:
        raise TypeError(f"scale: expected {expected}, got {scale.dtype}")
    _line("scale", scale, dy.shape[dim])


def _line(name: str, t: Tensor, n: Any) -> None:
    if t.ndim != 1 or t.shape[0] != n:
        raise ValueError(f"{name}: expected [{n}], got {list(t.shape)}")
    if not t.is_contiguous():
        raise ValueError(f"{name}: expected a contiguous tensor, got strides {t.stride()}")


# ---- what writes to its arguments -------------------------------------------------------------------------------------


def rows_of(param: Tensor, rows: Tensor, values: Tensor) -> None:
    floating("param", param)
    if param.ndim < 1:
        raise ValueError("param: expected at least one dimension, got none")
    writable("param", param)
    indices(rows)
    at_most(rows, param.shape[0], "param")
    k = values.shape[0] if values.shape[:1] == param.shape[:1] else rows.shape[0]
    _like(param, "values", values, (k, *param.shape[1:]))


def states_of(param: Tensor, rows: Tensor, **states: Tensor | None) -> None:
    """Raises unless all states are as param, or all of them as the chosen rows of it."""
    held = {name: state for name, state in states.items() if state is not None}
    k, shape = rows.shape[0], param.shape
    if k != shape[0] and any(state.ndim and state.shape[0] == k for state in held.values()):
        shape = torch.Size((k, *shape[1:]))
    for name, state in held.items():
        _like(param, name, state, shape)
        writable(name, state)


def _like(param: Tensor, name: str, other: Tensor, shape: Sequence[int]) -> None:
    if other.dtype is not param.dtype:
        raise TypeError(f"{name}: expected {param.dtype} as param has, got {other.dtype}")
    if other.shape != shape:
        raise ValueError(f"{name}: expected {list(shape)}, got {list(other.shape)}")


def writable(name: str, t: Tensor) -> None:
    """Raises where torch itself would not write: through a negative view, or twice to one element."""
    if t.is_neg():
        raise ValueError(f"{name}: expected a tensor that holds its numbers, got a negative view")
    if not t.is_contiguous() and any(n > 1 and step == 0 for n, step in zip(t.shape, t.stride(), strict=True)):
        raise ValueError(f"{name}: expected memory for each element, got strides {t.stride()}")


def apart(param: Tensor, *others: Tensor | None) -> None:
    """Raises where two are one memory; in compiled code there is none to ask for."""
    if type(param) not in _PLAIN or torch.compiler.is_compiling():
        return
    starts = [_address(t) for t in (param, *others) if t is not None]
    if len(set(starts)) < len(starts):  # or some have none
        starts = [_address(t) for t in (param, *others) if t is not None and t.numel() and not t.is_meta]
        if len(set(starts)) < len(starts):
            raise ValueError("param: expected it, its state, rows and values in memory of their own, got two of them in one")


def _first_byte(t: Tensor) -> int:
    return _address(t) + t.storage_offset() * t.itemsize


def at_least_zero(below_one: bool = False, **numbers: float) -> None:
    for name, value in numbers.items():
        if not value >= 0 or (below_one and value >= 1):
            raise ValueError(f"{name}: expected at least 0{' and less than 1' * below_one}, got {value}")
