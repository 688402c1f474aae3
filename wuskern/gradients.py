"""What a backward computes, as functions of tensors: the bodies of ``autograd``, and the compact forms of ``functional``."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from wuskern import checks, configs, ops, paths
from wuskern.activeness import Activeness
from wuskern.rows import ROW_CHOICES, PerExample, RowChoice, RowGrad, Rows, Scores, TopK, refuse_per_example
from wuskern.shapes import as_matrix, is_channels_last, is_contiguous, output_padding
from wuskern.tokens import Tokens, draw

_BITS = {torch.float64: torch.int64, torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
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
    db: Tensor | None


def _choose(dy: Tensor, dim: int, choice: TopK | Rows, groups: int, needs_bias: bool) -> _Chosen:
    """One pass over dy, for scores and bias gradient together, or for the bias gradient alone."""
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
        if choice.active is not None:
            scores = choice.active.among(scores)
        if choice.agree is not None:
            scores = choice.agree(scores)
        rows = ops.select_rows(scores, choice.count(out, groups), choice.block, groups)
        if choice.active is not None:
            choice.active.add(torch.zeros_like(scores, dtype=torch.bool).index_fill_(0, rows, True).unsqueeze(0))
    if not needs_bias:
        db = None
    elif db is None:
        db = ops.bias_grad(dy, dim)
    if db is not None and choice.bias == "rows":
        db = db.new_zeros(out).index_copy_(0, rows, db.index_select(0, rows))
    return _Chosen(rows, db)


def _observe(scores: Scores, dy: Tensor, dim: int) -> Tensor:
    """Adds the scores of dy to ``scores``; the bias gradient, which the same pass gives."""
    db, found = ops.row_stats(dy, dim, scores.score)
    scores.add(found)
    return db


def _row_grad(wgrad: Callable[[Tensor, Tensor], Tensor], dy: Tensor, rows: Tensor, dim: int, features: int) -> RowGrad:
    """From ``wgrad(dy, rows)``. dy: the chosen rows, or all, of which a pass gathers them, unless that does not pay for rows of
    so many features."""
    out = dy.shape[dim]
    if out > rows.shape[0] and configs.gathers(features, rows.shape[0], out):
        dy = ops.gather_rows(dy, rows, dim)
    if dy.shape[dim] == rows.shape[0]:
        return RowGrad(rows, wgrad(dy, rows))
    return RowGrad(rows, wgrad(dy, torch.arange(out, device=dy.device)).index_select(0, rows))


def _summed(tokens: Tokens | None, dy: Tensor, x: Tensor, some: Tensor) -> tuple[Tensor, Tensor]:
    """What the weight's gradient sums over: ``some``, all of dy's rows or the chosen ones, and x; of the tokens that are drawn,
    by the norms of dy and x."""
    if tokens is None or tokens.count(dy.shape[0]) == dy.shape[0]:
        return some, x
    drawn = draw(tokens, dy, x)
    return drawn.scaled(some), drawn.of(x)


def _check_choices(rows: RowChoice | None, tokens: Tokens | None) -> None:
    if rows is not None and not isinstance(rows, ROW_CHOICES):
        raise TypeError(f"rows: expected a TopK, Rows, PerExample or None, got {type(rows).__name__}")
    if tokens is not None and not isinstance(tokens, Tokens):
        raise TypeError(f"tokens: expected a Tokens or None, got {type(tokens).__name__}")


# ---- Linear ---------------------------------------------------------------------------------------------------------


def linear_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    rows: RowChoice | None,
    needs: Needs = (True, True, True),
    tokens: Tokens | None = None,
) -> Gradients:
    """Backward of ``y = x @ weight.T + bias`` in the chosen rows; no tensor of the weight's size is formed.

    Args:
        dy: ``[..., out]``. x: ``[..., in]``. weight: ``[out, in]``. All of one dtype.
        rows: a ``TopK``, ``Rows`` or ``PerExample``; None: all.
        needs: which gradients, of x, weight and bias.
        tokens: that the weight's gradient sums over; None: all.

    Returns:
        dx ``[..., in]``; the weight's, a ``RowGrad`` with values ``[k, in]`` (with ``PerExample`` or None a dense
        ``[out, in]``); the bias's ``[out]``.

    Raises:
        ValueError: ``rows`` do not fit ``out``.
    """
    checks.linear_backward(dy, x, weight)
    _check_choices(rows, tokens)
    return linear_gradients(dy, x, weight, False, rows, needs, tokens)


def linear_gradients(
    dy: Tensor, x: Tensor, weight: Tensor, by_columns: bool, rows: RowChoice | None, needs: Needs, tokens: Tokens | None = None
) -> Gradients:
    """:func:`linear_backward`; x and weight may be None where they take no part. ``by_columns``: see :func:`linear_dgrad`."""
    if rows is None or isinstance(rows, PerExample):
        return _linear_of_all_rows(dy, x, weight, by_columns, rows, needs, tokens)
    needs_x, needs_weight, needs_bias = needs
    dx = grad = None
    chosen, some = _choose(dy, -1, rows, 1, needs_bias), dy
    if rows.scope == "both":
        some = ops.gather_rows(dy, chosen.rows, -1)
    if needs_x and rows.scope == "weight":
        dx = linear_dgrad(dy, weight, by_columns)
    elif needs_x:
        dx = ops.rowsparse_dgrad(some, weight, chosen.rows)
        dx = dx.t().contiguous().t() if by_columns else dx
    if needs_weight:
        if tokens is not None:
            some, x = _summed(tokens, as_matrix(dy), as_matrix(x), as_matrix(some))
        grad = _row_grad(lambda dy, rows: ops.rowsparse_wgrad(dy, x, rows), some, chosen.rows, -1, x.shape[-1])
    return Gradients(dx, grad, chosen.db)


def _linear_of_all_rows(
    dy: Tensor, x: Tensor, weight: Tensor, by_columns: bool, each: PerExample | None, needs: Needs, tokens: Tokens | None
) -> Gradients:
    """``each``: what is kept of each example's dy, for both products."""
    needs_x, needs_weight, needs_bias = needs
    db = ops.bias_grad(dy, -1) if needs_bias else None
    if each is not None:
        dy = _largest_of_each(dy, each.count(dy.shape[-1]), each.active)
    dx = linear_dgrad(dy, weight, by_columns) if needs_x else None
    if not needs_weight:
        return Gradients(dx, None, db)
    dy, x = as_matrix(dy), as_matrix(x)
    some, x = _summed(tokens, dy, x, dy)
    return Gradients(dx, some.t() @ x, db)


