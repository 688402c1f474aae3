"""Problems by use, shared by tests and benchmarks."""

from dataclasses import dataclass

import torch
import torch.nn as nn
from torch import Tensor

from wuskern import SkippableConv2d, SkippableLinear

Side = int | tuple[int, int]


@dataclass(frozen=True)
class Gradient:
    """A gradient of an output: which shape, which dimension holds the channels, how it lies in memory."""

    name: str
    shape: tuple[int, ...]
    dim: int
    layout: str = "contiguous"  # a key of LAYOUTS

    def make(self, dtype: torch.dtype, device: str = "cpu") -> Tensor:
        dy = torch.randn(self.shape, dtype=torch.float64).to(dtype)
        return LAYOUTS[self.layout](dy.to(device))

    def __str__(self) -> str:
        return self.name.replace(" ", "-")


@dataclass(frozen=True)
class Conv:
    """A Conv2d problem: batch, channels in and out, image side, kernel side and the rest; a pair is (height, width)."""

    name: str
    batch: int
    channels: int
    out: int
    side: Side
    kernel: Side
    stride: Side = 1
    padding: Side | str = 0
    dilation: Side = 1
    groups: int = 1
    bias: bool = True
    padding_mode: str = "zeros"

    def layer(self, dtype: torch.dtype = torch.float32) -> nn.Conv2d:
        return nn.Conv2d(
            self.channels, self.out, self.kernel, self.stride, self.padding, self.dilation, self.groups, self.bias,
            self.padding_mode, dtype=dtype,
        )  # fmt: skip

    def input(self, dtype: torch.dtype = torch.float32) -> Tensor:
        height, width = (self.side, self.side) if isinstance(self.side, int) else self.side
        return torch.randn(self.batch, self.channels, height, width).to(dtype)

    def __str__(self) -> str:
        return self.name.replace(" ", "-")


def _every_second(dy: Tensor) -> Tensor:
    return torch.stack((dy, torch.full_like(dy, float("nan"))), dim=-1)[..., 0]


MEMORY_FORMATS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}

LAYOUTS = {
    "contiguous": lambda dy: dy,
    "channels_last": lambda dy: dy.contiguous(memory_format=torch.channels_last),
    "transposed": lambda dy: dy.transpose(0, -1).contiguous().transpose(0, -1),
    "sliced": _every_second,  # no unit stride; what lies between must not be read into the sums
    "expanded": lambda dy: dy[:1].expand(dy.shape),  # stride 0, as .sum().backward() gives
    "permuted": lambda dy: dy.permute(*reversed(range(dy.ndim))).contiguous().permute(*reversed(range(dy.ndim))),
    "unaligned": lambda dy: torch.cat((dy.new_zeros(1), dy.flatten()))[1:].view(dy.shape),
}

GRADIENTS = [
    Gradient("linear 4x4", (4, 4), -1),
    Gradient("linear classifier head", (64, 10), -1),
    Gradient("linear odd", (5, 123), -1),
    Gradient("linear one row", (1, 17), -1),
    Gradient("linear one column", (1000, 1), -1),
    Gradient("linear tall", (3000, 20), -1),
    Gradient("linear wide", (6, 5000), -1),
    Gradient("linear tokens", (3, 65, 130), -1),
    Gradient("linear unbatched", (19,), -1),
    Gradient("linear empty batch", (0, 12), -1),
    Gradient("linear no outputs", (7, 0), -1),
    Gradient("linear transposed", (70, 40), -1, "transposed"),
    Gradient("linear sliced", (40, 30), -1, "sliced"),
    Gradient("linear expanded", (33, 20), -1, "expanded"),
    Gradient("linear unaligned", (300, 64), -1, "unaligned"),
    Gradient("conv 32px", (4, 16, 32, 32), 1),
    Gradient("conv 7px", (9, 20, 7, 7), 1),
    Gradient("conv 7px images", (20, 12, 7, 7), 1),
    Gradient("conv 1px", (8, 24, 1, 1), 1),
    Gradient("conv large plane", (2, 17, 150, 151), 1),
    Gradient("conv channels_last", (4, 24, 9, 9), 1, "channels_last"),
    Gradient("conv channels_last odd", (3, 5, 7, 6), 1, "channels_last"),
    Gradient("conv sliced", (3, 16, 5, 6), 1, "sliced"),
    Gradient("conv permuted", (3, 16, 5, 6), 1, "permuted"),
    Gradient("conv unaligned", (5, 16, 6, 6), 1, "unaligned"),
    Gradient("conv 3d", (2, 18, 4, 5, 6), 1),
    Gradient("conv 1d", (6, 16, 40), 1),
    Gradient("conv empty batch", (0, 8, 4, 4), 1),
    Gradient("conv no pixels", (3, 8, 0, 4), 1),
]

