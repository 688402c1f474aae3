"""The op row_stats in Triton: bias_grad's kernels, which sum the scores beside the gradient."""

from torch import Tensor

from wuskern.kernels.triton.bias_grad import add


def row_stats(dy: Tensor, dim: int, score: str) -> tuple[Tensor, Tensor]:
    """The op :func:`wuskern.ops.row_stats`."""
    return add(dy, dim, score)
