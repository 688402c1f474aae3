"""The op top_rows in Triton: row_stats, and a launch of select_rows behind it."""

from torch import Tensor

from wuskern.kernels.triton.row_stats import row_stats
from wuskern.kernels.triton.select_rows import select_rows


def top_rows(dy: Tensor, dim: int, score: str, k: int, block: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """The op :func:`wuskern.ops.top_rows`."""
    db, scores = row_stats(dy, dim, score)
    return db, scores, select_rows(scores, k, block, groups)
