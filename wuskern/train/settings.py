"""What decides a run, but for its method and its seed."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Module
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler

from wuskern import optim

OPTIMIZERS = ("sgd", "adamw", "row-sgd", "row-adamw")  # the last two are wuskern.optim's, which move only rows with gradients
# Stepped after each epoch; both work from the current rate, so that WUS+LR's reductions stay.
SCHEDULES: dict[str, Callable[[torch.optim.Optimizer, int], LRScheduler]] = {
    "constant": lambda optimizer, _: ConstantLR(optimizer, factor=1.0),
    "cosine": lambda optimizer, epochs: CosineAnnealingLR(optimizer, T_max=epochs),
}
LOWERED = ("base_lrs", "initial_lr", "eta_min")  # what a schedule computes rates from, in its state and in the groups
AMP: dict[str, torch.dtype | None] = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Settings:
    """The arguments of ``wuskern train`` that a run depends on.

    ``accumulate``: micro-batches of an optimizer step. ``cache``: MiB at most for the outputs of frozen layers. ``host``:
    whether the data stay in the host's memory, pinned where there is a GPU, and ``workers`` processes fetch them ahead.
    """

    model: str
    width: float
    epochs: int
    batch: int
    optimizer: str
    lr: float
    momentum: float
    weight_decay: float
    channels_last: bool
    device: str
    schedule: str = "constant"
    accumulate: int = 1
    amp: str = "off"
    cache: int = 0
    host: bool = False
    workers: int = 0

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def optimizer_of(self, model: Module) -> torch.optim.Optimizer:
        kinds = {"sgd": torch.optim.SGD, "row-sgd": optim.SGD, "adamw": torch.optim.AdamW, "row-adamw": optim.AdamW}
        momentum = {} if self.optimizer.endswith("adamw") else {"momentum": self.momentum}
        return kinds[self.optimizer](model.parameters(), lr=self.lr, weight_decay=self.weight_decay, **momentum)  # type: ignore


def check_states(optimizer: torch.optim.Optimizer, schedule: LRScheduler, state: dict[str, Any], epochs: int) -> None:
    """Raises ``ValueError`` for states of an optimizer or a schedule with other arguments, or after another number of epochs.
    The learning rate may differ, since training changes it; what a schedule computes it from, only downwards: WUS+LR does that.
    """
    wanted = {name: value for name, value in schedule.state_dict().items() if not name.startswith("_")} | {"last_epoch": epochs}
    for name, value in wanted.items():
        loaded = state["schedule"].get(name, value)
        if loaded != value and not (name in LOWERED and _is_lowered(loaded, value)):
            raise ValueError(f"state: expected a schedule with {name} {value}, got {state['schedule'][name]}")
    groups, others = optimizer.state_dict()["param_groups"], state["optimizer"]["param_groups"]
    if len(groups) != len(others):
        raise ValueError(f"state: expected an optimizer of {len(groups)} groups, got {len(others)}")
    for ours, theirs in zip(groups, others, strict=True):
        for name in (ours.keys() & theirs.keys()) - {"lr"}:
            if ours[name] != theirs[name] and not (name in LOWERED and _is_lowered(theirs[name], ours[name])):
                raise ValueError(f"state: expected an optimizer with {name} {ours[name]}, got {theirs[name]}")
        if not (isinstance(theirs["lr"], float) and 0 <= theirs["lr"] < math.inf):
            raise ValueError(f"state: expected a learning rate, got {theirs['lr']}")


def _is_lowered(rates: Any, before: Any) -> bool:
    """Whether these are rates, a number or a list of them, that are at most those of ``before``."""
    if isinstance(before, list):
        return isinstance(rates, list) and len(rates) == len(before) and all(map(_is_lowered, rates, before))
    return isinstance(rates, float) and 0 <= rates <= before
