"""Turns the nn.Linear and nn.Conv2d layers of an existing model into skippable ones, and back."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch.nn as nn
from torch.nn.utils.parametrize import is_parametrized

from wuskern.modules import SkippableConv2d, SkippableLinear

FilterFn = Callable[[nn.Module, str], bool]

_log = logging.getLogger("wuskern")
_SKIPPABLE: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: SkippableLinear, nn.Conv2d: SkippableConv2d}
_STOCK = {skippable: stock for stock, skippable in _SKIPPABLE.items()}
_NO_KERNEL = (nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Bilinear)


@dataclass(frozen=True)
class Finding:
    """One layer that could have been meant: what happens to it, and the reason where it is left alone."""

    name: str
    module: nn.Module
    obstacle: str | None  # None: it is, or will be, converted


def survey(model: nn.Module, filter_fn: FilterFn | None = None) -> list[Finding]:
    """Every layer with a weight matrix, in the order of ``named_modules``, and whether ``convert`` takes it."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, *_NO_KERNEL)):
            found.append(Finding(name, module, _obstacle(module, name, filter_fn)))
    return found


def _obstacle(module: nn.Module, name: str, filter_fn: FilterFn | None) -> str | None:
    if type(module) in _STOCK:
        return None
    if is_parametrized(module):
        return "its weight is parametrized"
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return "it is lazy: run the model once before converting"
    if isinstance(module, _NO_KERNEL):
        return f"there is no skipping {type(module).__name__}"
    if type(module) in _SKIPPABLE and not isinstance(module._parameters.get("weight"), nn.Parameter):
        return "its weight is computed from other parameters"
    if "forward" in module.__dict__ or "_conv_forward" in module.__dict__:
        return "its forward was replaced on the object"
    if type(module) not in _SKIPPABLE:
        return f"{type(module).__name__} is a subclass with a behaviour of its own"
    if filter_fn is not None and not filter_fn(module, name):
        return "filter_fn left it out"
    return None


def convert(model: nn.Module, filter_fn: FilterFn | None = None) -> nn.Module:
    """Makes every ``nn.Linear`` and ``nn.Conv2d`` of a model skippable, in place, and returns the model.

    Only the class of a layer changes: the module objects, their Parameters, names, hooks, ties and state_dict stay, the
    root itself included. Results do not change until a flag is set. Subclasses, parametrized and lazy layers are left
    alone; each such layer and its reason goes to the logger "wuskern" (level INFO) and is listed by :func:`survey`.

    Args:
        model: any module.
        filter_fn: ``filter_fn(module, name) -> bool``, False leaves a layer alone.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: nothing to convert, with the reasons. The model is then unchanged.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    found = survey(model, filter_fn)
    left = [f"{f.name or 'the model itself'}: {f.obstacle}" for f in found if f.obstacle]
    if len(left) == len(found):
        reasons = "; ".join(left) or "it has no layer with a weight matrix"
        raise ValueError(f"model: expected an nn.Linear or nn.Conv2d to convert, got {type(model).__name__}: {reasons}")
    for finding in found:
        if finding.obstacle is None and type(finding.module) in _SKIPPABLE:
            finding.module.__class__ = _SKIPPABLE[type(finding.module)]
    for line in left:
        _log.info("left alone: %s", line)
    return model


def revert(model: nn.Module) -> nn.Module:
    """Undoes :func:`convert`: every skippable layer is a stock layer again, the same object. Returns the model."""
    for module in model.modules():
        if type(module) in _STOCK:
            module.__dict__.pop("skip", None)
            module.__class__ = _STOCK[type(module)]
    return model
