"""``pack_bits`` against a comparison by PyTorch, which gives a byte for each element, and one read of x: its sum."""

import pytest
import torch

from tests.cases import Gradient
from wuskern import ops

CASES = [
    Gradient("images 8x256x56x56", (8, 256, 56, 56), 1),
    Gradient("images 8x256x56x56 NHWC", (8, 256, 56, 56), 1, "channels_last"),
    Gradient("tokens 2048x1536", (2048, 1536), -1),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_pack_bits(case, dtype, device, race):
    def verify(results, x) -> None:
        assert int(results["ours"].long().bitwise_and(1).sum()) == int(mask_in_memory(x)[::8].sum())

    def mask_in_memory(x: torch.Tensor) -> torch.Tensor:
        return (x > 0).as_strided((x.numel(),), (1,))

    elements = torch.Size(case.shape).numel()
    race(
        {"ours": lambda x: ops.pack_bits(x, 0.0), "compare": lambda x: x > 0, "read": lambda x: x.sum()},
        group="pack_bits",
        case=f"{case.name} {str(dtype)[6:]}",
        inputs=lambda: (case.make(dtype, device),),
        verify=verify,
        peer="compare",
        derived={"over_read": lambda t: t["ours"] / t["read"]},
        moved=elements * dtype.itemsize,
        dtype_name=str(dtype)[6:],
        size=elements * dtype.itemsize,
    )
