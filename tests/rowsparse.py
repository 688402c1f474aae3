"""What the tests of the row-sparse gradients share: problems, and stock PyTorch's dense answer in the chosen rows."""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from tests.accuracy import assert_as_right_as_stock
from tests.cases import CONVS, MEMORY_FORMATS, Conv
from wuskern import backends, configs
from wuskern.shapes import memory_format

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
LINEARS = [(16, 12, 8), (5, 123, 31), (1, 4, 4), (300, 64, 20), (9, 1, 6), (700, 40, 1), (0, 6, 5)]  # tokens, N, K
OUTPUTS = 200  # compared together, at the least
NUMERIC = [case for case in CONVS if not isinstance(case.padding, str) and case.padding_mode == "zeros"]
# Beyond one tile of the compiled kernels in each direction: pixels, images, columns, channels.
LARGER = [
    Conv("300 pixels in a line", 2, 3, 9, (2, 300), 3, padding=1),
    Conv("three tiles", 2, 19, 11, (20, 30), 3, padding=1),
    Conv("many images", 70, 7, 9, 4, 3, padding=1),
    Conv("many channels", 3, 70, 40, 6, 3, padding=1),
    Conv("many rows 1x1", 3, 33, 130, 9, 1),
]


@dataclass(frozen=True)
class ConvTensors:
    """One convolution: dy whole, and the geometry as the ops take it."""

    dy: Tensor
    x: Tensor
    weight: Tensor
    rows: Tensor
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @property
    def geometry(self):
        return self.stride, self.padding, self.dilation, self.groups

    def double(self) -> "ConvTensors":
        return replace(self, dy=self.dy.double(), x=self.x.double(), weight=self.weight.double())

    def gathered(self) -> Tensor:
        return self.dy.index_select(1, self.rows).contiguous(memory_format=memory_format(self.dy))

    def problem(self, like: Tensor) -> configs.ConvProblem:
        """As ``configs`` asks for it; the memory format is that of ``like``."""
        return configs.ConvProblem(
            self.x.dtype, *self.x.shape[:2], tuple(self.x.shape[2:]), memory_format(like), len(self.rows),
            tuple(self.weight.shape[2:]), self.stride, self.padding, self.dilation, self.groups,
        )  # fmt: skip


def some_rows(n: int, k: int, groups: int = 1) -> Tensor:
    """k of n at random, as many in each group."""
    each = n // groups
    return torch.cat([g * each + torch.randperm(each)[: k // groups].sort()[0] for g in range(groups)])


def conv_tensors(case: Conv, dtype: torch.dtype, layout: str, k: int | None = None) -> ConvTensors:
    layer, like = case.layer().to(torch.float64), MEMORY_FORMATS[layout]
    with torch.no_grad():
        x = case.input(torch.float64)
        dy = torch.randn_like(layer(x))
    weight = layer.weight.detach()
    if dtype is torch.float64:  # small integers: their sums are exact, so that stock's answer is
        x, dy, weight = ((4 * t).round() for t in (x, dy, weight))
    x, dy = (t.to(dtype).contiguous(memory_format=like) for t in (x, dy))
    k = max(case.groups, case.out // 3 // case.groups * case.groups) if k is None else k
    rows = some_rows(case.out, k, case.groups)
    return ConvTensors(dy, x, layer.weight.detach().to(dtype), rows, layer.stride, layer.padding, layer.dilation, layer.groups)


def stock_wgrad(t: ConvTensors) -> Tensor:
    return conv2d_weight(t.x, t.weight.shape, t.dy, *t.geometry)[t.rows]


def stock_dgrad(t: ConvTensors) -> Tensor:
    chosen = torch.zeros_like(t.dy)
    chosen[:, t.rows] = t.dy[:, t.rows]
    return conv2d_input(t.x.shape, t.weight, chosen, *t.geometry)


def draws(case: Conv, dtype: torch.dtype, layout: str, k: int | None = None) -> list[ConvTensors]:
    """As many as give OUTPUTS elements of dW: the largest of a few errors would be a matter of luck."""
    first = conv_tensors(case, dtype, layout, k)
    each = len(first.rows) * first.weight[0].numel()
    return [first, *(conv_tensors(case, dtype, layout, k) for _ in range(OUTPUTS // each))]


def assert_all_as_right(triples: Iterable[tuple[Tensor, Tensor, Tensor]]) -> None:
    """The rule over the elements of all (ours, stock, exact)."""
    assert_as_right_as_stock(*(torch.cat([t.flatten() for t in column]) for column in zip(*triples, strict=True)))


@contextlib.contextmanager
def kernel_of(op: str, backend: str, device: str = "cpu") -> Iterator[None]:
    """With that backend; skips where it has no kernel."""
    with backends.backend(backend):
        try:
            backends.choose(op, device)
        except RuntimeError as error:
            pytest.skip(str(error))
        yield


def need_library() -> None:
    if obstacle := backends.library_obstacle("cpu"):
        pytest.skip(obstacle)
