"""What a layer's next backward does about its weight: the choices, and the plan that has one of each. Frozen values, no state.

A row is one output unit: a row of a Linear's ``[out, in]`` weight, an output channel of a Conv2d's
``[out, in / groups, kh, kw]``. A token is an element of the leading dimensions of a Linear's input, an image of a Conv2d's.
"""

import copy
import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypedDict, get_args

import torch
from torch import Tensor

from wuskern import ops
from wuskern.common.arguments import amount, one_of, whole
from wuskern.delivery.observer import Observer

Scope = Literal["weight", "both"]
Bias = Literal["dense", "rows"]
Score = Literal["l1", "l2", "random"]
Pick = Literal["top", "crs", "wta"]
SCOPES, BIASES, SCORES, PICKS = map(get_args, (Scope, Bias, Score, Pick))


class Units(NamedTuple):
    """What a layer has to choose from: its kind ("Linear", "Conv2d"), rows, and equal groups of them."""

    layer: str
    out: int
    groups: int = 1


class Choice:
    """What a plan's choices of one kind or another have in common."""

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
            in the other rows. None: sparse in a layer whose weight an optimizer of ``wuskern.optim`` holds, else dense.

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
        return _count(self.ratio, self.k, out, unit)


@dataclass(frozen=True, kw_only=True)
class PerExample(RowwiseChoice):
    """The first form of meProp (arXiv 1706.06197), for comparison with the paper: of a Linear's dY, the ``k`` largest
    ``|dY_i|`` of each example are kept, and weight and input gradient come from those alone; the bias gradient is dense.

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
        return _count(self.ratio, self.k, out, 1)

    def check(self, units: Units) -> None:
        if units.layer != "Linear":
            raise TypeError(
                f"rows: expected TopK or Rows for a {units.layer}, got PerExample, which its paper defines for Linear"
            )
        super().check(units)

    def leaves_out(self, units: Units, count_tokens: Callable[[], int]) -> bool:
        self.check(units)
        return super().leaves_out(units, count_tokens)


@dataclass(frozen=True, eq=False, repr=False)
class Rows(RowwiseChoice):
    """A fixed set of rows, as a policy chooses it. No pass over dY is spent on scores, unless an ``Observer`` asks for them.

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
        """The rows of ``index`` as Python numbers."""
        return tuple(self.index.tolist())

    @functools.cached_property
    def _fits(self) -> set[tuple[int, int]]:
        """Pairs (out, groups) for which the rows have been checked: layers ask in every forward."""
        return set()

    def _value(self) -> tuple[Any, ...]:
        return self.numbers, self.scope, self.bias, self.sparse

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rows) and self._value() == other._value()

    def __hash__(self) -> int:
        return hash(self._value())

    def __repr__(self) -> str:
        form = "" if self.sparse is None else f", sparse={self.sparse}"
        return f"Rows({list(self.numbers)}, {self.scope!r}, {self.bias!r}{form})"

    def count(self, out: int, groups: int = 1) -> int:
        """How many rows there are. Raises ``ValueError`` where one is not under ``out``, or one group has more than another."""
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


RowChoice = TopK | Rows | PerExample


