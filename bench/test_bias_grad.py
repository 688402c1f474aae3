"""bias_grad against ``dY.sum``; the floor is one read of dY, and a copy of dY shows what the memory gives."""

import pytest
import torch

from tests.accuracy import assert_as_right_as_stock
from tests.cases import Gradient
from wuskern import ops, reference

CPU = [
    Gradient("linear 4096x2048", (4096, 2048), -1),
    Gradient("linear 8192x512", (8192, 512), -1),
    Gradient("linear head 64x10", (64, 10), -1),
    Gradient("conv 16x256x56x56 NCHW", (16, 256, 56, 56), 1),
    Gradient("conv 16x256x56x56 NHWC", (16, 256, 56, 56), 1, "channels_last"),
    Gradient("conv 64x64x32x32 NCHW", (64, 64, 32, 32), 1),
    Gradient("conv 64x512x4x4 NCHW", (64, 512, 4, 4), 1),
]
GPU = [
    Gradient("linear 32768x4096", (32768, 4096), -1),
    Gradient("linear 8192x8192", (8192, 8192), -1),
    Gradient("linear 2048x768", (2048, 768), -1),
    Gradient("conv 128x256x56x56 NCHW", (128, 256, 56, 56), 1),
    Gradient("conv 128x256x56x56 NHWC", (128, 256, 56, 56), 1, "channels_last"),
    Gradient("conv 128x512x7x7 NCHW", (128, 512, 7, 7), 1),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("index", range(max(len(CPU), len(GPU))))
def test_bias_grad(index, dtype, device, race):
    cases = GPU if device == "cuda" else CPU
    if index >= len(cases):
        pytest.skip("there are fewer cases on this device")
    case = cases[index]
    dy = case.make(dtype, device)
    exact = reference.bias_grad(dy.double(), case.dim)
    assert_as_right_as_stock(ops.bias_grad(dy, case.dim), reference.bias_grad(dy, case.dim), exact)
    target = torch.empty_like(dy)
    race(
        {
            "ours": lambda: ops.bias_grad(dy, case.dim),
            "sum": lambda: reference.bias_grad(dy, case.dim),
            "copy": lambda: target.copy_(dy),
        },
        group="bias_grad",
        case=f"{case.name} {str(dtype)[6:]}",
        peer="sum",
        bytes=dy.numel() * dy.element_size(),
    )
