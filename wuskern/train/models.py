"""The papers' networks, in their sizes for small images."""

from collections.abc import Callable

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

VGG = {
    "vgg11": (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool"),
    "vgg16": (64, 64, "pool", 128, 128, "pool", *(256,) * 3, "pool", *(512,) * 3, "pool", *(512,) * 3, "pool"),
}


def mlp(channels: int, size: tuple[int, int], classes: int, width: float) -> nn.Module:
    """Two hidden layers of 500 units, as in the meProp papers."""
    hidden = _scaled(500, width)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * size[0] * size[1], hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    )


def alexnet(channels: int, size: tuple[int, int], classes: int, width: float) -> nn.Module:
    """AlexNet (2012): 96, 256, 384, 384, 256 channels, two linear layers of 4096 with dropout before each, and the last.

    For small images the first convolution is 3x3 with stride 1 instead of 11x11 with stride 4, and the overlapping 3x3 poolings
    with stride 2 are padded, so that each halves, rounding up. Not split over two GPUs, and no response normalisation.
    Parameters for 3x32x32, 10 classes: convolutions of kernels 3, 5, 3, 3, 3: 2,688 + 614,656 + 885,120 + 1,327,488 + 884,992;
    linear layers, from 256 x 4 x 4 = 4096: 2 x 16,781,312 + 40,970; together 37,318,538.
    """
    layers: list[nn.Module] = []
    height, broad = size
    for units, kernel, pool in ((96, 3, True), (256, 5, True), (384, 3, False), (384, 3, False), (256, 3, True)):
        out = _scaled(units, width)
        layers += [nn.Conv2d(channels, out, kernel, padding=kernel // 2), nn.ReLU(inplace=True)]
        if pool:
            layers.append(nn.MaxPool2d(3, stride=2, padding=1))
            height, broad = (height + 1) // 2, (broad + 1) // 2
        channels = out
    hidden = _scaled(4096, width)
    layers += [nn.Flatten(), nn.Dropout(), nn.Linear(channels * height * broad, hidden), nn.ReLU(inplace=True)]
    layers += [nn.Dropout(), nn.Linear(hidden, hidden), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(hidden, classes))


def vgg(plan: tuple[int | str, ...]) -> Callable[..., nn.Module]:
    """Convolutions with batch norm and one linear layer; a pooling that would leave no pixel is left out."""

    def build(channels: int, size: tuple[int, int], classes: int, width: float) -> nn.Module:
        layers: list[nn.Module] = []
        height, broad = size
        for item in plan:
            if isinstance(item, str):
                if min(height, broad) > 1:
                    layers.append(nn.MaxPool2d(2))
                    height, broad = height // 2, broad // 2
                continue
            out = _scaled(item, width)
            layers += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
            channels = out
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height * broad, classes))

    return build


class Block(nn.Module):
    """ResNet's basic block: two 3x3 convolutions around a shortcut."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def resnet18(channels: int, size: tuple[int, int], classes: int, width: float) -> nn.Module:
    """ResNet-18 with the 3x3 stem of its CIFAR form."""
    out = _scaled(64, width)
    layers: list[nn.Module] = [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
    channels = out
    for stage, base in enumerate((64, 128, 256, 512)):
        out = _scaled(base, width)
        for block in range(2):
            layers.append(Block(channels, out, stride=2 if stage > 0 and block == 0 else 1))
            channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "alexnet": alexnet,
    "vgg11": vgg(VGG["vgg11"]),
    "vgg16": vgg(VGG["vgg16"]),
    "resnet18": resnet18,
}


def _scaled(units: int, width: float) -> int:
    return max(1, round(units * width))
