"""``scale_channels`` against a product that PyTorch broadcasts, and a copy of dY."""

import pytest
import torch

from bench.test_pack_bits import CASES
from wuskern import ops


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_scale_channels(case, dtype, device, race):
    scale = torch.randn(case.shape[case.dim], device=device)
    shape = [1] * len(case.shape)
    shape[case.dim] = -1
    factor = scale.view(shape)

    def inputs():
        dy = case.make(dtype, device)
        return dy, torch.empty_like(dy)

    def verify(results, dy, _) -> None:
        torch.testing.assert_close(results["ours"], results["broadcast"])
        assert torch.equal(results["copy"], dy)

    elements = torch.Size(case.shape).numel()
    race(
        {
            "ours": lambda dy, _: ops.scale_channels(dy, scale, case.dim),
            "broadcast": lambda dy, _: (dy * factor).to(dtype),
            "copy": lambda dy, target: target.copy_(dy),
        },
        group="scale_channels",
        case=f"{case.name} {str(dtype)[6:]}",
        inputs=inputs,
        verify=verify,
        peer="broadcast",
        derived={"of_copy": lambda t: t["ours"] / t["copy"]},
        moved=2 * elements * dtype.itemsize,
        dtype_name=str(dtype)[6:],
        size=elements * dtype.itemsize,
    )
