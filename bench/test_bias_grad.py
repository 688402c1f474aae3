"""``bias_grad`` against ``dY.sum``, and a copy of dY into a preallocated tensor beside them.

The floor is one read of dY: ``of_ceiling`` says how near it is.
"""

import torch

from tests.accuracy import assert_as_right_as_stock, exact_channel_sums
from tests.cases import ALL_DTYPES, GPU_GRADIENTS, NETWORK_GRADIENTS
from wuskern import ops
from wuskern.kernels import reference

COMMON, FURTHER = (torch.float32, torch.bfloat16), (torch.float16, torch.float64)


def pytest_generate_tests(metafunc):
    cases = GPU_GRADIENTS if metafunc.config.getoption("--device") == "cuda" else NETWORK_GRADIENTS
    problems = [(case, dtype) for case in cases for dtype in COMMON + (FURTHER if case.shape in ALL_DTYPES else ())]
    metafunc.parametrize(("case", "dtype"), problems, ids=[f"{case}-{str(dtype)[6:]}" for case, dtype in problems])


def test_bias_grad(case, dtype, device, race):
    def inputs():
        dy = case.make(dtype, device)
        return dy, torch.empty_like(dy)

    def verify(results, dy, _) -> None:
        exact = exact_channel_sums(dy, case.dim) if dtype == torch.float64 else reference.bias_grad(dy.double(), case.dim)
        magnitudes = reference.bias_grad(dy.abs(), case.dim)
        assert_as_right_as_stock(results["ours"], results["sum"], exact, magnitudes)
        assert torch.equal(results["copy"], dy)

    elements = torch.Size(case.shape).numel()
    race(
        {
            "ours": lambda dy, _: ops.bias_grad(dy, case.dim),
            "sum": lambda dy, _: reference.bias_grad(dy, case.dim),
            "copy": lambda dy, target: target.copy_(dy),
        },
        group="bias_grad",
        case=f"{case.name} {str(dtype)[6:]}",
        inputs=inputs,
        verify=verify,
        peer="sum",
        derived={"of_copy": lambda t: t["ours"] / t["copy"]},
        moved=(elements + case.shape[case.dim]) * dtype.itemsize,
        dtype_name=str(dtype)[6:],
        size=elements * dtype.itemsize,
    )
