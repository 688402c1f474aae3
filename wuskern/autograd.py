"""What a layer with skip, rows or tokens saves in forward and hands to autograd in backward.

Both Functions take the weight as an argument. Where it is skipped they answer its gradient with ``None``, no kernel runs for
it and the input is not kept. Only what autograd asks for is computed: no dgrad for an input that needs none, no bias_grad
for a bias that does not train. A second derivative raises.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from wuskern import gradients, ops
from wuskern.compact import hand_over
from wuskern.dense import dense_grad
from wuskern.rows import RowChoice, RowGrad
from wuskern.tokens import Tokens

Backward = Callable[[Any, Tensor], tuple[Tensor | None, ...]]


@dataclass(eq=False, slots=True)
class Plan:
    """What backward shall do about the weight: ``rows`` of its gradient, from ``tokens``; None: all. With neither, nothing.

    ``operand`` is what the weight is computed with, cast where autocast wants that, outside of the graph. ``key``: where
    compact rows go, or None.
    """

    rows: RowChoice | None
    tokens: Tokens | None
    operand: Tensor
    key: Tensor | None

    @property
    def skips(self) -> bool:
        return self.rows is None and self.tokens is None


class _Once(torch.autograd.Function):
    """A gradient that cannot be differentiated again: the weight's share would be missing without a word."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, dy: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> NoReturn:
        raise RuntimeError(
            "a skipping, row-sparse or token-sampling layer of wuskern has no second derivative: set skip=False, rows=None and "
            "tokens=None where one is needed"
        )


def _once(backward: Backward) -> Backward:
    """torch's ``once_differentiable`` with a message of our own, and cheaper where no graph of the backward is made."""

    @functools.wraps(backward)
    def once(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():
            return backward(ctx, dy)
        with torch.no_grad():
            found = backward(ctx, dy)
        return tuple(_Once.apply(g, dy) if isinstance(g, Tensor) else g for g in found)

    return once


def _handed_over(weight: Tensor, key: Tensor | None, grad: RowGrad | Tensor | None) -> Tensor | None:
    """The weight's gradient for autograd; in the compact form it goes to ``weight.row_grad``, and autograd gets None."""
    if not isinstance(grad, RowGrad):
        return grad
    if key is None:
        return dense_grad(weight, grad)
    hand_over(weight, key, grad)
    return None


class LinearFunction(torch.autograd.Function):
    """y = x @ weight.T + bias; dx = dy @ weight, db = sum of dy over all rows, dweight = None or that of the plan."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan) -> Tensor:
        needs_x, needs_weight, *_ = ctx.needs_input_grad
        ctx.skips, ctx.rows, ctx.tokens, ctx.weight, ctx.key = plan.skips, plan.rows, plan.tokens, weight, plan.key
        ctx.save_for_backward(plan.operand if needs_x else None, x if needs_weight and not plan.skips else None)
        ctx.by_columns = x.ndim == 2 and x.stride() == (1, x.size(0))
        return F.linear(x, plan.operand, bias)

    @staticmethod
    @_once
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        operand, x = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        if ctx.skips:
            dx = gradients.linear_dgrad(dy, operand, ctx.by_columns) if needs_x else None
            return dx, None, ops.bias_grad(dy, -1) if needs_bias else None, None
        needs = needs_x, needs_weight, needs_bias
        dx, grad, db = gradients.linear_gradients(dy, x, operand, ctx.by_columns, ctx.rows, needs, ctx.tokens)
        return dx, _handed_over(ctx.weight, ctx.key, grad), db, None


class Conv2dFunction(torch.autograd.Function):
    """y = conv2d(x, weight) + bias; dx by the library's dgrad, db over batch and space, dweight = None or that of the plan.

    x: [B, C, H, W]; the geometry is three pairs of integers and ``groups``. Padding is a number here: the caller takes
    care of "same", of other padding modes and of unbatched input.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan, geometry: gradients.Geometry) -> Tensor:
        needs_x, needs_weight, *_ = ctx.needs_input_grad
        ctx.skips, ctx.rows, ctx.tokens, ctx.weight, ctx.key = plan.skips, plan.rows, plan.tokens, weight, plan.key
        ctx.geometry = geometry
        kept = x if needs_weight and not plan.skips else None
        ctx.save_for_backward(plan.operand if needs_x or not plan.skips else None, kept)
        ctx.like_x = gradients.LikeX.of(x, plan.operand)
        return F.conv2d(x, plan.operand, bias, *geometry)

    @staticmethod
    @_once
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        operand, x = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        if ctx.skips:
            dx = gradients.conv2d_dgrad(dy, operand, ctx.like_x, ctx.geometry) if needs_x else None
            return dx, None, ops.bias_grad(dy, 1) if needs_bias else None, None, None
        needs = needs_x, needs_weight, needs_bias
        dx, grad, db = gradients.conv2d_gradients(dy, x, operand, ctx.like_x, ctx.rows, ctx.geometry, needs, ctx.tokens)
        return dx, _handed_over(ctx.weight, ctx.key, grad), db, None, None
