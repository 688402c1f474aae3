"""What the tests of the row-sparse gradients share: problems, and stock PyTorch's dense answer in the chosen rows."""

import contextlib
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from tests.cases import CONVS, MEMORY_FORMATS, Conv
from tests.conftest import on_backend
from wuskern.common.shapes import memory_format
from wuskern.kernels import backends
from wuskern.kernels.problem import Problem

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
LIBRARY_ROUNDS = "torch's convolutions round sums on their way in this dtype, on this processor"
LINEARS = [(16, 12, 8), (5, 123, 31), (1, 4, 4), (300, 64, 20), (9, 1, 6), (700, 40, 1), (0, 6, 5)]  # tokens, N, K
NUMERIC = [case for case in CONVS if not isinstance(case.padding, str) and case.padding_mode == "zeros"]
# Beyond one tile of the compiled kernels in each direction: pixels, images, columns, channels.
LARGER = [
    Conv("300 pixels in a line", 2, 3, 9, (2, 300), 3, padding=1),
    Conv("three tiles", 2, 19, 11, (20, 30), 3, padding=1),
    Conv("many images", 70, 7, 9, 4, 3, padding=1),
    Conv("many channels", 3, 70, 40, 6, 3, padding=1),
    Conv("many rows 1x1", 3, 33, 130, 9, 1),
]
# Sums of thousands, for the rule of accuracy.
LONG_SUMS = [Conv("many pixels", 6, 24, 16, 30, 3, padding=1), Conv("many columns", 4, 48, 40, 12, 3, padding=1)]


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

    @property
    def wgrad_problem(self) -> Problem:
        return self._problem("rowsparse_wgrad_conv2d", self.x)

    @property
    def dgrad_problem(self) -> Problem:
        return self._problem("rowsparse_dgrad_conv2d", self.dy)

    def _problem(self, op: str, images: Tensor) -> Problem:
        """The problem as it is told to ``paths``, dy being gathered; in the memory format of ``images``."""
        k, planes = len(self.rows), memory_format(images) is torch.contiguous_format
        (batch, channels, *size), kernel_size = self.x.shape, tuple(self.weight.shape[2:])
        return Problem(op, self.x.dtype, batch, channels, k, k, tuple(size), kernel_size, *self.geometry, planes)


def some_rows(n: int, k: int, groups: int = 1) -> Tensor:
    """k of n at random, as many in each group."""
    each = n // groups
    return torch.cat([g * each + torch.randperm(each)[: k // groups].sort()[0] for g in range(groups)])


def integers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """From -4 to 4, some of them zero."""
    return torch.randint(-4, 5, shape).to(dtype)


def conv_tensors(case: Conv, dtype: torch.dtype, layout: str, k: int | None = None, make=integers) -> ConvTensors:
    layer, like = case.layer(), MEMORY_FORMATS[layout]
    with torch.no_grad():
        size = case.input().shape
        x, dy, weight = (make(*shape).to(dtype) for shape in (size, layer(torch.zeros(size)).shape, layer.weight.shape))
    x, dy = (t.contiguous(memory_format=like) for t in (x, dy))
    k = max(case.groups, case.out // 3 // case.groups * case.groups) if k is None else k
    rows = some_rows(case.out, k, case.groups)
    return ConvTensors(dy, x, weight, rows, layer.stride, layer.padding, layer.dilation, layer.groups)


def stock_wgrad(t: ConvTensors) -> Tensor:
    return conv2d_weight(t.x, t.weight.shape, t.dy, *t.geometry)[t.rows]


def stock_dgrad(t: ConvTensors) -> Tensor:
    chosen = torch.zeros_like(t.dy)
    chosen[:, t.rows] = t.dy[:, t.rows]
    return conv2d_input(t.x.shape, t.weight, chosen, *t.geometry)


def wgrad_answers(t: ConvTensors) -> tuple[Tensor, Tensor]:
    """Stock's dW, and the exact one. Stock's is the less exact of all rows' and of the chosen ones' alone: its order of sums
    depends on how many there are."""
    exact = stock_wgrad(t.double())
    alone = conv2d_weight(t.x, t.weight[t.rows].shape, t.gathered(), *t.geometry)
    return _worse(exact, stock_wgrad(t), alone), exact


def dgrad_answers(t: ConvTensors) -> tuple[Tensor, Tensor]:
    """The same of dX."""
    exact = stock_dgrad(t.double())
    alone = conv2d_input(t.x.shape, t.weight[t.rows], t.gathered(), *t.geometry)
    return _worse(exact, stock_dgrad(t), alone), exact


def linear_wgrad_answers(dy: Tensor, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The same of a Linear's dW."""
    exact = (dy.double().t() @ x.double())[rows]
    return _worse(exact, (dy.t() @ x)[rows], dy[:, rows].t() @ x), exact


def _worse(exact: Tensor, a: Tensor, b: Tensor) -> Tensor:
    if exact.numel() == 0:
        return a
    return max(a, b, key=lambda stock: (stock.double() - exact).abs().max().item())


def assert_exact(ours: Tensor, exact: Tensor) -> None:
    """Of integers: every sum of products is exact in float32 in any order, and is rounded once."""
    assert ours.shape == exact.shape, f"shape: expected {tuple(exact.shape)}, got {tuple(ours.shape)}"
    assert torch.equal(ours, exact.to(ours.dtype))


@functools.cache
def library_rounds(dtype: torch.dtype) -> bool:
    """Whether torch's convolutions round such sums on their way, as they do in bfloat16 on processors without AVX-512."""
    if dtype not in (torch.float16, torch.bfloat16):
        return False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        t = conv_tensors(LARGER[1], dtype, "NCHW")
    return any(not torch.equal(stock(t), stock(t.double()).to(dtype)) for stock in (stock_wgrad, stock_dgrad))


def assert_near(ours: Tensor, exact: Tensor, magnitudes: Tensor) -> None:
    """For a GPU's library, whose algorithms need not be exact of integers: within four roundings of the sum of the absolute
    products."""
    allowed = 4 * torch.finfo(ours.dtype).eps * magnitudes.double().cpu()
    assert ((ours.double().cpu() - exact.double().cpu()).abs() <= allowed).all()


@contextlib.contextmanager
def kernel_of(op: str, backend: str, request: pytest.FixtureRequest, device: str = "cpu") -> Iterator[None]:
    """With that backend; skips where it has no kernel, or none that gives right numbers here."""
    dtype = getattr(request.node, "callspec", None) and request.node.callspec.params.get("dtype")
    if backend == "triton" and dtype is torch.bfloat16 and os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("Triton's interpreter computes wrong products in bfloat16")
    if device == "cpu" and backend in ("native", "reference") and op.endswith("conv2d") and library_rounds(dtype):
        pytest.skip(LIBRARY_ROUNDS)
    with on_backend(backend):
        try:
            backends.choose(op, device)
        except RuntimeError as error:
            pytest.skip(str(error))
        yield


def need_library() -> None:
    if obstacle := backends.library_obstacle("cpu"):
        pytest.skip(obstacle)
