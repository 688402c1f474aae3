"""What WUS is compared with: PyTorch's own way to stop training a weight."""

import torch.nn as nn

from wuskern.policies import WUS


class Frozen(WUS):
    """Freezes the weights with ``requires_grad`` where WUS would skip them. The layers run PyTorch's own path.

    With a ``leader`` it repeats that policy's windows instead of looking at the metric, so that both train the same
    parameters in the same epochs and only their cost differs.
    """

    def __init__(self, model: nn.Module, leader: WUS | None = None, **arguments: object) -> None:
        self.leader = leader
        super().__init__(model, **arguments)  # type: ignore[arg-type]

    def step(self, metric: float) -> bool:
        if self.leader is None:
            return super().step(metric)
        self.skipping = self.leader.skipping
        self.apply()
        return self.skipping

    def apply(self) -> None:
        for layer in self.layers.values():
            layer.weight.requires_grad_(not self.skipping)
            if self.skipping:
                layer.weight.grad = None
