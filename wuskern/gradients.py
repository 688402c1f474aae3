"""What a backward computes, as functions of tensors: the bodies of ``autograd``, and the compact forms of ``functional``."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from wuskern import configs, ops, paths
from wuskern.rows import PerExample, RowChoice, RowGrad, Rows, Scores, TopK, refuse_per_example
from wuskern.shapes import as_matrix, is_channels_last, is_contiguous, output_padding

Pair = tuple[int, int]
Geometry = tuple[Pair, Pair, Pair, int]  # stride, padding, dilation, groups
Needs = tuple[bool, bool, bool]  # of the gradients of x, weight, bias


class Gradients(NamedTuple):
    """Those that were asked for; the others are None."""

    x: Tensor | None
    weight: RowGrad | Tensor | None
    bias: Tensor | None


class _Chosen(NamedTuple):
    rows: Tensor
    dy: Tensor  # gathered, or whole
    db: Tensor | None


def _choose(dy: Tensor, dim: int, choice: TopK | Rows, groups: int, needs_bias: bool, features: int) -> _Chosen:
    """Passes over dy: one for scores and bias gradient together, or one for the bias gradient alone, and one that gathers the
    chosen part, unless the weight's gradient, whose rows have so many features, is all that it is for and it does not pay."""
    out, db = dy.shape[dim], None
    if isinstance(choice, Rows):
        choice.count(out, groups)
        rows = choice.index.to(dy.device)
        if choice.scores is not None:
            db = _observe(choice.scores, dy, dim)
    else:
        if choice.score == "random":
            scores = torch.rand(out, device=dy.device)
        else:
            db, scores = ops.row_stats(dy, dim, choice.score)
        if choice.agree is not None:
            scores = choice.agree(scores)
        rows = ops.select_rows(scores, choice.count(out, groups), choice.block, groups)
    if not needs_bias:
        db = None
    elif db is None:
        db = ops.bias_grad(dy, dim)
    if db is not None and choice.bias == "rows":
        db = db.new_zeros(out).index_copy_(0, rows, db.index_select(0, rows))
    pays = choice.scope == "both" or configs.gathers(features, rows.shape[0], out)
    return _Chosen(rows, ops.gather_rows(dy, rows, dim) if pays else dy, db)


def _observe(scores: Scores, dy: Tensor, dim: int) -> Tensor:
    """Adds the scores of dy to ``scores``; the bias gradient, which the same pass gives."""
    db, found = ops.row_stats(dy, dim, scores.score)
    scores.add(found)
    return db


def _row_grad(wgrad: Callable[[Tensor, Tensor], Tensor], chosen: _Chosen, dim: int) -> RowGrad:
    """From ``wgrad(dy, rows)``, of the gathered rows, or of all of them where dy is whole."""
    if chosen.dy.shape[dim] == chosen.rows.shape[0]:
        return RowGrad(chosen.rows, wgrad(chosen.dy, chosen.rows))
    everything = torch.arange(chosen.dy.shape[dim], device=chosen.dy.device)
    return RowGrad(chosen.rows, wgrad(chosen.dy, everything).index_select(0, chosen.rows))


# ---- Linear ---------------------------------------------------------------------------------------------------------


def linear_backward(dy: Tensor, x: Tensor, weight: Tensor, rows: RowChoice, needs: Needs = (True, True, True)) -> Gradients:
    """Backward of ``y = x @ weight.T + bias`` in the chosen rows; no tensor of the weight's size is formed.

    Args:
        dy: ``[..., out]``. x: ``[..., in]``. weight: ``[out, in]``. All of one dtype.
        rows: a ``TopK``, ``Rows`` or ``PerExample``.
        needs: which gradients, of x, weight and bias.

    Returns:
        dx ``[..., in]``; the weight's, a ``RowGrad`` with values ``[k, in]`` (with ``PerExample`` a dense ``[out, in]``); the
        bias's ``[out]``.

    Raises:
        ValueError: ``rows`` do not fit ``out``.
    """
    return linear_gradients(dy, x, weight, False, rows, needs)


def linear_gradients(dy: Tensor, x: Tensor, weight: Tensor, by_columns: bool, rows: RowChoice, needs: Needs) -> Gradients:
    """:func:`linear_backward`; x and weight may be None where they take no part. ``by_columns``: see :func:`linear_dgrad`."""
    needs_x, needs_weight, needs_bias = needs
    dx: Tensor | None = None
    grad: RowGrad | Tensor | None = None
    if isinstance(rows, PerExample):
        kept = _largest_of_each(dy, rows.count(dy.shape[-1]))
        db = ops.bias_grad(dy, -1) if needs_bias else None
        if needs_x:
            dx = linear_dgrad(kept, weight, by_columns)
        if needs_weight:
            grad = as_matrix(kept).t() @ as_matrix(x)
        return Gradients(dx, grad, db)
    chosen = _choose(dy, -1, rows, 1, needs_bias, x.shape[-1] if needs_weight else 0)
    if needs_x and rows.scope == "weight":
        dx = linear_dgrad(dy, weight, by_columns)
    elif needs_x:
        dx = ops.rowsparse_dgrad(chosen.dy, weight, chosen.rows)
        dx = dx.t().contiguous().t() if by_columns else dx
    if needs_weight:
        grad = _row_grad(lambda dy, rows: ops.rowsparse_wgrad(dy, x, rows), chosen, -1)
    return Gradients(dx, grad, chosen.db)


