"""A generator with each instruction set of the CPU, in processes of their own: the libraries read their variables once."""

import argparse
import os
import subprocess
import sys

import torch

NAMES = "WUSKERN_CPU_CAPABILITY", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS"
SETS: dict[str, dict[str, str]] = {
    "widest": {},
    "avx2": dict(zip(NAMES, ("avx2", "avx2", "AVX2", "AVX2"), strict=True)),
    "baseline": dict(zip(NAMES, ("baseline", "default", "SSE41", "SSE4_2"), strict=True)),
}


def run_each(module: str, chosen: argparse.Namespace) -> int:
    """Runs ``python -m module --set NAME`` with each set that the processor has, and an equal share of the time, or of the
    count. Gives the exit status."""
    capability = torch.backends.cpu.get_cpu_capability()
    names = [name for name in SETS if name != "avx2" or capability in ("AVX2", "AVX512")]
    share = ["--seconds", str(chosen.seconds / len(names))]
    if chosen.count is not None:
        share = ["--count", str(-(-chosen.count // len(names)))]
    library = ["--library", str(chosen.library)] if chosen.library else []
    command = [sys.executable, "-m", module, "--seed", str(chosen.seed), *share, *library, "--set"]
    failed = [name for name in names if subprocess.run([*command, name], env=os.environ | SETS[name]).returncode]
    return int(bool(failed))
