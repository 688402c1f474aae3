"""What a backward computes, for every kind of layer and every plan: for ``autograd``, and for those who call it by itself."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from wuskern import ops
from wuskern.choices import PerExample, Plan, RowChoice, Rows, TopK
from wuskern.columns import Saved, save
from wuskern.common.shapes import as_matrix
from wuskern.delivery.column_grad import ColumnGrad
from wuskern.delivery.observer import Observer
from wuskern.kinds import LINEAR, Conv2d, Kind, Sides, pair
from wuskern.ops import product_checks
from wuskern.sparse_grad import RowGrad
from wuskern.tokens import draw

_BITS = {torch.float64: torch.int64, torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
Needs = tuple[bool, bool, bool]  # of the gradients of x, weight, bias


class Gradients(NamedTuple):
    """The gradients that were asked for; the others are None."""

    x: Tensor | None
    weight: RowGrad | ColumnGrad | Tensor | None
    bias: Tensor | None


class Teller(NamedTuple):
    """The observer that hears of a backward, if there is one. ``home``: the key of the layer's home, for compiled code."""

    observer: Observer | None
    home: Tensor | None

    def tell(self, scores: Tensor | None, chosen: Tensor | None) -> None:
        if self.observer is not None:
            self.observer.tell(scores, chosen, self.home)


NOBODY = Teller(None, None)


def gradients(kind: Kind, plan: Plan, dy: Tensor, saved: Saved, needs: Needs, teller: Teller = NOBODY) -> Gradients:
    """The gradients of a layer of some kind, as its plan restricts them; no tensor of the weight's size is formed.

    Args:
        dy: as the kind has it. saved: what forward kept: x may be None where the weight's gradient is not wanted, and the
            weight where neither that nor the gradient of x is.
        needs: which gradients, of x, weight and bias.

    Returns:
        The weight's is a ``RowGrad`` where rows are chosen, a ``ColumnGrad`` where columns are (and rows, too), else dense, and
        None with ``plan.skip``.
    """
    needs_x, needs_weight, needs_bias = needs
    dy = kind.laid_out(dy, saved.like)
    if plan.skip or not isinstance(plan.rows, TopK | Rows):
        return _of_all_rows(kind, plan, dy, saved, needs, teller)
    rows, db = _choose(dy, kind, plan, needs_bias, teller)
    chosen = ops.gather_rows(dy, rows, kind.dim) if plan.rows.scope == "both" else dy
    dx: Tensor | None = None
    grad: RowGrad | ColumnGrad | Tensor | None = None
    if needs_x:
        assert saved.weight is not None
        whole = plan.rows.scope == "weight"
        dx = kind.dgrad(dy, saved.weight, saved.like) if whole else kind.rowsparse_dgrad(chosen, saved.weight, rows, saved.like)
    if needs_weight:
        x, part = saved.operands(kind)
        values = _of_rows(kind, *_summed(kind, plan, dy, x, chosen), rows, part)
        grad = saved.grad(kind, values, rows)
    return Gradients(dx, grad, db)


def _of_all_rows(kind: Kind, plan: Plan, dy: Tensor, saved: Saved, needs: Needs, teller: Teller) -> Gradients:
    needs_x, needs_weight, needs_bias = needs
    db = ops.bias_grad(dy, kind.dim) if needs_bias else None
    if isinstance(plan.rows, PerExample) and not plan.skip:
        dy = _largest_of_each(dy, plan.rows.count(dy.shape[-1]), plan.observer, teller)
    if saved.weight is None:  # so neither gradient is asked for
        return Gradients(None, None, db)
    dx = kind.dgrad(dy, saved.weight, saved.like) if needs_x else None
    if plan.skip or not needs_weight:
        return Gradients(dx, None, db)
    x, part = saved.operands(kind)
    summed = _summed(kind, plan, dy, x, dy)
    values = kind.wgrad(*summed, part) if saved.columns is None else kind.column_wgrad(*summed, part)
    return Gradients(dx, saved.grad(kind, values), db)


# ---- which rows -----------------------------------------------------------------------------------------------------


def _choose(dy: Tensor, kind: Kind, plan: Plan, needs_bias: bool, teller: Teller) -> tuple[Tensor, Tensor | None]:
    """The rows ``[k]``, and the bias gradient: one pass over dy computes scores and bias gradient, or the latter alone."""
    choice, observer = plan.rows, plan.observer
    assert isinstance(choice, TopK | Rows)
    out, db, scores = dy.shape[kind.dim], None, None
    k = choice.count(out, kind.groups)
    if isinstance(choice, Rows):
        rows = choice.index.to(dy.device)
        if teller.observer is not None and teller.observer.score is not None:
            db, scores = ops.row_stats(dy, kind.dim, teller.observer.score)
            teller.tell(scores, None)
    else:
        if choice.score != "random" and observer is None:
            db, scores, rows = ops.top_rows(dy, kind.dim, choice.score, k, choice.block, kind.groups)
        else:
            if choice.score == "random":
                scores = torch.rand(out, device=dy.device)
            else:
                db, scores = ops.row_stats(dy, kind.dim, choice.score)
            ranked = scores if observer is None else observer.ranked(scores)
            rows = ops.select_rows(ranked, k, choice.block, kind.groups)
        if teller.observer is not None:
            teller.tell(scores, torch.zeros_like(scores, dtype=torch.bool).index_fill_(0, rows, True).unsqueeze(0))
    if not needs_bias:
        return rows, None
    if db is None:
        db = ops.bias_grad(dy, kind.dim)
    if choice.bias == "rows":
        db = db.new_zeros(out).index_copy_(0, rows, db.index_select(0, rows))
    return rows, db


