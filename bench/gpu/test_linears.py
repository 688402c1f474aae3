"""Linear over tokens, outputs and inputs: skipped against frozen; 5 % of the rows, scope "both", against all peers."""

import pytest
import torch
import torch.nn as nn

from bench import rowsparse
from bench.gpu.cases import COMPILED, LINEARS, SKIP, TINY_LINEARS, TOPK
from bench.test_linear import skipped

DTYPE, RATIO = torch.bfloat16, 0.05
pytestmark = rowsparse.COMPILES


def pytest_generate_tests(metafunc):
    shapes = LINEARS if metafunc.config.getoption("--device") == "cuda" else TINY_LINEARS
    metafunc.parametrize("shape", shapes, ids=lambda shape: "x".join(map(str, shape)))


@pytest.mark.parametrize("way", [SKIP, TOPK])
def test_linears(shape, way, device, race, benchmark):
    tokens, outputs, inputs = shape
    if way == SKIP:
        skipped(race, "Linear", (tokens, inputs, outputs), DTYPE, device, group=f"{SKIP} Linear", least_faster=1.0)
        return
    problem = rowsparse.Problem(nn.Linear(inputs, outputs, device=device, dtype=DTYPE), RATIO)
    least = (tokens * (outputs + 2 * problem.k + 2 * inputs) + 2 * problem.k * inputs) * DTYPE.itemsize
    flops, ceilings = 4 * tokens * inputs * problem.k, race.ceilings
    rowsparse.against_all_peers(
        race,
        problem,
        lambda: torch.randn(tokens, inputs, device=device, dtype=DTYPE),
        compiled=shape in COMPILED and not benchmark.disabled,
        group=f"{TOPK} Linear",
        case=f"{'x'.join(map(str, shape))} {RATIO:.0%}",
        dtype=DTYPE,
        floor=lambda t: ceilings.seconds(least, flops, DTYPE),
        ratio=RATIO,
        least_over_dense=5.0 if min(shape) >= 2048 else 1.0,
        least_over_best=1.5,
        most_of_floor=1.4,
    )
