"""How good a model is on data that it was not trained on."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from wuskern.train.inputs import Inputs, call, each, logits

SAMPLES = 256  # in a batch


@torch.no_grad()
def evaluate(model: nn.Module, x: Inputs, y: Tensor, device: torch.device, classes: int) -> tuple[float, float]:
    """The mean loss and accuracy over all labels ``y``, ``[N]`` or ``[N, T]``; the model is in evaluation mode from then on."""
    model.eval()
    loss, correct = 0.0, 0
    for first in range(0, len(y), SAMPLES):
        batch, labels = x[first : first + SAMPLES], y[first : first + SAMPLES].to(device)
        scores = logits(call(model, each(batch, lambda t: t.to(device))), labels, classes).flatten(0, -2)
        loss += F.cross_entropy(scores, labels.flatten(), reduction="sum").item()
        correct += int((scores.argmax(-1) == labels.flatten()).sum())
    return loss / y.numel(), correct / y.numel()
