"""A small GPT (Radford et al.; 2019) that reads bytes."""

from collections.abc import Sequence

import torch.nn as nn
from torch import Tensor

from wuskern.train.models.transformer import Block, dimension, initialise

LAYERS, DIM, HEADS = 4, 128, 4


class Embedding(nn.Module):
    """The embedding of tokens and their positions: int64 ``[B, T]`` -> ``[B, T, dim]``, for T up to ``context``."""

    def __init__(self, tokens: int, context: int, dim: int) -> None:
        super().__init__()
        self.token = nn.Embedding(tokens, dim)
        self.position = nn.Embedding(context, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.token(x) + self.position.weight[: x.shape[1]]


def gpt(context: int, size: Sequence[int], classes: int, width: float) -> nn.Module:
    """A decoder of 4 layers, dimension 128, 4 heads; norms in front, GELU, no dropout, a head with a weight of its own.

    int64 ``[B, T]`` -> ``[B, T, classes]``, the scores of each next token. ``size`` is empty: in the place of the channels
    stands the longest T.

    Parameters for 64 positions and 256 tokens: embedding 32,768 + 8,192; each block 2 x 256 for the norms, 49,536 + 16,512 for
    attention, 66,048 + 65,664 behind it; last norm 256, head 33,024; together 867,328.
    """
    if size:
        raise ValueError(f"size: expected none, as tokens have, got {tuple(size)}")
    dim = dimension(DIM, HEADS, width)
    blocks = (Block(dim, HEADS, causal=True) for _ in range(LAYERS))
    model = nn.Sequential(Embedding(classes, context, dim), *blocks, nn.LayerNorm(dim), nn.Linear(dim, classes))
    return model.apply(initialise)
