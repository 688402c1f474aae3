"""What differs between rows and columns where all processes choose the same ones before a forward."""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from wuskern import ops
from wuskern.choices import Columns, Parts, Plan, Rows, TopColumns, TopK
from wuskern.delivery.observer import ColumnObserver, Observer
from wuskern.modules import SkippableLayer


class Fixed(NamedTuple):
    """A choice that stays until gradients are reduced.

    Attributes:
        of: the choice that it stands for. parts: what takes its place in the plan. observer: that of the scores by which the
            next one is made; None where no scores of a step count.
    """

    of: TopK | TopColumns
    parts: Parts
    observer: Observer | ColumnObserver | None


class Side(Protocol):
    """Rows, or columns."""

    def units(self, layer: SkippableLayer) -> int:
        """How many units the layer has to choose from."""

    def of_weight(self, layer: SkippableLayer) -> Tensor:
        """The scores ``[units]`` by the weight as it is now."""

    def fixed(self, layer: SkippableLayer, choice: Any, scores: Tensor) -> Fixed:
        """The choice by these scores, on the layer's device."""


class RowSide:
    """The side of rows: those of ``TopK``."""

    def units(self, layer: SkippableLayer) -> int:
        return layer.units.out

    def of_weight(self, layer: SkippableLayer) -> Tensor:
        return layer.weight_by_rows.flatten(1).abs().sum(1)

    def fixed(self, layer: SkippableLayer, choice: TopK, scores: Tensor) -> Fixed:
        policy, units = layer.plan.observer, layer.units
        if policy is not None:
            scores = policy.ranked(scores)
        index = ops.select_rows(scores, choice.count(units.out, units.groups), choice.block, units.groups)
        if policy is not None:
            policy.tell(None, torch.zeros_like(scores, dtype=torch.bool).index_fill_(0, index, True).unsqueeze(0), None)
        observer = None if choice.score == "random" else Observer(choice.score)
        rows = Rows(index, choice.scope, choice.bias, sparse=choice.sparse)
        return Fixed(choice, {"rows": rows, "observer": observer}, observer)


class ColumnSide:
    """The side of columns: those of ``TopColumns``."""

    def units(self, layer: SkippableLayer) -> int:
        return layer.units.inputs

    def of_weight(self, layer: SkippableLayer) -> Tensor:
        return layer.kind.weight_sums(layer.weight_by_rows)

    def fixed(self, layer: SkippableLayer, choice: TopColumns, scores: Tensor) -> Fixed:
        policy, units = layer.plan.column_observer, layer.units
        index = ops.select_rows(scores, choice.count(units.inputs, units.groups), choice.block, units.groups)
        observer = _Heard(policy) if choice.score == "input" else None
        parts: Parts = {
            "columns": Columns(index, sparse=choice.sparse),
            "column_observer": policy if observer is None else observer,
        }
        return Fixed(choice, parts, observer)


class _Heard(ColumnObserver):
    """An observer that passes on what it hears to a policy's, if there is one."""

    def __init__(self, policy: ColumnObserver | None) -> None:
        super().__init__()
        self.policy = policy

    def saw(self, sums: Tensor) -> None:
        super().saw(sums)
        if self.policy is not None:
            self.policy.saw(sums)


SIDES: dict[str, Side] = {"rows": RowSide(), "columns": ColumnSide()}  # by the part of the plan


def chosen_by_forward(plan: Plan) -> dict[str, TopK | TopColumns]:
    """The choices of a plan that each process would make by itself, by their parts of the plan."""
    found = {part: getattr(plan, part) for part in SIDES if isinstance(getattr(plan, part), TopK | TopColumns)}
    return {} if plan.skip else found
