"""Which rows of a weight get a gradient, and what came out: frozen values without state.

A row is one output unit: a row of a Linear's ``[out, in]`` weight, an output channel of a Conv2d's
``[out, in / groups, kh, kw]``.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from wuskern import deliver, ops
from wuskern.activeness import Activeness
from wuskern.arguments import amount, one_of, whole

SCOPES = ("weight", "both")
BIASES = ("dense", "rows")
SCORES = (*ops.SCORES, "random")


@dataclass(frozen=True, kw_only=True)
class TopK:
    """The rows with the largest scores of each backward pass: unified meProp (arXiv 1706.06197), ssProp (arXiv 2408.12561).

    Args:
        ratio: of the rows, in (0, 1]: ``int(ratio * out)`` of them, at least one. k: or so many. Exactly one of the two.
        scope: "weight": only the weight gradient is restricted. "both": the input gradient, too, comes from the chosen
            rows alone.
        score: "l1", the sum of ``|dY|`` over batch and space; "l2", that of ``dY * dY``; "random", drawn anew each time
            from torch's generator of the device.
        block: rows are chosen in aligned blocks of so many. With it, or with a convolution's ``groups``, from each of
            which as many are taken, ``ratio`` rounds down to whole blocks, at least one of each group.
        bias: "dense": the whole bias gradient. "rows": zero outside of the chosen rows.
        agree: called in backward with this process's scores, ``[out]``, before rows are chosen; answers with those to choose
            by, the same in all processes. For ``wuskern.distributed``, which sets it for the length of a forward.
        active: counts which rows are chosen, and says which may be.

    Raises:
        TypeError, ValueError: an argument out of its range. Whether it fits a layer shows in :meth:`count`.
    """

    ratio: float | None = None
    k: int | None = None
    scope: str = "weight"
    score: str = "l1"
    block: int = 1
    bias: str = "dense"
    agree: Callable[[Tensor], Tensor] | None = field(default=None, compare=False, repr=False)
    active: Activeness | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        amount(self.ratio, self.k)
        one_of("scope", self.scope, SCOPES)
        one_of("score", self.score, SCORES)
        one_of("bias", self.bias, BIASES)
        whole("block", self.block)
        _check_active(self.active)

    def count(self, out: int, groups: int = 1) -> int:
        """How many of ``out`` rows, of a convolution with ``groups``. Raises ``ValueError`` where it does not fit."""
        unit = self.block * groups
        if out % groups:
            raise ValueError(f"groups: expected a divisor of {out} rows, got {groups}")
        if out % unit:
            raise ValueError(f"block: expected a divisor of {out // groups} rows (of each group), got {self.block}")
        return _count(self.ratio, self.k, out, unit)


@dataclass(frozen=True, kw_only=True)
class PerExample:
    """meProp's first form (arXiv 1706.06197), for comparison with the paper: of a Linear's dY, the ``k`` largest ``|dY_i|``
    of each example are kept, and weight and input gradient come from those alone; the bias gradient is dense.

    Exact, and no faster than dense: the products are sparse without a pattern, and are computed whole. Equal values: the
    lower index wins; NaN ranks first. An example is an element of the leading dimensions: one token.

    Args:
        ratio, k, active: as for :class:`TopK`; each example is a choice.
    """

    ratio: float | None = None
    k: int | None = None
    active: Activeness | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        amount(self.ratio, self.k)
        _check_active(self.active)

    def count(self, out: int, groups: int = 1) -> int:
        """How many of ``out`` values. Raises ``ValueError`` where it does not fit."""
        return _count(self.ratio, self.k, out, 1)


@dataclass(eq=False)
class Scores:
    """The sum of the scores of all rows over backward passes, for whoever chooses the next ``Rows`` by them.

    Args:
        score: "l1" or "l2", as for :class:`TopK`.

    Attributes:
        total: ``[out]``, float32 (float64 of float64 gradients), of this process alone; None before the first backward.
    """

    score: str = "l1"
    total: Tensor | None = None
    _key: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        one_of("score", self.score, ops.SCORES)
        self._key = deliver.new_key(self, Scores._receive)

    def __getstate__(self) -> tuple[str, Tensor | None]:
        return self.score, self.total

    def __setstate__(self, state: tuple[str, Tensor | None]) -> None:  # a copy has a key of its own
        self.score, self.total = state
        self._key = deliver.new_key(self, Scores._receive)

    def add(self, scores: Tensor) -> None:
        if torch.compiler.is_compiling():
            deliver.from_compiled(self._key, scores)
        else:
            self._receive(scores)

    def _receive(self, scores: Tensor) -> None:
        self.total = scores if self.total is None else self.total + scores

    def clear(self) -> None:
        self.total = None


@dataclass(frozen=True, eq=False)
class Rows:
    """A fixed set of rows, as a policy chooses it. No pass over dY is spent on scores, unless ``scores`` asks for them.

    Args:
        index: whole numbers from 0, each once, in any order: a list or a one-dimensional integer tensor.
        scope, bias: as for :class:`TopK`.
        scores: every backward adds the scores of all rows, chosen or not, in the pass that sums the bias gradient.

    Attributes:
        index: ``[k]``, int64, ascending. On a GPU if the given tensor was there.

    Raises:
        TypeError, ValueError: no integers, none at all, one twice, or a negative one.
    """

    index: Tensor
    scope: str = "weight"
    bias: str = "dense"
    scores: Scores | None = field(default=None, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        one_of("scope", self.scope, SCOPES)
        one_of("bias", self.bias, BIASES)
        if not isinstance(self.scores, Scores | None):
            raise TypeError(f"scores: expected a Scores or None, got {type(self.scores).__name__}")
        index = torch.as_tensor(self.index)
        if index.dtype.is_floating_point or index.dtype.is_complex or index.dtype is torch.bool or index.ndim != 1:
            raise TypeError(f"index: expected a list of integers, got {index.ndim}-d {index.dtype}")
        object.__setattr__(self, "index", index.detach().long().sort()[0].clone())
        if not self.numbers:
            raise ValueError("index: expected at least one row, got none")
        if self.numbers[0] < 0:
            raise ValueError(f"index: expected numbers from 0, got {self.numbers[0]}")
        if len(set(self.numbers)) < len(self.numbers):
            raise ValueError("index: expected each row once, got one twice")

    @functools.cached_property  # no field: torch.compile would watch each number
    def numbers(self) -> tuple[int, ...]:
        """``index`` without its tensor."""
        return tuple(self.index.tolist())

    @functools.cached_property
    def _fits(self) -> set[tuple[int, int]]:
        """(out, groups) that have been checked: layers ask in every forward."""
        return set()

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, Rows) and (self.numbers, self.scope, self.bias) == (other.numbers, other.scope, other.bias)
        return bool(same)

    def __hash__(self) -> int:
        return hash((self.numbers, self.scope, self.bias))

    def count(self, out: int, groups: int = 1) -> int:
        """How many. Raises ``ValueError`` where one is out of range, or a group of a convolution has more than another."""
        if not torch.compiler.is_compiling() and (out, groups) not in self._fits:
            self._check(out, groups)
            self._fits.add((out, groups))
        return self.index.shape[0]

    def _check(self, out: int, groups: int) -> None:
        if self.numbers[-1] >= out:
            raise ValueError(f"index: expected rows under {out}, got {self.numbers[-1]}")
        if groups > 1:
            of_group = [0] * groups
            for row in self.numbers:
                of_group[row * groups // out] += 1
            if len(set(of_group)) > 1:
                raise ValueError(f"index: expected as many rows in each of {groups} groups, got {of_group}")

    @classmethod
    def random(
        cls,
        out: int,
        k: int,
        *,
        block: int = 1,
        groups: int = 1,
        generator: torch.Generator | None = None,
        scope: str = "weight",
        bias: str = "dense",
    ) -> "Rows":
        """``k`` of ``out`` rows at random, in aligned blocks, as many from each group."""
        device = generator.device if generator is not None else None
        scores = torch.rand(out, generator=generator, device=device)
        return cls(ops.select_rows(scores, k, block, groups), scope, bias)


RowChoice = TopK | Rows | PerExample
ROW_CHOICES = (TopK, Rows, PerExample)  # for isinstance: torch 2.10 compiles no union


def refuse_per_example(rows: RowChoice | None, where: str = "") -> None:
    """Raises ``TypeError``, its text behind ``where``: of a Conv2d."""
    if isinstance(rows, PerExample):
        raise TypeError(f"{where}rows: expected TopK or Rows for a Conv2d, got PerExample, which its paper defines for Linear")


@dataclass(frozen=True)
class RowGrad:
    """A gradient that is zero outside of ``rows``: row ``rows[i]`` is ``values[i]``.

    Attributes:
        rows: ``[k]``, int64, ascending, each once. values: ``[k, ...]``.
    """

    rows: Tensor
    values: Tensor

    def __add__(self, other: "RowGrad") -> "RowGrad":
        """The sum, over the union of the rows."""
        if self.rows is other.rows:
            return RowGrad(self.rows, self.values + other.values)
        rows, place = torch.cat((self.rows, other.rows)).unique(return_inverse=True)
        values = self.values.new_zeros(len(rows), *self.values.shape[1:])
        for part, grad in zip(place.split([len(self.rows), len(other.rows)]), (self, other), strict=True):
            values.index_add_(0, part, grad.values)
        return RowGrad(rows, values)

    def dense(self, out: int) -> Tensor:
        """``[out, ...]``, zero in the other rows."""
        return self.values.new_zeros(out, *self.values.shape[1:]).index_copy_(0, self.rows, self.values)


# ---- arguments ------------------------------------------------------------------------------------------------------


def _check_active(active: Any) -> None:
    if not isinstance(active, Activeness | None):
        raise TypeError(f"active: expected an Activeness or None, got {type(active).__name__}")


def _count(ratio: float | None, k: int | None, out: int, unit: int) -> int:
    if k is None:
        return max(1, int(ratio * out) // unit) * unit  # type: ignore[operator]
    if k > out or k % unit:
        raise ValueError(f"k: expected a multiple of block * groups = {unit} up to {out}, got {k}")
    return k
