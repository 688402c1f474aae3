"""Bias-only backward of a Conv2d against the stock layer with its weight frozen and its bias training.

The floor is the library's dgrad alone, on the same tensors, and one read of dY at the measured bandwidth. Every case has
a dgrad, the stem too, so that they are comparable. Each variant runs once before it is timed: what another one freed
decides whether the C library has to fault its memory in again.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn as nn
from torch import Tensor

from bench.race import Race
from tests.accuracy import assert_as_right_as_stock
from tests.cases import MEMORY_FORMATS, NETWORK_CONVS, Conv
from wuskern import SkippableConv2d, convert
from wuskern.kernels import reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("layout", MEMORY_FORMATS)
@pytest.mark.parametrize("case", NETWORK_CONVS, ids=str)
def test_conv2d(case, layout, dtype, device, race):
    bias_only(race, case, layout, dtype, device, lambda: case.input(dtype).to(device))


def bias_only(
    race: Race, case: Conv, layout: str, dtype: torch.dtype, device: str, make: Callable[[], Tensor], **facts: Any
) -> None:
    """``make``: makes an x. facts: go to the race as they are."""
    stock: nn.Conv2d = case.layer(dtype).to(device, memory_format=MEMORY_FORMATS[layout])
    ours = convert(copy.deepcopy(stock))
    assert isinstance(ours, SkippableConv2d)
    stock.weight.requires_grad_(False)
    ours.skip = True
    geometry = (stock.stride, stock.padding, stock.dilation, False, (0, 0), stock.groups)
    ceilings = race.ceilings

    def inputs():
        """One forward of both layers on the same input, and a gradient of their output as the backward above would hand it."""
        x = make().contiguous(memory_format=MEMORY_FORMATS[layout])
        graphs = {name: graph(layer, x) for name, layer in (("ours", ours), ("frozen", stock))}
        assert torch.equal(graphs["ours"][0], graphs["frozen"][0])
        return graphs, torch.randn_like(graphs["ours"][0]), x

    def backward(name: str):
        return lambda graphs, dy, _: torch.autograd.grad(graphs[name][0], graphs[name][1:], dy, retain_graph=True)

    def dgrad(_, dy, x):
        weight = stock.weight.detach()
        return torch.ops.aten.convolution_backward(dy, x, weight, None, *geometry, (True, False, False))[0]

    def verify(results, graphs, dy, x) -> None:
        for got in (results["ours"][0], results["dgrad"]):
            assert (got - results["frozen"][0]).norm() <= 1e-2 * results["frozen"][0].norm()
        assert results["ours"][0].stride() == results["frozen"][0].stride()
        exact, magnitudes = reference.row_stats(dy.double(), 1, "l1")
        assert_as_right_as_stock(results["ours"][1], results["frozen"][1], exact, magnitudes)

    outputs = case.batch * case.out * (case.side // case.stride) ** 2
    elements = case.batch * case.channels * case.side**2
    race(
        {"ours": backward("ours"), "frozen": backward("frozen"), "dgrad": dgrad},
        case=f"{case.name} {layout} {str(dtype)[6:]}",
        inputs=inputs,
        verify=verify,
        peer="frozen",
        floor=lambda t: t["dgrad"] + outputs * dtype.itemsize / ceilings.bytes_per_second,
        moved=(2 * outputs + elements + stock.weight.numel()) * dtype.itemsize,
        dtype=dtype,
        rehearse=True,
        use=case.name,
        problem=[case.batch, case.channels, case.out, case.side, case.kernel, case.stride, case.groups],
        layout=layout,
        dtype_name=str(dtype)[6:],
        **{"group": "conv2d", **facts},
    )


def graph(layer: nn.Conv2d, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = x.detach().requires_grad_()
    return layer(x), x, layer.bias
