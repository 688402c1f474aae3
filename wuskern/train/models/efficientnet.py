"""The network EfficientNet-B0 (Tan, Le; arXiv 1905.11946) for small images."""

from collections.abc import Sequence

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from wuskern.train.models.width import scaled

# Per stage: expansion, kernel, stride of its first block, channels that come out, blocks.
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
STEM, LAST, DROPOUT = 32, 1280, 0.2


class SqueezeExcite(nn.Module):
    """Each channel times a number in (0, 1) that two 1x1 convolutions compute from all channels' means."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = F.silu(self.reduce(x.mean((2, 3), keepdim=True)))
        return x * self.expand(squeezed).sigmoid()


class MBConv(nn.Module):
    """A 1x1 convolution to ``expansion`` times the channels, a depthwise one, squeeze-excitation, a 1x1 convolution back;
    beside a shortcut where input and output have one shape."""

    def __init__(self, channels: int, out: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        inner = expansion * channels
        expand = _conv(channels, inner, 1) if expansion > 1 else []
        depthwise = _conv(inner, inner, kernel, stride, groups=inner)
        project = _conv(inner, out, 1)[:-1]  # without the activation
        squeeze = SqueezeExcite(inner, max(1, channels // 4))
        self.layers = nn.Sequential(*expand, *depthwise, squeeze, *project)
        self.shortcut = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return x + y if self.shortcut else y


def _conv(channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(out), nn.SiLU()]


def efficientnet(channels: int, size: Sequence[int], classes: int, width: float) -> nn.Module:
    """An EfficientNet-B0: seven stages of MBConv blocks, dropout in front of the linear layer.

    For small images the first convolution has stride 1 instead of 2; no block is left out at random. With depthwise
    convolutions, where each row is a group of its own, a choice of rows as in ``wuskern.TopK(ratio=...)`` takes all rows.

    Parameters for 3 channels and 1000 classes: 5,288,548, as published code has them, the stem's stride changing none; with 10
    classes 4,020,358.
    """
    out = scaled(STEM, width)
    layers, channels = _conv(channels, out, 3), out
    for expansion, kernel, first_stride, base, blocks in STAGES:
        out = scaled(base, width)
        for place in range(blocks):
            layers.append(MBConv(channels, out, expansion, kernel, first_stride if place == 0 else 1))
            channels = out
    last = scaled(LAST, width)
    layers += [*_conv(channels, last, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(DROPOUT), nn.Linear(last, classes)]
    return nn.Sequential(*layers)