def linear_dgrad(dy: Tensor, weight: Tensor, by_columns: bool) -> Tensor:
    """dx as stock lays it in memory: like x, where x is a transposed matrix."""
    return weight.t().mm(dy.t()).t() if by_columns else dy.matmul(weight)


def _largest_of_each(dy: Tensor, k: int) -> Tensor:
    """dy with all but the k largest magnitudes of each row set to zero."""
    order = dy.abs().argsort(dim=-1, descending=True, stable=True)
    return torch.zeros_like(dy).scatter_(-1, chosen := order[..., :k], dy.gather(-1, chosen))


# ---- Conv2d ---------------------------------------------------------------------------------------------------------


class LikeX(NamedTuple):
    """How dx has to lie in memory: size and strides of x, and the format that the library takes for it, if only one."""

    size: torch.Size
    stride: tuple[int, ...]
    format: torch.memory_format | None

    @classmethod
    def of(cls, x: Tensor, weight: Tensor) -> "LikeX":
        found = _only_format(x)
        doubtful = found is torch.contiguous_format and not weight.is_contiguous()
        return cls(x.size(), _dense_stride(x), None if doubtful else found)


def conv2d_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    rows: TopK | Rows,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    needs: Needs = (True, True, True),
) -> Gradients:
    """Backward of a Conv2d in the chosen output channels; no tensor of the weight's size is formed.

    Args:
        dy: ``[B, out, HO, WO]``. x: ``[B, C, H, W]``. weight: ``[out, C / groups, kh, kw]``. All of one dtype.
        rows: a ``TopK`` or ``Rows``.
        stride, padding, dilation, groups: as for ``F.conv2d``, in pairs of integers.
        needs: which gradients, of x, weight and bias.

    Returns:
        dx ``[B, C, H, W]`` in stock's strides; the weight's ``RowGrad`` with values ``[k, C / groups, kh, kw]``; the bias's
        ``[out]``.

    Raises:
        ValueError: ``rows`` do not fit ``out`` and ``groups``.
    """
    geometry = stride, padding, dilation, groups
    return conv2d_gradients(dy, x, weight, LikeX.of(x, weight), rows, geometry, needs)


def conv2d_gradients(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    like_x: LikeX,
    rows: TopK | Rows,
    geometry: Geometry,
    needs: Needs,
) -> Gradients:
    """:func:`conv2d_backward`; x may be None where the weight's gradient is not wanted."""
    refuse_per_example(rows)
    needs_x, needs_weight, needs_bias = needs
    if like_x.format is not None:
        dy = dy.contiguous(memory_format=like_x.format)
    chosen = _choose(dy, 1, rows, geometry[-1], needs_bias, weight[0].numel())
    dx = grad = None
    if needs_x and rows.scope == "weight":
        dx = conv2d_dgrad(dy, weight, like_x, geometry)
    elif needs_x and _only_format(chosen.dy) is like_x.format is not None:
        dx = ops.rowsparse_dgrad_conv2d(chosen.dy, weight, chosen.rows, like_x.size[2:], *geometry)
    elif needs_x:
        some = weight.new_empty_strided((len(chosen.rows), *weight.shape[1:]), weight.stride())  # they decide about dx's
        dx = conv2d_dgrad(chosen.dy, torch.index_select(weight, 0, chosen.rows, out=some), like_x, geometry)
    if needs_weight:
        shape = weight.shape[2:], *geometry
        grad = _row_grad(lambda dy, rows: ops.rowsparse_wgrad_conv2d(dy, x, rows, *shape), chosen, 1)
    return Gradients(dx, grad, chosen.db)


def conv2d_dgrad(dy: Tensor, weight: Tensor, like_x: LikeX, geometry: Geometry) -> Tensor:
    """dx of a convolution by PyTorch's library, in stock's strides.

    A transposed convolution is the same computation and, unlike ``convolution_backward``, wants no input for its shape: an
    allocation of that size, though nothing reads it, makes the C library return memory and fault it in again.
    """
    size, x_stride, wanted = like_x
    stride, padding, dilation, groups = geometry
    if wanted is not None and dy.is_cpu:
        dy = dy.contiguous(memory_format=wanted)
        if paths.conv2d_dgrad_is_matmul(dy.dtype, dy.shape, weight.shape, wanted, stride, padding, groups):
            return torch.matmul(weight.flatten(1).t(), dy.flatten(2)).view(size)
        if _only_format(dy) is wanted:
            rest = output_padding(size[2:], dy.shape[2:], weight.shape[2:], stride, padding, dilation)
            return torch.ops.aten.convolution(dy, weight, None, stride, padding, dilation, True, rest, groups)
    unread = dy.new_empty_strided(size, x_stride)
    forward = (stride, padding, dilation, False, (0, 0), groups)
    return torch.ops.aten.convolution_backward(dy, unread, weight, None, *forward, (True, False, False))[0]


def _only_format(t: Tensor) -> torch.memory_format | None:
    """The one format that t has; None where it has neither, or both (one channel, one pixel), or strides in disguise."""
    contiguous, channels_last = t.is_contiguous(), t.is_contiguous(memory_format=torch.channels_last)
    if contiguous and not channels_last and is_contiguous(t):
        return torch.contiguous_format
    return torch.channels_last if channels_last and not contiguous and is_channels_last(t) else None


def _dense_stride(x: Tensor) -> tuple[int, ...]:
    """The strides of x, or of a copy of x without gaps: a slice of a large tensor must not ask for the large tensor."""
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last) or x.numel() == 0:
        return x.stride()
    extent = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    return x.stride() if extent == x.numel() else torch.empty_like(x, device="meta").stride()
