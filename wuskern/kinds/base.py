"""What the backward asks of a kind of layer."""

from typing import Any, ClassVar, Protocol

from torch import Tensor

from wuskern.choices import Units

Pair = tuple[int, ...]  # height and width
Sides = int | tuple[int, ...]  # as torch's functions take a pair


def pair(value: Sides) -> Pair:
    """The two numbers, for height and width, of what may be one number for both."""
    if isinstance(value, int):
        return value, value
    return tuple(value) if len(value) == 2 else tuple(value) * 2


class Kind(Protocol):
    """A kind of layer.

    Attributes:
        dim: the dimension of y that holds the output units. groups: into how many equal parts these fall.
        transposed: whether the weight has its input units in dimension 0, and the output units in dimension 1.
    """

    dim: ClassVar[int]
    transposed: ClassVar[bool]

    @property
    def groups(self) -> int: ...

    def units(self, weight: Tensor) -> Units:
        """The units that choices have to fit."""

    def count_tokens(self, x: Tensor) -> int:
        """How many tokens the weight's gradient sums over; y has as many as x."""

    def fprop(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The output y."""

    def like(self, x: Tensor, weight: Tensor) -> Any:
        """How the gradient of x has to lie in memory, for stock's strides."""

    def laid_out(self, dy: Tensor, like: Any) -> Tensor:
        """The gradient ``dy`` in the memory format that its products want."""

    def tokens(self, t: Tensor) -> Tensor:
        """The tensor ``t``, x or dy, as ``[tokens, ...]``."""

    def dgrad(self, dy: Tensor, weight: Tensor, like: Any) -> Tensor:
        """The gradient of x, by a constant weight, made of calls that autograd knows: it can be differentiated again."""

    def rowsparse_dgrad(self, dy: Tensor, weight: Tensor, rows: Tensor, like: Any) -> Tensor:
        """The gradient of x from the chosen rows alone, which are all that ``dy`` has."""

    def wgrad(self, dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """The whole gradient of the weight, in its shape and layout, from dy and x as ``[tokens, ...]``."""

    def column_sums(self, x: Tensor) -> Tensor:
        """The sums ``[inputs]`` of the squares of x, one for each input unit."""

    def weight_sums(self, weight: Tensor) -> Tensor:
        """The sums ``[inputs]`` of the squares of the weight, one for each input unit."""

    def gathers_columns(self, weight: Tensor) -> bool:
        """Whether forward keeps columns of x alone: where a gather costs less than the product that it saves."""

    def widened(self, x: Tensor, weight: Tensor) -> Tensor:
        """Columns of x with as many zeros behind them as a library needs to be as right as it is for all columns."""

    def part(self, weight: Tensor, x: Tensor) -> Tensor:
        """A tensor without values, in shape and layout the weight's with as many columns as x has."""

    def column_wgrad(self, dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """The gradient of the columns that x has, as :meth:`wgrad`; ``weight``: that part of the weight."""

    def rowsparse_wgrad(self, dy: Tensor, x: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
        """The gradient ``[k, ...]`` of the chosen rows; ``dy`` has all rows or these alone."""
