"""Right arguments of every op, small ones, and what plain PyTorch says of them in float64."""

import math
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import wuskern as wk
from wuskern.common.shapes import output_size

FLOATS = [torch.float64, torch.float32, torch.float32, torch.float16, torch.bfloat16]


def _dtype(r: random.Random) -> torch.dtype:
    return r.choice(FLOATS)


def _values(r: random.Random, *shape: int, dtype: torch.dtype) -> Tensor:
    t = torch.randint(-4, 5, shape).to(dtype)
    if len(shape) == 4 and r.random() < 0.4:
        return t.contiguous(memory_format=torch.channels_last)
    return t


def _rows(r: random.Random, n: int, k: int, groups: int = 1) -> Tensor:
    each = n // groups
    return torch.tensor(
        [g * each + i for g in range(groups) for i in sorted(r.sample(range(each), k // groups))], dtype=torch.int64
    )


def _grad(r: random.Random, dtype: torch.dtype) -> tuple[Tensor, int]:
    shape = r.choice([(5, 9), (3, 4, 17), (19,), (2, 6, 5, 4), (0, 6), (40, 33)])
    return _values(r, *shape, dtype=dtype), 1 if len(shape) == 4 else -1


def _linear(r: random.Random, other: str) -> list[Any]:
    tokens, n, features, dtype = r.choice([0, 1, 5, 40]), r.randint(2, 20), r.choice([0, 1, 7, 16, 33]), _dtype(r)
    k = r.randint(1, n)
    dy = _values(r, tokens, r.choice([n, k]), dtype=dtype)
    return [dy, _values(r, tokens if other == "x" else n, features, dtype=dtype), _rows(r, n if dy.shape[1] == n else k, k)]


class _Conv:
    """The sizes of one."""

    def __init__(self, r: random.Random) -> None:
        while True:
            self.size, self.kernel = (r.randint(1, 9), r.randint(1, 9)), (r.choice([1, 1, 2, 3]), r.choice([1, 1, 2, 3]))
            self.stride, self.dilation = (r.choice([1, 1, 2]), r.choice([1, 1, 3])), (r.choice([1, 1, 2]), r.choice([1, 1, 50]))
            self.padding = r.choice([(0, 0), (1, 1), (2, 0), (0, 60)])
            fits = zip(self.size, self.kernel, self.padding, self.dilation, strict=True)
            if all(d * (k - 1) < n + 2 * p for n, k, p, d in fits):
                break
        self.batch, self.groups = r.choice([0, 1, 3]), r.choice([1, 1, 2])
        self.n, self.channels = self.groups * r.randint(2, 6), self.groups * r.choice([1, 3, 8, 16])
        self.k = self.groups * r.randint(1, self.n // self.groups)

    def out(self, stride: tuple[int, int] | None = None) -> list[int]:
        return output_size(self.size, self.kernel, stride or self.stride, self.padding, self.dilation)

    @property
    def geometry(self) -> list[Any]:
        return [self.stride, self.padding, self.dilation, self.groups]


def _wgrad_conv2d(r: random.Random) -> list[Any]:
    c, dtype = _Conv(r), _dtype(r)
    dy = _values(r, c.batch, r.choice([c.n, c.k]), *c.out(), dtype=dtype)
    rows = _rows(r, c.n, c.k, c.groups)
    return [dy, _values(r, c.batch, c.channels, *c.size, dtype=dtype), rows, c.kernel, *c.geometry]


def _dgrad_conv2d(r: random.Random) -> list[Any]:
    c, dtype = _Conv(r), _dtype(r)
    dy = _values(r, c.batch, r.choice([c.n, c.k]), *c.out(), dtype=dtype)
    weight = _values(r, c.n, c.channels // c.groups, *c.kernel, dtype=dtype)
    return [dy, weight, _rows(r, c.n, c.k, c.groups), c.size, *c.geometry]


def _unfold(r: random.Random) -> list[Any]:
    c = _Conv(r)
    dy = _values(r, c.batch, c.k, *c.out((1, 1)), dtype=_dtype(r))
    return [dy, c.size, c.kernel, c.padding, c.dilation, r.randrange(3)]


def _direct_wgrad(r: random.Random) -> list[Any]:
    c = _Conv(r)
    dy = _values(r, c.batch, c.k, *c.out((1, 1)), dtype=torch.float32)
    last = r.random() < 0.5
    x = torch.randn(c.batch, c.channels, *c.size).contiguous(
        memory_format=torch.channels_last if last else torch.contiguous_format
    )
    return [dy, x, c.kernel, c.padding, c.dilation, last]


def _direct_dgrad(r: random.Random) -> list[Any]:
    dy, x, kernel, padding, dilation, last = _direct_wgrad(r)
    columns, channels = kernel[0] * kernel[1] * dy.shape[1], x.shape[1]
    weight = torch.randn(columns, -(-channels // 16) * 16) if last else torch.randn(channels, columns)
    return [dy, weight, kernel, padding, dilation, last, x]


def _write_rows(r: random.Random) -> list[Any]:
    target, dtype = r.choice([(6, 5), (9,), (5, 3, 2, 2), (4, 0)]), _dtype(r)
    k = r.randint(0, target[0])
    stale = r.choice([None, _rows(r, target[0], r.randint(0, target[0]))])
    return [_values(r, *target, dtype=dtype), stale, _rows(r, target[0], k), torch.randn(k, *target[1:]).to(dtype)]


def _update(r: random.Random, states: int) -> list[Any]:
    shape, dtype = r.choice([(6, 5), (9,), (5, 3, 2, 2), (4, 0), (3, 1100)]), _dtype(r)
    k = r.randint(0, shape[0])
    rows = _rows(r, shape[0], k)
    param, *held = (_values(r, *shape, dtype=dtype).abs() for _ in range(1 + states))
    if r.random() < 0.4:  # a state of the chosen rows alone
        held = [state[rows] for state in held]
    return [param, *held, rows, torch.randn(k, *shape[1:]).to(dtype)]


def _sgd(r: random.Random) -> list[Any]:
    param, buffer, rows, values = _update(r, 1)
    buffer = r.choice([buffer, None])
    return [param, buffer, rows, values, 0.1, 0.0 if buffer is None else 0.9, 0.1, 0.01, r.random() < 0.5, r.random() < 0.5]


def _adam(r: random.Random) -> list[Any]:
    param, first, second, most, rows, values = _update(r, 3)
    step = torch.tensor(float(r.randrange(3)), dtype=r.choice([torch.float32, torch.float64]))
    numbers = [0.1, 0.9, 0.99, 1e-3, 0.01, r.random() < 0.5, r.random() < 0.5]
    return [param, first, second, r.choice([most, None]), step, rows, values, *numbers]


def _pack(r: random.Random) -> list[Any]:
    x, _ = _grad(r, _dtype(r))
    return [r.choice([x, x > 0]), r.choice([0.0, -1.5, math.inf]), r.choice([None, 1.0, 6.0]), r.random() < 0.5]


def _piecewise(r: random.Random) -> list[Any]:
    x, _ = _grad(r, _dtype(r))
    x = x.contiguous()
    nan, outside = r.choice([(True, None), (True, 0.5), (False, -0.25)])
    return [x if r.random() < 0.3 else torch.empty_like(x), x, r.choice([0.0, -1.5]), r.choice([None, 1.0, 6.0]), nan, outside]


def _scale_by_bits(r: random.Random) -> list[Any]:
    dy, _ = _grad(r, _dtype(r))
    bits = torch.randint(0, 256, (-(-dy.numel() // 8),), dtype=torch.uint8)
    return [dy, bits, r.choice([1.0, 1.25]), r.choice([None, 0.0, -0.5])]


def _scale_channels(r: random.Random) -> list[Any]:
    dy, dim = _grad(r, _dtype(r))
    return [dy, torch.randn(dy.shape[dim], dtype=torch.promote_types(dy.dtype, torch.float32)), dim]


def _choice(r: random.Random, n: int) -> Any:
    return r.choice([wk.TopK(k=r.randint(1, n)), wk.Rows([0, n - 1]), None])


def _linear_backward(r: random.Random) -> list[Any]:
    tokens, n, features, dtype = r.choice([1, 5]), r.randint(2, 9), r.choice([1, 7, 16]), _dtype(r)
    return [
        _values(r, tokens, n, dtype=dtype),
        _values(r, tokens, features, dtype=dtype),
        _values(r, n, features, dtype=dtype),
        _choice(r, n),
    ]


def _conv2d_backward(r: random.Random) -> list[Any]:
    c, dtype = _Conv(r), _dtype(r)
    c.batch = max(1, c.batch)
    dy, x = _values(r, c.batch, c.n, *c.out(), dtype=dtype), _values(r, c.batch, c.channels, *c.size, dtype=dtype)
    weight = _values(r, c.n, c.channels // c.groups, *c.kernel, dtype=dtype)
    return [dy, x, weight, wk.TopK(k=c.groups), *c.geometry]


def _scores(r: random.Random) -> list[Any]:
    block, groups, blocks = r.choice([1, 1, 2, 4]), r.choice([1, 1, 3]), r.choice([1, 5, 40])
    k = block * groups * r.randint(1, blocks)
    return [torch.randint(0, 9, (block * groups * blocks,)).to(_dtype(r)), k, block, groups]


def _top_rows(r: random.Random) -> list[Any]:
    """Of whole numbers, whose scores are exact: equal ones are ties for every backend."""
    dy, dim = _grad(r, _dtype(r))
    n = dy.shape[dim]
    unit = r.choice([1, *(u for u in (2, 3) if n % u == 0)])
    block, groups = (unit, 1) if r.random() < 0.5 else (1, unit)
    return [dy, dim, r.choice(["l1", "l2"]), unit * r.randint(1, n // unit), block, groups]


def _gather(r: random.Random) -> list[Any]:
    dy, dim = _grad(r, _dtype(r))
    return [dy, _rows(r, dy.shape[dim], r.randint(0, dy.shape[dim])), dim]


OF: dict[str, Callable[[random.Random], list[Any]]] = {
    "bias_grad": lambda r: [*_grad(r, _dtype(r))],
    "row_stats": lambda r: [*_grad(r, _dtype(r)), r.choice(["l1", "l2"])],
    "select_rows": _scores,
    "top_rows": _top_rows,
    "gather_rows": _gather,
    "rowsparse_wgrad": lambda r: _linear(r, "x"),
    "rowsparse_dgrad": lambda r: _linear(r, "weight"),
    "rowsparse_wgrad_conv2d": _wgrad_conv2d,
    "rowsparse_dgrad_conv2d": _dgrad_conv2d,
    "rowsparse_sgd_": _sgd,
    "rowsparse_adam_": _adam,
    "pack_bits": _pack,
    "piecewise_": _piecewise,
    "scale_by_bits": _scale_by_bits,
    "scale_channels": _scale_channels,
    "unfold_gradient": _unfold,
    "direct_wgrad": _direct_wgrad,
    "direct_dgrad": _direct_dgrad,
    "new_output": lambda r: [torch.ones(1), (r.randint(0, 9), r.randint(0, 9))],
    "write_rows": _write_rows,
    "linear_backward": _linear_backward,
    "conv2d_backward": _conv2d_backward,
}


def undefined_on_a_gpu(name: str, arguments: list[Any]) -> bool:
    """Whether an index is out of the range of what it is used for, where that can be told, or there twice."""
    rows = [a for a in arguments if isinstance(a, Tensor) and a.dtype is torch.int64 and a.numel()]
    owner = arguments[1] if "dgrad" in name else arguments[0]
    if not rows or not isinstance(owner, Tensor) or not owner.ndim:
        return False
    place = arguments[2] if name == "gather_rows" else {"rowsparse_wgrad": -1, "rowsparse_wgrad_conv2d": 1}.get(name, 0)
    n = owner.shape[place] if isinstance(place, int) and -owner.ndim <= place < owner.ndim else 0
    return any(int(t.max()) >= n or len(t.unique()) < t.numel() for t in rows)
