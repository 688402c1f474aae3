"""What a layer with a plan saves in forward and hands to autograd in backward: one Function for every kind of layer.

The weight is an argument. Where it is skipped its gradient is ``None``, no kernel runs for it and the input is not kept: it is
a constant, in derivatives of any order. With rows or tokens a second derivative raises. Only what autograd asks for is
computed: no dgrad for an input that needs none, no bias_grad for a bias that does not train, no wgrad where only inputs are
asked for.
"""

from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from wuskern import ops
from wuskern.choices import Plan
from wuskern.columns import Saved, save
from wuskern.common.shapes import is_batched, rows_first
from wuskern.delivery.column_grad import ColumnGrad
from wuskern.delivery.deliver import from_compiled
from wuskern.delivery.dense_grad import dense_grad
from wuskern.delivery.grad_home import GradHome
from wuskern.gradients import NOBODY, Teller, gradients
from wuskern.kernels.reference import bias_grad
from wuskern.kinds import Kind
from wuskern.sparse_grad import RowGrad, is_used, taking_up_held


@dataclass(eq=False, slots=True)
class Call:
    """What one forward of a layer passes to its backward, beside the tensors of the graph.

    Attributes:
        weight: the layer's, in the graph or not. Under autocast its dtype may be wider than that of x: the products are in the
            dtype of x, the gradient in that of the weight.
        sparse: whether the weight's gradient is to be sparse. home: of the layer's gradient, if there is one.
    """

    kind: Kind
    plan: Plan
    weight: Tensor
    sparse: bool
    home: GradHome | None


class LayerFunction(torch.autograd.Function):
    """The autograd Function of every kind of layer: ``kind.fprop`` forward, and gradients as the call's plan restricts them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, call: Call) -> Tensor:
        needs_x, needs_weight, *_ = ctx.needs_input_grad
        keeps_x = needs_weight and not call.plan.skip
        own = call.weight if call.weight.dtype == x.dtype else call.weight.detach().to(x.dtype)
        operand = rows_first(own, call.kind.transposed)
        ctx.call, ctx.like = call, call.kind.like(x, operand)
        saved = save(call.kind, call.plan, x, operand, None) if keeps_x else Saved(None, operand if needs_x else None, None)
        ctx.save_for_backward(saved.weight, saved.x, saved.columns, saved.sums)
        return call.kind.fprop(x, own, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        operand, x, columns, sums = ctx.saved_tensors
        call: Call = ctx.call
        if call.plan.skip:
            return _of_constant(ctx, dy, operand)
        if is_batched(dy):
            raise RuntimeError("a layer with rows, columns or tokens has no batched backward (vmap, is_grads_batched)")
        saved = Saved(x, operand, ctx.like, columns, sums)
        if not torch.is_grad_enabled():
            return _restricted(ctx, dy, saved, call.sparse)
        with torch.no_grad():
            computed = _restricted(ctx, dy, saved, False)
        return once(dy.device, *computed)


def _of_constant(ctx: Any, dy: Tensor, operand: Tensor | None) -> tuple[Tensor | None, ...]:
    """The gradients of x and bias by a constant weight: of torch's own calls where they are to be differentiated or batched."""
    needs_bias = ctx.needs_input_grad[2]
    kind: Kind = ctx.call.kind
    by_torch = torch.is_grad_enabled() or is_batched(dy)
    dy = dy if by_torch else kind.laid_out(dy, ctx.like)
    dx = None if operand is None else kind.dgrad(dy, operand, ctx.like)
    db = None
    if needs_bias:
        db = bias_grad(dy, kind.dim) if by_torch else ops.bias_grad(dy, kind.dim)
    return dx, None, db, None


def _restricted(ctx: Any, dy: Tensor, saved: Saved, sparse: bool) -> tuple[Tensor | None, ...]:
    """The gradients of x, weight and bias as the plan restricts them, and None for the call."""
    needs_x, _, needs_bias, *_ = ctx.needs_input_grad
    needs_weight, accumulated = wanted_of_weight(ctx)
    call: Call = ctx.call
    plan, teller, home = call.plan, NOBODY, call.home
    key = home.key if torch.compiler.is_compiling() and home is not None else None
    if plan.observer is not None and accumulated:
        teller = Teller(plan.observer, key)
    if plan.column_observer is not None and saved.sums is not None and accumulated:
        plan.column_observer.tell(saved.sums, dy, key)
    dx, grad, db = gradients(call.kind, plan, dy, saved, (needs_x, needs_weight, needs_bias), teller)
    return dx, form(call.weight, home, grad, sparse and accumulated), db, None


def wanted_of_weight(ctx: Any) -> tuple[bool, bool]:
    """Whether the gradient of the weight, the second argument of a Function, is wanted, and whether it is added to the weight's
    ``grad``."""
    wanted: bool = ctx.needs_input_grad[1]
    if wanted and not torch.compiler.is_compiling():
        return is_used(ctx.next_functions[1][0])
    return wanted, wanted


def form(weight: Tensor, home: GradHome | None, grad: RowGrad | ColumnGrad | Tensor | None, sparse: bool) -> Tensor | None:
    """The weight's gradient for autograd, dense or sparse; None where it has been delivered already."""
    if not isinstance(grad, RowGrad | ColumnGrad):
        return grad
    if sparse and isinstance(grad, RowGrad):
        if not torch.compiler.is_compiling():
            return taking_up_held(weight, grad)
        assert home is not None  # compiled code has no other way to find the weight
        from_compiled(home.key, None, grad.rows, grad.values.to(weight.dtype))
        return None
    return dense_grad(weight, grad, None if home is None else home.recycled)


def once(device: torch.device, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    """The gradients, of which none can be differentiated again."""
    tie = torch.zeros((), device=device, requires_grad=True)  # gives the results a graph, which dy need not have
    return tuple(_Once.apply(g, tie) if isinstance(g, Tensor) else g for g in gradients)


class _Once(torch.autograd.Function):
    """A gradient that cannot be differentiated again: the weight's share would be missing without a word."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, tie: Tensor) -> Tensor:
        ctx.mark_dirty(gradient)  # the tensor itself comes back, and may be changed in place
        return gradient

    @staticmethod
    def backward(ctx: Any, *_: Any) -> NoReturn:
        raise RuntimeError(
            "a layer of wuskern with rows, columns or tokens has no second derivative: set them to None where one is needed"
        )
