"""What a run leaves: one record, with an entry per epoch."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Epoch:
    """One epoch: accuracies in [0, 1]; losses per label; seconds of training, without evaluation, in all and by phase; learning
    rate (of the first group); what was saved, by kind, of what dense training computes, or None where that is not counted."""

    number: int
    mode: str  # "full"; "skip"; "frozen": some layers are; "rows", "tokens": weight gradients of, from some
    loss: float
    train_accuracy: float
    test_accuracy: float
    steps: int
    seconds: float
    total_seconds: float
    lr: float
    test_loss: float = math.nan
    phase_seconds: dict[str, float] = field(default_factory=dict)
    saved: dict[str, float] | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has no NaN: the loss of a run that diverged is None."""
        losses = {"loss": self.loss, "test_loss": self.test_loss}
        return asdict(self) | {name: loss if math.isfinite(loss) else None for name, loss in losses.items()}


@dataclass
class Record:
    """The epochs that a run has done of those ``planned``. Its policy, seed and plan tell it from all others."""

    policy: str
    seed: int
    planned: int
    epochs: list[Epoch]

    @property
    def key(self) -> tuple[str, int, int]:
        return self.policy, self.seed, self.planned

    @property
    def complete(self) -> bool:
        return len(self.epochs) == self.planned

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Record":
        return cls(**state | {"epochs": [Epoch(**epoch) for epoch in state["epochs"]]})
