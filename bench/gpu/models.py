"""The networks whose whole steps are measured on a GPU, each with a batch of its inputs and targets."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from bench.whole_step import gpt
from wuskern.train.models import MODELS


class Bottleneck(nn.Module):
    """ResNet-50's block: 1x1, 3x3, 1x1 around a shortcut; the stride is the 3x3's."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.body = nn.Sequential(
            *_conv(channels, width, 1), nn.ReLU(inplace=True), *_conv(width, width, 3, stride), nn.ReLU(inplace=True),
            *_conv(width, out, 1),
        )  # fmt: skip
        same = stride == 1 and channels == out
        self.shortcut = nn.Identity() if same else nn.Sequential(*_conv(channels, out, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def _conv(channels: int, out: int, kernel: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(out)


def resnet50(width: int = 64, depths: tuple[int, ...] = (3, 4, 6, 3), classes: int = 1000) -> nn.Module:
    layers = [*_conv(3, width, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    channels = width
    for stage, depth in enumerate(depths):
        for block in range(depth):
            layers.append(Bottleneck(channels, width * 2**stage, 2 if stage and block == 0 else 1))
            channels = 4 * width * 2**stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


@dataclass(frozen=True)
class Network:
    """``loss(output, y)``; ``classes`` is None where the loss takes no target."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    classes: int | None

    def batch(self, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        x = torch.randn(self.shape, device=device, dtype=dtype)
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return x, torch.randint(self.classes or 1, self.shape[:1], device=device)

    def loss(self, output: Tensor, y: Tensor) -> Tensor:
        return output.square().mean() if self.classes is None else F.cross_entropy(output.float(), y)

    def __str__(self) -> str:
        return self.name.replace(" ", "-")


def _small_images(name: str, width: float = 1.0) -> Callable[[], nn.Module]:
    return lambda: MODELS[name](3, (32, 32), 10, width)


NETWORKS = [
    Network("VGG-16 CIFAR", _small_images("vgg16"), (512, 3, 32, 32), 10),
    Network("GPT 12 x 768", lambda: gpt(768, 12, 12), (16, 1024, 768), None),
    Network("ResNet-50", resnet50, (64, 3, 224, 224), 1000),
    Network("ResNet-18 CIFAR", _small_images("resnet18"), (512, 3, 32, 32), 10),
]
TINY = [
    Network("VGG-16 tiny", _small_images("vgg16", 0.2), (4, 3, 32, 32), 10),
    Network("GPT tiny", lambda: gpt(24, 2, 2), (2, 16, 24), None),
    Network("ResNet-50 tiny", lambda: resnet50(12, (1, 1, 1, 1), 10), (2, 3, 32, 32), 10),
]
