"""What is measured on a GPU, the most telling first: a budget cuts each list from its end. Of each a tiny form, verified on a
CPU by a smoke run."""

import itertools

import torch

from tests.cases import Conv, Gradient

SKIP, TOPK = "gpu skip", "gpu top-k"

MIB = 2**20
GRADIENTS = [  # 64, 256 and 1024 MiB in two bytes: tokens, NHWC, NCHW
    Gradient(name, shape, dim, layout)
    for batch in (32, 128, 512)
    for name, shape, dim, layout in (
        (f"tokens {256 * batch}x4096", (256 * batch, 4096), -1, "contiguous"),
        (f"{batch}x256x64x64 NHWC", (batch, 256, 64, 64), 1, "channels_last"),
        (f"{batch}x256x64x64 NCHW", (batch, 256, 64, 64), 1, "contiguous"),
    )
]
TINY_GRADIENTS = [
    Gradient("tokens 64x40", (64, 40), -1),
    Gradient("2x24x5x5 NHWC", (2, 24, 5, 5), 1, "channels_last"),
]

TOKENS, SIDES = (2048, 8192, 32768, 512), (2048, 4096, 8192, 768, 16384)
# (T, N, K): square ones first, then those that are wide or tall.
LINEARS = sorted(itertools.product(TOKENS, SIDES, SIDES), key=lambda p: (p[1] != p[2], SIDES.index(p[2]), TOKENS.index(p[0])))
COMPILED = {(2048, 2048, 2048), (8192, 4096, 4096), (2048, 768, 768)}  # with the peer of torch.compile, seconds each
TINY_LINEARS = [(64, 40, 24)]

CONVS = [
    Conv("ResNet 3x3 28px", 128, 128, 128, 28, 3, 1, 1),
    Conv("VGG 56px", 128, 256, 256, 56, 3, 1, 1),
    Conv("ResNet 1x1 14px out", 128, 256, 1024, 14, 1),
    Conv("ResNet 3x3 14px", 128, 256, 256, 14, 3, 1, 1),
    Conv("VGG 14px", 128, 512, 512, 14, 3, 1, 1),
    Conv("ResNet 1x1 56px out", 128, 64, 256, 56, 1),
    Conv("ResNet 3x3 stride 2", 128, 128, 128, 56, 3, 2, 1),
    Conv("VGG 28px", 128, 512, 512, 28, 3, 1, 1),
    Conv("ResNet 3x3 7px", 128, 512, 512, 7, 3, 1, 1),
    Conv("ResNet 1x1 14px in", 128, 1024, 256, 14, 1),
    Conv("VGG 112px", 128, 128, 128, 112, 3, 1, 1),
    Conv("ResNet 3x3 56px", 128, 64, 64, 56, 3, 1, 1),
    Conv("ResNet 1x1 stride 2", 128, 512, 1024, 28, 1, 2),
    Conv("ResNet 1x1 56px in", 128, 256, 64, 56, 1),
    Conv("ResNet 1x1 7px", 128, 2048, 512, 7, 1),
    Conv("ResNet stem", 128, 3, 64, 224, 7, 2, 3),
    Conv("VGG 224px", 128, 64, 64, 224, 3, 1, 1),
]
COMPILED_CONVS = {"ResNet 3x3 28px", "ResNet 1x1 14px out", "VGG 14px"}
TINY_CONVS = [Conv("3x3", 2, 8, 24, 6, 3, 1, 1), Conv("1x1 stride 2", 2, 8, 24, 6, 1, 2)]


def gradient(case: Gradient, device: str, dtype: torch.dtype) -> torch.Tensor:
    """Made where it stays."""
    like = torch.channels_last if case.layout == "channels_last" else torch.contiguous_format
    dy = torch.randn(case.shape, device=device, dtype=dtype)
    return dy.contiguous(memory_format=like) if dy.ndim == 4 else dy
