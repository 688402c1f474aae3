"""Every Triton configuration that can be dispatched becomes machine code for every target, without spills."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

triton = pytest.importorskip("triton")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    cache = tmp_path_factory.mktemp("triton")
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    program = Path(__file__).with_name("compile_all.py")
    result = subprocess.run([sys.executable, program], env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_every_target_is_there(compiled):
    assert {row["target"] for row in compiled} == {"sm_80", "sm_90", "sm_100", "gfx942"}
    assert len(compiled) == 4 * 5 * 2 * 4  # tiles, dtypes, sizes, targets


def test_nothing_spills(compiled, tmp_path, capsys):
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    most: dict[str, int] = {}
    for row in compiled:
        if "cubin" not in row:
            assert row["spills"], "the AMD listing names its spill counts"
            assert all(line.endswith(" 0") for line in row["spills"]), row
            continue
        cubin = tmp_path / "kernel.cubin"
        cubin.write_bytes(bytes.fromhex(row["cubin"]))
        usage = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
        registers, stack, local = map(int, re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage).groups())
        assert (stack, local) == (0, 0), (row["kernel"], row["tile"], row["dtypes"], row["target"])
        most[row["target"]] = max(most.get(row["target"], 0), registers)
    with capsys.disabled():
        print("\nTriton, most registers: " + ", ".join(f"{t} {r}" for t, r in sorted(most.items())), end="")


def test_aligned_wide_problems_are_read_in_vectors(compiled):
    wide = [
        r
        for r in compiled
        if r["size"] == "i32" and r["loads"] and ("block_columns=128" in r["tile"] or "planes" in r["kernel"])
    ]
    assert wide
    for row in wide:
        assert any(".v" in load for load in row["loads"]), (
            row["kernel"],
            row["tile"],
            row["dtypes"],
            row["target"],
            row["loads"],
        )
