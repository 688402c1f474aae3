"""The papers' networks, in their sizes for small images, and a small GPT; also the full-sized ones of other packages."""

import functools
from collections.abc import Callable, Sequence

import torch.nn as nn

from wuskern.common.example import Samples
from wuskern.train import own
from wuskern.train.inputs import Inputs
from wuskern.train.models.alexnet import alexnet
from wuskern.train.models.efficientnet import efficientnet
from wuskern.train.models.full_sized import PACKAGES, full_sized
from wuskern.train.models.gpt import gpt
from wuskern.train.models.mlp import mlp
from wuskern.train.models.resnet import resnet18, resnet50
from wuskern.train.models.vgg import VGG, vgg
from wuskern.train.models.vit import vit

MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "alexnet": alexnet,
    "vgg11": vgg(VGG["vgg11"]),
    "vgg16": vgg(VGG["vgg16"]),
    "resnet18": resnet18,
    "resnet50": resnet50,
    "vit": vit,
    "efficientnet": efficientnet,
    "gpt": gpt,
}
FOR_TEXT = ("gpt",)


def model_for(name: str, x: Inputs, classes: int, width: float) -> nn.Module:
    """A new model for these samples: what :func:`build` gives, or the user's function ``"FILE.py:function"``.

    Raises ``ValueError`` for several inputs to a model that is not the user's, and what the two raise.
    """
    if own.is_own(name):
        return own.model(name, x, classes)
    if isinstance(x, Samples):
        raise ValueError(f"--data: expected one input for {name}, got several: a model of your own takes them")
    channels, *size = x.shape[1:]
    return build(name, channels, size, classes, width)


def build(name: str, channels: int, size: Sequence[int], classes: int, width: float) -> nn.Module:
    """A model of ``MODELS`` for inputs of ``[N, channels, *size]``, or ``"torchvision/NAME"`` or ``"timm/NAME"``.

    Text is ``[N, T]``: then ``channels`` is T and ``size`` is empty.

    Raises:
        ValueError: an unknown name, data of the wrong kind, or what :func:`full_sized` says.
    """
    elsewhere = name.partition("/")[0] in PACKAGES and "/" in name
    if not elsewhere and name not in MODELS:
        others = ", ".join(f"{package}/NAME" for package in PACKAGES)
        raise ValueError(f"--model: expected one of {', '.join(MODELS)}, {others}, got {name!r}")
    if (name in FOR_TEXT) != (not size):
        kind = "text" if not size else "images"
        fitting = [model for model in MODELS if (model in FOR_TEXT) == (not size)]
        raise ValueError(f"--model: expected one for {kind} ({', '.join(fitting)}), got {name!r}")
    make = functools.partial(full_sized, name) if elsewhere else MODELS[name]
    return make(channels, size, classes, width)
