"""``scale_by_bits`` against PyTorch's backward of a ReLU, which reads the output in place of bits, and a copy of dY."""

import pytest
import torch

from bench.test_pack_bits import CASES
from wuskern import ops


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_scale_by_bits(case, dtype, device, race):
    def inputs():
        dy, y = case.make(dtype, device), case.make(dtype, device).relu()
        return dy, y, ops.pack_bits(y, 0.0), torch.empty_like(dy)

    def verify(results, dy, *_) -> None:
        assert torch.equal(results["ours"], results["threshold"])
        assert torch.equal(results["copy"], dy)

    elements = torch.Size(case.shape).numel()
    race(
        {
            "ours": lambda dy, y, bits, _: ops.scale_by_bits(dy, bits, 1.0),
            "threshold": lambda dy, y, bits, _: torch.ops.aten.threshold_backward(dy, y, 0),
            "copy": lambda dy, y, bits, target: target.copy_(dy),
        },
        group="scale_by_bits",
        case=f"{case.name} {str(dtype)[6:]}",
        inputs=inputs,
        verify=verify,
        peer="threshold",
        derived={"of_copy": lambda t: t["ours"] / t["copy"]},
        moved=2 * elements * dtype.itemsize,
        dtype_name=str(dtype)[6:],
        size=elements * dtype.itemsize,
    )
