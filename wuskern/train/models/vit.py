"""A vision transformer (Dosovitskiy et al.; arXiv 2010.11929) for small images."""

from collections.abc import Sequence

import torch
import torch.nn as nn
from torch import Tensor

from wuskern.train.models.transformer import INITIAL_STD, Block, dimension, initialise

LAYERS, DIM, HEADS, PATCH = 6, 192, 3, 4


class Patches(nn.Module):
    """Patches of an image, behind a class token, with their positions: ``[B, C, H, W]`` -> ``[B, 1 + patches, dim]``.

    Pixels beyond the last whole patch are not seen.
    """

    def __init__(self, channels: int, size: Sequence[int], patch: int, dim: int) -> None:
        super().__init__()
        height, broad = size
        self.conv = nn.Conv2d(channels, dim, patch, stride=patch)
        self.first = nn.Parameter(INITIAL_STD * torch.randn(dim))
        self.position = nn.Embedding(1 + (height // patch) * (broad // patch), dim)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.conv(x).flatten(2).transpose(1, 2)
        first = self.first.expand(len(x), 1, -1)
        return torch.cat((first, patches), 1) + self.position.weight


class First(nn.Module):
    """What stands in the class token's place at the end: ``[B, T, dim]`` -> ``[B, dim]``."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


def vit(channels: int, size: Sequence[int], classes: int, width: float) -> nn.Module:
    """A vision transformer: 6 layers, dimension 192, 3 heads, patches of 4 x 4; norms in front, GELU, no dropout.

    Patches are smaller where the image's shorter side has fewer than four of 4 pixels: 2 x 2 for 8 x 8, which gives 16.

    Parameters for 3x32x32, 10 classes: patches 9,408, class token 192, positions 65 x 192 = 12,480; each block 2 x 384 for the
    norms, 111,168 + 37,056 for attention, 148,224 + 147,648 behind it; last norm 384, head 1,930; together 2,693,578.
    """
    dim = dimension(DIM, HEADS, width)
    patch = max(1, min(PATCH, min(size) // 4))
    blocks = (Block(dim, HEADS, causal=False) for _ in range(LAYERS))
    head = (nn.LayerNorm(dim), First(), nn.Linear(dim, classes))
    return nn.Sequential(Patches(channels, size, patch, dim), *blocks, *head).apply(initialise)
