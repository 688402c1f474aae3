"""One forward of an example, which hooks record."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn as nn
from torch.utils.hooks import RemovableHandle

from wuskern.choices import DENSE
from wuskern.common.example import Example, arguments
from wuskern.modules import skippable_layers


def recorded_run(model: nn.Module, example: Example, hooks: Iterable[RemovableHandle]) -> Any:
    """Runs the model once, in evaluation mode, with gradients and with all layers dense; then removes the hooks and leaves
    the model as it was. No random state moves. Returns the output.

    Args:
        example: the model's input, a sequence of its positional inputs, or a mapping of its keyword inputs.
    """
    args, kwargs = arguments(example)
    layers = skippable_layers(model).values()
    plans = [(layer, layer.plan) for layer in layers]
    modes = {module: module.training for module in model.modules()}
    devices = {p.device for p in model.parameters() if p.is_cuda}
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices):
            model.eval()
            for layer in layers:
                layer.plan = DENSE
            return model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
        for layer, plan in plans:
            layer.plan = plan
