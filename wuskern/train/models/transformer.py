"""What the two transformers are made of."""

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from wuskern.train.models.width import scaled

EXPANSION = 4  # hidden units of a block's two linear layers, over its dimension
INITIAL_STD = 0.02


class Attention(nn.Module):
    """A multi-head self-attention over ``[B, T, dim]``; one linear layer in front for queries, keys and values, one behind.

    Args:
        causal: each position sees itself and those before it only.
    """

    def __init__(self, dim: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, heads, T, dim / heads]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.proj(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A block of a transformer: attention, and two linear layers around a GELU, each behind a norm and beside a shortcut."""

    def __init__(self, dim: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, causal)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, EXPANSION * dim), nn.GELU(), nn.Linear(EXPANSION * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def dimension(dim: int, heads: int, width: float) -> int:
    """The dimension ``dim``, scaled to a multiple of ``heads``: the number of heads stays, they become narrower or wider."""
    return heads * scaled(dim // heads, width)


def initialise(module: nn.Module) -> None:
    """Draws the weights of a linear layer or embedding from a normal distribution, and sets a linear layer's bias to zero."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INITIAL_STD)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
