"""The machine code of libwuskern_cuda.so, read without a GPU: no spills, 16-byte loads, registers reported."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import cuda_library

KERNELS = ("sum_rows", "sum_planes", "update_sgd", "update_adam", "select_rows_of_group", "6gather")


@pytest.fixture(scope="module")
def cuobjdump():
    """NVIDIA's disassembler, from the package triton."""
    triton = pytest.importorskip("triton")
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not cuda_library().exists() or not tool.exists():
        pytest.skip("libwuskern_cuda.so is not built, or there is no cuobjdump")
    return lambda *flags: subprocess.run([tool, *flags, cuda_library()], capture_output=True, text=True, check=True).stdout


def test_no_kernel_spills(cuobjdump, record_property, capsys):
    usage = cuobjdump("-res-usage")
    by_arch: dict[str, list[tuple[str, int, int, int]]] = {}
    arch = ""
    for line in usage.splitlines():
        if found := re.search(r"arch = (sm_\w+)", line):
            arch = found.group(1)
        elif found := re.search(r"Function (\S+):", line):
            name = found.group(1)
        elif found := re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            registers, stack, _, local = map(int, found.groups())
            if any(k in name for k in KERNELS):
                by_arch.setdefault(arch, []).append((name, registers, stack, local))
    assert {"sm_80", "sm_90a"} <= by_arch.keys()
    with capsys.disabled():
        for arch, kernels in sorted(by_arch.items()):
            registers = [r for _, r, _, _ in kernels]
            print(f"\n{arch}: {len(kernels)} kernels, {min(registers)} to {max(registers)} registers, no spills", end="")
    for arch, kernels in by_arch.items():
        spilled = [name for name, _, stack, local in kernels if stack or local]
        assert not spilled, f"{arch}: {spilled}"
        for name, registers, _, _ in kernels:  # four blocks of 256 threads fit a processor, or one of 1024, or of 512
            assert registers <= (128 if re.search("select_rows_of_group.*Lb0E", name) else 64), (arch, name)


def test_vector_kernels_load_16_bytes_at_a_time(cuobjdump):
    """Every load of a sum whose pack is 16 bytes is one LDG.128. A row update and a gather read a row's number beside such
    packs, and numbers of a step, or single elements."""
    loads: dict[str, set[str]] = {}
    name = ""
    for line in cuobjdump("-sass").splitlines():
        if found := re.search(r"Function : (\S+)", line):
            name = found.group(1)
        elif found := re.search(r"\b(LDG|STG)\.\S+", line):
            loads.setdefault(name, set()).add(found.group(0))
    # mangled: <type>Li<vec>E among the template's arguments; 8 halves, 4 floats or 2 doubles make 16 bytes
    vector = {n: kinds for n, kinds in loads.items() if re.search(r"(__halfLi8|bfloat16Li8|[IE](tLi8|fLi4|dLi2))E", n)}
    for kernel in ("sum_rows", "sum_planes", "update_sgd", "update_adam", "gather"):
        assert any(kernel in n for n in vector), kernel
    for n, kinds in vector.items():
        reads, writes = ({kind for kind in kinds if kind.startswith(word)} for word in ("LDG", "STG"))
        if "sum_" in n:
            assert all(".128" in kind for kind in reads), (n, kinds)
        else:
            assert any(".128" in kind for kind in reads), (n, kinds)
            assert all(".128" in kind for kind in writes), (n, kinds)