def _largest_of_each(dy: Tensor, k: int, observer: Observer | None, teller: Teller) -> Tensor:
    """The gradient dy with all but the k largest magnitudes of each row set to zero. Their bits are ordered as whole numbers,
    NaN above infinity; what exceeds a row's k-th largest is kept, and of what equals it the lowest indices."""
    sizes = dy.abs().view(_BITS[dy.dtype])
    if observer is not None:
        sizes = observer.ranked(sizes)
    least = sizes.topk(k, sorted=False).values.amin(-1, keepdim=True)
    over, equal = sizes > least, sizes == least
    places = k - over.sum(-1, keepdim=True)  # for values that equal the least
    kept = over | (equal & (equal.cumsum(-1, dtype=torch.int32) <= places))
    if teller.observer is not None:
        teller.tell(None, as_matrix(kept))
    return torch.where(kept, dy, 0)


# ---- the weight's gradient ------------------------------------------------------------------------------------------


def _summed(kind: Kind, plan: Plan, dy: Tensor, x: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """The two factors of the weight's gradient, ``chosen``, which is all rows of dy or some, and x, as ``[tokens, ...]``; with
    a choice of tokens only those that the norms of dy and x have drawn."""
    if plan.tokens is None and isinstance(plan.rows, TopK | Rows):
        return chosen, x  # the products of chosen rows take any leading dimensions
    dy, x, chosen = kind.tokens(dy), kind.tokens(x), kind.tokens(chosen)
    if plan.tokens is None or plan.tokens.count(dy.shape[0]) == dy.shape[0]:
        return chosen, x
    drawn = draw(plan.tokens, dy, x)
    return drawn.scaled(chosen), drawn.of(x)


GATHER = 25  # products in the time in which one element is gathered: element bytes * FLOP/s / (2 * bytes/s)


def gathers(features: int, k: int, out: int) -> bool:
    """Whether it pays to gather k of out rows of dy for k rows of dW, each of so many features. For each token, gathering reads
    out elements and writes k, and saves ``(out - k) * features`` products. Where that does not pay, k being too large or the
    rows too short, the product of all rows is taken, and k rows of it."""
    return features * (out - k) >= GATHER * (out + k)


def _of_rows(kind: Kind, dy: Tensor, x: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    """The gradient ``[k, ...]`` of the chosen rows. dy: those rows, or all, of which a pass gathers them, unless that does not
    pay for rows of so many features."""
    out = dy.shape[kind.dim]
    if out > rows.shape[0] and gathers(weight[0].numel(), rows.shape[0], out):
        dy = ops.gather_rows(dy, rows, kind.dim)
    if dy.shape[kind.dim] == rows.shape[0]:
        return kind.rowsparse_wgrad(dy, x, rows, weight)
    every = torch.arange(out, device=dy.device)
    return kind.rowsparse_wgrad(dy, x, every, weight).index_select(0, rows)


# ---- the backward alone ---------------------------------------------------------------------------------------------


def linear_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    rows: RowChoice | None = None,
    needs: Needs = (True, True, True),
    **parts: Any,
) -> Gradients:
    """The backward of ``y = x @ weight.T + bias`` by a plan; with rows no tensor of the weight's size is formed.

    Args:
        dy: ``[..., out]``. x: ``[..., in]``. weight: ``[out, in]``. All of one dtype.
        needs: which gradients, of x, weight and bias.
        rows, parts: of a plan, as for ``functional.linear``.

    Returns:
        dx ``[..., in]``; the weight's: with columns a ``ColumnGrad``, with rows (but ``PerExample``) a ``RowGrad`` with values
        ``[k, in]``, else dense; the bias's ``[out]``.

    Raises:
        ValueError, TypeError: shapes, dtypes or the plan do not fit.
    """
    plan = Plan(rows=rows, **parts)
    product_checks.linear_backward(dy, x, weight)
    plan.check(LINEAR.units(weight))
    return gradients(LINEAR, plan, dy, save(LINEAR, plan, x, weight, False), needs)


def conv2d_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    rows: RowChoice | None = None,
    stride: Sides = 1,
    padding: Sides = 0,
    dilation: Sides = 1,
    groups: int = 1,
    needs: Needs = (True, True, True),
    **parts: Any,
) -> Gradients:
    """The backward of a Conv2d by a plan; with rows no tensor of the weight's size is formed.

    Args:
        dy: ``[B, out, HO, WO]``. x: ``[B, C, H, W]``. weight: ``[out, C / groups, kh, kw]``. All of one dtype.
        stride, padding, dilation, groups: as for ``F.conv2d``, in numbers.
        needs: which gradients, of x, weight and bias.
        rows, parts: of a plan, as for ``functional.conv2d``.

    Returns:
        dx ``[B, C, H, W]`` in stock's strides; the weight's: with columns a ``ColumnGrad``, with rows a ``RowGrad`` with values
        ``[k, C / groups, kh, kw]``, else dense; the bias's ``[out]``.

    Raises:
        ValueError, TypeError: shapes, dtypes, the geometry or the plan do not fit.
    """
    plan = Plan(rows=rows, **parts)
    stride, padding, dilation = (pair(sides) if isinstance(sides, int) else sides for sides in (stride, padding, dilation))
    product_checks.conv2d_backward(dy, x, weight, stride, padding, dilation, groups)
    kind = Conv2d(tuple(stride), tuple(padding), tuple(dilation), groups)
    plan.check(kind.units(weight))
    return gradients(kind, plan, dy, save(kind, plan, x, weight, kind.like(x, weight)), needs)
