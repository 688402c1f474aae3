"""The functions ``linear``, ``conv2d`` and ``embedding`` of torch.nn.functional with a plan of what backward does about the
weight: skip it, compute chosen rows of its gradient, sum over chosen tokens. ``linear_backward`` and ``conv2d_backward`` are
that backward alone."""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.nn.parallel import DistributedDataParallel

from wuskern import ops
from wuskern.autograd import Call, LayerFunction
from wuskern.choices import DENSE, Parts, Plan
from wuskern.common.shapes import numeric_padding
from wuskern.common.world import is_dtensor, is_together
from wuskern.delivery.grad_home import GradHome
from wuskern.embedding import Embedding, Lookup, look_up
from wuskern.gradients import conv2d_backward, linear_backward
from wuskern.kinds import LINEAR, Conv2d, Kind, Linear, Sides, pair

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["conv2d", "conv2d_backward", "embedding", "linear", "linear_backward", "stock_reason"]

_PLAIN = (Tensor, Parameter, type(None))


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, plan: Plan | None = None, **parts: "Unpack[Parts]"
) -> Tensor:
    """The output ``y = x @ weight.T + bias``, whose backward follows a plan.

    Args:
        x: ``[..., in]``. weight: ``[out, in]``. bias: ``[out]`` or None. All of one floating dtype, or autocast.
        plan: a ``wuskern.Plan``, or in its place its ``parts``:
        skip: ``weight`` is a constant: its gradient is None, and ``x`` is not kept for it. Wins over the others.
        rows: a ``TopK``, ``Rows`` or ``PerExample``: the gradient of ``weight`` is zero outside of the chosen rows. None, or as
            many rows as there are: all of them.
        columns: a ``Columns`` or ``TopColumns``: the gradient of ``weight`` is zero outside of the chosen columns, and of ``x``
            these alone are kept. None, or as many columns as there are: all of them.
        tokens: a ``Tokens``: the gradient of ``weight`` sums over so many elements of the leading dimensions. None, or as many
            as there are: all of them.

    Returns:
        ``[..., out]``. Dense, and where :func:`stock_reason` names a reason, this is ``F.linear`` itself.

    Raises:
        What ``F.linear`` raises; ``ValueError``, ``TypeError`` where the plan does not fit; ``RuntimeError`` for a second or
        forward-mode derivative through a call with rows, columns or tokens.
    """
    plan = Plan.of(plan, parts).restricting(LINEAR.units(weight), lambda: LINEAR.count_tokens(x)) or DENSE
    return planned_linear(x, weight, bias, plan, None)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sides = 1,
    padding: Sides | str = 0,
    dilation: Sides = 1,
    groups: int = 1,
    *,
    plan: Plan | None = None,
    **parts: "Unpack[Parts]",
) -> Tensor:
    """The output of ``F.conv2d``, whose backward follows a plan.

    Args:
        x: ``[B, C, H, W]`` or ``[C, H, W]``. weight: ``[out, C / groups, kh, kw]``. bias: ``[out]`` or None.
        stride, padding, dilation, groups: as for ``F.conv2d``, "same" and "valid" included.
        plan, parts: as for :func:`linear`; rows are output channels, and no ``PerExample``; columns are input channels;
            tokens are images of the batch, of which an unbatched input is one.

    Returns:
        What ``F.conv2d`` returns. Dense, and where :func:`stock_reason` names a reason, this is ``F.conv2d`` itself.

    Raises:
        As :func:`linear`, and what ``F.conv2d`` raises.
    """
    kind = Conv2d(groups=groups)
    plan = Plan.of(plan, parts).restricting(kind.units(weight), lambda: kind.count_tokens(x)) or DENSE
    return planned_conv2d(x, weight, bias, (stride, padding, dilation, groups), plan, None)


def embedding(
    x: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    scale_grad_by_freq: bool = False,
    *,
    plan: Plan | None = None,
    **parts: "Unpack[Parts]",
) -> Tensor:
    """The output ``weight[x]`` of ``F.embedding``, whose backward follows a plan.

    Args:
        x: tokens, whole numbers in int32 or int64, of any shape. weight: ``[vocabulary, features]``.
        padding_idx, scale_grad_by_freq: as for ``F.embedding``.
        plan, parts: as for :func:`linear`; rows are tokens, ``Rows`` or ``BatchRows``, and beside them there is only ``skip``.

    Returns:
        ``[..., features]``. Dense, and where :func:`stock_reason` names a reason, this is ``F.embedding`` itself.

    Raises:
        As :func:`linear`, and what ``F.embedding`` raises.
    """
    if padding_idx is not None and padding_idx < 0:
        padding_idx += len(weight)
    kind, plan = Embedding(padding_idx, scale_grad_by_freq), Plan.of(plan, parts)
    plan.check(kind.units(weight))
    return planned_embedding(x, weight, kind, plan, None)


