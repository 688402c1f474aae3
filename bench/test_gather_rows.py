"""``gather_rows`` against ``index_select``, made contiguous in the memory format of dY.

Beside them a copy of dY into a preallocated tensor: ``of_copy`` falls with the share of dY's cache lines that the chosen rows
touch.
"""

import pytest
import torch

from tests.cases import MEMORY_FORMATS, NETWORK_CONVS, Gradient
from wuskern import ops
from wuskern.kernels import reference

LINEARS = [
    Gradient(f"tokens {rows}x{columns}", (rows, columns), -1)
    for rows, columns in ((512, 512), (2048, 1024), (4096, 2048), (128, 4096), (8192, 256), (2048, 768))
]


def of_conv(conv, memory_format: str) -> Gradient:
    with torch.device("meta"):
        shape = conv.layer()(conv.input()).shape
    return Gradient(f"{conv.name} {memory_format}", shape, 1, {"NCHW": "contiguous", "NHWC": "channels_last"}[memory_format])


CASES = LINEARS + [of_conv(conv, memory_format) for conv in NETWORK_CONVS for memory_format in MEMORY_FORMATS]


@pytest.mark.parametrize("ratio", [0.05, 0.2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gather_rows(case, dtype, ratio, device, race):
    channels = case.shape[case.dim]
    k = max(1, int(ratio * channels))
    rows = torch.randperm(channels)[:k].sort()[0].to(device)

    def inputs():
        dy = case.make(dtype, device)
        return dy, torch.empty_like(dy)

    def verify(results, dy, _) -> None:
        assert torch.equal(results["ours"], results["index_select"])
        assert results["ours"].stride() == results["index_select"].stride()
        assert torch.equal(results["copy"], dy)

    elements = torch.Size(case.shape).numel()
    race(
        {
            "ours": lambda dy, _: ops.gather_rows(dy, rows, case.dim),
            "index_select": lambda dy, _: reference.gather_rows(dy, rows, case.dim),
            "copy": lambda dy, target: target.copy_(dy),
        },
        group="gather_rows",
        case=f"{case.name} {str(dtype)[6:]} {ratio:.0%}",
        inputs=inputs,
        verify=verify,
        peer="index_select",
        derived={"of_copy": lambda t: t["ours"] / t["copy"]},
        moved=2 * elements // channels * k * dtype.itemsize,
        dtype_name=str(dtype)[6:],
        size=elements * dtype.itemsize,
    )
