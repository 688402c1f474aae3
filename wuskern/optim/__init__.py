"""Optimizers that move only the rows that have a gradient, and what stands beside them in a training step."""

from wuskern.optim.adam import Adam, AdamW
from wuskern.optim.scaling import unscale_
from wuskern.optim.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "unscale_"]