def planned_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan, home: GradHome | None, kind: Linear = LINEAR
) -> Tensor:
    """The output of :func:`linear` for a layer, by a plan whose choices leave something out; ``home``: of its gradient.
    ``kind``: a Linear, or one whose weight lies otherwise."""
    if plan.skip and not is_together():
        return kind.fprop(x, _stock_weight(x, weight, plan), bias)
    followed = _followed(plan, x, weight, bias, kind)
    if followed is None:
        return kind.fprop(x, _stock_weight(x, weight, plan), bias)
    cast_x, dtype, cast_bias = _autocast(x, weight, bias)
    if cast_x.dtype != dtype:  # stock raises, in its own words
        return kind.fprop(x, weight, bias)
    return _apply(cast_x, weight, cast_bias, kind, followed, home)


def planned_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple[Any, ...], plan: Plan, home: GradHome | None
) -> Tensor:
    """The output of :func:`conv2d` for a layer, by a plan whose choices leave something out; ``home``: of its gradient.
    ``geometry``: stride, padding, dilation, groups."""
    stride, padding, dilation, groups = geometry
    followed = _followed(plan, x, weight, bias, Conv2d(groups=groups))
    if followed is None:
        return F.conv2d(x, _stock_weight(x, weight, plan), bias, *geometry)
    cast_x, dtype, cast_bias = _autocast(x, weight, bias)
    strided_same = padding == "same" and pair(stride) != (1, 1)
    if strided_same or x.ndim not in (3, 4) or cast_x.dtype != dtype:  # stock raises, in its own words
        return F.conv2d(x, weight, bias, *geometry)
    unbatched = x.ndim == 3
    if unbatched:
        cast_x = cast_x.unsqueeze(0)
    if isinstance(padding, str):
        cast_x, padding = numeric_padding(cast_x, weight, padding, pair(dilation))
    kind = Conv2d(pair(stride), pair(padding), pair(dilation), groups)
    y = _apply(cast_x, weight, cast_bias, kind, followed, home)
    return y.squeeze(0) if unbatched else y


def planned_embedding(tokens: Tensor, weight: Tensor, kind: Embedding, plan: Plan, home: GradHome | None) -> Tensor:
    """The output of :func:`embedding` for a layer, by its plan, which is looked at here: the table may have grown since."""
    followed: Plan | None = None
    if not (plan.skip and not is_together()) and not _takes_stock_path(_reason(tokens, weight)):
        followed = _first_order(plan.restricting(kind.units(weight), tokens.numel), weight)
    if followed is None:
        return kind.fprop(tokens, _stock_weight(tokens, weight, plan))
    sparse = not followed.skip and followed.is_sparse(transposed=False) and _may_be_sparse(weight, home)
    return look_up(tokens, Lookup(kind, followed, weight, sparse, home))


def _followed(plan: Plan, x: Tensor, weight: Tensor, bias: Tensor | None, kind: Kind) -> Plan | None:
    """The plan without a choice that takes all of this input's tokens; None where the call is stock's."""
    if _takes_stock_path(stock_reason(x, weight, bias)):
        return None
    followed: Plan | None = plan
    if plan.asks_input or torch.compiler.is_compiling():  # a compiler has to see how many rows there are in forward
        followed = plan.restricting(kind.units(weight), lambda: kind.count_tokens(x))
    return _first_order(followed, x, weight, bias)


def _first_order(plan: Plan | None, *tensors: Tensor | None) -> Plan | None:
    """The plan, which has first derivatives alone; None where the call is stock's. Raises ``RuntimeError`` where others are
    asked for."""
    if plan is None or plan is DENSE:
        return None
    if is_transformed(*tensors):
        if plan.skip:
            return None  # stock's own derivatives, with a constant weight
        raise RuntimeError(
            "a layer of wuskern with rows, columns or tokens has no forward-mode derivative and takes no part in torch.func: "
            "set them to None where one is needed"
        )
    return plan


def _stock_weight(x: Tensor, weight: Tensor, plan: Plan) -> Tensor:
    """The weight for a stock call: a constant if the plan skips, but not in DDP, which waits for it, and not in a trace. Raises
    ``RuntimeError`` for a part of a DTensor, of which all would train."""
    sharded = type(weight) not in _PLAIN and is_dtensor(weight)
    if sharded and torch.is_grad_enabled() and not plan.skip:
        raise RuntimeError("weight: expected a plain tensor for rows, columns or tokens, got a DTensor, which can only skip")
    return weight.detach() if plan.skip and not (_is_traced(x) or (is_together() and not sharded)) else weight


