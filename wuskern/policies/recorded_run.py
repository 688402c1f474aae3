"""One forward of an example, for hooks that record it."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from wuskern.choices import DENSE
from wuskern.modules import skippable_layers


def recorded_run(model: nn.Module, example: Tensor | Sequence[Any], hooks: Iterable[RemovableHandle]) -> None:
    """Runs the model once, in evaluation mode, with gradients and with all layers dense; then removes the hooks and leaves it
    as it was. No random state moves.

    Args:
        example: the model's input, or a sequence of its positional inputs.
    """
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    layers = skippable_layers(model).values()
    plans = [(layer, layer.plan) for layer in layers]
    modes = {module: module.training for module in model.modules()}
    devices = {p.device for p in model.parameters() if p.is_cuda}
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices):
            model.eval()
            for layer in layers:
                layer.plan = DENSE
            model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
        for layer, plan in plans:
            layer.plan = plan
