"""A forward and backward of a layer that trains a twentieth or a fifth of its columns, fixed ones.

Beside it: stock, dense and with its weight frozen; and a slice that is a parameter of its own, in plain PyTorch, as PaCA
(arXiv 2503.01905) has it. The ideal is the library alone: fprop, dgrad, the product of dY with columns that are compact
already, one gather of these by index_select, and one read of dY for the bias, at the measured bandwidth. No zeros, no host.
"""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from bench.rowsparse import COMPILES, RATIOS, ROUNDS, SMOKE_IMAGES, SMOKE_TOKENS
from tests.accuracy import assert_as_right_as_stock
from tests.cases import MEMORY_FORMATS, NETWORK_CONVS
from wuskern import Columns, convert
from wuskern.bench.slices import Layer, Slice, draw_columns, groups_of, within

LINEARS = [(512, 512, 512), (2048, 1024, 1024), (4096, 2048, 512), (2048, 768, 3072), (8192, 256, 256)]
CONVS = [case for case in NETWORK_CONVS if case.name != "depthwise"]  # which has one input channel to a group
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
pytestmark = COMPILES


def step(layer: nn.Module) -> Callable[..., Any]:
    """A forward and a backward; the gradients are returned, and nothing is left behind."""

    def run(x: Tensor, dy: Tensor, _: Tensor) -> Any:
        leaf = x.detach().requires_grad_()
        layer(leaf).backward(dy)
        gradients = leaf.grad, layer.weight.grad, layer.bias.grad
        layer.weight.grad = layer.bias.grad = None
        return gradients

    return run


def race_all(race: Any, stock: Layer, make: Callable[[], Tensor], ratio: float, **facts: Any) -> None:
    columns = draw_columns(stock, ratio)
    ours, frozen = convert(copy.deepcopy(stock)), copy.deepcopy(stock)
    ours.columns = Columns(columns)
    frozen.weight.requires_grad_(False)
    layers = {"ours": ours, "dense": copy.deepcopy(stock), "frozen": frozen, "plain": Slice(stock, columns)}
    conv = isinstance(stock, nn.Conv2d)
    weight, geometry = stock.weight.detach(), ()
    if conv:
        geometry = (stock.stride, stock.padding, stock.dilation, False, (0, 0), stock.groups)
    part = weight.index_select(1, within(stock, columns))

    @torch.no_grad()
    def products(x: Tensor, dy: Tensor, compact: Tensor) -> None:
        if not conv:
            F.linear(x, weight, stock.bias)
            dy.matmul(weight)
            dy.t().matmul(compact)
            return
        F.conv2d(x, weight, stock.bias, *geometry[:3], stock.groups)
        torch.ops.aten.convolution_backward(dy, x, weight, None, *geometry, (True, False, False))
        torch.ops.aten.convolution_backward(dy, compact, part, None, *geometry, (False, True, False))

    def gather(x: Tensor, dy: Tensor, compact: Tensor) -> Tensor:
        if conv and not x.is_contiguous():
            return x.permute(0, 2, 3, 1).index_select(3, columns).permute(0, 3, 1, 2)
        return x.index_select(1, columns)

    def inputs() -> tuple[Tensor, ...]:
        x = make()
        with torch.no_grad():
            dy = torch.randn_like(stock(x))
        return x, dy, gather(x, dy, x)

    x, dy, _ = inputs()
    read = dy.numel() * dy.itemsize / race.ceilings.bytes_per_second
    variants = {name: step(layer) for name, layer in layers.items()}
    race(
        variants | {"products": products, "gather": gather},
        inputs=inputs,
        verify=lambda results, x, dy, _: verify(results, columns, stock, x, dy),
        peer="plain",
        derived={f"over_{peer}": lambda t, peer=peer: t[peer] / t["ours"] for peer in ("dense", "frozen")}
        | {"of_ideal": lambda t: t["ours"] / (t["products"] + t["gather"] + read)},
        moved=(2 * x.numel() + 2 * dy.numel() + 2 * weight.numel()) * x.itemsize,
        rounds=ROUNDS,
        rehearse=True,
        ratio=ratio,
        least_over_dense=1,
        **facts,
    )


def verify(results: dict[str, Any], columns: Tensor, stock: Layer, x: Tensor, dy: Tensor) -> None:
    """The chosen columns as right as stock's against float64, the others zero, dX and the bias gradient stock's."""
    ours, dense = results["ours"], results["dense"]
    exact_layer, leaf = copy.deepcopy(stock).double(), x.double()
    exact_layer(leaf).backward(dy.double())
    exact = exact_layer.weight.grad
    of_group = within(stock, columns)
    sizes_layer = copy.deepcopy(stock).double()
    sizes_layer(x.double().abs()).backward(dy.double().abs())
    chosen = (t.index_select(1, of_group) for t in (ours[1], dense[1], exact, sizes_layer.weight.grad))
    assert_as_right_as_stock(*chosen)
    others = torch.ones(ours[1].shape[1], dtype=torch.bool).index_fill_(0, of_group, False)
    assert not ours[1][:, others].any()
    assert len(columns) == groups_of(stock) * len(of_group)
    torch.testing.assert_close(ours[0], dense[0], rtol=2**-6, atol=2**-4 * dense[0].abs().max().item())


@pytest.mark.parametrize("ratio", RATIOS)
@DTYPES
@pytest.mark.parametrize("shape", LINEARS, ids=lambda shape: "x".join(map(str, shape)))
def test_columns_linear(shape, dtype, ratio, device, race, benchmark):
    tokens, outputs, inputs = shape
    timed, name = SMOKE_TOKENS if benchmark.disabled else tokens, "x".join(map(str, shape))
    race_all(
        race,
        nn.Linear(inputs, outputs, device=device, dtype=dtype),
        lambda: torch.randn(timed, inputs, device=device, dtype=dtype),
        ratio,
        group="columns linear",
        case=f"{name} {str(dtype)[6:]} {ratio:.0%}",
        dtype=dtype,
        use=name,
        dtype_name=str(dtype)[6:],
    )


@pytest.mark.parametrize("ratio", RATIOS)
@DTYPES
@pytest.mark.parametrize("layout", MEMORY_FORMATS)
@pytest.mark.parametrize("case", CONVS, ids=str)
def test_columns_conv2d(case, layout, dtype, ratio, device, race, benchmark):
    laid_out = {"memory_format": MEMORY_FORMATS[layout]}
    timed = dataclasses.replace(case, batch=SMOKE_IMAGES) if benchmark.disabled else case
    race_all(
        race,
        case.layer(dtype).to(device, **laid_out),
        lambda: timed.input(dtype).to(device).contiguous(**laid_out),
        ratio,
        group="columns conv2d",
        case=f"{case.name} {layout} {str(dtype)[6:]} {ratio:.0%}",
        dtype=dtype,
        use=case.name,
        layout=layout,
        dtype_name=str(dtype)[6:],
    )
