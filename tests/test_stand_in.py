"""The stand-in for a GPU, by which the targets for one are rehearsed, and the programs that they call."""

import importlib.util
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

STAND_IN = ROOT / ".ci" / "stand_in"


def python(*arguments: str, **environment: str) -> str:
    """What a process with the stand-in prints."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(STAND_IN), str(ROOT)])} | environment
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_what_the_makefile_asks_is_answered():
    assert python(".ci/gpu.py", "state") == "ready\n"
    assert python(".ci/gpu.py", "architecture") == "9.0a\n"


@pytest.mark.parametrize("path", sorted((ROOT / ".ci").glob("*.py")), ids=lambda path: path.stem)
def test_no_program_has_the_name_of_a_package(path):
    """Its folder is the first place in which it looks for what it imports: wheel.py there hid the package of setuptools."""
    assert importlib.util.find_spec(path.stem) is None


def test_a_gpu_is_the_cpu():
    code = """
import torch
from torch import nn
made = [torch.zeros(2, device="cuda"), torch.ones(2).to("cuda:0"), torch.ones(2).cuda(), nn.Linear(2, 2).cuda().weight]
made.append(nn.Linear(2, 2, device=torch.device("cuda")).weight)
print({t.device.type for t in made}, torch.cuda.is_available(), torch.Generator("cuda").device)
"""
    assert python("-c", code) == "{'cpu'} True cpu\n"


@pytest.mark.more
def test_tests_for_a_gpu_run():
    tests = "tests/kernels/cuda/test_gpus.py", "tests/test_cuda_graphs.py"
    found = python("-m", "pytest", "-q", "-p", "rehearsal", "-m", "gpu", *tests)
    assert "1 passed, 1 skipped" in found  # who replays a graph is skipped
