"""``SkippableLinear`` and ``SkippableConv2d``: nn.Linear and nn.Conv2d with a flag that leaves out the weight gradient."""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from wuskern import functional


class SkippableLinear(nn.Linear):
    """``nn.Linear``: same parameters, initialisation, state_dict and results, and the flag ``skip``.

    ``layer.skip = True`` makes every following forward remember a bias-only backward: dX and the bias gradient are
    computed, no weight gradient is (``weight.grad`` stays as it was) and the input is not kept. The flag is read in
    forward; changing it between a forward and its backward changes nothing for that backward (activation checkpointing
    runs forward again in backward: leave the flag alone in between). It is not training state: ``state_dict`` does not
    hold it.

    x: ``[..., in_features]`` -> ``[..., out_features]``.
    """

    skip: bool = False

    def forward(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return F.linear(input, self.weight, self.bias)
        return functional.linear(input, self.weight, self.bias, skip=self.skip)

    def extra_repr(self) -> str:
        return super().extra_repr() + _flags(self)


class SkippableConv2d(nn.Conv2d):
    """``nn.Conv2d`` with the flag ``skip`` of :class:`SkippableLinear`; every padding, mode, dilation and group works.

    With ``padding_mode`` "reflect" or "replicate", PyTorch's padding itself keeps the input.

    x: ``[B, in_channels, H, W]`` or ``[in_channels, H, W]``.
    """

    skip: bool = False

    def forward(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return self._conv_forward(input, self.weight, self.bias)
        if not self.skip:
            return self._conv_forward(input, self.weight, self.bias)
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = (0, 0)
        return functional.conv2d(input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups, skip=True)

    def extra_repr(self) -> str:
        return super().extra_repr() + _flags(self)


SkippableLayer = SkippableLinear | SkippableConv2d


def _flags(layer: SkippableLayer) -> str:
    return ", skip=True" if layer.skip else ""


def skippable_layers(model: nn.Module) -> dict[str, SkippableLayer]:
    """The converted layers of a model by name, each once. Raises ``ValueError`` if there is none."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    layers = {name: m for name, m in model.named_modules() if isinstance(m, SkippableLinear | SkippableConv2d)}
    if not layers:
        raise ValueError("model: expected at least one converted layer (see wuskern.convert), got none")
    return layers


def set_skip(model: nn.Module, skip: bool) -> None:
    """Sets ``skip`` of every converted layer. Raises ``ValueError`` if the model has none."""
    if not isinstance(skip, bool):
        raise TypeError(f"skip: expected True or False, got {skip!r}")
    for layer in skippable_layers(model).values():
        layer.skip = skip


@contextlib.contextmanager
def skipping(model: nn.Module, skip: bool = True) -> Iterator[None]:
    """``set_skip`` for the length of a ``with`` block; every layer then gets back the flag it had."""
    before = {layer: layer.skip for layer in skippable_layers(model).values()}
    set_skip(model, skip)
    try:
        yield
    finally:
        for layer, flag in before.items():
            layer.skip = flag
