"""Every Triton configuration that can be dispatched becomes machine code for every target, without spills, and multiplies
with the matrix instructions of that target."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from wuskern.kernels.triton import tiles

triton = pytest.importorskip("triton")
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"

# Triton has no wgmma or tcgen05 in float64, no NVIDIA GPU exact float32 on matrix units, and sm_120 no float64 either.
PRODUCTS = {
    "sm_80": {"16": "mma.sync", "tf32": "mma.sync", "fp64": "mma.sync"},
    "sm_90": {"16": "wgmma.mma_async", "tf32": "wgmma.mma_async", "fp64": "mma.sync"},
    "sm_100": {"16": "tcgen05.mma", "tf32": "tcgen05.mma", "fp64": "mma.sync"},
    "sm_120": {"16": "mma.sync", "tf32": "mma.sync"},
    "gfx942": {"16": "v_mfma", "tf32": "v_mfma", "fp64": "v_mfma", "fp32": "v_mfma"},
}


EVERYTHING = pytest.param((), marks=pytest.mark.more, id="everything")


@pytest.fixture(scope="module", params=[pytest.param(("--first", "sm_90"), id="one of each kernel"), EVERYTHING])
def compiled(request, tmp_path_factory):
    cache = tmp_path_factory.mktemp("triton")
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    program = Path(__file__).with_name("compile_all.py")
    result = subprocess.run([sys.executable, program, *request.param], env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def name(row) -> str:
    return " ".join(str(row[key]) for key in ("kernel", "tile", "dtypes", "precision", "way", "target"))


def test_every_kernel_is_there(compiled):
    assert {row["kernel"] for row in compiled} == {*tiles.MEMORY, *tiles.PRODUCTS["sm_90"]}


@pytest.mark.parametrize("compiled", [EVERYTHING], indirect=True)
def test_every_configuration_of_every_target_is_there(compiled):
    for target, products in tiles.PRODUCTS.items():
        there = {(row["kernel"], row["tile"]) for row in compiled if row["target"] == target}
        tables = [(kernel, table.values()) for kernel, both in products.items() for table in both.values()]
        dispatched = [*tiles.MEMORY.items(), *((kernel, some) for kernel, table in tables for some in table)]
        assert there == {(kernel, str(tile)) for kernel, some in dispatched for tile in some}


def test_nothing_spills(compiled, tmp_path, capsys):
    most: dict[str, int] = {}
    for row in compiled:
        if "cubin" not in row:
            assert row["spills"], "the AMD listing names its spill counts"
            assert all(line.endswith(" 0") for line in row["spills"]), name(row)
            continue
        cubin = tmp_path / "kernel.cubin"
        cubin.write_bytes(bytes.fromhex(row["cubin"]))
        usage = run("cuobjdump", "-res-usage", cubin)
        registers, stack, local = map(int, re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage).groups())
        if (stack, local) != (0, 0):  # a frame that no instruction touches holds nothing
            assert not re.search(r"\b(LDL|STL)\b", run("nvdisasm", cubin)), name(row)
        most[row["target"]] = max(most.get(row["target"], 0), registers)
    with capsys.disabled():
        print("\nTriton, most registers: " + ", ".join(f"{t} {r}" for t, r in sorted(most.items())), end="")


def run(tool, *arguments) -> str:
    return subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout


def test_a_program_fits_the_shared_memory_of_its_gpu(compiled):
    kibibytes = {"sm_80": 99, "sm_90": 227, "sm_100": 227, "sm_120": 99, "gfx942": 64}  # sm_80's serve 8.6 and 8.9 too
    for row in compiled:
        assert row["shared"] <= kibibytes[row["target"]] * 1024, name(row)


def test_products_run_on_matrix_units(compiled):
    for row in (row for row in compiled if row["precision"]):
        dtype = row["dtypes"][0]
        kind = "16" if dtype in ("bf16", "fp16") else "tf32" if row["precision"] == "tf32" else dtype
        expected = PRODUCTS[row["target"]].get(kind)
        assert row["products"] == ([expected] if expected else []), name(row)


def test_aligned_problems_are_read_in_vectors(compiled):
    """ld.global.v, cp.async.cg, global_load_dwordx. By the element are read: what is gathered or selected, a convolution's
    weight (its channels lie kh * kw apart), and tf32, which wgmma and tcgen05 want the other way round in shared memory."""
    for row in compiled:
        by_element = row["kernel"] in ("gather_columns", "gather_planes", "select", "dgrad_conv2d")
        if row["way"] == "aligned" and not by_element and row["precision"] != "tf32" and "block_columns=16" not in row["tile"]:
            assert any(re.search(r"\.v|async\.cg|dwordx", load) for load in row["loads"]), (name(row), row["loads"])
