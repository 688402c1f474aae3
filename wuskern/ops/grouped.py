"""The weight gradient of a convolution in groups by PyTorch's library, as an op of its own for those who count its operations:
torch's FLOP counter takes ``convolution_backward`` for one without groups."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wuskern.common.flops import register_flops

_library = torch.library.Library("wuskern", "FRAGMENT")
_library.define(
    "grouped_wgrad(Tensor dy, Tensor x, Tensor weight, int[2] stride, int[2] padding, int[2] dilation, int groups) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)

Pair = Sequence[int]


def grouped_wgrad(dy: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> Tensor:
    """The gradient ``[out, C / groups, kh, kw]``, in the layout of ``weight``, whose values are not read."""
    arguments = dy, x, weight, stride, padding, dilation, groups
    if not torch.compiler.is_compiling() and torch._C._len_torch_dispatch_stack():  # a mode, such as FlopCounterMode
        return torch.ops.wuskern.grouped_wgrad.default(*arguments)
    return _run(*arguments)


def _run(dy: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> Tensor:
    geometry = stride, padding, dilation, False, (0, 0), groups
    return torch.ops.aten.convolution_backward(dy, x, weight, None, *geometry, (False, True, False))[1]


def _flops(dy: torch.Size, x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * dy.numel() * math.prod(weight[1:])


_library.impl("grouped_wgrad", _run, "CompositeExplicitAutograd")
torch.library.register_fake("wuskern::grouped_wgrad", _run, lib=_library)
register_flops(torch.ops.wuskern.grouped_wgrad, _flops)
