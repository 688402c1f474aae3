"""What the methods are compared with: PyTorch's own way to stop training a weight, and dense training in the same time."""

from dataclasses import dataclass, field

from wuskern.policies import WUS
from wuskern.train.records import Epoch


def epochs_in_the_time_of(method: list[Epoch], dense: list[Epoch]) -> int:
    """How many epochs of dense training take as long as the method took: from 1 to as many as dense has."""
    return max(1, min(len(dense), round(method[-1].total_seconds / seconds_per_epoch(dense))))


def seconds_per_epoch(epochs: list[Epoch]) -> float:
    return epochs[-1].total_seconds / len(epochs)


@dataclass(eq=False, kw_only=True)
class Frozen(WUS):
    """Freezes the weights with ``requires_grad`` where WUS would skip them. The layers run PyTorch's own path.

    With a ``leader`` it repeats that policy's windows instead of looking at the metric, so that both train the same
    parameters in the same epochs and only their cost differs.
    """

    name = "frozen"
    source = "PyTorch: requires_grad"
    reported = "PyTorch's own requires_grad_(False) in the epochs that WUS skips: what WUS is to be compared with."
    needs = ("step",)
    trial = ""

    leader: WUS | None = field(default=None, repr=False)

    def on_evaluation(self, metric: float) -> bool:
        if self.leader is None:
            return super().on_evaluation(metric)
        self.skipping = self.leader.skipping
        self.apply()
        return self.skipping

    def apply(self) -> None:
        self.on = True
        for layer in self.layers.values():
            layer.weight.requires_grad_(not self.skipping)
            if self.skipping:
                layer.weight.grad = None
