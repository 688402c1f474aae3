"""Bias-only backward of a Conv2d against the stock layer with its weight frozen and its bias training.

The floor is the library's dgrad alone and one read of dY.
"""

import copy

import pytest
import torch
import torch.nn as nn

from tests.accuracy import assert_as_right_as_stock, exact_channel_sums
from tests.cases import Conv
from wuskern import SkippableConv2d, convert

CASES = [
    Conv("64x64->64 32px 3x3", 64, 64, 64, 32, 3, padding=1),
    Conv("64x128->128 16px 3x3", 64, 128, 128, 16, 3, padding=1),
    Conv("64x256->256 8px 3x3", 64, 256, 256, 8, 3, padding=1),
    Conv("64x512->512 4px 3x3", 64, 512, 512, 4, 3, padding=1),
    Conv("64x64->128 32px 3x3/2", 64, 64, 128, 32, 3, stride=2, padding=1),
    Conv("16x64->256 56px 1x1", 16, 64, 256, 56, 1),
]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_conv2d(case, dtype, layout, device, race):
    memory_format = torch.channels_last if layout == "NHWC" else torch.contiguous_format
    stock: nn.Conv2d = case.layer(dtype).to(device, memory_format=memory_format)
    ours = convert(copy.deepcopy(stock))
    assert isinstance(ours, SkippableConv2d)
    stock.weight.requires_grad_(False)
    ours.skip = True
    x = case.input(dtype).to(device).contiguous(memory_format=memory_format)
    graphs = {name: graph(layer, x) for name, layer in (("ours", ours), ("frozen", stock))}
    dy = torch.randn_like(graphs["ours"][0])
    verify(graphs, dy)

    def backward(name: str):
        y, x, bias = graphs[name]
        return lambda: torch.autograd.grad(y, (x, bias), dy, retain_graph=True)

    geometry = (stock.stride, stock.padding, stock.dilation, False, (0, 0), stock.groups)
    weight = stock.weight.detach()

    def dgrad():
        return torch.ops.aten.convolution_backward(dy, x, weight, None, *geometry, (True, False, False))

    race(
        {"ours": backward("ours"), "frozen": backward("frozen"), "dgrad": dgrad},
        group="conv2d bias-only backward",
        case=f"{case.name} {layout} {str(dtype)[6:]}",
        peer="frozen",
    )


def graph(layer: nn.Conv2d, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = x.detach().requires_grad_()
    return layer(x), x, layer.bias


def verify(graphs, dy) -> None:
    got = {name: torch.autograd.grad(y, (x, bias), dy, retain_graph=True) for name, (y, x, bias) in graphs.items()}
    assert (got["ours"][0] - got["frozen"][0]).norm() <= 1e-2 * got["frozen"][0].norm()
    assert_as_right_as_stock(got["ours"][1], got["frozen"][1], exact_channel_sums(dy, 1))
