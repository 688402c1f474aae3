"""One forward of an example, which hooks record."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from wuskern.choices import DENSE
from wuskern.modules import skippable_layers

# A model's input, a sequence of its positional inputs, or a mapping of its keyword inputs.
Example = Tensor | Sequence[Any] | Mapping[str, Any]


def arguments(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and keyword arguments of a call of the model. For a model that takes a dict, give a list with the dict."""
    if isinstance(example, Tensor):
        return (example,), {}
    if isinstance(example, Mapping):
        return (), dict(example)
    if isinstance(example, Sequence) and not isinstance(example, str):
        return tuple(example), {}
    raise TypeError(
        "example: expected a tensor, a sequence of positional inputs or a mapping of keyword inputs, got "
        f"{type(example).__name__}"
    )


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested sequences and mappings, in their order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)


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
