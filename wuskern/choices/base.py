"""What the choices of one kind or another have in common."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Units(NamedTuple):
    """What a layer has to choose from: its kind ("Linear", "Conv2d", "Conv1D", "Embedding"), rows, columns, and equal groups of
    both.

    Attributes:
        transposed: whether the weight lies ``[inputs, out]``: columns are then its dimension 0, and rows its dimension 1.
    """

    layer: str
    out: int
    inputs: int
    groups: int = 1
    transposed: bool = False

    @property
    def is_depthwise(self) -> bool:
        """Whether each group has one input channel."""
        return self.groups > 1 and self.inputs == self.groups


class Choice:
    """What a plan's choices of one kind or another have in common."""

    sparse: bool | None = False  # whether the weight's gradient is to be torch's sparse tensor; None: as the optimizer likes it

    def check(self, units: Units) -> None:
        """Raises ``ValueError`` or ``TypeError`` if a layer with these units cannot have the choice."""

    def leaves_out(self, units: Units, count_tokens: Callable[[], int]) -> bool:
        """Whether the choice takes less than all of these units, or of the tokens. Raises as :meth:`check`."""
        raise NotImplementedError

    asks_input = False  # whether ``leaves_out`` depends on how many tokens there are

    @property
    def key(self) -> Any:
        """What a captured graph of the backward depends on."""
        return self


def check_sparse(value: object) -> None:
    """Refuses what is no wish for the form of a gradient."""
    if not isinstance(value, bool | None):
        raise TypeError(f"sparse: expected True, False or None, got {value!r}")


def count_of(ratio: float | None, k: int | None, out: int, unit: int) -> int:
    """The number of ``out`` units that a ratio or ``k`` means, a multiple of ``unit``. Raises ``ValueError`` for another k."""
    if k is None:
        return max(1, int(ratio * out) // unit) * unit  # type: ignore[operator]
    if k > out and unit == 1:
        raise ValueError(f"k: expected at most {out}, got {k}")
    if k > out or k % unit:
        raise ValueError(f"k: expected a multiple of block * groups = {unit} up to {out}, got {k}")
    return k
