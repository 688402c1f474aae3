"""The networks ResNet-18 and ResNet-50 (He et al.; arXiv 1512.03385)."""

from collections.abc import Sequence

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from wuskern.train.models.width import scaled


class Basic(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.shortcut = _shortcut(channels, out, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """A 3x3 convolution of ``units`` channels, which has the stride, between two of 1x1; four times as many come out."""

    expansion = 4

    def __init__(self, channels: int, units: int, stride: int) -> None:
        super().__init__()
        out = self.expansion * units
        self.conv1 = nn.Conv2d(channels, units, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(units)
        self.conv2 = nn.Conv2d(units, units, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(units)
        self.conv3 = nn.Conv2d(units, out, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(out)
        self.shortcut = _shortcut(channels, out, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.norm3(self.conv3(y)) + self.shortcut(x))


def _shortcut(channels: int, out: int, stride: int) -> nn.Module:
    if stride == 1 and channels == out:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))


def resnet18(channels: int, size: Sequence[int], classes: int, width: float) -> nn.Module:
    """A ResNet-18 with the 3x3 stem of its CIFAR form."""
    return _resnet(Basic, (2, 2, 2, 2), channels, classes, width)


def resnet50(channels: int, size: Sequence[int], classes: int, width: float) -> nn.Module:
    """A ResNet-50 with the 3x3 stem of the CIFAR form: stride 1 and no pooling in front of the blocks.

    Parameters for 3 channels and 1000 classes: 25,557,032 with the 7x7 stem, 7,680 less with this one: 25,549,352; with 10
    classes 23,520,842.
    """
    return _resnet(Bottleneck, (3, 4, 6, 3), channels, classes, width)


def _resnet(
    block: type[Basic] | type[Bottleneck], blocks: Sequence[int], channels: int, classes: int, width: float
) -> nn.Module:
    out = scaled(64, width)
    layers: list[nn.Module] = [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
    channels = out
    for stage, (base, count) in enumerate(zip((64, 128, 256, 512), blocks, strict=True)):
        units = scaled(base, width)
        for place in range(count):
            layers.append(block(channels, units, stride=2 if stage > 0 and place == 0 else 1))
            channels = block.expansion * units
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
