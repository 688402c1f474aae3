"""How many processes train together, and which tensors they share, where torch.distributed may be missing or idle."""

import sys
from typing import Any

import torch.distributed as dist


def is_together() -> bool:
    """Whether torch.distributed has a default group, be it of one process."""
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """The number of processes in torch.distributed's default group; 1 without one."""
    return dist.get_world_size() if is_together() else 1


def is_dtensor(t: Any) -> bool:
    """Whether a tensor is a DTensor: one of several processes' parts, as FSDP2 and tensor parallelism make of weights."""
    module = sys.modules.get("torch.distributed.tensor")  # without it there is none
    return module is not None and isinstance(t, module.DTensor)
