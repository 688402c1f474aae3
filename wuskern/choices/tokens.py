"""The choice of tokens: of what the weight gradient sums over."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from wuskern.choices.base import Choice, Units
from wuskern.common.arguments import amount, one_of

Pick = Literal["top", "crs", "wta"]
PICKS = get_args(Pick)


@dataclass(frozen=True, kw_only=True)
class Tokens(Choice):
    """A weight gradient from some of the tokens, column-row sampling; input and bias gradient are those of all.

    ``dW = sum of dY_i^T X_i`` over all tokens i is taken over k of them, by the size ``s_i = |X_i| |dY_i|`` (Euclidean norms):

    - "top": the k largest, as they are; biased. Adelman et al. (arXiv 1805.08079) found it best in practice.
    - "crs": k draws with replacement, ``p_i = s_i / sum(s)``, scaled by ``1 / (k p_i)``; unbiased (Drineas et al., 2006).
    - "wta": the c largest as they are, and k - c draws from the others, scaled by ``(1 - P_c) / ((k - c) p_i)``, where ``P_c``
      is what the c largest have of p, and c makes ``(1 - P_c) / (k - c)`` least; unbiased (WTA-CRS, arXiv 2305.15265).

    A layer whose input has no more than k tokens takes all of them, each once, whatever ``pick`` says: the dense backward.
    Random draws come from torch's generator of the device, anew in each backward and process. A token whose norm is NaN or
    infinite ranks before all others: "top" has it, and "crs" and "wta" draw such tokens alone, so that the gradient shows
    it. Where all norms are zero, so is the gradient.

    Time: the product takes ``k / n`` of the dense one's; the norms read X and dY once, and k tokens of them are copied. Where
    the product is small beside that (few outputs or inputs, a ratio near 1) dense is faster, and is not taken instead: see
    ``python -m bench.tokens``.

    Args:
        ratio: of the tokens, in (0, 1]: ``int(ratio * n)`` of them, at least one. k: or so many. Exactly one of the two.
        pick: "top", "crs" or "wta".

    Raises:
        TypeError, ValueError: an argument out of its range.
    """

    ratio: float | None = None
    k: int | None = None
    pick: Pick = "top"

    def __post_init__(self) -> None:
        amount(self.ratio, self.k)
        one_of("pick", self.pick, PICKS)

    def count(self, n: int) -> int:
        """How many of ``n`` tokens are taken; those drawn twice count twice."""
        return min(n, max(1, int(self.ratio * n)) if self.k is None else self.k)  # type: ignore[operator]

    asks_input = True

    def leaves_out(self, units: Units, count_tokens: Callable[[], int]) -> bool:
        n = count_tokens()
        return self.count(n) < n
