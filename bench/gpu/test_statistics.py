"""``bias_grad`` and ``row_stats`` of large gradients: bytes a second against those of a copy, and against ``dY.sum``."""

import pytest
import torch

from bench.gpu.cases import GRADIENTS, MIB, TINY_GRADIENTS, gradient
from tests.accuracy import assert_as_right_as_stock
from wuskern import ops
from wuskern.kernels import reference

DTYPE = torch.bfloat16


def pytest_generate_tests(metafunc):
    cases = GRADIENTS if metafunc.config.getoption("--device") == "cuda" else TINY_GRADIENTS
    metafunc.parametrize("case", cases, ids=str)


@pytest.mark.parametrize("op", ["bias_grad", "row_stats"])
def test_statistics(case, op, device, race):
    def ours(dy, _):
        return (ops.bias_grad(dy, case.dim),) if op == "bias_grad" else ops.row_stats(dy, case.dim, "l1")

    def inputs():
        dy = gradient(case, device, DTYPE)
        return dy, torch.empty_like(dy)

    def verify(results, dy, _) -> None:
        stock = reference.row_stats(dy, case.dim, "l1")
        exact = reference.row_stats(dy.double(), case.dim, "l1")
        for got, theirs, wanted in zip(results["ours"], stock, exact, strict=False):
            assert_as_right_as_stock(got, theirs, wanted, magnitudes=exact[1])

    size = torch.Size(case.shape).numel() * DTYPE.itemsize
    race(
        {
            "ours": ours,
            "sum": lambda dy, _: reference.bias_grad(dy, case.dim),
            "copy": lambda dy, target: target.copy_(dy),
        },
        group=f"gpu {op}",
        case=f"{case.name}, {size / MIB:.3g} MiB",
        inputs=inputs,
        verify=verify,
        peer="sum",
        derived={"of_copy_bandwidth": lambda t: t["copy"] / 2 / t["ours"]},  # a copy moves every byte twice
        moved=size,
        flops=0,
        size=size,
        least_of_copy=0.9 if size >= 256 * MIB else 0.75,
    )
