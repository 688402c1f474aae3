"""The schedulers of rates that act on an optimizer beside a policy, and how a factor becomes a part of what they compute."""

import gc
from collections.abc import Sequence
from copy import copy

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

# What schedulers compute rates from: lists with a value for each group, a number for all, and values in the groups themselves.
OF_GROUPS, OF_ALL, IN_GROUPS = ("base_lrs", "max_lrs", "min_lrs"), "eta_min", ("initial_lr", "max_lr", "min_lr")


def schedulers_of(optimizer: Optimizer) -> list[LRScheduler]:
    """The living schedulers on the optimizer, or on a wrapper of it. torch keeps no list; the garbage collector does."""
    groups = optimizer.param_groups
    schedulers = [thing for thing in gc.get_objects() if issubclass(type(thing), LRScheduler)]
    return [one for one in schedulers if getattr(getattr(one, "optimizer", None), "param_groups", None) is groups]


def inside(scheduler: LRScheduler) -> list[LRScheduler]:
    """The scheduler, and those that it steps."""
    return [scheduler, *(one for inner in getattr(scheduler, "_schedulers", ()) for one in inside(inner))]


def scale(schedulers: Sequence[LRScheduler], optimizer: Optimizer, factors: Sequence[float]) -> None:
    """Multiplies what the schedulers compute rates from, of each group by its factor, so that what they set from now on is
    their rate times the factor: also those that compute it anew from the first rate. ``eta_min``, which is one number for all
    groups, stays where the factors differ. The rates of now are left alone, and all of it is in the state of the schedulers and
    of the optimizer."""
    for one in schedulers:
        for name in OF_GROUPS:
            if name in vars(one):
                setattr(one, name, [value * factor for value, factor in zip(vars(one)[name], factors, strict=True)])
        if OF_ALL in vars(one) and len(set(factors)) == 1:
            setattr(one, OF_ALL, vars(one)[OF_ALL] * factors[0])
        if "_last_lr" in vars(one):
            one._last_lr = [copy(group["lr"]) for group in optimizer.param_groups]
    for group, factor in zip(optimizer.param_groups, factors, strict=True):  # from which later ones take them
        group.update({name: group[name] * factor for name in IN_GROUPS if name in group})