# Shapes of gradients that sum a thousand numbers in each of 500 channels, of dimension 1.
LONG_SUMS = [(1500, 500), (2, 500, 20, 30)]

CONVS = [
    Conv("3x3", 4, 6, 8, 9, 3, padding=1),
    Conv("3x3 stride 2", 4, 6, 8, 9, 3, stride=2, padding=1),
    Conv("5x5 dilated", 2, 4, 6, 12, 3, padding=2, dilation=2),
    Conv("1x1", 3, 8, 5, 7, 1),
    Conv("groups", 3, 8, 12, 6, 3, padding=1, groups=4),
    Conv("depthwise", 3, 8, 8, 6, 3, padding=1, groups=8),
    Conv("no bias", 3, 4, 6, 6, 3, bias=False),
    Conv("empty batch", 0, 4, 6, 6, 3, padding=1),
    Conv("one output", 2, 4, 1, 6, 3),
    Conv("same", 2, 4, 6, 7, 3, padding="same"),
    Conv("same even kernel", 2, 4, 6, 8, 4, padding="same", dilation=1),
    Conv("valid", 2, 4, 6, 7, 3, padding="valid"),
    Conv("circular", 2, 4, 6, 7, 3, padding=1, padding_mode="circular"),
    Conv("reflect same", 2, 4, 6, 7, 3, padding="same", padding_mode="reflect"),
    Conv("pairs", 2, 4, 6, (9, 12), (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 3)),
    Conv("pairs same", 2, 4, 6, (7, 10), (2, 5), padding="same", dilation=(3, 1)),
    Conv("same even dilated kernel", 2, 4, 6, 8, 2, padding="same", dilation=3),
    Conv("reflect pairs", 2, 4, 6, (7, 9), 3, stride=2, padding=(1, 2), padding_mode="reflect"),
    Conv("replicate pairs", 2, 4, 6, (5, 4), (3, 2), padding=(2, 0), padding_mode="replicate"),
    Conv("replicate same even kernel", 2, 4, 6, 6, 2, padding="same", padding_mode="replicate"),
    Conv("circular same", 2, 4, 6, 6, (4, 3), padding="same", dilation=(1, 2), padding_mode="circular"),
    Conv("circular pairs", 2, 4, 6, (6, 7), 3, stride=(1, 2), padding=(2, 1), padding_mode="circular"),
    Conv("padding wider than the kernel", 2, 4, 6, 5, 2, padding=3),
    Conv("rows of the image left over", 2, 4, 6, (8, 11), 3, stride=3),
    Conv("depthwise multiplier", 3, 4, 12, 6, 3, padding=1, groups=4),
    Conv("depthwise strided", 2, 8, 8, 9, 3, stride=2, padding="valid", groups=8),
    Conv("grouped 1x1", 2, 8, 12, 5, 1, groups=4),
    Conv("1x1 stride 2", 3, 8, 5, 7, 1, stride=2),
    Conv("one channel", 2, 1, 6, 7, 3),
    Conv("one channel 1x1", 2, 1, 6, 7, 1),
    Conv("one image", 1, 4, 6, 7, 3, padding=1),
    Conv("one pixel", 3, 8, 5, 1, 1),
    Conv("kernel as large as the image", 3, 4, 6, (5, 4), (5, 4)),
    Conv("one wide row", 2, 4, 6, (1, 9), (1, 3), padding="same"),
]

