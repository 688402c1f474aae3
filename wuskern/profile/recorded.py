"""What one step keeps, holds at most, and computes: from a step of its own, which nobody times."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from wuskern.common.example import arguments
from wuskern.common.memory import peak_bytes
from wuskern.profile.step import Step, fresh


@dataclass(frozen=True)
class Recorded:
    """What was recorded of one step.

    Attributes:
        kept: bytes that forward keeps for backward, each storage once, without parameters. peak: the most bytes that torch's
            allocator had handed out at once above what there was before the step; its gradients count. flops: of the step, as
            torch's ``FlopCounterMode`` counts them.
    """

    kept: int
    peak: int
    flops: int


def recorded(step: Step) -> Recorded:
    """Runs the step once more."""
    from torch.utils.flop_counter import FlopCounterMode  # brings Triton along

    own = {p.untyped_storage().data_ptr() for p in step.model.parameters() if p.device.type != "meta"}
    kept: dict[int, int] = {}  # bytes by the address of a storage; a reference would raise the peak

    def pack(t: Tensor) -> Tensor:
        if t.layout != torch.strided:
            return t
        address = t.untyped_storage().data_ptr()
        if address not in own:
            kept[address] = t.untyped_storage().nbytes()
        return t

    counter = FlopCounterMode(display=False)
    step.clear()
    args, kwargs = fresh(arguments(step.batch))

    def whole() -> None:
        with counter:
            with saved_tensors_hooks(pack, lambda t: t):
                loss = step.forward(args, kwargs)
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]

    peak = peak_bytes(whole, step.device)
    step.clear()
    return Recorded(sum(kept.values()), peak, counter.get_total_flops())
