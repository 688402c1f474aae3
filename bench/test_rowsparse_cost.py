"""What a backward costs against the share of the rows that it trains: from a hundredth to all, where ours is stock's own."""

import dataclasses

import pytest
import torch
import torch.nn as nn

from bench import rowsparse
from tests.cases import MEMORY_FORMATS, NETWORK_CONVS

RATIOS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
LINEARS = [((2048, 1024, 1024), torch.float32), ((2048, 1024, 1024), torch.bfloat16), ((4096, 2048, 512), torch.float32)]
CONVS = [case for case in NETWORK_CONVS if case.name in ("VGG 16px", "ResNet 56px")]


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize(("shape", "dtype"), LINEARS, ids=str)
def test_rowsparse_cost_linear(shape, dtype, ratio, device, race, benchmark):
    tokens, outputs, inputs = shape
    timed = rowsparse.SMOKE_TOKENS if benchmark.disabled else tokens
    problem = rowsparse.Problem(nn.Linear(inputs, outputs, device=device, dtype=dtype), ratio)
    rowsparse.cost(
        race,
        problem,
        lambda: torch.randn(timed, inputs, device=device, dtype=dtype),
        use=f"{'x'.join(map(str, shape))} {str(dtype)[6:]}",
        dtype=dtype,
        ratio=ratio,
    )


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", CONVS, ids=str)
def test_rowsparse_cost_conv2d(case, dtype, ratio, device, race, benchmark):
    laid_out = {"memory_format": MEMORY_FORMATS["NHWC"]}
    timed = dataclasses.replace(case, batch=rowsparse.SMOKE_IMAGES) if benchmark.disabled else case
    rowsparse.cost(
        race,
        rowsparse.Problem(case.layer(dtype).to(device, **laid_out), ratio),
        lambda: timed.input(dtype).to(device).contiguous(**laid_out),
        use=f"{case.name} NHWC {str(dtype)[6:]}",
        dtype=dtype,
        ratio=ratio,
    )