# The two skippable layers, small, each with the shape of an input.
LAYERS = [(lambda: SkippableLinear(64, 32), (16, 64)), (lambda: SkippableConv2d(8, 4, 3), (4, 8, 10, 10))]

# ---- what networks are made of: timed by bench/, verified by its smoke run ------------------------------------------

NETWORK_CONVS = [
    Conv("VGG 32px", 64, 64, 64, 32, 3, 1, 1),
    Conv("VGG 16px", 64, 128, 128, 16, 3, 1, 1),
    Conv("VGG 8px", 64, 256, 256, 8, 3, 1, 1),
    Conv("VGG 4px", 64, 512, 512, 4, 3, 1, 1),
    Conv("ResNet downsampling", 64, 64, 128, 32, 3, 2, 1),
    Conv("bottleneck in", 16, 256, 64, 56, 1, 1, 0),
    Conv("bottleneck out", 16, 64, 256, 56, 1, 1, 0),
    Conv("depthwise", 32, 128, 128, 16, 3, 1, 1, groups=128),
    Conv("four groups", 32, 128, 128, 16, 3, 1, 1, groups=4),
    Conv("stem", 32, 3, 64, 32, 7, 2, 3),
    Conv("ResNet 56px", 8, 64, 64, 56, 3, 1, 1),
]

# (rows, inputs, outputs) of a Linear.
NETWORK_LINEARS = {
    "classifier head": (64, 64, 10),
    "hidden layer": (512, 512, 512),
    "transformer MLP": (4096, 512, 2048),
}
TINY_LINEAR = (4, 16, 16)  # nothing but host cost

# (tokens T, outputs N, inputs K) of a Linear that trains the rows with the largest gradients.
ROWSPARSE_LINEARS = [
    (512, 512, 512), (2048, 1024, 1024), (4096, 2048, 512), (128, 4096, 4096), (8192, 256, 256), (2048, 3072, 768),
]  # fmt: skip

NETWORK_GRADIENTS = [
    Gradient("head 64x10", (64, 10), -1),
    Gradient("hidden 128x512", (128, 512), -1),
    Gradient("hidden 256x1024", (256, 1024), -1),
    Gradient("AlexNet 512x4096", (512, 4096), -1),
    Gradient("BERT 2048x768", (2048, 768), -1),
    Gradient("tokens 8192x512", (8192, 512), -1),
    Gradient("tokens 4096x2048", (4096, 2048), -1),
    Gradient("tokens 8192x3072", (8192, 3072), -1),
    Gradient("vocabulary 256x50257", (256, 50257), -1),
    *(
        Gradient(f"conv {'x'.join(map(str, shape))} {name}", shape, 1, layout)
        for shape in [
            (64, 512, 2, 2), (64, 512, 4, 4), (64, 256, 8, 8), (64, 128, 16, 16), (64, 64, 32, 32),
            (16, 64, 112, 112), (16, 256, 56, 56), (32, 2048, 7, 7), (1, 64, 224, 224),
        ]
        for name, layout in (("NCHW", "contiguous"), ("NHWC", "channels_last"))
    ),
]  # fmt: skip
# Those also timed in float16 and float64.
ALL_DTYPES = {(256, 1024), (8192, 512), (64, 512, 4, 4), (64, 128, 16, 16), (16, 256, 56, 56)}

GPU_GRADIENTS = [
    Gradient("tokens 32768x4096", (32768, 4096), -1),
    Gradient("tokens 8192x8192", (8192, 8192), -1),
    Gradient("BERT 2048x768", (2048, 768), -1),
    Gradient("conv 128x256x56x56 NCHW", (128, 256, 56, 56), 1),
    Gradient("conv 128x256x56x56 NHWC", (128, 256, 56, 56), 1, "channels_last"),
    Gradient("conv 128x512x7x7 NCHW", (128, 512, 7, 7), 1),
]
