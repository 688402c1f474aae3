"""Backward of a Conv2d that trains a twentieth or a fifth of its output channels, chosen anew each time, scope "both".

Beside it: stock, dense and with its weight frozen; unified top-k in plain PyTorch, and that compiled. See bench/rowsparse.py.
"""

import dataclasses

import pytest
import torch

from bench import rowsparse
from tests.cases import MEMORY_FORMATS, NETWORK_CONVS

CONVS = [case for case in NETWORK_CONVS if case.name != "depthwise"]  # of a depthwise one, no group could leave out a row
pytestmark = rowsparse.COMPILES


@pytest.mark.parametrize("ratio", rowsparse.RATIOS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("layout", MEMORY_FORMATS)
@pytest.mark.parametrize("case", CONVS, ids=str)
def test_rowsparse_conv2d(case, layout, dtype, ratio, device, race, benchmark):
    laid_out = {"memory_format": MEMORY_FORMATS[layout]}
    problem = rowsparse.Problem(case.layer(dtype).to(device, **laid_out), ratio)
    timed = dataclasses.replace(case, batch=rowsparse.SMOKE_IMAGES) if benchmark.disabled else case
    first = case is CONVS[0] and layout == "NCHW" and ratio == rowsparse.RATIOS[0]
    rowsparse.against_all_peers(
        race,
        problem,
        lambda: timed.input(dtype).to(device).contiguous(**laid_out),
        compiled=not benchmark.disabled or first,
        group="rowsparse conv2d",
        case=f"{case.name} {layout} {str(dtype)[6:]} {ratio:.0%}",
        dtype=dtype,
        use=case.name,
        problem=[case.batch, case.channels, case.out, case.side, case.kernel, case.stride, case.groups],
        layout=layout,
        dtype_name=str(dtype)[6:],
        ratio=ratio,
        least_over_dense=1,
    )