def linear_dgrad(dy: Tensor, weight: Tensor, by_columns: bool) -> Tensor:
    """dx as stock lays it in memory: like x, where x is a transposed matrix."""
    return weight.t().mm(dy.t()).t() if by_columns else dy.matmul(weight)


def _largest_of_each(dy: Tensor, k: int, active: Activeness | None) -> Tensor:
    """dy with all but the k largest magnitudes of each row set to zero. Their bits are ordered as whole numbers, NaN above
    infinity; the k-th largest is what a row needs to know, and of those that equal it the lowest indices are taken."""
    sizes = dy.abs().view(_BITS[dy.dtype])
    if active is not None:
        sizes = active.among(sizes)
    least = sizes.topk(k, sorted=False).values.amin(-1, keepdim=True)
    over, equal = sizes > least, sizes == least
    left = k - over.sum(-1, keepdim=True)
    kept = over | (equal & (equal.cumsum(-1, dtype=torch.int32) <= left))
    if active is not None:
        active.add(as_matrix(kept))
    return torch.where(kept, dy, 0)


# ---- Conv2d ---------------------------------------------------------------------------------------------------------


class LikeX(NamedTuple):
    """How dx has to lie in memory: size and strides of x, and the format that the library takes for it, if only one."""

    size: torch.Size
    stride: tuple[int, ...]
    format: torch.memory_format | None

    @classmethod
    def of(cls, x: Tensor, weight: Tensor) -> "LikeX":
        found = _only_format(x)
        doubtful = found is torch.contiguous_format and not is_contiguous(weight)
        return cls(x.size(), _dense_stride(x), None if doubtful else found)


