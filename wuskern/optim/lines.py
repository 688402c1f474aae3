"""A part of a weight as lines of its memory, so that one row update serves columns, too: neighbouring columns of a row are a
line, and lines are rows of the weight when it is seen as a matrix of lines."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from wuskern.delivery.part import Part

WIDEST = 64  # columns to a line; wider ones do not make an update faster


class Lines(NamedTuple):
    """Lines of a weight: their numbers ``[n]``, int64, ascending, the elements of each, and whether the weight is in
    channels_last."""

    numbers: Tensor
    width: int
    is_last: bool

    def fits(self, t: Tensor) -> bool:
        """Whether a tensor lies in memory as the weight does: the weight itself, its gradient, or the state of the part."""
        return (t.permute(0, 2, 3, 1) if self.is_last else t).is_contiguous()

    def of(self, t: Tensor) -> Tensor:
        """A view ``[lines, width]`` of a tensor that fits."""
        return (t.permute(0, 2, 3, 1) if self.is_last else t).view(-1, self.width)


def lines_of(part: Part, weight: Tensor) -> Lines:
    """The lines that are this part, which has columns, of a weight that is contiguous or in channels_last."""
    out, of_group, *taps = weight.shape
    assert part.columns is not None
    device, is_last = weight.device, weight.ndim == 4 and not weight.is_contiguous()
    rows = torch.arange(out, device=device) if part.rows is None else part.rows
    columns = part.columns.view(part.groups, -1) % of_group
    each = _block(columns, of_group)
    blocks = columns[:, ::each] // each
    units, group = rows, rows * part.groups // out  # what a line belongs to: a row, or in channels_last a tap of one
    if is_last:
        of_row = math.prod(taps)
        units = (rows[:, None] * of_row + torch.arange(of_row, device=device)).flatten()
        group = group.repeat_interleave(of_row)
    numbers = (units[:, None] * (of_group // each) + blocks[group]).flatten()
    return Lines(numbers, each if is_last else each * math.prod(taps), is_last)


def _block(columns: Tensor, of_group: int) -> int:
    """The largest power of two in whose aligned blocks the columns ``[groups, k]`` come, whole ones."""
    block = 1
    while block < WIDEST and of_group % (2 * block) == 0 and columns.shape[1] % (2 * block) == 0:
        wider = columns.view(len(columns), -1, 2 * block)
        first = wider[..., :1]
        if not bool((first % (2 * block) == 0).all() and (wider - first == torch.arange(2 * block, device=first.device)).all()):
            break
        block *= 2
    return block
