"""How many processes train together, where torch.distributed may be missing or idle."""

import torch.distributed as dist


def world_size() -> int:
    """The number of processes in torch.distributed's default group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