def conv2d_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    rows: TopK | Rows | None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    needs: Needs = (True, True, True),
    tokens: Tokens | None = None,
) -> Gradients:
    """Backward of a Conv2d in the chosen output channels; no tensor of the weight's size is formed.

    Args:
        dy: ``[B, out, HO, WO]``. x: ``[B, C, H, W]``. weight: ``[out, C / groups, kh, kw]``. All of one dtype.
        rows: a ``TopK`` or ``Rows``; None: all.
        stride, padding, dilation, groups: as for ``F.conv2d``, in pairs of integers.
        needs: which gradients, of x, weight and bias.
        tokens: images that the weight's gradient sums over; None: all.

    Returns:
        dx ``[B, C, H, W]`` in stock's strides; the weight's ``RowGrad`` with values ``[k, C / groups, kh, kw]`` (with None a
        dense ``[out, C / groups, kh, kw]``); the bias's ``[out]``.

    Raises:
        ValueError: ``rows`` do not fit ``out`` and ``groups``.
    """
    checks.conv2d_backward(dy, x, weight, stride, padding, dilation, groups)
    _check_choices(rows, tokens)
    geometry = stride, padding, dilation, groups
    return conv2d_gradients(dy, x, weight, LikeX.of(x, weight), rows, geometry, needs, tokens)


def conv2d_gradients(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    like_x: LikeX,
    rows: TopK | Rows | None,
    geometry: Geometry,
    needs: Needs,
    tokens: Tokens | None = None,
) -> Gradients:
    """:func:`conv2d_backward`; x may be None where the weight's gradient is not wanted."""
    refuse_per_example(rows)
    needs_x, needs_weight, needs_bias = needs
    if like_x.format is not None:
        dy = dy.contiguous(memory_format=like_x.format)
    if rows is None:
        return _conv2d_of_all_rows(dy, x, weight, like_x, geometry, needs, tokens)
    dx = grad = None
    chosen, some = _choose(dy, 1, rows, geometry[-1], needs_bias), dy
    if rows.scope == "both":
        some = ops.gather_rows(dy, chosen.rows, 1)
    if needs_x and rows.scope == "weight":
        dx = conv2d_dgrad(dy, weight, like_x, geometry)
    elif needs_x and _only_format(some) is like_x.format is not None:
        dx = ops.rowsparse_dgrad_conv2d(some, weight, chosen.rows, like_x.size[2:], *geometry)
    elif needs_x:
        its = weight.new_empty_strided((len(chosen.rows), *weight.shape[1:]), weight.stride())  # they decide about dx's
        dx = conv2d_dgrad(some, torch.index_select(weight, 0, chosen.rows, out=its), like_x, geometry)
    if needs_weight:
        some, x = _summed(tokens, dy, x, some)
        shape = weight.shape[2:], *geometry
        wgrad = lambda dy, rows: ops.rowsparse_wgrad_conv2d(dy, x, rows, *shape)  # noqa: E731
        grad = _row_grad(wgrad, some, chosen.rows, 1, weight[0].numel())
    return Gradients(dx, grad, chosen.db)


def _conv2d_of_all_rows(
    dy: Tensor, x: Tensor, weight: Tensor, like_x: LikeX, geometry: Geometry, needs: Needs, tokens: Tokens | None
) -> Gradients:
    needs_x, needs_weight, needs_bias = needs
    dx = conv2d_dgrad(dy, weight, like_x, geometry) if needs_x else None
    db = ops.bias_grad(dy, 1) if needs_bias else None
    if not needs_weight:
        return Gradients(dx, None, db)
    some, x = _summed(tokens, dy, x, dy)
    return Gradients(dx, _library_wgrad(some, x, weight, geometry), db)


def _library_wgrad(dy: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    stride, padding, dilation, groups = geometry
    forward = (stride, padding, dilation, False, (0, 0), groups)
    return torch.ops.aten.convolution_backward(dy, x, weight, None, *forward, (False, True, False))[1]


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
