"""The network AlexNet (Krizhevsky et al.; 2012)."""

from collections.abc import Sequence

import torch.nn as nn

from wuskern.train.models.width import scaled


def alexnet(channels: int, size: Sequence[int], classes: int, width: float) -> nn.Module:
    """An AlexNet (2012): 96, 256, 384, 384, 256 channels, two linear layers of 4096 with dropout before each, and the last.

    For small images the first convolution is 3x3 with stride 1 instead of 11x11 with stride 4, and the overlapping 3x3 poolings
    with stride 2 are padded, so that each halves, rounding up. Not split over two GPUs, and no response normalisation.
    Parameters for 3x32x32, 10 classes: convolutions of kernels 3, 5, 3, 3, 3: 2,688 + 614,656 + 885,120 + 1,327,488 + 884,992;
    linear layers, from 256 x 4 x 4 = 4096: 2 x 16,781,312 + 40,970; together 37,318,538.
    """
    layers: list[nn.Module] = []
    height, broad = size
    for units, kernel, pool in ((96, 3, True), (256, 5, True), (384, 3, False), (384, 3, False), (256, 3, True)):
        out = scaled(units, width)
        layers += [nn.Conv2d(channels, out, kernel, padding=kernel // 2), nn.ReLU(inplace=True)]
        if pool:
            layers.append(nn.MaxPool2d(3, stride=2, padding=1))
            height, broad = (height + 1) // 2, (broad + 1) // 2
        channels = out
    hidden = scaled(4096, width)
    layers += [nn.Flatten(), nn.Dropout(), nn.Linear(channels * height * broad, hidden), nn.ReLU(inplace=True)]
    layers += [nn.Dropout(), nn.Linear(hidden, hidden), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(hidden, classes))
