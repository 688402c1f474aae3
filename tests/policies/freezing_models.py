"""Small models in double precision, each with a depth and what is frozen there, worked out by hand."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

import wuskern as wk
from wuskern.policies.freezing import Prefix
from wuskern.train.models.resnet import Basic


class Transformer(nn.Module):
    """A class token and position embeddings of its own, two blocks, dropout, a scale used at the end only."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.token, self.position = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 5, 8))
        self.drop = nn.Dropout(0.5)
        self.blocks = nn.ModuleList(TransformerBlock() for _ in range(2))
        self.scale = nn.Parameter(torch.ones(8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = torch.cat((self.token.expand(len(x), -1, -1), x), 1) + self.position
        x = self.drop(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, 0] * self.scale)


class TransformerBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.norm2, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Tied(nn.Module):
    """The output layer has the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.first, self.second = nn.Embedding(7, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(self.embedding(x))))))


class Twice(nn.Module):
    """Its second layer runs before and after its third."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.d(self.b(self.c(self.b(self.a(x)).tanh()).tanh()))


class TwoTexts(nn.Module):
    """One embedding and one norm layer for both of them, of which the first goes through the prefix."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(5, 4), nn.LayerNorm(4)
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, index: Tensor) -> Tensor:
        encoded = self.b(self.a(self.norm(self.embedding(index))))
        return self.c(encoded + self.norm(self.embedding(index + 1)))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def vgg() -> nn.Module:
    def part(a: int, b: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]

    return nn.Sequential(*part(2, 4), *part(4, 4), nn.MaxPool2d(2), *part(4, 6), nn.Flatten(), nn.Linear(6 * 4, 3))


def resnet() -> nn.Module:
    parts = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), Basic(4, 4, 1), Basic(4, 6, 2)
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))


def images() -> Tensor:
    return torch.randn(5, 2, 4, 4, dtype=torch.float64)


# Name: model, input, depth, how the names of the frozen parameters begin. A Basic block runs conv1, conv2, shortcut.
CASES = {
    "mlp": (mlp, lambda: torch.randn(5, 6, dtype=torch.float64), 2, ("0.", "3.")),
    "vgg": (vgg, images, 2, ("0.", "1.", "3.", "4.")),
    "vgg to the last layer": (vgg, images, 3, ("0.", "1.", "3.", "4.", "7.", "8.")),
    "resnet inside a block": (resnet, images, 2, ("0.", "1.", "3.conv1", "3.norm1")),
    "resnet before a shortcut": (resnet, images, 5, ("0.", "1.", "3.", "4.conv1", "4.norm1", "4.conv2", "4.norm2")),
    "transformer before its first block": (
        Transformer,
        lambda: torch.randn(5, 4, 6, dtype=torch.float64),
        1,
        ("embed.", "token", "position", "blocks.0.norm1"),
    ),
    "transformer inside a block": (
        Transformer,
        lambda: torch.randn(5, 4, 6, dtype=torch.float64),
        4,
        ("embed.", "token", "position", "blocks.0.norm1", "blocks.0.qkv", "blocks.0.out", "blocks.0.norm2", "blocks.0.up"),
    ),
}


# ---- a frozen one ---------------------------------------------------------------------------------------------------

FROZEN = ("embed.", "token", "position", "blocks.0.norm1")  # of the Transformer, at depth 1


def frozen_transformer() -> tuple[nn.Module, Prefix, Tensor]:
    torch.manual_seed(0)
    net, x = wk.convert(Transformer()).eval(), torch.randn(3, 4, 6)
    prefix = Prefix(net, x)
    prefix.set(1)
    return net, prefix, x


def trained(net: nn.Module) -> set[str]:
    return {name for name, p in net.named_parameters() if p.grad is not None}


def assert_frozen(net: nn.Module, x: Tensor) -> None:
    """And clean: outside of its calls a model holds no constants."""
    net.zero_grad()
    net(x).square().sum().backward()
    assert trained(net) == {name for name, _ in net.named_parameters() if not name.startswith(FROZEN)}
    assert not any(isinstance(value, Tensor) for module in net.modules() for value in vars(module).values())
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in net.parameters())
