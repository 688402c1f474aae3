"""The full-sized networks of torchvision and timm, where those are installed; untrained."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

SEVERAL_OUTPUTS = ("googlenet", "inception_v3")  # torchvision's, in training


def _torchvision(name: str, channels: int, classes: int) -> nn.Module:
    models = _imported("torchvision", "torchvision.models")
    _known("torchvision", name, name in models.list_models(module=models), "of torchvision.models for classification")
    if name in SEVERAL_OUTPUTS:
        raise ValueError(f"--model: expected one with a single output, got torchvision/{name}, which has more in training")
    if channels != 3:
        raise ValueError(f"--model: expected images of 3 channels for torchvision/{name}, got {channels}")
    return models.get_model(name, weights=None, num_classes=classes)


def _timm(name: str, channels: int, classes: int) -> nn.Module:
    timm = _imported("timm", "timm")
    _known("timm", name, timm.is_model(name), "of timm.list_models()")
    return timm.create_model(name, pretrained=False, num_classes=classes, in_chans=channels)


PACKAGES: dict[str, Callable[[str, int, int], nn.Module]] = {"torchvision": _torchvision, "timm": _timm}


def full_sized(name: str, channels: int, size: Sequence[int], classes: int, width: float) -> nn.Module:
    """The model that ``"torchvision/NAME"`` or ``"timm/NAME"`` names, with new weights. It runs once, on an empty image.

    Raises:
        ValueError: the package is missing or does not fit this torch, it has no such model, the model does not fit images of
            this size, or a width other than 1.
    """
    if width != 1:
        raise ValueError(f"--width: expected 1 with {name}, which has one width, got {width:g}")
    package, _, own_name = name.partition("/")
    model = PACKAGES[package](own_name, channels, classes)
    _try(model, name, (channels, *size), classes)
    return model


def _imported(package: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:  # built for another torch, torchvision raises more than ImportError
        reason = str(error).splitlines()[0]
        raise ValueError(f"--model: {package} has to be installed, one that fits this torch ({reason})") from error


def _known(package: str, name: str, known: bool, where: str) -> None:
    if not known:
        raise ValueError(f"--model: expected {package}/ and a name {where}, got {package}/{name}")


def _try(model: nn.Module, name: str, image: tuple[int, ...], classes: int) -> None:
    training = model.training
    try:
        with torch.no_grad():
            scores = model.eval()(torch.zeros(1, *image))
    except Exception as error:  # whatever the model says of a size it does not take
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"--model: expected one for images of {image}, got {name} ({reason})") from error
    finally:
        model.train(training)
    if not isinstance(scores, Tensor) or scores.shape != (1, classes):
        got = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"--model: expected one whose output is [1, {classes}], got {name}, whose is {got}")
