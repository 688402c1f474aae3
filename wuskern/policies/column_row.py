"""The method of column-row sampling: weight gradients that sum over some of the tokens, in every step.

Adelman et al. (arXiv 1805.08079) approximate products of training by a choice of columns and rows, and found the k largest,
unscaled, best in practice. Liu et al. (WTA-CRS, NeurIPS 2023, arXiv 2305.15265) sample the weight gradient alone, without bias,
with ratios of .3 and .1, in fine-tuning. Here, too, it is the weight gradient alone: forward, input and bias gradient are
exact. Ours: that the output layer stays dense, and that images are the tokens of a convolution.
"""

from collections.abc import Collection
from dataclasses import dataclass

from wuskern.choices import Pick, Tokens
from wuskern.policies.base import Wants
from wuskern.policies.constant import Constant


@dataclass(eq=False, kw_only=True)
class ColumnRowSampling(Constant):
    """Gives every converted layer but the output layer the same ``wuskern.Tokens``, and leaves it there.

    It decides nothing over time, and acts on no event. A layer's ``skip`` is not touched, and wins; with ``rows``, the
    chosen rows sum over the chosen tokens.

    Args:
        model: a model with converted layers.
        ratio, k, pick: as for ``wuskern.Tokens``; ratio or k has to be given.
        dense: names of converted layers, or of modules, that sum over all tokens. None: the last one in the order of
            ``named_modules``, as the output layer.

    Attributes:
        tokens: the choice. chosen: names of the layers that have it. dense: names of the others.

    Raises:
        ValueError, TypeError: an argument out of its range, a name that is no converted layer, or no layer left. No layer is
            then changed.
    """

    name = "crs"
    source = "Adelman et al.: column-row sampling. arXiv 1805.08079; Liu et al.: WTA-CRS. arXiv 2305.15265; NeurIPS 2023"
    reported = (
        "WTA-CRS: 2.7x less peak memory in tuning T5, with almost no loss of accuracy, by choosing tokens in forward. "
        "Here they are chosen in backward, by both factors; a convolution's tokens are whole images, of which a batch has "
        "few."
    )
    decides = ("tokens",)
    trial = "ratio=0.5"

    ratio: float | None = None
    k: int | None = None
    pick: Pick = "wta"
    dense: Collection[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.tokens = Tokens(ratio=self.ratio, k=self.k, pick=self.pick)
        self.dense = self.names_or_last(self.dense)
        self.chosen = self.all_but(self.dense)
        self.apply()

    @property
    def claims(self) -> dict[str, Collection[str]]:
        return {"tokens": self.chosen}

    def wants(self, name: str) -> Wants:
        return {"tokens": self.tokens if name in self.chosen else None}
