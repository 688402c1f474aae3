"""``row_stats`` against ``dY.sum`` and ``dY.abs().sum``, and a copy of dY into a preallocated tensor beside them."""

import torch

from bench.test_bias_grad import pytest_generate_tests  # noqa: F401  the same cases
from tests.accuracy import assert_as_right_as_stock, exact_channel_sums
from wuskern import ops
from wuskern.kernels import reference


def sum_and_abs_sum(dy, dim):
    return reference.bias_grad(dy, dim), reference.bias_grad(dy.abs(), dim)


def test_row_stats(case, dtype, device, race):
    def inputs():
        dy = case.make(dtype, device)
        return dy, torch.empty_like(dy)

    def verify(results, dy, _) -> None:
        if dtype == torch.float64:
            exact = exact_channel_sums(dy, case.dim), exact_channel_sums(dy, case.dim, torch.abs)
        else:
            exact = reference.row_stats(dy.double(), case.dim, "l1")
        stock = reference.row_stats(dy, case.dim, "l1")
        for got, ours, wanted in zip(results["ours"], stock, exact, strict=True):
            assert_as_right_as_stock(got, ours, wanted, magnitudes=exact[1])
        assert torch.equal(results["copy"], dy)

    elements = torch.Size(case.shape).numel()
    race(
        {
            "ours": lambda dy, _: ops.row_stats(dy, case.dim, "l1"),
            "sum + abs sum": lambda dy, _: sum_and_abs_sum(dy, case.dim),
            "copy": lambda dy, target: target.copy_(dy),
        },
        group="row_stats",
        case=f"{case.name} {str(dtype)[6:]}",
        inputs=inputs,
        verify=verify,
        peer="sum + abs sum",
        derived={"of_copy": lambda t: t["ours"] / t["copy"]},
        moved=(elements + case.shape[case.dim]) * dtype.itemsize,
        dtype_name=str(dtype)[6:],
        size=elements * dtype.itemsize,
    )
