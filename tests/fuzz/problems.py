"""Small layers of every kind, dtype and geometry, their inputs, and their gradients by stock PyTorch."""

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

import wuskern as wk
from tests.cases import LAYOUTS
from tests.fuzz.plans import Passed
from tests.rowsparse import DTYPES
from wuskern.choices import Units

KINDS = 4000  # of layers; each is made once and used again
PLAIN = [name for name in LAYOUTS if name != "channels_last"]
Shape = tuple[int, ...]
Size = Callable[[Tensor], Tensor]  # of numbers: the numbers themselves, or their absolute values


@dataclass(eq=False)
class Problem:
    """A layer and what it can be given. ``fine``: its numbers have all their digits, and not only eighths. ``kept``: a gradient
    that somebody has taken from it, and a copy of that time."""

    layer: wk.SkippableLinear | wk.SkippableConv2d
    fine: bool
    draw_shape: Callable[[random.Random], Shape]
    kept: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def units(self) -> Units:
        return self.layer.units

    @property
    def is_conv(self) -> bool:
        return isinstance(self.layer, nn.Conv2d)

    @property
    def dtype(self) -> torch.dtype:
        return self.layer.weight.dtype

    def stock(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The output, by PyTorch alone."""
        return self.layer._conv_forward(x, weight, bias) if self.is_conv else F.linear(x, weight, bias)

    def seen(self, x: Tensor) -> Tensor:
        """What the products see of x."""
        if not self.is_conv or self.layer.padding_mode == "zeros":
            return x
        return F.pad(x, self.layer._reversed_padding_repeated_twice, self.layer.padding_mode)

    def input(self, r: random.Random, dtype: torch.dtype) -> Tensor:
        """Of any number of tokens, and however it lies in memory."""
        shape = self.draw_shape(r)
        x = numbers(r, shape, self.fine).to(dtype)
        x = x if self.is_conv and _ends_stock(self.layer) else laid_out(r, x)
        return x[0] if self.is_conv and len(x) and r.random() < 0.15 else x

    def is_right(self, x: Tensor, y: Tensor, compute: torch.dtype) -> bool:
        """Whether stock's own output is, within a few roundings of the sums of its absolute products."""
        given = x, self.layer.weight, self.layer.bias
        leaves = [None if t is None else _plain(t.detach()).to(compute).double() for t in given]
        with torch.no_grad():
            exact, sizes = self.stock(*leaves), self.stock(*(None if t is None else t.abs() for t in leaves))
        return bool(((y.double() - exact).abs() <= 4 * torch.finfo(compute).eps * sizes).all())

    def backward(
        self, x: Tensor, passed: Passed, compute: torch.dtype, dtype: torch.dtype, size: Size = Tensor.detach
    ) -> Passed:
        """The gradients by stock PyTorch, in ``dtype``, of ``size`` of x, weight, bias and dY as ``compute`` has them; all of
        them contiguous, since stock's weight gradient is wrong for one image with other strides, in grouped channels_last."""
        given = x, self.layer.weight, self.layer.bias
        leaves = [None if t is None else size(_plain(t.detach()).to(compute).to(dtype)).requires_grad_() for t in given]
        y, found = self.stock(*leaves), []
        for leaf, dy in zip(leaves, (passed.x, passed.weight, passed.bias), strict=True):
            needed = leaf is not None and dy is not None
            found.append(torch.autograd.grad(y, leaf, size(_plain(dy).to(dtype)), retain_graph=True)[0] if needed else None)
        if passed.columns is not None and found[1] is not None:
            found[1] = found[1] * passed.columns.to(dtype).view(*passed.columns.shape, *[1] * (found[1].ndim - 2))
        return Passed(*found)

    def __str__(self) -> str:
        return f"{self.layer} {str(self.dtype)[6:]} weight strides {self.layer.weight.stride()}{' fine' if self.fine else ''}"


def numbers(r: random.Random, shape: Shape, fine: bool) -> Tensor:
    """In float64. Of eighths the sums of products of a small layer are exact in float32, in any order."""
    if fine:
        return torch.randn(shape, dtype=torch.float64)
    eighths = torch.randint(-16, 17, shape, dtype=torch.float64) / 8
    kind = r.randrange(3)  # with all digits; whole, with equal sizes; mostly zero
    return eighths if kind == 0 else eighths.round() if kind == 1 else eighths * (torch.rand(shape) < 0.2)


def _ends_stock(layer: nn.Conv2d) -> bool:
    """Whether stock's convolution may end in a segmentation fault, in channels_last: where pixels see padding alone."""
    return layer.kernel_size == (1, 1) and layer.padding not in ("same", "valid", (0, 0))


def _plain(t: Tensor) -> Tensor:
    """t with the strides of a contiguous tensor, those of dimensions of size 1 too."""
    return t.contiguous().flatten().view(t.shape)


def dense(grad: Tensor) -> Tensor:
    """A gradient of either form, in the dense one."""
    if not grad.is_sparse:
        return grad.detach()
    return torch.zeros(grad.shape, dtype=grad.dtype).index_add_(0, grad._indices()[0], grad._values())


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two gradients are of one form, and equal."""
    if a.is_sparse:
        return b.is_sparse and torch.equal(a._indices(), b._indices()) and torch.equal(a._values(), b._values())
    return not b.is_sparse and torch.equal(a, b)


def laid_out(r: random.Random, t: Tensor) -> Tensor:
    """t, in one of ``LAYOUTS``."""
    names = [*LAYOUTS, *["channels_last"] * 4] if t.ndim == 4 else PLAIN
    return LAYOUTS[r.choice([*names, *["contiguous"] * 5])](t)


@functools.cache
def problem(number: int) -> Problem:
    """Draws from generators of its own, and torch's."""
    r = random.Random(f"layer {number}")
    torch.default_generator.manual_seed(number)
    fine = r.random() < 0.15
    made = (_linear if r.random() < 0.4 else _conv2d)(r, fine)
    with torch.no_grad():
        for p in made.layer.parameters():
            p.copy_(numbers(r, p.shape, fine))
    return made


def _linear(r: random.Random, fine: bool) -> Problem:
    features, out = r.choice([1, 2, 3, 7, 8, 16, 33]), r.choice([1, 2, 5, 8, 12, 16, 31])
    layer = wk.SkippableLinear(features, out, bias=r.random() < 0.7, dtype=r.choice(DTYPES))
    if r.random() < 0.1:
        layer.weight = nn.Parameter(layer.weight.detach().t().contiguous().t())
    leading = [(4,), (9,), (20,), (1,), (), (0,), (2, 5), (3, 1), (2, 0), (2, 3, 2)]
    return Problem(layer, fine, lambda r: (*r.choice(leading), features))


def _conv2d(r: random.Random, fine: bool) -> Problem:
    def pair(low: int, high: int) -> tuple[int, int]:
        return r.randint(low, high), r.randint(low, high)

    mode = r.choice(["zeros"] * 5 + ["circular", "reflect", "replicate"])
    kernel, dilation = r.choice([(1, 1), (3, 3), pair(1, 4)]), r.choice([(1, 1), (1, 1), pair(1, 3)])
    padding = r.choice(["same", "valid", (0, 0), (1, 1), pair(0, 3)])
    stride = (1, 1) if padding == "same" else r.choice([(1, 1), pair(1, 3)])
    groups = r.choice([1, 1, 1, 2, 3, 4])
    channels, out = groups * r.choice([1, 2, 3, 8]), groups * r.choice([1, 2, 3, 4, 8])
    geometry = kernel, stride, padding, dilation, groups, r.random() < 0.7, mode
    layer = wk.SkippableConv2d(channels, out, *geometry, dtype=r.choice(DTYPES))
    if r.random() < 0.3 and not _ends_stock(layer):
        layer = layer.to(memory_format=torch.channels_last)
    span = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    padded = (0, 0) if isinstance(padding, str) or mode != "zeros" else padding
    least = [s + 3 if mode != "zeros" else max(1, s - 2 * p) for s, p in zip(span, padded, strict=True)]
    batches = [0, 1, 2, 3, 6] if mode in ("zeros", "replicate") else [1, 2, 3]
    return Problem(layer, fine, lambda r: (r.choice(batches), channels, *(n + r.randrange(5) for n in least)))
