"""The ops that read a gradient of an output once: sums of its rows, their scores, and the rows with the largest."""

from typing import Any, Literal

import torch
from torch import Tensor

from wuskern.ops import checks
from wuskern.ops.contract import call, declare

# ---- bias_grad ------------------------------------------------------------------------------------------------------


def bias_grad(dy: Tensor, dim: int) -> Tensor:
    """The gradient of a bias: ``db[c] = sum of dy over every dimension but dim``, in one read of ``dy``.

    Args:
        dy: gradient of the output, ``[..., N]`` with ``dim=-1`` (Linear) or ``[B, C, *spatial]`` with ``dim=1`` (Conv),
            of any rank >= 1 and any strides; float64, float32, float16 or bfloat16.
        dim: the dimension that is kept.

    Returns:
        ``[dy.shape[dim]]`` in the dtype of ``dy``; zeros where ``dy`` is empty. Sums are taken in float32 or wider
        (float64 for float64), in an order that depends on shape, strides and machine alone.

    Raises:
        TypeError: another dtype.
        ValueError: ``dim`` out of range, or a 0-d ``dy``.

    Equivalent to ``dy.sum([d for d in range(dy.ndim) if d != dim])``. Reads ``dy`` once wherever its dimensions fold to
    [outer, channels, inner] with unit stride in one of the last two; any other layout is copied first.
    """
    return call("bias_grad", dy, dim)


def _additions(dy_shape: torch.Size, dim: int, **_: Any) -> int:
    """One addition for each element but the first of a sum."""
    return max(0, dy_shape.numel() - dy_shape[dim])


declare(
    "bias_grad", "(Tensor dy, int dim) -> Tensor", checks.gradient, lambda dy, dim: dy.new_empty((dy.shape[dim],)), _additions
)


# ---- row_stats ------------------------------------------------------------------------------------------------------


def row_stats(dy: Tensor, dim: int, score: Literal["l1", "l2"] = "l1") -> tuple[Tensor, Tensor]:
    """The gradient of a bias, and a score for each of its elements, in one read of ``dy``.

    Args:
        dy, dim: as for :func:`bias_grad`.
        score: "l1", the sum of ``|dy|`` over every dimension but ``dim``, or "l2", that of ``dy * dy``.

    Returns:
        The bias gradient as :func:`bias_grad` gives it, and scores ``[dy.shape[dim]]`` in float32 (float64 for float64).
        A NaN in ``dy`` makes the score of its row NaN.

    Raises:
        TypeError: another dtype.
        ValueError: ``dim`` out of range, a 0-d ``dy``, or another score.

    Reads ``dy`` once where :func:`bias_grad` does. The scores are those of meProp (arXiv 1706.06197, unified top-k) and
    ssProp (arXiv 2408.12561), which take "l1".
    """
    return call("row_stats", dy, dim, score)


def _row_stats_fake(dy: Tensor, dim: int, score: str) -> tuple[Tensor, Tensor]:
    exact = torch.promote_types(dy.dtype, torch.float32)
    return dy.new_empty((dy.shape[dim],)), dy.new_empty((dy.shape[dim],), dtype=exact)


def _row_stats_flops(dy_shape: torch.Size, dim: int, score: str, **_: Any) -> int:
    """Two sums, and for "l2" one product for each element."""
    return 2 * _additions(dy_shape, dim) + (dy_shape.numel() if score == "l2" else 0)


declare("row_stats", "(Tensor dy, int dim, str score) -> (Tensor, Tensor)", checks.row_stats, _row_stats_fake, _row_stats_flops)


# ---- select_rows ----------------------------------------------------------------------------------------------------


def select_rows(scores: Tensor, k: int, block: int = 1, groups: int = 1) -> Tensor:
    """The ``k`` rows with the largest scores.

    Args:
        scores: ``[N]``; float64, float32, float16 or bfloat16. Random ones choose at random:
            ``torch.rand(N, generator=g)``.
        k: how many, 1 to N, a multiple of ``block * groups``.
        block: rows are taken in aligned blocks of so many, by the sum of their scores.
        groups: the rows are ``groups`` equal parts, and as many are taken from each.

    Returns:
        ``[k]``: int64, ascending, each row once. A NaN ranks before every number. Of equal scores the lower index wins.

    Raises:
        TypeError: another dtype.
        ValueError: ``scores`` is not 1-d, or ``k``, ``block`` or ``groups`` do not fit its length.
    """
    return call("select_rows", scores, k, block, groups)


declare(
    "select_rows",
    "(Tensor scores, int k, int block, int groups) -> Tensor",
    checks.select_rows,
    lambda scores, k, block, groups: scores.new_empty((k,), dtype=torch.int64),
    lambda scores_shape, k, block, groups, **_: scores_shape.numel(),  # a comparison each
)


# ---- top_rows -------------------------------------------------------------------------------------------------------


def top_rows(
    dy: Tensor, dim: int, score: Literal["l1", "l2"], k: int, block: int = 1, groups: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """The results of :func:`row_stats`, and the rows that :func:`select_rows` takes by these scores: on a GPU in one launch,
    where a group has few enough rows.

    Args:
        dy, dim, score: as for :func:`row_stats`. k, block, groups: as for :func:`select_rows`, of ``dy.shape[dim]`` rows.

    Returns:
        The bias gradient, the scores, and the rows ``[k]``.

    Raises:
        TypeError, ValueError: as both.
    """
    return call("top_rows", dy, dim, score, k, block, groups)


declare(
    "top_rows",
    "(Tensor dy, int dim, str score, int k, int block, int groups) -> (Tensor, Tensor, Tensor)",
    checks.top_rows,
    lambda dy, dim, score, k, block, groups: (*_row_stats_fake(dy, dim, score), dy.new_empty((k,), dtype=torch.int64)),
    lambda dy_shape, dim, score, *_, **__: _row_stats_flops(dy_shape, dim, score) + dy_shape[dim],
)
