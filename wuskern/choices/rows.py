"""Choices of rows: of the output units that have a weight gradient."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from wuskern import ops
from wuskern.choices.base import Choice, Units, check_sparse, count_of
from wuskern.choices.index import FixedIndex
from wuskern.common.arguments import amount, one_of, whole

Scope = Literal["weight", "both"]
Bias = Literal["dense", "rows"]
Score = Literal["l1", "l2", "random"]
SCOPES, BIASES, SCORES = map(get_args, (Scope, Bias, Score))


class RowwiseChoice(Choice):
    """A choice of rows, which leaves out those that :meth:`count` does not count."""

    def count(self, out: int, groups: int = 1) -> int:
        """How many of ``out`` rows, of a convolution with ``groups``. Raises ``ValueError`` where it does not fit."""
        raise NotImplementedError

    def check(self, units: Units) -> None:
        self.count(units.out, units.groups)

    def leaves_out(self, units: Units, count_tokens: Callable[[], int]) -> bool:
        return self.count(units.out, units.groups) < units.out


@dataclass(frozen=True, kw_only=True)
class TopK(RowwiseChoice):
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
        sparse: True: ``weight.grad`` is torch's hybrid sparse tensor, as of ``nn.Embedding(sparse=True)``; False: dense, zero
            in the other rows, and always so of a Conv1D. None: sparse in a layer whose weight an optimizer of
            ``wuskern.optim`` holds, and in an embedding made with ``sparse=True``, else dense.

    Raises:
        TypeError, ValueError: an argument out of its range. Whether it fits a layer shows in :meth:`check`.
    """

    ratio: float | None = None
    k: int | None = None
    scope: Scope = "weight"
    score: Score = "l1"
    block: int = 1
    bias: Bias = "dense"
    sparse: bool | None = None

    def __post_init__(self) -> None:
        amount(self.ratio, self.k)
        one_of("score", self.score, SCORES)
        whole("block", self.block)
        _check_form(self)

    def count(self, out: int, groups: int = 1) -> int:
        """How many of ``out`` rows, of a convolution with ``groups``. Raises ``ValueError`` where it does not fit."""
        unit = self.block * groups
        if out % groups:
            raise ValueError(f"groups: expected a divisor of {out} rows, got {groups}")
        if out % unit:
            raise ValueError(f"block: expected a divisor of {out // groups} rows (of each group), got {self.block}")
        return count_of(self.ratio, self.k, out, unit)


@dataclass(frozen=True, kw_only=True)
class PerExample(RowwiseChoice):
    """The first form of meProp (arXiv 1706.06197), for comparison with the paper: of the dY of a Linear or Conv1D, the ``k``
    largest ``|dY_i|`` of each example are kept, and weight and input gradient come from those alone; the bias gradient is
    dense.

    It is exact, and no faster than dense: the products are sparse without a pattern, and are computed whole. Equal values: the
    lower index wins; NaN ranks first. An example is an element of the leading dimensions: one token.

    Args:
        ratio, k: as for :class:`TopK`; each example is a choice.
    """

    ratio: float | None = None
    k: int | None = None

    def __post_init__(self) -> None:
        amount(self.ratio, self.k)

    def count(self, out: int, groups: int = 1) -> int:
        """How many of ``out`` values each example keeps. Raises ``ValueError`` where ``k`` is more."""
        return count_of(self.ratio, self.k, out, 1)

    def check(self, units: Units) -> None:
        if units.layer not in ("Linear", "Conv1D"):
            raise TypeError(
                f"rows: expected TopK or Rows for a {units.layer}, got PerExample, which its paper defines for Linear"
            )
        super().check(units)

    def leaves_out(self, units: Units, count_tokens: Callable[[], int]) -> bool:
        self.check(units)
        return super().leaves_out(units, count_tokens)


@dataclass(frozen=True, eq=False, repr=False)
class Rows(FixedIndex, RowwiseChoice):
    """A fixed set of rows, as a policy chooses it. No pass over dY is spent on scores, unless an ``Observer`` asks for them.

    Of an embedding they are the tokens that train; ``scope`` and ``bias`` say nothing there.

    Args:
        index: whole numbers from 0, each once, in any order: a list or a one-dimensional integer tensor.
        scope, bias, sparse: as for :class:`TopK`.

    Attributes:
        index: ``[k]``, int64, ascending. On a GPU if the given tensor was there.

    Raises:
        TypeError, ValueError: no integers, none at all, one twice, or a negative one.
    """

    index: Tensor
    scope: Scope = "weight"
    bias: Bias = "dense"
    sparse: bool | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        _check_form(self)
        self.take("row")

    def _value(self) -> tuple[Any, ...]:
        return self.numbers, self.scope, self.bias, self.sparse

    def __repr__(self) -> str:
        form = "" if self.sparse is None else f", sparse={self.sparse}"
        return f"Rows({list(self.numbers)}, {self.scope!r}, {self.bias!r}{form})"

    def count(self, out: int, groups: int = 1) -> int:
        return self.fitting(out, groups, "rows")

    @property
    def key(self) -> Any:
        """What a captured graph of the backward depends on: not the rows themselves, whose tensor the graph reads."""
        return Rows, len(self.index), self.scope, self.bias, self.sparse

    @classmethod
    def random(
        cls,
        out: int,
        k: int,
        *,
        block: int = 1,
        groups: int = 1,
        generator: torch.Generator | None = None,
        scope: Scope = "weight",
        bias: Bias = "dense",
    ) -> "Rows":
        """A choice of ``k`` of ``out`` rows at random, in aligned blocks, as many from each group."""
        device = generator.device if generator is not None else None
        scores = torch.rand(out, generator=generator, device=device)
        return cls(ops.select_rows(scores, k, block, groups), scope, bias)


@dataclass(frozen=True, kw_only=True)
class BatchRows(Choice):
    """The rows of an embedding that a batch has read: its tokens, each once and ascending, without ``padding_idx``.

    It is a choice of form, since the others have no gradient anyway: ``weight.grad`` is sparse over these rows, as of
    ``nn.Embedding(sparse=True)``, and coalesced. Asked for in the dense form it is stock's own gradient.

    Which tokens there are is asked in backward: that waits for a GPU, a CUDA graph cannot capture it, and a compiled model runs
    the layer outside of its graphs, which ``fullgraph=True`` refuses. Under ``wuskern.distributed.prepare``, where other
    processes have read other tokens, the gradient is dense.

    Args:
        sparse: as for :class:`TopK`.
    """

    sparse: bool | None = None

    def __post_init__(self) -> None:
        check_sparse(self.sparse)

    def check(self, units: Units) -> None:
        if units.layer != "Embedding":
            raise TypeError(f"rows: expected TopK or Rows for a {units.layer}, got BatchRows, which are tokens of an embedding")

    def leaves_out(self, units: Units, count_tokens: Callable[[], int]) -> bool:
        self.check(units)
        return True


RowChoice = TopK | Rows | PerExample | BatchRows


def _check_form(choice: TopK | Rows) -> None:
    one_of("scope", choice.scope, SCOPES)
    one_of("bias", choice.bias, BIASES)
    check_sparse(choice.sparse)