@dataclass(frozen=True, kw_only=True)
class Tokens(Choice):
    """A weight gradient from some of the tokens, column-row sampling; input and bias gradient are those of all.

    ``dW = sum of dY_i^T X_i`` over all tokens i is taken over k of them, by the size ``s_i = |X_i| |dY_i|`` (Euclidean norms):

    - "top": the k largest, as they are; biased. Adelman et al. (arXiv 1805.08079) found it best in practice.
    - "crs": k draws with replacement, ``p_i = s_i / sum(s)``, scaled by ``1 / (k p_i)``; unbiased (Drineas et al., 2006).
    - "wta": the c largest as they are, and k - c draws from the others, scaled by ``(1 - P_c) / ((k - c) p_i)``, where ``P_c``
      is what the c largest have of p, and c makes ``(1 - P_c) / (k - c)`` least; unbiased (WTA-CRS, arXiv 2305.15265).

    A layer whose input has no more than k tokens takes all of them, each once, whatever ``pick`` says: the dense backward.
    Random draws come from torch's generator of the device, anew in each backward and in each process. A token whose norm is NaN
    or
    infinite ranks before all others: "top" has it, and "crs" and "wta" draw such tokens alone, so that the gradient shows it.
    Where all norms are zero, so is the gradient.

    Time: the product takes ``k / n`` of the dense one's; the norms read X and dY once, and k tokens of them are copied. Where
    the product is small beside that (few outputs or inputs, a ratio near 1) dense is faster, and is not taken instead: see
    ``python -m bench.tokens``.

    Args:
        ratio: of the tokens, in (0, 1]: ``int(ratio * n)`` of them, at least one. k: or so many. Exactly one of the two.
        pick: "top", "crs" or "wta".

    Raises:
        TypeError, ValueError: an argument out of its range.
    """

    ratio: float | None = None
    k: int | None = None
    pick: Pick = "top"

    def __post_init__(self) -> None:
        amount(self.ratio, self.k)
        one_of("pick", self.pick, PICKS)

    def count(self, n: int) -> int:
        """How many of ``n`` tokens are taken; those drawn twice count twice."""
        return min(n, max(1, int(self.ratio * n)) if self.k is None else self.k)  # type: ignore[operator]

    asks_input = True

    def leaves_out(self, units: Units, count_tokens: Callable[[], int]) -> bool:
        n = count_tokens()
        return self.count(n) < n


# ---- the plan -------------------------------------------------------------------------------------------------------


class Parts(TypedDict, total=False):
    """Some parts of a :class:`Plan`; what is missing stays as it is."""

    skip: bool
    rows: RowChoice | None
    tokens: Tokens | None
    observer: Observer | None


_KINDS: dict[str, tuple[type, ...]] = {"rows": (TopK, Rows, PerExample), "tokens": (Tokens,), "observer": (Observer,)}
CHOICES = tuple(name for name in _KINDS if name != "observer")


@dataclass(frozen=True)
class Plan:
    """All that one backward of a layer does about its weight.

    Args:
        skip: no weight gradient at all; the weight is a constant. Wins over the other parts.
        rows: the output units that have a weight gradient; None: all. tokens: those that the gradient sums over; None: all.
        observer: what is told of the choice; two plans that differ in it are equal.

    Raises:
        TypeError: a part of another type.
    """

    skip: bool = False
    rows: RowChoice | None = None
    tokens: Tokens | None = None
    observer: Observer | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.skip, bool):
            raise TypeError(f"skip: expected True or False, got {self.skip!r}")
        for name, kinds in _KINDS.items():
            value = getattr(self, name)
            if value is not None and not isinstance(value, kinds):
                *others, last = (kind.__name__ for kind in kinds)
                allowed = f"{', '.join(others)} or {last}" if others else last
                raise TypeError(f"{name}: expected a {allowed}, or None, got {value!r}")

    @classmethod
    def of(cls, plan: "Plan | None", parts: Any) -> "Plan":
        """The given plan, or one made of the parts. Raises ``TypeError`` for both together, and for what is no plan."""
        if plan is None:
            return cls(**parts) if parts else DENSE
        if parts or not isinstance(plan, Plan):
            given = f"{plan!r} and {', '.join(parts)}" if parts else repr(plan)
            raise TypeError(f"plan: expected a Plan, or parts of one in its place, got {given}")
        return plan

    def replace(self, **parts: Any) -> "Plan":
        """A plan that differs in ``parts``; new rows take the observer away unless one comes with them. Raises ``TypeError``
        for a part that a plan does not have."""
        if "rows" in parts:
            parts = {"observer": None} | parts
        return dataclasses.replace(self, **parts)

    def with_sparse(self) -> "Plan":
        """This plan with a sparse gradient, if its rows leave open whether the gradient is sparse; else the plan itself."""
        rows = self.rows
        if not isinstance(rows, TopK | Rows) or rows.sparse is not None:
            return self
        return self.replace(rows=_as_sparse(rows), observer=self.observer)

    def check(self, units: Units) -> None:
        """Raises ``ValueError`` or ``TypeError`` if a layer with these units cannot have the plan."""
        for name in CHOICES:
            if (choice := getattr(self, name)) is not None:
                choice.check(units)

    @property
    def asks_input(self) -> bool:
        """Whether what the plan leaves out depends on how many tokens an input has."""
        return any(choice.asks_input for name in CHOICES if (choice := getattr(self, name)) is not None)

    def restricting(self, units: Units, count_tokens: Callable[[], int]) -> "Plan | None":
        """The plan without the choices that leave nothing out; None if that is the dense backward."""
        if self.skip:
            return self
        chosen = [name for name in CHOICES if getattr(self, name) is not None]
        idle = [name for name in chosen if not getattr(self, name).leaves_out(units, count_tokens)]
        if len(idle) == len(chosen):
            return None
        return self.replace(**dict.fromkeys(idle)) if idle else self

    @functools.cached_property
    def digest(self) -> int:
        """A number that other plans are unlikely to share, the same in every process."""
        return zlib.crc32(str(self).encode())

    @property
    def key(self) -> tuple[Any, ...]:
        """What a captured graph of the backward depends on: all but the numbers of fixed rows."""
        if self.skip:
            return ("skip",)
        choices = (getattr(self, name) for name in CHOICES)
        return tuple(None if choice is None else choice.key for choice in choices)

    def __str__(self) -> str:
        """The plan in words that say all of it: "dense", "skip=True", or its choices."""
        if self.skip:
            return "skip=True"
        return ", ".join(f"{name}={choice}" for name in CHOICES if (choice := getattr(self, name)) is not None) or "dense"


