"""Conv2d at the shapes of ResNet-50 and VGG-16, batch 128, NHWC: skipped against frozen; 5 % and 20 % against all peers."""

import pytest
import torch

from bench import rowsparse
from bench.gpu.cases import COMPILED_CONVS, CONVS, SKIP, TINY_CONVS, TOPK
from bench.test_conv2d import bias_only

DTYPE = torch.bfloat16
LIKE = {"memory_format": torch.channels_last}
pytestmark = rowsparse.COMPILES


def pytest_generate_tests(metafunc):
    metafunc.parametrize("case", CONVS if metafunc.config.getoption("--device") == "cuda" else TINY_CONVS, ids=str)


@pytest.mark.parametrize("ratio", [None, 0.05, 0.2], ids=["skip", "5%", "20%"])
def test_convs(case, ratio, device, race, benchmark):
    def make() -> torch.Tensor:
        return torch.randn(case.batch, case.channels, case.side, case.side, device=device, dtype=DTYPE).contiguous(**LIKE)

    if ratio is None:
        bias_only(race, case, "NHWC", DTYPE, device, make, group=f"{SKIP} Conv2d", least_faster=1.0)
        return
    rowsparse.against_all_peers(
        race,
        rowsparse.Problem(case.layer(DTYPE).to(device, **LIKE), ratio),
        make,
        compiled=case.name in COMPILED_CONVS and not benchmark.disabled,
        group=f"{TOPK} Conv2d",
        case=f"{case.name} {ratio:.0%}",
        dtype=DTYPE,
        ratio=ratio,
        least_over_best=1.3,
    )
