"""``piecewise_`` as a ReLU against PyTorch's, and one read and write of x: a copy."""

import pytest
import torch
import torch.nn.functional as F

from tests.cases import Gradient
from wuskern import ops

CASES = [
    Gradient("images 8x256x56x56", (8, 256, 56, 56), 1),
    Gradient("images 8x256x56x56 NHWC", (8, 256, 56, 56), 1, "channels_last"),
    Gradient("tokens 2048x1536", (2048, 1536), -1),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_piecewise(case, dtype, device, race):
    def ours(x: torch.Tensor, _) -> torch.Tensor:
        y = torch.empty_like(x)
        ops.piecewise_(y, x, 0.0)
        return y

    def verify(results, x, _) -> None:
        assert torch.equal(results["ours"], F.relu(x))

    elements = torch.Size(case.shape).numel()
    race(
        {"ours": ours, "relu": lambda x, _: F.relu(x), "copy": lambda x, out: out.copy_(x)},
        group="piecewise_",
        case=f"{case.name} {str(dtype)[6:]}",
        inputs=lambda: (x := case.make(dtype, device), torch.empty_like(x)),
        verify=verify,
        peer="relu",
        derived={"of_copy": lambda t: t["ours"] / t["copy"]},
        moved=2 * elements * dtype.itemsize,
        dtype_name=str(dtype)[6:],
        size=elements * dtype.itemsize,
    )
