"""EfficientNet-Lite0 (a B0 without squeeze-and-excitation, with ReLU6) with its BatchNorms folded into the convolutions."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

# Repeats, kernel, stride, expansion, channels out.
STAGES = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
]
STEM, HEAD, EPS = 32, 1280, 1e-3


class SameConv(nn.Module):
    """A convolution whose output has the input's size over the stride, rounded up; TensorFlow pads an odd zero behind."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride  # not the convolution's: an adapter that wraps it has neither
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        pads = [max((-(-size // self.stride) - 1) * self.stride + self.kernel - size, 0) for size in (x.shape[3], x.shape[2])]
        return self.conv(F.pad(x, [half for pad in pads for half in (pad // 2, pad - pad // 2)]) if any(pads) else x)


class Block(nn.Module):
    """An inverted residual: expand, convolve each channel, project."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = SameConv(inputs, inner, 1) if expansion > 1 else None
        self.depthwise, self.project = SameConv(inner, inner, kernel, stride, groups=inner), SameConv(inner, outputs, 1)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.adds else y


class EfficientNetLite0(nn.Module):
    """Blocks in an ``nn.Sequential`` between a stem and a head."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        inputs = STEM
        for repeats, kernel, stride, expansion, outputs in STAGES:
            for i in range(repeats):
                blocks.append(Block(inputs, outputs, kernel, stride if i == 0 else 1, expansion))
                inputs = outputs
        self.stem, self.blocks, self.head = SameConv(3, STEM, 3, 2), nn.Sequential(*blocks), SameConv(inputs, HEAD, 1)
        self.classifier = nn.Linear(HEAD, classes)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.head(self.blocks(F.relu6(self.stem(x)))))
        return self.classifier(F.dropout(y.mean((2, 3)), 0.2, self.training))


def load(model: EfficientNetLite0, state: dict[str, Tensor]) -> None:
    """Loads published weights, each BatchNorm folded into the convolution before it; the classifier stays as it is."""
    _fold(model.stem, state, "_conv_stem", "_bn0")
    _fold(model.head, state, "_conv_head", "_bn1")
    for i, block in enumerate(model.blocks):
        parts = (("expand", "_bn0", block.expand), ("depthwise", "_bn1", block.depthwise), ("project", "_bn2", block.project))
        for conv, norm, module in parts:
            if module is not None:
                _fold(module, state, f"_blocks.{i}._{conv}_conv", f"_blocks.{i}.{norm}")


@torch.no_grad()
def _fold(module: SameConv, state: dict[str, Tensor], conv: str, norm: str) -> None:
    weight, bias, mean, var = (state[f"{norm}.{name}"] for name in ("weight", "bias", "running_mean", "running_var"))
    scale = weight / (var + EPS).sqrt()
    module.conv.weight.copy_(state[f"{conv}.weight"] * scale[:, None, None, None])
    module.conv.bias.copy_(bias - mean * scale)
