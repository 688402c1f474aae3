"""The plan of a layer: one frozen value that has all of its choices, of what its next backward does about the weight."""

import copy
import dataclasses
import functools
import reprlib
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypedDict

from torch import Tensor

from wuskern.choices.base import Units
from wuskern.choices.columns import ColumnChoice, Columns, TopColumns
from wuskern.choices.rows import BatchRows, PerExample, RowChoice, Rows, TopK
from wuskern.choices.tokens import Tokens
from wuskern.delivery.observer import ColumnObserver, Observer


class Parts(TypedDict, total=False):
    """Some parts of a :class:`Plan`; what is missing stays as it is."""

    skip: bool
    rows: RowChoice | None
    columns: ColumnChoice | None
    tokens: Tokens | None
    observer: Observer | None
    column_observer: ColumnObserver | None


_KINDS: dict[str, tuple[type, ...]] = {
    "rows": (TopK, Rows, PerExample, BatchRows),
    "columns": (Columns, TopColumns),
    "tokens": (Tokens,),
    "observer": (Observer,),
    "column_observer": (ColumnObserver,),
}
OBSERVERS = {"rows": "observer", "columns": "column_observer"}  # of the choice of which each is told
CHOICES = tuple(name for name in _KINDS if name not in OBSERVERS.values())
OF_EMBEDDING = (Rows, BatchRows)


def _meant(name: str, value: object) -> str:
    """What somebody means who gives a share, or numbers, where a choice is expected."""
    if name in _SHARES and isinstance(value, int | float) and not isinstance(value, bool):
        return f" (is {_SHARES[name]}({'k' if isinstance(value, int) else 'ratio'}={value!r}) meant?)"
    if name in _NUMBERS and isinstance(value, list | tuple | Tensor):
        return f" (is {_NUMBERS[name]}({reprlib.repr(value)}) meant?)"
    return ""


_SHARES = {"rows": "TopK", "columns": "TopColumns", "tokens": "Tokens"}
_NUMBERS = {"rows": "Rows", "columns": "Columns"}


@dataclass(frozen=True)
class Plan:
    """All that one backward of a layer does about its weight.

    Args:
        skip: no weight gradient at all; the weight is a constant. Wins over the other parts.
        rows: the output units, or tokens of an embedding, that have a weight gradient; None: all. columns: the input units that
            have one; None: all.
        tokens: those that the gradient sums over; None: all.
        observer: what is told of the choice of rows, column_observer: of columns; two plans that differ in them are equal.

    Raises:
        TypeError: a part of another type.
    """

    skip: bool = False
    rows: RowChoice | None = None
    columns: ColumnChoice | None = None
    tokens: Tokens | None = None
    observer: Observer | None = field(default=None, compare=False, repr=False)
    column_observer: ColumnObserver | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.skip, bool):
            raise TypeError(f"skip: expected True or False, got {self.skip!r}")
        for name, kinds in _KINDS.items():
            value = getattr(self, name)
            if value is not None and not isinstance(value, kinds):
                *others, last = (kind.__name__ for kind in kinds)
                allowed = f"{', '.join(others)} or {last}" if others else last
                raise TypeError(f"{name}: expected a {allowed}, or None, got {value!r}{_meant(name, value)}")

    @classmethod
    def of(cls, plan: "Plan | None", parts: Any) -> "Plan":
        """The given plan, or one made of the parts. Raises ``TypeError`` for both together, and for what is no plan."""
        if plan is None:
            return cls(**parts) if parts else DENSE
        if parts or not isinstance(plan, Plan):
            described = f"{plan!r} and {', '.join(parts)}" if parts else repr(plan)
            raise TypeError(f"plan: expected a Plan, or parts of one in its place, got {described}")
        return plan

    def replace(self, **parts: Any) -> "Plan":
        """A plan that differs in ``parts``; new rows or columns take their observer away unless one comes with them. Raises
        ``TypeError`` for a part that a plan does not have."""
        parts = {OBSERVERS[name]: None for name in parts if name in OBSERVERS} | parts
        return dataclasses.replace(self, **parts)

    def of_first(self, transposed: bool) -> RowChoice | ColumnChoice | None:
        """The choice along the weight's dimension 0, of which alone torch has a sparse form; None where there is none, or one
        along dimension 1 as well. ``transposed``: as in :class:`Units`."""
        first, second = (self.columns, self.rows) if transposed else (self.rows, self.columns)
        return first if second is None else None

    def is_sparse(self, transposed: bool) -> bool:
        """Whether the gradient of the weight is to be sparse."""
        choice = self.of_first(transposed)
        return choice is not None and bool(choice.sparse)

    def with_sparse(self, transposed: bool) -> "Plan":
        """This plan with a sparse gradient, if its choice leaves open whether the gradient is sparse; else the plan itself."""
        choice = self.of_first(transposed)
        if choice is None or choice.sparse is not None:
            return self
        name = "columns" if transposed else "rows"
        return dataclasses.replace(self, **{name: _as_sparse(choice)})  # type: ignore[arg-type]

    def check(self, units: Units) -> None:
        """Raises ``ValueError`` or ``TypeError`` if a layer with these units cannot have the plan."""
        if units.layer == "Embedding":
            self._check_embedding()
        for name in CHOICES:
            if (choice := getattr(self, name)) is not None:
                choice.check(units)
        first = self.of_first(units.transposed)
        if any(choice is not None and choice.sparse and choice is not first for choice in (self.rows, self.columns)):
            others = f"rows of a {units.layer}" if units.transposed else "columns"
            raise ValueError(f"sparse: expected None or False with {others}, for which torch has no sparse form, got True")

    def _check_embedding(self) -> None:
        """Raises ``TypeError`` for what an embedding, which has no product and no scores, cannot have."""
        for name in _KINDS:
            value, allowed = getattr(self, name), OF_EMBEDDING if name == "rows" else ()
            if value is not None and not isinstance(value, allowed):
                expected = "Rows, BatchRows or None" if allowed else "None"
                raise TypeError(
                    f"{name}: expected {expected} for an embedding, got {type(value).__name__}: leave embeddings out with "
                    "filter_fn, or set theirs alone"
                )

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
    of_observer = {observer: name for name, observer in OBSERVERS.items()}
    for wanted, claims in wishes:
        claimed = set(claims)
        for name, value in wanted.items():
            if name == "skip":
                merged[name] = merged.get(name, False) or value
            elif name not in merged or of_observer.get(name, name) in claimed:
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
    def columns(self) -> ColumnChoice | None:
        """Which columns of the weight have a gradient."""
        return self.plan.columns

    @columns.setter
    def columns(self, value: ColumnChoice | None) -> None:
        self.plan = self.plan.replace(columns=value)

    @property
    def tokens(self) -> Tokens | None:
        """Which tokens the weight gradient sums over."""
        return self.plan.tokens

    @tokens.setter
    def tokens(self, value: Tokens | None) -> None:
        self.plan = self.plan.replace(tokens=value)


def _as_sparse(choice: RowChoice | ColumnChoice) -> RowChoice | ColumnChoice:
    """A copy with a sparse gradient; it shares the index, which captured graphs read."""
    sparse_choice = copy.copy(choice)
    object.__setattr__(sparse_choice, "sparse", True)
    return sparse_choice