DEFAULTS: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(Plan)}
DENSE = Plan()


def merge(wishes: Iterable[tuple[Parts, Iterable[str]]]) -> Parts:
    """The parts that several policies together want of one layer: a skip, if one wants it; of the rest what claimants want.

    Args:
        wishes: for each policy the parts that it wants, and what it claims ("rows", "tokens").
    """
    merged: dict[str, Any] = {}
    for wanted, claims in wishes:
        claimed = set(claims)
        for name, value in wanted.items():
            if name == "skip":
                merged[name] = merged.get(name, False) or value
            elif name not in merged or {"observer": "rows"}.get(name, name) in claimed:
                merged[name] = value
    return merged  # type: ignore[return-value]


class Planned:
    """Views of the parts of a ``plan``, which a subclass keeps; each is checked where it is assigned."""

    plan: Plan

    @property
    def skip(self) -> bool:
        """Whether the weight is a constant, whatever the other parts say."""
        return self.plan.skip

    @skip.setter
    def skip(self, value: bool) -> None:
        self.plan = self.plan.replace(skip=value)

    @property
    def rows(self) -> RowChoice | None:
        """Which rows of the weight have a gradient."""
        return self.plan.rows

    @rows.setter
    def rows(self, value: RowChoice | None) -> None:
        self.plan = self.plan.replace(rows=value)

    @property
    def tokens(self) -> Tokens | None:
        """Which tokens the weight gradient sums over."""
        return self.plan.tokens

    @tokens.setter
    def tokens(self, value: Tokens | None) -> None:
        self.plan = self.plan.replace(tokens=value)


# ---- arguments ------------------------------------------------------------------------------------------------------


def _as_sparse(rows: TopK | Rows) -> TopK | Rows:
    """A copy with a sparse gradient; it shares the index, which captured graphs read."""
    sparse_rows = copy.copy(rows)
    object.__setattr__(sparse_rows, "sparse", True)
    return sparse_rows


def _check_form(choice: TopK | Rows) -> None:
    one_of("scope", choice.scope, SCOPES)
    one_of("bias", choice.bias, BIASES)
    if not isinstance(choice.sparse, bool | None):
        raise TypeError(f"sparse: expected True, False or None, got {choice.sparse!r}")


def _count(ratio: float | None, k: int | None, out: int, unit: int) -> int:
    if k is None:
        return max(1, int(ratio * out) // unit) * unit  # type: ignore[operator]
    if k > out or k % unit:
        raise ValueError(f"k: expected a multiple of block * groups = {unit} up to {out}, got {k}")
    return k
