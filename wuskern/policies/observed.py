"""What the observers of all processes have seen together."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from wuskern.common.world import world_size


def observed(totals: Mapping[str, Tensor | None], sizes: Mapping[str, int], device: torch.device) -> dict[str, Tensor]:
    """The sums by layer, added up over the processes of torch.distributed, in double precision, on the CPU; none for a layer
    without a backward.

    Args:
        totals: by layer, of this process. sizes: how many numbers each has. device: where to add them up.
    """
    if world_size() > 1:
        parts = [torch.zeros(sizes[name]) if total is None else total for name, total in totals.items()]
        flat = torch.cat([part.to(device, torch.float64) for part in parts])
        dist.all_reduce(flat)
        totals = dict(zip(totals, flat.split([len(part) for part in parts]), strict=True))
    with_backward = {name: total for name, total in totals.items() if total is not None and total.any()}
    return {name: total.to("cpu", torch.float64, copy=True) for name, total in with_backward.items()}
