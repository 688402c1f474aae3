"""What the Makefile asks of a machine for its targets with a GPU.

python .ci/gpu.py state    "ready", "none", or why a GPU that is there cannot be used
python .ci/gpu.py architecture    of this GPU, as TORCH_CUDA_ARCH_LIST has it
python .ci/gpu.py cmake    the compilers, as arguments of CMake
"""

import importlib.util
import os
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
DEVICES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")  # of the driver; the last one under Windows' Linux


def state() -> str:
    """PyTorch is asked, and the driver's devices: one that PyTorch does not see is no reason to skip a test."""
    if torch.cuda.is_available() and torch.version.hip is None:
        return "ready"
    found = [device for device in DEVICES if os.path.exists(device)]
    if not found:
        return "none"
    how = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
    return f"{found[0]} is there, and torch {torch.__version__} sees no NVIDIA GPU: it {how}"


def architecture() -> str:
    """This GPU's, with the features of its own where the kernels use them."""
    major, minor = torch.cuda.get_device_capability()
    return f"{major}.{minor}{'a' if major == 9 else ''}"


def cmake_arguments() -> list[str]:
    """Raises ``SystemExit`` without nvcc, which is looked for where setup.py looks."""
    spec = importlib.util.spec_from_file_location("setup_program", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    if obstacle := setup.cuda_obstacle():
        raise SystemExit(f"the CUDA library cannot be built: {obstacle}")
    return [f"-DCMAKE_CUDA_COMPILER={setup.find_nvcc()}", f"-DPython_EXECUTABLE={sys.executable}"]


def main(asked: str) -> None:
    answers = {"state": state, "architecture": architecture, "cmake": lambda: " ".join(cmake_arguments())}
    print(answers[asked]())


if __name__ == "__main__":
    main(*sys.argv[1:])
