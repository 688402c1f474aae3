"""Choices by the scores of the step itself: inside of forward or backward all processes add up what each has of them."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from wuskern import ops
from wuskern.choices import Parts, Plan, TopColumns, TopK, Units
from wuskern.delivery.observer import ColumnObserver, Observer
from wuskern.distributed.shares import Trained

Agree = Callable[[Tensor], Tensor]  # from the scores of this process to those of all


class Exact:
    """Makes observers that agree on the scores.

    Args:
        group, device: DDP's. Another one of the same processes, with the same timeout, is made here: DDP's own collectives run
            beside.
    """

    def __init__(self, group: "dist.ProcessGroup", device: torch.device) -> None:
        options = getattr(group._get_backend(device), "options", None)
        timeout = getattr(options, "_timeout", None)  # None: of half an hour, in which others would wait for one that is lost
        ranks = dist.get_process_group_ranks(group)
        self.group = dist.new_group(ranks, timeout=timeout, use_local_synchronization=True)

    def takes(self, choice: TopK | TopColumns) -> bool:
        """Whether the choice goes by something that comes up within the step, or that each backward draws."""
        return isinstance(choice, TopK) or choice.score == "input"

    def rows(self, plan: Plan, units: Units, trained: Trained | None) -> Parts:
        """The observer with which the plan's ``TopK`` chooses alike everywhere. What is chosen is added to ``trained``."""
        top_k = plan.rows
        assert isinstance(top_k, TopK)
        count = top_k.count(units.out, units.groups)

        def agree(scores: Tensor) -> Tensor:
            if top_k.score == "random":
                dist.broadcast(scores, dist.get_global_rank(self.group, 0), self.group)
            else:
                dist.all_reduce(scores, group=self.group)
            if trained is not None:
                trained.add(ops.select_rows(scores, count, top_k.block, units.groups))
            return scores

        return {"observer": Agreed(plan.observer, agree)}

    def columns(self, plan: Plan, units: Units, trained: Trained | None) -> Parts:
        """The observer with which the plan's ``TopColumns`` chooses alike everywhere, as :meth:`rows`."""
        choice = plan.columns
        assert isinstance(choice, TopColumns)
        count = choice.count(units.inputs, units.groups)

        def agree(scores: Tensor) -> Tensor:
            scores = scores.clone()  # what this process has is what its observer hears
            dist.all_reduce(scores, group=self.group)
            if trained is not None:
                trained.add(ops.select_rows(scores, count, choice.block, units.groups))
            return scores

        return {"column_observer": AgreedColumns(plan.column_observer, agree)}


class _Agreeing:
    """A policy's observer, if there is one, in a forward of which all processes agree on the scores."""

    only_eager = True

    def __init__(self, policy: Observer | ColumnObserver | None, agree: Agree) -> None:
        super().__init__()
        self.policy, self.agree = policy, agree

    def ranked(self, scores: Tensor) -> Tensor:
        return self.agree(scores if self.policy is None else self.policy.ranked(scores))

    def tell(self, *heard: Any, **named: Any) -> None:
        if self.policy is not None:
            self.policy.tell(*heard, **named)


class Agreed(_Agreeing, Observer):
    """An observer of rows on whose scores all processes agree."""


class AgreedColumns(_Agreeing, ColumnObserver):
    """An observer of columns on whose scores all processes agree."""
