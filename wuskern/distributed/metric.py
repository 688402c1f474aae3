"""The sending of one process's metric to all others."""

import torch
import torch.distributed as dist


def broadcast_metric(value: float, src: int = 0, group: "dist.ProcessGroup | None" = None) -> float:
    """The ``value`` of the process with global rank ``src``, for a policy's ``step``: all processes then decide the same.

    Every process of the group calls this. Without a process group it returns ``value`` itself.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return value
    backends = dist.get_backend_config(group)
    device = torch.device("cuda") if "cpu" not in backends and torch.cuda.is_available() else torch.device("cpu")
    sent = torch.tensor([value], dtype=torch.float64, device=device)
    dist.broadcast(sent, src, group)
    return float(sent.item())
