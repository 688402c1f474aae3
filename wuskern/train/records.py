"""What a run leaves: one record, with an entry per epoch."""

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Epoch:
    """One epoch: accuracies in [0, 1]; seconds of training, without evaluation; learning rate (of the first group)."""

    number: int
    mode: str  # "full", "skip", or "rows": some rows of the weight gradients
    loss: float
    train_accuracy: float
    test_accuracy: float
    steps: int
    seconds: float
    total_seconds: float
    lr: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has no NaN: the loss of a run that diverged is None."""
        return asdict(self) | {"loss": self.loss if math.isfinite(self.loss) else None}


@dataclass
class Record:
    """The epochs that a run has done of those ``planned``. Its policy, seed and plan tell it from all others.

    ``computed``: share of dense's backward FLOPs in each step of a policy that chooses rows.
    """

    policy: str
    seed: int
    planned: int
    epochs: list[Epoch]
    computed: float | None = None

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
