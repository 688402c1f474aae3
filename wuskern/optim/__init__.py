"""Optimizers that move only the part of a weight that trains, and keep state for it alone; what stands beside them."""

from wuskern.optim.adam import Adam, AdamW
from wuskern.optim.part_state import load_part_, part_state_dict
from wuskern.optim.scaling import unscale_
from wuskern.optim.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "load_part_", "part_state_dict", "unscale_"]
