"""How good a model is on data that it was not trained on."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

SAMPLES = 256  # in a batch


@torch.no_grad()
def evaluate(model: nn.Module, x: Tensor, y: Tensor, device: torch.device) -> tuple[float, float]:
    """The mean loss and accuracy over all labels ``y``, ``[N]`` or ``[N, T]``; the model is in evaluation mode from then on."""
    model.eval()
    loss, correct = 0.0, 0
    for inputs, labels in zip(x.split(SAMPLES), y.split(SAMPLES), strict=True):
        logits, labels = model(inputs.to(device)).flatten(0, -2), labels.to(device).flatten()
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        correct += int((logits.argmax(-1) == labels).sum())
    return loss / y.numel(), correct / y.numel()
