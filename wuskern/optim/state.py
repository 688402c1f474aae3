"""The memory for what an optimizer keeps of a parameter."""

import torch
from torch import Tensor
from torch.nn import Parameter

from wuskern.kernels import backends


def zeros_like(parameter: Tensor) -> Tensor:
    """Zeros like ``parameter``; in huge pages where it is large and on the CPU: a step that touches rows far apart would wait
    for the page table as much as for the rows."""
    plain = type(parameter) in (Tensor, Parameter) and parameter.device.type == "cpu"
    if not plain or not parameter.numel() or not parameter.is_contiguous() or backends.library_obstacle("cpu"):
        return torch.zeros_like(parameter)
    return torch.ops.wuskern_native.new_output(parameter.detach(), parameter.shape).zero_()
