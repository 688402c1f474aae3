"""What is known of GPUs without one: the architecture that a capability belongs to, and its rates. Pure, but for
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
    found = re.fullmatch(r"sm_(\d+)(\d)[af]?|(\d+)\.(\d)[af]?", capability)
    if found is None:
        raise ValueError(f"capability: expected such as sm_90, 9.0 or gfx942, got {capability!r}")
    return BY_MAJOR.get(int(found[1] or found[3]), "sm_80")


def capability_of(device: torch.device) -> str:
    """Such as "sm_90" or "gfx942"; "sm_80" where Triton's interpreter runs on the CPU."""
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
    """Of tensors on ``device``."""
    return architecture(capability_of(device))


@dataclass(frozen=True)
class Rates:
    """Peaks of one GPU, as its maker's data sheet has them (without sparsity), and what a launch takes."""

    name: str
    bytes_per_second: float
    flops_per_second: dict[str, float]  # of products, by dtype; "tf32" where float32 may be that
    launch: float = 3e-6  # seconds between the ends of two kernels in a stream, at least; a round number, not measured


def _flops(half: float, tf32: float, float32: float, float64: float) -> dict[str, float]:
    tera = {"bfloat16": half, "float16": half, "tf32": tf32, "float32": float32, "float64": float64}
    return {dtype: rate * 1e12 for dtype, rate in tera.items()}


RATES = {  # data sheets: A100 80GB SXM, H200 SXM, B200 (HGX), GeForce RTX 5090 (Blackwell white paper), MI300X
    "sm_80": Rates("A100", 2.04e12, _flops(312, 156, 19.5, 19.5)),
    "sm_90": Rates("H200", 4.8e12, _flops(989, 494, 67, 67)),
    "sm_100": Rates("B200", 8.0e12, _flops(2250, 1125, 75, 37)),
    "sm_120": Rates("RTX 5090", 1.79e12, _flops(209.5, 104.8, 104.8, 1.64)),
    "gfx942": Rates("MI300X", 5.3e12, _flops(1307, 653, 163, 163)),
}
