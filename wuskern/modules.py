"""``SkippableLinear`` and ``SkippableConv2d``: nn.Linear and nn.Conv2d with a flag that leaves out the weight gradient, a
choice of the rows that get one, and one of the tokens that it sums over."""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter
from torch.nn.utils.parametrize import is_parametrized

from wuskern import functional
from wuskern.rows import RowChoice, refuse_per_example
from wuskern.tokens import Tokens


class SkippableLinear(nn.Linear):
    """``nn.Linear``: same parameters, initialisation, state_dict and results, with ``skip``, ``rows`` and ``tokens``.

    ``layer.skip = True`` makes every following forward remember a bias-only backward: dX and the bias gradient are
    computed, no weight gradient is (``weight.grad`` stays as it was) and the input is not kept. The flag is read in
    forward; changing it between a forward and its backward changes nothing for that backward (activation checkpointing
    runs forward again in backward: leave the flag alone in between). It is not training state: ``state_dict`` does not
    hold it.

    ``layer.rows = wk.TopK(ratio=.05)`` restricts the weight gradient, and with ``scope="both"`` the input gradient too, to the
    output units with the largest gradients; ``wk.Rows(index)`` to fixed ones. None: all rows. Read in forward like
    ``skip``, which wins over it.

    ``layer.tokens = wk.Tokens(ratio=.3)`` sums the weight gradient, of all rows or of the chosen ones, over that part of the
    tokens alone: of the elements of the leading dimensions. None: all. Read in forward like ``skip``, which wins over it, too.

    x: ``[..., in_features]`` -> ``[..., out_features]``.
    """

    skip: bool = False
    rows: RowChoice | None = None
    tokens: Tokens | None = None
    __jit_ignored_attributes__ = ("rows", "tokens")

    def forward(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return F.linear(input, self.weight, self.bias)
        return functional.linear(input, self.weight, self.bias, skip=self.skip, rows=self.rows, tokens=self.tokens)

    def extra_repr(self) -> str:
        return super().extra_repr() + _flags(self)


class SkippableConv2d(nn.Conv2d):
    """``nn.Conv2d`` with ``skip``, ``rows`` and ``tokens`` of :class:`SkippableLinear`; every padding, mode, dilation and group
    works.

    With ``groups``, as many rows are chosen in each group. A token is an image of the batch: the weight gradient sums over
    images and positions, and whole images are chosen, so that the same kernels run on a smaller batch. Unbatched input is one.

    With ``padding_mode`` "reflect" or "replicate", PyTorch's padding itself keeps the input.

    x: ``[B, in_channels, H, W]`` or ``[in_channels, H, W]``.
    """

    skip: bool = False
    rows: RowChoice | None = None
    tokens: Tokens | None = None
    __jit_ignored_attributes__ = ("rows", "tokens")

    def forward(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return self._conv_forward(input, self.weight, self.bias)
        if not self.skip and self.rows is None and self.tokens is None:
            return self._conv_forward(input, self.weight, self.bias)
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = (0, 0)
        geometry = self.stride, padding, self.dilation, self.groups
        return functional.conv2d(input, self.weight, self.bias, *geometry, skip=self.skip, rows=self.rows, tokens=self.tokens)

    def extra_repr(self) -> str:
        return super().extra_repr() + _flags(self)


SkippableLayer = SkippableLinear | SkippableConv2d


def _flags(layer: SkippableLayer) -> str:
    choices = {"rows": layer.rows, "tokens": layer.tokens}
    shown = (f", {name}={choice}" for name, choice in choices.items() if choice is not None)
    return (", skip=True" if layer.skip else "") + "".join(shown)


def skippable_layers(model: nn.Module) -> dict[str, SkippableLayer]:
    """The converted layers of a model by name, each once. Raises ``ValueError`` if there is none."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    layers = {name: m for name, m in model.named_modules() if isinstance(m, SkippableLinear | SkippableConv2d)}
    if not layers:
        raise ValueError("model: expected at least one converted layer (see wuskern.convert), got none")
    return layers


def weight_owners(model: nn.Module, layers: dict[str, SkippableLayer]) -> list[tuple[Parameter, list[SkippableLayer]]]:
    """Weights, or what a parametrization computes them from, whose every owner in the model is a converted layer."""
    holders: dict[nn.Module, SkippableLayer] = {}  # module that holds the parameters of a weight -> its layer
    for layer in layers.values():
        holders[layer.parametrizations["weight"] if is_parametrized(layer, "weight") else layer] = layer  # type: ignore[index]
    owners: dict[Parameter, list[SkippableLayer | None]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            weight = module in holders and (name == "weight" or module is not holders[module])
            owners.setdefault(parameter, []).append(holders[module] if weight else None)
    return [(p, [o for o in own if o is not None]) for p, own in owners.items() if None not in own]


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


def set_rows(model: nn.Module, rows: RowChoice | None) -> None:
    """Sets ``rows`` of every converted layer; None: all rows.

    Raises ``ValueError`` if the model has no converted layer or ``rows`` do not fit one of them, and ``TypeError`` if they are
    no choice of rows, or one that a Conv2d does not know. No layer is then changed.
    """
    if not isinstance(rows, RowChoice | None):
        raise TypeError(f"rows: expected a TopK, Rows, PerExample or None, got {type(rows).__name__}")
    layers = skippable_layers(model)
    for name, layer in layers.items():
        check_rows(layer, rows, f"{name or 'the model itself'}: ")
    for layer in layers.values():
        layer.rows = rows


def set_tokens(model: nn.Module, tokens: Tokens | None) -> None:
    """Sets ``tokens`` of every converted layer; None: all. Raises ``ValueError`` if the model has none, ``TypeError`` if they
    are no ``Tokens``."""
    if not isinstance(tokens, Tokens | None):
        raise TypeError(f"tokens: expected a Tokens or None, got {type(tokens).__name__}")
    for layer in skippable_layers(model).values():
        layer.tokens = tokens


def units(layer: SkippableLayer) -> tuple[int, int]:
    """Rows of the layer's weight, and its groups."""
    return (layer.out_features, 1) if isinstance(layer, nn.Linear) else (layer.out_channels, layer.groups)


def check_rows(layer: SkippableLayer, rows: RowChoice | None, where: str = "") -> None:
    """Raises ``ValueError`` or ``TypeError``, its text behind ``where``, if ``layer`` cannot have ``rows``."""
    if rows is None:
        return
    if isinstance(layer, nn.Conv2d):
        refuse_per_example(rows, where)
    try:
        rows.count(*units(layer))
    except ValueError as error:
        raise ValueError(f"{where}{error}") from error
