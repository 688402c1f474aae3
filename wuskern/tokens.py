"""How the tokens that a weight gradient sums over are drawn, by the sizes of a step's own tokens: see ``wuskern.Tokens``.

The WTA-CRS paper draws in forward, by gradients' norms of earlier steps, and keeps only the chosen part of X. Ours draws in
backward by the norms of the step itself, and X is kept whole: this saves time, and no memory.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from wuskern import ops
from wuskern.choices import Tokens


@dataclass(frozen=True)
class Drawn:
    """The drawn tokens.

    Attributes:
        index: ``[k]``, int64. scale: ``[k]``, float32 or float64, by which each token's part of the sum is multiplied; None: 1.
    """

    index: Tensor
    scale: Tensor | None

    def of(self, t: Tensor) -> Tensor:
        """The drawn tokens ``[k, ...]`` of t ``[n, ...]``, in its memory format."""
        if t.ndim == 4 and not t.is_contiguous() and t.is_contiguous(memory_format=torch.channels_last):
            return t.permute(0, 2, 3, 1).index_select(0, self.index).permute(0, 3, 1, 2)
        return t.index_select(0, self.index)

    def scaled(self, dy: Tensor) -> Tensor:
        """The drawn tokens ``[k, ...]`` of dy, scaled in float32 at least, then in dy's dtype. A drawn token adds n / k times
        what an average one does: float16 overflows only where ``|X_i|`` is tiny, and shows it."""
        chosen = self.of(dy)
        if self.scale is None:
            return chosen
        return (chosen * self.scale.view(-1, *[1] * (dy.ndim - 1))).to(dy.dtype)


def draw(tokens: Tokens, dy: Tensor, x: Tensor) -> Drawn:
    """Draws k < n tokens of ``dy`` and ``x``, both ``[n, ...]``. It reads each once, for the norms, and waits for no GPU."""
    k = tokens.count(dy.shape[0])
    sizes = _norms(dy) * _norms(x)
    if tokens.pick == "top":
        return Drawn(_largest(sizes, k), None)
    bad = ~sizes.isfinite()
    index, scale = _sampled(torch.where(bad.any(), bad.to(sizes.dtype), sizes), k, winners=tokens.pick == "wta")
    return Drawn(index, scale.to(torch.promote_types(dy.dtype, torch.float32)))


def _norms(t: Tensor) -> Tensor:
    """The Euclidean norm of each token, ``[n]``, float64; the sums are in float32 (float64 of float64)."""
    return ops.row_stats(t, 0, "l2")[1].double().sqrt()


def _largest(sizes: Tensor, k: int) -> Tensor:
    """The indices ``[k]`` of the largest sizes, ascending. NaN ranks first; of equal sizes the lower index. Not by
    ``ops.select_rows``: a compiled model would have a graph for each k, which follows from the batch."""
    return sizes.sort(descending=True, stable=True)[1][:k].sort()[0]


def _sampled(sizes: Tensor, k: int, winners: bool) -> tuple[Tensor, Tensor]:
    """The index and scale ``[k]`` of the c largest of finite ``sizes`` ``[n]``, and of k - c draws from the others; c is 0
    without ``winners``. A size of zero is scaled by zero: it is drawn only where all are zero.

    Sizes are added up in ascending order, so that what the c largest leave is a running sum of its own: exact where close to 0.
    """
    ordered, order = sizes.sort(stable=True)
    sums = ordered.cumsum(0)
    n, place = len(sizes), torch.arange(k, device=sizes.device)
    remainders = sums.flip(0)[:k]  # [c]: the sum without the c largest
    c = (remainders / (k - place)).argmin(0, keepdim=True) if winners else place.new_zeros(1)
    remainder = remainders.index_select(0, c)
    drawn = torch.searchsorted(sums, torch.rand(k, dtype=sizes.dtype, device=sizes.device) * remainder, right=True)
    position = torch.where(place < c, n - 1 - place, drawn.minimum(n - 1 - c))
    chosen = ordered.index_select(0, position)
    scale = torch.where(place < c, 1, remainder / ((k - c) * chosen))
    return order.index_select(0, position), torch.where(chosen > 0, scale, 0)
