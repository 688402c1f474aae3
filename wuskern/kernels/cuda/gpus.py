"""Facts of GPUs, known without one: the architecture that a capability belongs to, and its rates. Pure, but for
:func:`capability_of`, which asks a device once."""

import functools
import re
from dataclasses import dataclass

import torch

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120", "gfx942")
BY_MAJOR = {8: "sm_80", 9: "sm_90", 10: "sm_100", 11: "sm_100", 12: "sm_120"}


def architecture(capability: str) -> str:
    """The one of ARCHITECTURES whose tiles and rates serve a GPU: of "sm_86" (or "8.6") it is "sm_80", of any "gfx..."
    "gfx942". One that is unknown takes sm_80's, which ask for the least.

    Raises ``ValueError`` for anything else.
    """
    if capability.startswith("gfx"):
        return "gfx942"
    number = re.fullmatch(r"sm_(\d+)(\d)[af]?|(\d+)\.(\d)[af]?", capability)
    if number is None:
        raise ValueError(f"capability: expected such as sm_90, 9.0 or gfx942, got {capability!r}")
    return BY_MAJOR.get(int(number[1] or number[3]), "sm_80")


def capability_of(device: torch.device) -> str:
    """The capability of a GPU, such as "sm_90" or "gfx942"; "sm_80" where Triton's interpreter runs on the CPU."""
    if device.type != "cuda":
        return "sm_80"
    return _ask(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _ask(index: int) -> str:
    if torch.version.hip is not None:
        return torch.cuda.get_device_properties(index).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(index)
    return f"sm_{major}{minor}"


@functools.cache
def architecture_of(device: torch.device) -> str:
    """The architecture whose tiles tensors on ``device`` take."""
    return architecture(capability_of(device))


@dataclass(frozen=True)
class Gpu:
    """One GPU of an architecture: peaks as its maker's data sheet has them (without sparsity), and what a launch takes."""

    architecture: str
    name: str
    processors: int
    shared_kib: int  # of shared memory, of a processor
    bytes_per_second: float
    flops_per_second: dict[torch.dtype, float]  # of products
    tf32_per_second: float  # of products of float32 where they may be that
    wgmma: bool = False
    launch: float = 3e-6  # seconds between the ends of two kernels in a stream, at least; a round number, not measured

    def peak(self, dtype: torch.dtype, tf32: bool) -> float:
        """Operations a second of a product, at most."""
        return self.tf32_per_second if tf32 else self.flops_per_second[dtype]


def _tera(half: float, float32: float, float64: float) -> dict[torch.dtype, float]:
    by_dtype = {torch.bfloat16: half, torch.float16: half, torch.float32: float32, torch.float64: float64}
    return {dtype: 1e12 * rate for dtype, rate in by_dtype.items()}


GPUS = {  # data sheets: A100 80GB SXM, H200 SXM, B200 (HGX), GeForce RTX 5090 (Blackwell white paper), MI300X
    gpu.architecture: gpu
    for gpu in (
        Gpu("sm_80", "A100", 108, 164, 2.04e12, _tera(312, 19.5, 19.5), 156e12),
        Gpu("sm_90", "H200", 132, 228, 4.8e12, _tera(989, 67, 67), 494e12, wgmma=True),
        Gpu("sm_100", "B200", 148, 228, 8.0e12, _tera(2250, 75, 37), 1125e12),
        Gpu("sm_120", "RTX 5090", 170, 100, 1.79e12, _tera(209.5, 104.8, 1.64), 104.8e12),
        Gpu("gfx942", "MI300X", 304, 64, 5.3e12, _tera(1307, 163, 163), 653e12),
    )
}


def gpu_of(capability: str) -> Gpu:
    """The GPU that stands for all of its architecture."""
    return GPUS[architecture(capability)]