def _apply(x: Tensor, weight: Tensor, bias: Tensor | None, kind: Kind, plan: Plan, home: GradHome | None) -> Tensor:
    """The output of :class:`LayerFunction`. A skipped weight stays out of the graph, and its hooks are not called, unless
    processes work together: DDP waits for every parameter, and gets None."""
    if torch.compiler.is_compiling() and any(o is not None and o.only_eager for o in (plan.observer, plan.column_observer)):
        torch._dynamo.graph_break(msg="what all processes agree on in the step (exact=True) is chosen outside of compiled code")
    in_graph = weight.detach() if plan.skip and not is_together() else weight
    sparse = not plan.skip and plan.is_sparse(kind.transposed) and _may_be_sparse(weight, home)
    y: Tensor = LayerFunction.apply(x, in_graph, bias, Call(kind, plan, weight, sparse, home))
    return y


def _may_be_sparse(weight: Tensor, home: GradHome | None) -> bool:
    """Whether the gradient of ``weight`` may be torch's sparse tensor. Under a prepared DDP it is dense until backward has
    ended; compiled code has to know the layer, and no hook may want to see the gradient."""
    if type(weight) is not Parameter:
        return False
    if torch.compiler.is_compiling():
        return home is not None and not is_together() and not home.is_watched()
    ddp = _active_ddp()
    if ddp is not None and not hasattr(ddp, "_wuskern_prepared"):
        raise RuntimeError(
            "weight: a sparse gradient was asked for, by an optimizer of wuskern.optim or by sparse=True, but "
            "DistributedDataParallel would not send it: call wuskern.distributed.prepare(ddp_model) after wrapping"
        )
    return ddp is None


def stock_reason(x: Tensor, weight: Tensor | None, bias: Tensor | None = None) -> str | None:
    """Why a call with these tensors takes PyTorch's own path although it has a plan, or None."""
    if reason := _reason(x, weight, bias):
        return reason
    return None if x.dtype in ops.DTYPES else "the input is no tensor of real floating numbers"


def _reason(x: Tensor, *parameters: Tensor | None) -> str | None:
    """Why a call with an input of any dtype takes PyTorch's own path, or None."""
    if not torch.is_grad_enabled():
        return "gradients are disabled"
    if _is_traced(x):
        return "the model is being traced or exported"
    for t in (x, *parameters):
        if type(t) not in _PLAIN:
            return f"{type(t).__name__} is a subclass of Tensor"
    if x.is_nested or x.layout is not torch.strided:
        return "the input is nested or not strided"
    return None


def _is_traced(x: Any) -> bool:
    """Whether the call is being recorded. An ``x`` that is no tensor counts as well: stock refuses it in its own words."""
    # is_exporting() is True under torch 2.10's torch.compile as well
    recorded = torch.jit.is_tracing() or torch.compiler._is_exporting_flag  # type: ignore[attr-defined]
    return recorded or not isinstance(x, Tensor)


def _takes_stock_path(reason: str | None) -> bool:
    """Whether the call is stock's although it has a plan. Raises ``RuntimeError`` for one under a prepared DDP, which takes the
    plan for what backward computes."""
    if reason and torch.is_grad_enabled() and hasattr(_active_ddp(), "_wuskern_prepared"):
        raise RuntimeError(
            f"under wuskern.distributed.prepare a layer with skip, rows, columns or tokens cannot take PyTorch's path: {reason}"
        )
    return reason is not None


def _active_ddp() -> DistributedDataParallel | None:
    """The DDP in whose forward this call is; None outside of one, and while a compiler traces."""
    return None if torch.compiler.is_compiling() else DistributedDataParallel._active_ddp_module


def is_transformed(*tensors: Tensor | None) -> bool:
    """Whether forward-mode derivatives are taken, or a transform of torch.func is at work. That is asked here because a
    Function with a ``jvp`` could not be compiled."""
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():  # type: ignore[attr-defined]
        return True
    if forward_ad._current_level < 0:
        return False
    return any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def _autocast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, torch.dtype, Tensor | None]:
    """The x and bias with which stock would compute under autocast, and the dtype that ``weight`` has then. They are cast out
    here, where autograd casts the gradients back."""
    device = x.device.type
    try:
        if not torch.is_autocast_enabled(device):
            return x, weight.dtype, bias
    except RuntimeError:  # a device that knows no autocast
        return x, weight.dtype, bias
    dtype = torch.get_autocast_dtype(device)

    def in_autocast(t: Tensor) -> torch.dtype:
        return dtype if t.is_floating_point() and t.dtype != torch.float64 else t.dtype

    return x.to(in_autocast(x)), in_autocast(weight), None if bias is None else bias.to(in_autocast(bias))
