"""The kind of a Linear."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from wuskern import ops
from wuskern.choices import Units
from wuskern.common.shapes import as_matrix


@dataclass(frozen=True)
class Linear:
    """The kind ``y = x @ weight.T + bias``. x: ``[..., in]``. weight: ``[out, in]``. ``like``: whether x, as a matrix, is
    transposed in memory."""

    dim: ClassVar[int] = -1
    transposed: ClassVar[bool] = False
    groups: ClassVar[int] = 1  # type: ignore[misc]

    def units(self, weight: Tensor) -> Units:
        return Units("Linear", *weight.shape)

    def count_tokens(self, x: Tensor) -> int:
        return math.prod(x.shape[:-1])

    def fprop(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def like(self, x: Tensor, weight: Tensor) -> bool:
        if x.ndim < 3:
            return x.ndim == 2 and x.stride() == (1, x.size(0))
        tokens = 1
        for size, stride in zip(x.shape[-2::-1], x.stride()[-2::-1], strict=True):
            if size > 1 and stride != tokens:
                return False
            tokens *= size
        return tokens > 1 and x.stride(-1) == tokens

    def laid_out(self, dy: Tensor, like: bool) -> Tensor:
        return dy

    def tokens(self, t: Tensor) -> Tensor:
        return as_matrix(t)

    def dgrad(self, dy: Tensor, weight: Tensor, like: bool) -> Tensor:
        weight = weight.detach()  # where the weight requires a gradient, torch.matmul makes copies
        if not like:
            return dy.matmul(weight)
        return weight.t().mm(as_matrix(dy).t()).t().view(*dy.shape[:-1], weight.shape[1])

    def rowsparse_dgrad(self, dy: Tensor, weight: Tensor, rows: Tensor, like: bool) -> Tensor:
        dx = ops.rowsparse_dgrad(dy, weight, rows)
        return as_matrix(dx).t().contiguous().t().view(dx.shape) if like else dx

    def wgrad(self, dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return dy.t() @ x

    def rowsparse_wgrad(self, dy: Tensor, x: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
        return ops.rowsparse_wgrad(dy, x, rows)

    def column_sums(self, x: Tensor) -> Tensor:
        return ops.row_stats(x, -1, "l2")[1]

    def weight_sums(self, weight: Tensor) -> Tensor:
        return ops.row_stats(weight, -1, "l2")[1]

    def gathers_columns(self, weight: Tensor) -> bool:
        return True

    def widened(self, x: Tensor, weight: Tensor) -> Tensor:
        return x

    def part(self, weight: Tensor, x: Tensor) -> Tensor:
        return weight.new_empty(weight.shape[0], x.shape[-1])

    def column_wgrad(self, dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return self.wgrad(dy, x, weight)


LINEAR = Linear()
