"""Choices of columns: of the input units of which the weight has a gradient, and forward keeps the input."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torch import Tensor

from wuskern.choices.base import Choice, Units, check_sparse, count_of
from wuskern.choices.index import FixedIndex
from wuskern.common.arguments import amount, one_of, whole

ColumnScore = Literal["input", "weight", "random"]
COLUMN_SCORES = get_args(ColumnScore)


class ColumnwiseChoice(Choice):
    """A choice of columns: what both kinds of it check."""

    def count(self, inputs: int, groups: int = 1) -> int:
        """The number of columns that are chosen of ``inputs``, of a convolution with ``groups``. Raises ``ValueError`` where it
        does not fit."""
        raise NotImplementedError

    def check(self, units: Units) -> None:
        if units.is_depthwise:
            raise ValueError(
                "columns: expected a layer with more than one input channel to a group, got a depthwise convolution"
            )
        self.count(units.inputs, units.groups)

    def leaves_out(self, units: Units, count_tokens: Callable[[], int]) -> bool:
        self.check(units)
        return self.count(units.inputs, units.groups) < units.inputs


@dataclass(frozen=True, eq=False, repr=False)
class Columns(FixedIndex, ColumnwiseChoice):
    """A fixed set of input units whose weights train, as in PaCA (arXiv 2503.01905): forward keeps these columns of the input
    alone, backward computes ``dW[:, index] = dY^T X[:, index]``. The input gradient and the bias gradient are dense.

    ``weight.grad`` is dense, and zero in the other columns: torch has no layout for it, but of a Conv1D's weight.

    Args:
        index: whole numbers from 0, each once, in any order: a list or a one-dimensional integer tensor. Of a Conv2d they are
            input channels; with groups, as many of each group.
        sparse: of a Conv1D, as for the rows of other layers in :class:`TopK`; of others None or False.

    Attributes:
        index: ``[k]``, int64, ascending. On a GPU if the given tensor was there.

    Raises:
        TypeError, ValueError: no integers, none at all, one twice, or a negative one. Whether they fit a layer shows in
            :meth:`check`.
    """

    index: Tensor
    sparse: bool | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_sparse(self.sparse)
        self.take("column")

    def _value(self) -> tuple[Any, ...]:
        return self.numbers, self.sparse

    def __repr__(self) -> str:
        form = "" if self.sparse is None else f", sparse={self.sparse}"
        return f"Columns({list(self.numbers)}{form})"

    def count(self, inputs: int, groups: int = 1) -> int:
        return self.fitting(inputs, groups, "columns")

    @property
    def key(self) -> Any:
        """What a captured graph depends on: the number of the columns, and not which they are, of which it reads the tensor."""
        return Columns, len(self.index), self.sparse


@dataclass(frozen=True, kw_only=True)
class TopColumns(ColumnwiseChoice):
    """The input units with the largest scores in each forward pass; otherwise as :class:`Columns`. No pass over dY is spent.

    Args:
        ratio: of the columns, in (0, 1]: ``int(ratio * inputs)`` of them, at least one. k: or so many. Exactly one of the two.
        score: "input", the sum of the squares of the input over batch and space; "weight", that of the weight's column;
            "random", drawn anew each time from torch's generator of the device.
        block: columns are chosen in aligned blocks of so many: 16 of float32 are a cache line. With it, or with a
            convolution's ``groups``, from each of which as many are taken, ``ratio`` rounds down to whole blocks.
        sparse: as for :class:`Columns`.

    Raises:
        TypeError, ValueError: an argument out of its range. Whether it fits a layer shows in :meth:`check`.
    """

    ratio: float | None = None
    k: int | None = None
    score: ColumnScore = "input"
    block: int = 1
    sparse: bool | None = None

    def __post_init__(self) -> None:
        amount(self.ratio, self.k)
        one_of("score", self.score, COLUMN_SCORES)
        whole("block", self.block)
        check_sparse(self.sparse)

    def count(self, inputs: int, groups: int = 1) -> int:
        unit = self.block * groups
        if inputs % unit:
            raise ValueError(f"block: expected a divisor of {inputs // groups} columns (of each group), got {self.block}")
        return count_of(self.ratio, self.k, inputs, unit)


ColumnChoice = Columns | TopColumns
