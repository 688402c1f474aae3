"""What plain PyTorch says in float64 of the calls of ``right_calls``."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from wuskern.kernels import reference

LOOSE = {torch.float16: 0.06, torch.bfloat16: 0.06}  # of the largest value: what is wrong is far off
ELSE = 1e-4


class Nonsense(Exception):
    """Of arguments that mean nothing."""


def _sum(dy: Tensor, dim: int) -> Tensor:
    return dy.sum([d for d in range(dy.ndim) if d != dim % dy.ndim]) if dy.ndim > 1 else dy.clone()


def _row_stats(dy: Tensor, dim: int, score: str) -> list[Tensor]:
    return [_sum(dy, dim), _sum(dy.abs() if score == "l1" else dy * dy, dim)]


def _select_rows(scores: Tensor, k: int, block: int, groups: int) -> list[Tensor]:
    each = len(scores) // (block * groups)
    sums, chosen = scores.view(-1, block).sum(1).tolist(), []
    for group in range(groups):
        blocks = sorted(range(group * each, (group + 1) * each), key=lambda b: (sums[b] == sums[b], -sums[b], b))
        chosen += sorted(blocks[: k // (block * groups)])
    return [torch.tensor([b * block + i for b in chosen for i in range(block)])]


def _top_rows(dy: Tensor, dim: int, score: str, *choice: int) -> list[Tensor]:
    db, scores = _row_stats(dy, dim, score)
    return [db, scores, *_select_rows(scores, *choice)]


def _chosen(dy: Tensor, rows: Tensor, dim: int) -> Tensor:
    return dy if dy.shape[dim] == len(rows) else dy.index_select(dim, rows)


def _wgrad(dy: Tensor, x: Tensor, rows: Tensor) -> list[Tensor]:
    tokens = dy.shape[:-1].numel()
    return [_chosen(dy, rows, -1).reshape(tokens, len(rows)).t() @ x.reshape(tokens, x.shape[-1])]


def _wgrad_conv2d(dy: Tensor, x: Tensor, rows: Tensor, kernel: Sequence[int], *geometry: Any) -> list[Tensor]:
    return [_weight(_chosen(dy, rows, 1), x, (len(rows), x.shape[1] // geometry[-1], *kernel), *geometry)]


def _weight(dy: Tensor, x: Tensor, size: Sequence[int], *geometry: Any) -> Tensor:
    if 0 in (*dy.shape, *x.shape):
        return dy.new_zeros(size)
    return conv2d_weight(x.contiguous(), size, dy.contiguous(), *geometry)


def _dgrad_conv2d(dy: Tensor, weight: Tensor, rows: Tensor, size: Sequence[int], *geometry: Any) -> list[Tensor]:
    whole = dy.shape[0], weight.shape[1] * geometry[-1], *size
    if 0 in (*dy.shape, *weight.shape, *whole, len(rows)):
        return [dy.new_zeros(whole)]
    return [conv2d_input(whole, weight.index_select(0, rows), _chosen(dy, rows, 1).contiguous(), *geometry)]


def _direct_wgrad(dy: Tensor, x: Tensor, kernel: Sequence[int], padding: Any, dilation: Any, last: bool) -> list[Tensor]:
    dw = _weight(dy, x, (dy.shape[1], x.shape[1], *kernel), (1, 1), padding, dilation, 1)
    return [dw.flip(2, 3).permute(2, 3, 0, 1).reshape(kernel[0] * kernel[1] * len(dw), x.shape[1]).t()]


def _direct_dgrad(
    dy: Tensor, matrix: Tensor, kernel: Sequence[int], padding: Any, dilation: Any, last: bool, out: Tensor
) -> list[Tensor]:
    taps = matrix[:, : out.shape[1]] if last else matrix.t()
    weight = taps.reshape(*kernel, dy.shape[1], out.shape[1]).flip(0, 1).permute(2, 3, 0, 1)
    return _dgrad_conv2d(dy, weight, torch.arange(dy.shape[1]), out.shape[2:], (1, 1), padding, dilation, 1)


def _write_rows(target: Tensor, stale: Tensor | None, rows: Tensor, values: Tensor) -> list[Tensor]:
    if stale is not None:
        target = target.index_fill(0, stale, 0)
    return [target.index_copy(0, rows, values)]


ANSWERS: dict[str, Callable[..., list[Tensor]]] = {
    "bias_grad": lambda dy, dim: [_sum(dy, dim)],
    "row_stats": _row_stats,
    "select_rows": _select_rows,
    "top_rows": _top_rows,
    "gather_rows": lambda dy, rows, dim: [dy.index_select(dim, rows)],
    "rowsparse_wgrad": _wgrad,
    "rowsparse_dgrad": lambda dy, weight, rows: [_chosen(dy, rows, -1) @ weight.index_select(0, rows)],
    "rowsparse_wgrad_conv2d": _wgrad_conv2d,
    "rowsparse_dgrad_conv2d": _dgrad_conv2d,
    "rowsparse_sgd_": lambda *a: _written(2, "rowsparse_sgd_", a),
    "rowsparse_adam_": lambda *a: _written(5, "rowsparse_adam_", a),
    "piecewise_": lambda *a: _written(1, "piecewise_", a),
    "scale_channels": lambda dy, scale, dim: [(dy.transpose(dim, -1) * scale).transpose(dim, -1)],
    "direct_wgrad": _direct_wgrad,
    "direct_dgrad": _direct_dgrad,
    "write_rows": _write_rows,
}
WRITTEN = {
    "piecewise_": slice(0, 1),
    "rowsparse_sgd_": slice(0, 2),
    "rowsparse_adam_": slice(0, 5),
    "write_rows": slice(0, 1),
    "direct_dgrad": slice(6, 7),
}


def _written(count: int, name: str, arguments: tuple[Any, ...]) -> list[Tensor]:
    given = [a.clone() if isinstance(a, Tensor) else a for a in arguments]
    getattr(reference, name)(*given)
    return [a for a in given[:count] if a is not None]


def _finite(a: Any) -> bool:
    """What is not finite may spread from a pixel to taps that do not meet it: zero times infinity."""
    plain = isinstance(a, Tensor) and a.is_cpu and a.layout is torch.strided and a.is_floating_point()
    return not plain or bool(a.isfinite().all())


def expected(name: str, arguments: list[Any]) -> list[Tensor] | Nonsense | None:
    """None where nobody says."""
    if name not in ANSWERS or not all(map(_finite, arguments)):
        return None
    wide = [a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments]
    try:
        return ANSWERS[name](*wide)
    except Exception as error:  # of whatever kind: PyTorch refuses it
        return Nonsense(f"{type(error).__name__}: {str(error).splitlines()[0]}")


def compare(name: str, arguments: list[Any], result: Any, right: list[Tensor] | Nonsense | None) -> str | None:
    """A fault, or None."""
    found = arguments[WRITTEN[name]] if name in WRITTEN else [result] if isinstance(result, Tensor) else list(result)
    found = [t for t in found if isinstance(t, Tensor)]
    numbers = [a for a in arguments if isinstance(a, float)]
    if right is None or any(t.is_meta for t in found) or any(not 0 <= a < 1e30 for a in numbers):
        return None
    if isinstance(right, Nonsense):
        return f"accepted, where plain PyTorch says {right}"
    for ours, exact in zip(found, right, strict=True):
        if ours.shape != exact.shape:
            return f"gave {list(ours.shape)} for {list(exact.shape)}"
        if exact.numel() == 0 or not exact.abs().max() < torch.finfo(torch.float16).max:
            continue
        error = (ours.double() - exact).abs().max().item()
        if not error <= LOOSE.get(ours.dtype, ELSE) * (1 + exact.abs().max().item()):
            return f"wrong by {error} of {exact.abs().max().item()}"
    return None
