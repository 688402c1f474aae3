"""Values that an enemy puts in the place of right ones."""

import random
from typing import Any

import torch
from torch import Tensor

import wuskern as wk

INTEGERS = [
    -(2**63),
    -(2**31),
    -2,
    -1,
    0,
    1,
    2,
    3,
    7,
    2**15,
    2**30 - 1,
    2**30,
    2**31 - 1,
    2**31,
    2**32,
    2**62,
    2**63 - 1,
    2**64,
]
NUMBERS = [float("nan"), float("inf"), -1.0, -0.0, 0.0, 1.0, 1e308]
ROWS = [-(2**63), -2, -1, 0, 0, 1, 2, 5, 2**31, 2**40, 2**63 - 1]
OBJECTS = [None, "rows", b"", 1.5, [], (), {}, object(), [torch.ones(2)]]
DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
    torch.complex64,
]


def put(r: random.Random, arguments: list[Any], on_cpu: bool, written: range) -> None:
    """One, in some place. ``on_cpu``: what only a CPU looks at, too: indices out of range, other
    layouts and devices. ``written``: places of what
    is written to; no negative views there, through which torch's own fallback writes by halves."""
    place = r.randrange(len(arguments))
    old = arguments[place]
    if r.random() < 0.03:
        arguments[place] = r.choice(OBJECTS)
    elif isinstance(old, Tensor):
        arguments[place] = tensor(r, old, [a for a in arguments if isinstance(a, Tensor)], on_cpu, place in written)
    elif isinstance(old, bool):
        arguments[place] = r.choice([not old, 0, None])
    elif isinstance(old, int):
        arguments[place] = r.choice(INTEGERS)
    elif isinstance(old, float):
        arguments[place] = r.choice(NUMBERS)
    elif isinstance(old, str):
        arguments[place] = r.choice(["", "l3", "l2", "L1", "l1\0", "x" * 10_000])
    elif isinstance(old, tuple):
        arguments[place] = tuple(
            r.choice([r.choice(INTEGERS), r.choice(old or (1,))]) for _ in range(r.choice([0, 1, 2, 2, 2, 2, 3]))
        )
    else:
        arguments[place] = r.choice([None, wk.TopK(k=r.choice([1, 2, 50])), wk.Rows(sorted(r.sample(range(9), 2)))])


def tensor(r: random.Random, old: Tensor, others: list[Tensor], on_cpu: bool, written: bool) -> Any:
    """Of another dtype, rank, size, layout, device or memory."""
    if old.layout is not torch.strided or not old.is_cpu or old.is_neg():
        return old
    kind = r.randrange(11)
    if old.dtype is torch.int64 and kind < 6 and on_cpu:
        return torch.tensor([r.choice(ROWS) for _ in range(r.choice([0, 1, 2, len(old) if old.ndim == 1 else 1]))])
    if kind == 0:
        return old.to(r.choice(DTYPES)) if not old.is_complex() else old.real
    if kind == 1:
        return r.choice([old.unsqueeze(0), old.flatten(), torch.zeros((), dtype=old.dtype), old[..., None]])
    if kind == 2 and old.ndim:
        dim = r.randrange(old.ndim)
        return old.narrow(dim, 0, r.randint(0, old.shape[dim]))
    if kind == 3 and old.ndim:
        return torch.cat([old, old], r.randrange(old.ndim))
    if kind == 4:
        return r.choice(
            [old.t() if old.ndim == 2 else old.movedim(0, -1) if old.ndim else old, torch.stack([old, old], -1)[..., 0]]
        )
    if kind == 5 and old.ndim and old.shape[0]:
        return old[:1].expand(r.choice([old.shape, (3, *old.shape[1:])]))
    if kind == 6 and on_cpu:
        return old.to("meta")
    if kind == 7 and old.ndim and on_cpu:
        return old.to_sparse()
    if kind == 8 and old.is_floating_point() and not written:
        return torch._neg_view(old)
    if kind == 9 and on_cpu:  # what another argument holds, as it is or as other numbers
        other = r.choice(others)
        if (
            old.dtype is torch.int64
            and other.dtype is torch.float64
            and other.is_contiguous()
            and other.ndim
            and not other.is_neg()
        ):
            other.view(torch.int64).flatten()[:2] = torch.arange(min(2, other.numel()))
            return other.view(torch.int64).flatten()[:2]
        return other
    return torch.full_like(old, float("nan")) if old.is_floating_point() else old.clone()


def show(a: Any) -> str:
    if not isinstance(a, Tensor):
        return repr(a)[:60]
    what = f"{str(a.dtype)[6:]}{list(a.shape) if not a.is_nested else ''}"
    if a.layout is not torch.strided or not a.is_cpu:
        return f"{what} {a.layout} {a.device}"
    values = f" {a.tolist()}" if a.dtype is torch.int64 and a.numel() < 12 else ""
    return what + ("" if a.is_contiguous() else f" strides {a.stride()}") + values
