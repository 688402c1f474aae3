"""Pure-PyTorch twin of every op: the fallback where no kernel runs, the oracle of the tests, the baseline of the benchmarks."""

import torch
from torch import Tensor


def bias_grad(dy: Tensor, dim: int) -> Tensor:
    """See :func:`wuskern.ops.bias_grad`."""
    others = [d for d in range(dy.ndim) if d != dim % dy.ndim]
    return torch.sum(dy, others) if others else dy.clone()
