"""What a choice of rows leaves of the arithmetic of a backward pass."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from wuskern.modules import set_rows
from wuskern.policies import MeProp


def computed_share(policy: MeProp, x: Tensor, y: Tensor) -> float:
    """FLOPs of the backward of one step on images x with labels y, over those with all rows, as torch counts them: matrix
    products and convolutions, and the scores' additions; no copies.

    Changes nothing: gradients are None afterwards, batch norm and dropout do not notice, and no random state moves.
    """
    devices = [x.device] if x.is_cuda else []
    training = policy.model.training
    policy.model.eval()
    try:
        with torch.random.fork_rng(devices):
            some = _backward_flops(policy.model, x, y)
            set_rows(policy.model, None)
            return some / _backward_flops(policy.model, x, y)
    finally:
        policy.apply()
        policy.model.train(training)


def _backward_flops(model: torch.nn.Module, x: Tensor, y: Tensor) -> int:
    loss = F.cross_entropy(model(x), y)
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    model.zero_grad()
    return counter.get_total_flops()
