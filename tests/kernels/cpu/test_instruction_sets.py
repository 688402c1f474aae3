"""The compiled CPU kernels of each instruction set in the library are as right as the widest, which the other tests run."""

import os
import subprocess
import sys

import pytest
import torch

from tests.cases import GRADIENTS, MEMORY_FORMATS
from tests.ops import (
    test_bias_grad,
    test_pack_bits,
    test_piecewise,
    test_row_stats,
    test_rowsparse_dgrad,
    test_rowsparse_wgrad,
    test_scale_by_bits,
    test_scale_channels,
    test_updates,
)
from wuskern import ops
from wuskern.kernels import backends


def main() -> None:
    """Checks them with the instruction set that the environment names, and prints its name."""
    torch.manual_seed(0)
    with backends.backend("native"):
        for i, case in enumerate(GRADIENTS):
            for j, dtype in enumerate(ops.DTYPES):
                dy = case.make(dtype)
                test_bias_grad.check(dy, case.dim)
                test_row_stats.check(dy, case.dim, ops.SCORES[(i + j) % 2])
                test_scale_channels.check(dy, case.dim)
        for dtype in ops.DTYPES:
            for n in (1, 9, 1003):
                for bounds in test_pack_bits.BOUNDS:
                    test_pack_bits.check(test_pack_bits.special(torch.randn(n).to(dtype)), *bounds)
                for activation in test_piecewise.ACTIVATIONS.values():
                    test_piecewise.check(test_pack_bits.special(torch.randn(n).to(dtype)), *activation, inplace=n == 9)
                for factors in test_scale_by_bits.FACTORS:
                    test_scale_by_bits.check(torch.randn(n).to(dtype), torch.rand(n) > 0.4, *factors)
        for dtype in ops.DTYPES:
            for shape in test_updates.SHAPES[:4]:
                case = test_updates.Case(shape, dtype, test_updates.some_rows(shape[0]), "channels_last")
                test_updates.check("rowsparse_sgd_", case, test_updates.SGD)
                test_updates.check("rowsparse_adam_", case, test_updates.ADAM, amsgrad=True)
    torch.set_num_threads(1)
    for layout in MEMORY_FORMATS:
        test_rowsparse_wgrad.test_every_path("direct", layout, torch.float32)
        test_rowsparse_dgrad.test_every_path("direct", layout, torch.float32)
    print(torch.ops.wuskern_native.cpu_capability())


@pytest.mark.parametrize("capability", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(capability):
    if obstacle := backends.library_obstacle("cpu"):
        pytest.skip(obstacle)
    if capability == torch.ops.wuskern_native.cpu_capability():
        pytest.skip("all other tests run it")
    env = os.environ | {"WUSKERN_CPU_CAPABILITY": capability}
    result = subprocess.run([sys.executable, "-m", __name__], env=env, capture_output=True, text=True)
    if "expected baseline or a wider set up to this processor's" in result.stderr:
        pytest.skip(f"this processor has no {capability}")
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [capability]


if __name__ == "__main__":
    main()
