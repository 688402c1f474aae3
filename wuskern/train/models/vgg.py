"""The networks VGG11 and VGG16 (Simonyan, Zisserman; arXiv 1409.1556)."""

from collections.abc import Callable, Sequence

import torch.nn as nn

from wuskern.train.models.width import scaled

VGG = {
    "vgg11": (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool"),
    "vgg16": (64, 64, "pool", 128, 128, "pool", *(256,) * 3, "pool", *(512,) * 3, "pool", *(512,) * 3, "pool"),
}


def vgg(plan: tuple[int | str, ...]) -> Callable[..., nn.Module]:
    """A function that builds convolutions with batch norm and one linear layer; poolings that leave no pixel are left out."""

    def build(channels: int, size: Sequence[int], classes: int, width: float) -> nn.Module:
        layers: list[nn.Module] = []
        height, broad = size
        for item in plan:
            if isinstance(item, str):
                if min(height, broad) > 1:
                    layers.append(nn.MaxPool2d(2))
                    height, broad = height // 2, broad // 2
                continue
            out = scaled(item, width)
            layers += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
            channels = out
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height * broad, classes))

    return build
