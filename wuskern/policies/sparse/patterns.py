"""Which weights come and go together, and which of them are the largest."""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from wuskern.common.arguments import whole


@dataclass(frozen=True)
class Pattern:
    """The units, in groups, into which the weights of the matrix ``[out, in * kh * kw]`` fall.

    Attributes:
        block: a unit is an aligned block of ``block`` x ``block`` weights. 1: a weight.
        n, m: of each ``m`` consecutive inputs, which are a group, ``n`` stay. 0: the layer is one group.
    """

    block: int = 1
    n: int = 0
    m: int = 0

    @classmethod
    def of(cls, pattern: str, block: int) -> "Pattern":
        """The pattern for the arguments of a policy. Raises ``ValueError`` or ``TypeError`` naming them."""
        whole("block", block)
        if pattern == "unstructured":
            return cls()
        if pattern == "block":
            return cls(block)
        match = re.fullmatch(r"(\d+)(?::|of)(\d+)", pattern) if isinstance(pattern, str) else None
        if not match or not 0 < int(match[1]) < int(match[2]):
            raise ValueError(f"pattern: expected unstructured, block, or n:m (nofm) with n under m, got {pattern!r}")
        return cls(1, int(match[1]), int(match[2]))

    def check(self, weight: Tensor) -> None:
        """Raises ``ValueError`` where the units do not fit a weight."""
        rows, columns = weight.flatten(1).shape
        if rows % self.block or columns % self.block:
            raise ValueError(f"block: expected a divisor of {rows} and {columns}, got {self.block}")
        if self.m and columns % self.m:
            raise ValueError(f"pattern: expected m to divide {columns} inputs, got {self.n}:{self.m}")

    def scores(self, values: Tensor) -> Tensor:
        """The sum of ``|values|`` in each unit, ``[groups, units]``, in float32 or more. values: of the weight's shape."""
        sizes = values.detach().flatten(1).abs()
        sizes = sizes.to(torch.promote_types(sizes.dtype, torch.float32))
        if self.block > 1:
            b = self.block
            sizes = sizes.unflatten(1, (-1, b)).unflatten(0, (-1, b)).sum((1, 3))
        return sizes.reshape(-1, self.m) if self.m else sizes.reshape(1, -1)

    def units(self, mask: Tensor) -> Tensor:
        """The units ``[groups, units]``, bool, of a mask of the weight's shape that :meth:`mask` made."""
        b = self.block
        first = mask.flatten(1)[::b, ::b]
        return first.reshape(-1, self.m) if self.m else first.reshape(1, -1)

    def mask(self, units: Tensor, like: Tensor) -> Tensor:
        """A mask with the shape and strides of the weight ``like``: True in the units ``[groups, units]`` that are True."""
        rows, columns = like.flatten(1).shape
        b = self.block
        grid = units.reshape(rows // b, columns // b)
        if b > 1:
            grid = grid.repeat_interleave(b, 0).repeat_interleave(b, 1)
        return torch.empty_like(like, dtype=torch.bool).copy_(grid.reshape(like.shape))

    def count(self, weight: Tensor) -> int:
        """How many units a weight has."""
        return weight.numel() // self.block**2


def remaining(units: int, sparsity: float) -> int:
    """How many of ``units`` units are not zero: all but ``floor(sparsity * units)``, and one at least."""
    return max(1, units - int(sparsity * units + 1e-6))  # rounding errors must not lose a unit


def largest(scores: Tensor, counts: Tensor) -> Tensor:
    """A mask ``[groups, units]`` of the ``counts[group]`` largest scores of each group; of equal ones the lowest indices.

    Args:
        scores: ``[groups, units]``; NaN is infinite. counts: ``[groups]``, int64, from 0 to the number of units.
    """
    scores = scores.nan_to_num(torch.inf, torch.inf)
    if len(scores) == 1:
        least = scores.topk(max(1, int(counts)), sorted=False).values.amin(1, keepdim=True)
    else:
        least = scores.sort(1, descending=True).values.gather(1, (counts - 1).clamp(min=0)[:, None])
    over, equal = scores > least, scores == least
    places = counts[:, None] - over.sum(1, keepdim=True)  # for scores that equal the least
    return over | (equal & (equal.cumsum(1, dtype=torch.int32) <= places))
