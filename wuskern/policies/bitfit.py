"""Biases alone: BitFit (Ben Zaken, Ravfogel, Goldberg; ACL 2022, arXiv 2106.10199), and for convolutions the bias-only part of
TinyTL (Cai, Gan, Zhu, Han; NeurIPS 2020, arXiv 2007.11622).

The papers: in fine-tuning, the weights of the body keep their pretrained values; biases and a new head train. Ours: what has no
converted weight, such as the scale of a norm, trains as well, and the layers that stay dense can be named.
"""

from collections.abc import Collection
from dataclasses import dataclass

from wuskern.policies.base import Wants
from wuskern.policies.constant import Constant


@dataclass(eq=False, kw_only=True)
class BitFit(Constant):
    """Skips every converted layer but the output layer, for good: biases train, and the head.

    It decides nothing over time, and acts on no event; ``wuskern.set_skip(model, False)`` ends it. ``attach`` keeps weight
    decay and momentum from moving the weights.

    Args:
        model: a model with converted layers.
        dense: names of converted layers, or of modules, that train whole. None: the last one in the order of
            ``named_modules``, as the head.

    Attributes:
        chosen: names of the layers that skip. dense: names of the others.

    Raises:
        ValueError, TypeError: a name that is no converted layer, or no layer left.
    """

    name = "bitfit"
    source = (
        "Ben Zaken, Ravfogel, Goldberg: BitFit. arXiv 2106.10199; ACL 2022; Cai et al.: TinyTL. arXiv 2007.11622; NeurIPS 2020"
    )
    reported = (
        "BitFit: with small to medium data as good as fine-tuning all of BERT. Here from scratch, where weights then keep "
        "their random values."
    )
    needs = ("attach",)

    dense: Collection[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.dense = self.names_or_last(self.dense)
        self.chosen = self.all_but(self.dense)
        self.apply()

    def wants(self, name: str) -> Wants:
        return {"skip": name in self.chosen}
