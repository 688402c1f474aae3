"""The MLP of the meProp papers."""

from collections.abc import Sequence

import torch.nn as nn

from wuskern.train.models.width import scaled


def mlp(channels: int, size: Sequence[int], classes: int, width: float) -> nn.Module:
    """An MLP with two hidden layers of 500 units, as in the meProp papers."""
    hidden = scaled(500, width)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * size[0] * size[1], hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    )
