"""The layer that ``wuskern bench`` is asked about, and what a forward and backward of it has to compute and to move."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn as nn
from torch import Tensor

from wuskern.bench.ceilings import Ceilings
from wuskern.bench.slices import Layer
from wuskern.choices import TopColumns, TopK
from wuskern.common.shapes import output_size


class Work(NamedTuple):
    """Multiplications and additions, and bytes that are read or written, each tensor once."""

    flops: int
    moved: int


@dataclass(frozen=True)
class Asked:
    """One layer, its batch, and the share of it that trains.

    Attributes:
        sizes: of a Linear tokens, outputs and inputs; of a Conv2d images, channels, outputs, sides of image and kernel.
        ratio: of the rows, and of the columns, that train. stride, padding, groups, channels_last: of a Conv2d.
    """

    kind: str
    sizes: tuple[int, ...]
    dtype: torch.dtype
    ratio: float
    device: str = "cpu"
    stride: int = 1
    padding: int = 0
    groups: int = 1
    channels_last: bool = False

    def __post_init__(self) -> None:
        if self.kind == "linear":
            return
        _, channels, out, side, kernel = self.sizes
        if channels % self.groups or out % self.groups:
            raise ValueError(
                f"--groups: expected a divisor of {channels} channels and of {out} output channels, got {self.groups}"
            )
        if output_size([side], [kernel], [self.stride], [self.padding], [1])[0] < 1:
            raise ValueError(f"SHAPE: expected a kernel of at most {side + 2 * self.padding}, with padding, got {kernel}")

    @property
    def shape(self) -> str:
        """The shape as it was asked for, and what differs from the usual of a Conv2d."""
        text = "x".join(map(str, self.sizes))
        if self.kind == "linear":
            return text
        further = {"stride": (self.stride, 1), "padding": (self.padding, self.sizes[4] // 2), "groups": (self.groups, 1)}
        said = [f"{name}={value}" for name, (value, usual) in further.items() if value != usual]
        return ",".join([text, *said, *(["channels_last"] if self.channels_last else [])])

    @property
    def title(self) -> str:
        """The layer in words."""
        if self.kind == "linear":
            tokens, out, inputs = self.sizes
            return f"Linear {inputs} -> {out}, {tokens} tokens"
        images, channels, out, side, kernel = self.sizes
        return f"Conv2d {channels} -> {out}, {kernel}x{kernel}, {images} images of {side}x{side} ({self.shape})"

    @property
    def _format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @property
    def dim(self) -> int:
        """The dimension of the output that has the rows."""
        return -1 if self.kind == "linear" else 1

    def layer(self) -> Layer:
        """A stock layer of this shape."""
        if self.kind == "linear":
            return nn.Linear(self.sizes[2], self.sizes[1], device=self.device, dtype=self.dtype)
        _, channels, out, _, kernel = self.sizes
        conv = nn.Conv2d(channels, out, kernel, self.stride, self.padding, groups=self.groups)
        return conv.to(self.device, self.dtype, memory_format=self._format)  # type: ignore[call-overload, no-any-return]

    def batch(self, layer: Layer) -> tuple[Tensor, Tensor]:
        """A batch at random, and a gradient of the layer's output for it."""
        if self.kind == "linear":
            x = torch.randn(self.sizes[0], self.sizes[2], device=self.device, dtype=self.dtype)
        else:
            images, channels, _, side, _ = self.sizes
            x = torch.randn(images, channels, side, side, device=self.device, dtype=self.dtype)
            x = x.contiguous(memory_format=self._format)
        with torch.no_grad():
            return x, torch.randn_like(layer(x))

    def part(self, share: int) -> "Asked":
        """The same with a batch of one ``share``-th, at least of one."""
        return replace(self, sizes=(max(1, self.sizes[0] // share), *self.sizes[1:]))

    @property
    def out(self) -> int:
        """The number of rows."""
        return self.sizes[1] if self.kind == "linear" else self.sizes[2]

    @property
    def inputs(self) -> int:
        """The number of columns."""
        return self.sizes[2] if self.kind == "linear" else self.sizes[1]

    @property
    def rows(self) -> int:
        """How many rows train."""
        return TopK(ratio=self.ratio).count(self.out, self.groups)

    @property
    def columns(self) -> int:
        """How many columns train; 0 where a group has one input channel, and there are none to choose from."""
        is_depthwise = self.groups > 1 and self.inputs == self.groups
        return 0 if is_depthwise else TopColumns(ratio=self.ratio).count(self.inputs, self.groups)


class Amounts:
    """What the variants of a layer have to compute and to move, in forward and in backward."""

    def __init__(self, asked: Asked, x: Tensor, dy: Tensor, weight: Tensor) -> None:
        self.dtype, self.x, self.y, self.weight = asked.dtype, x.numel(), dy.numel(), weight.numel()
        self.rows, self.columns = asked.rows / asked.out, asked.columns / asked.inputs
        self.product = 2 * self.y * self.weight // asked.out  # FLOPs of one product of the whole layer

    def of(self, variant: str) -> tuple[Work, Work]:
        """What forward and backward of a variant do; peers do the work of ours."""
        p, x, y, w, r, c = self.product, self.x, self.y, self.weight, self.rows, self.columns
        forward, parts = (p, x + w + y), variant.split()
        if variant in ("bias_grad", "stock sum"):
            return self._work(0, 0), self._work(0, y)
        if "rows" in parts:
            return self._work(*forward), self._work(2 * r * p, y + x + x + 2 * r * w)
        if "columns" in parts:
            return self._work(p, forward[1] + c * x), self._work((1 + c) * p, y + c * x + x + (1 + c) * w)
        if parts[-1] in ("skip", "frozen"):
            return self._work(*forward), self._work(p, y + w + x)
        return self._work(*forward), self._work(2 * p, y + x + x + 2 * w)

    def _work(self, flops: float, elements: float) -> Work:
        return Work(round(flops), round(elements) * self.dtype.itemsize)

    def floor(self, variant: str, ceilings: Ceilings) -> float:
        """The seconds that forward and backward take at the least: each the slower of its FLOPs and its bytes, at the rates
        that the machine has been measured to reach."""
        return sum(ceilings.seconds(part.moved, part.flops, self.dtype if part.flops else None) for part in self.of(variant))
