"""Backward of a Linear that trains a twentieth or a fifth of its rows, chosen anew each time, scope "both".

Beside it: stock, dense and with its weight frozen; unified top-k in plain PyTorch, and that compiled. See bench/rowsparse.py.
"""

import pytest
import torch
import torch.nn as nn

from bench import rowsparse
from tests.cases import ROWSPARSE_LINEARS

pytestmark = rowsparse.COMPILES


@pytest.mark.parametrize("ratio", rowsparse.RATIOS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", ROWSPARSE_LINEARS, ids=lambda shape: "x".join(map(str, shape)))
def test_rowsparse_linear(shape, dtype, ratio, device, race, benchmark):
    tokens, outputs, inputs = shape
    timed = rowsparse.SMOKE_TOKENS if benchmark.disabled else tokens
    first = shape == ROWSPARSE_LINEARS[0] and ratio == rowsparse.RATIOS[0]
    problem = rowsparse.Problem(nn.Linear(inputs, outputs, device=device, dtype=dtype), ratio)
    rowsparse.against_all_peers(
        race,
        problem,
        lambda: torch.randn(timed, inputs, device=device, dtype=dtype),
        compiled=not benchmark.disabled or first,
        group="rowsparse linear",
        case=f"{'x'.join(map(str, shape))} {str(dtype)[6:]} {ratio:.0%}",
        dtype=dtype,
        use="x".join(map(str, shape)),
        dtype_name=str(dtype)[6:],
        ratio=ratio,
        least_over_dense=5 if ratio == 0.05 and min(outputs, inputs) >= 1024 else 1,
    )
