"""What a run leaves: one record, with an entry per epoch."""

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from wuskern.choices import CHOICES
from wuskern.policies import Saved
from wuskern.train.phases import PHASES

SHARES = {f.name for f in fields(Saved)}
MODES = ("full", "skip", "frozen", *CHOICES)


@dataclass(frozen=True)
class Epoch:
    """The record of one epoch: accuracies in [0, 1]; losses per label; seconds of training without evaluation, of this epoch,
    of all so far, and by phase; the learning rate of the first group; the shares of dense training's computations that were
    saved, by kind, or None where they are not counted."""

    number: int
    mode: str  # one of MODES; "frozen": some layers are; "rows", "columns", "tokens": weight gradients of, or from, some
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
        """The record for JSON, which has no NaN: the loss of a run that diverged is None."""
        losses = {"loss": self.loss, "test_loss": self.test_loss}
        return asdict(self) | {name: loss if math.isfinite(loss) else None for name, loss in losses.items()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Epoch":
        """The epoch that ``asdict`` made ``state`` of. Raises ``ValueError`` for a state that is none of an epoch."""
        _check("an epoch", state, cls, _of_epoch)
        return cls(**state)


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

    def line(self, epoch: Epoch) -> str:
        """The epoch in words, for who watches."""
        return (
            f"seed {self.seed}  {self.policy}  epoch {epoch.number:>3}/{self.planned}  {epoch.mode}  "
            f"loss {epoch.loss:.4f}  train {100 * epoch.train_accuracy:6.2f} %  test {100 * epoch.test_accuracy:6.2f} %  "
            f"{epoch.seconds:6.2f} s"
        )

    def state_dict(self) -> dict[str, Any]:
        """The record in plain numbers, strings and lists."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Record":
        """The record that ``state_dict`` made ``state`` of. Raises ``ValueError`` for a state that is none of a run."""
        _check("a run", state, cls, _of_run)
        epochs = [Epoch.from_state(epoch) for epoch in state["epochs"]]
        if [epoch.number for epoch in epochs] != list(range(1, len(epochs) + 1)) or len(epochs) > state["planned"]:
            raise ValueError(f"expected epochs 1, 2, ... of {state['planned']}, got {[epoch.number for epoch in epochs]}")
        return cls(**state | {"epochs": epochs})


def _check(what: str, state: Any, kind: type, right: Any) -> None:
    if not isinstance(state, dict) or state.keys() != {f.name for f in fields(kind)}:
        raise ValueError(f"expected {what} with {', '.join(f.name for f in fields(kind))}, got something else")
    for name, value in state.items():
        if not right(name, value):
            raise ValueError(f"expected the {name} of {what}, got {str(value)[:80]!r}")


def _of_run(name: str, value: Any) -> bool:
    if name == "policy":
        return isinstance(value, str)
    return isinstance(value, list) if name == "epochs" else _whole(value, least=int(name == "planned"))


def _of_epoch(name: str, value: Any) -> bool:
    if name == "mode":
        return value in MODES
    if name in ("number", "steps"):
        return _whole(value, least=1)
    if name == "phase_seconds":
        return isinstance(value, dict) and value.keys() == set(PHASES) and all(_finite(v) and v >= 0 for v in value.values())
    if name == "saved":
        return value is None or (
            isinstance(value, dict) and value.keys() == SHARES and all(_of_saved(*pair) for pair in value.items())
        )
    if name in ("loss", "test_loss"):
        return isinstance(value, float)  # of a run that diverged it is not finite
    if name.endswith("accuracy"):
        return _finite(value) and 0 <= value <= 1
    return _finite(value) and (value > 0 if "seconds" in name else value >= 0)


def _of_saved(name: str, value: Any) -> bool:
    """Whether ``value`` can be that of a field of ``Saved``. Shares are under 0 where samples came twice."""
    return _whole(value, least=0) if name == "depth" else _finite(value) and -1 <= value <= 1


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
