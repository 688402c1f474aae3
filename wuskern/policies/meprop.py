"""The method meProp (Sun et al.; ICML 2017, arXiv 1706.06197): in every step, backward through the largest output gradients.

The papers: forward is exact; of the gradient of each layer's output the k largest survive, weight and input gradient come from
those alone; the bias gradient and the output layer stay dense. First per example (``per="example"``), then unified: the same
k units for the whole batch, by the sum of their |dY|. ssProp (Zhong et al.; arXiv 2408.12561) chooses a convolution's output
channels in that way. Ours: which layer counts as the output layer, that every other converted layer has the same choice,
convolutions and linear layers alike, and the scopes, scores and blocks that the papers do not have.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, get_args

from wuskern.choices import Bias, PerExample, Plan, RowChoice, Scope, Score, TopK
from wuskern.common.arguments import one_of
from wuskern.policies.base import Wants
from wuskern.policies.constant import Constant

Per = Literal["batch", "example"]
PER = get_args(Per)


@dataclass(eq=False, kw_only=True)
class MeProp(Constant):
    """Gives every converted layer but the output layer the same choice of rows, and leaves it there.

    It decides nothing over time, and acts on no event; ``wuskern.set_rows(model, None)`` ends it. A layer's ``skip`` is
    not touched, and wins.

    Args:
        model: a model with converted layers.
        ratio, k, scope, score, block, bias: as for ``wuskern.TopK``; ratio or k has to be given. The papers' choice: scope
            "both", score "l1", bias "dense" (ssProp: "rows").
        per: "batch", a ``TopK``; "example", a ``PerExample``, which saves no time, takes ratio or k alone, and is refused for
            a model with a convolution that is not in ``dense``.
        dense: names of converted layers, or of modules, that keep the whole backward. None: the last one in the order of
            ``named_modules``, as the output layer.

    Attributes:
        rows: the choice. chosen: names of the layers that have it. dense: names of the others.

    Raises:
        ValueError, TypeError: an argument out of its range, a name that is no converted layer, no layer left, or one that
            cannot have the choice, by name. No layer is then changed.
    """

    name = "meprop"
    source = "Sun, Ren, Ma, Wang: meProp. arXiv 1706.06197; ICML 2017"
    reported = (
        "meProp: backprop alone 5.9x faster on MNIST (MLP-500, top-80), accuracy +.03 to +.07. Here the whole step is "
        "timed, against a dense step that is fast, and all hidden layers share one ratio."
    )
    decides = ("rows",)
    trial = "ratio=0.5"

    ratio: float | None = None
    k: int | None = None
    scope: Scope = "both"
    score: Score = "l1"
    block: int = 1
    bias: Bias = "dense"
    per: Per = "batch"
    dense: Collection[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rows = self._choice()
        self.dense = self.names_or_last(self.dense)
        self.chosen = self.all_but(self.dense)
        for name in self.chosen:
            self.check_choice(name, Plan(rows=self.rows))
        self.apply()

    def _choice(self) -> RowChoice:
        one_of("per", self.per, PER)
        if self.per == "batch":
            return TopK(ratio=self.ratio, k=self.k, scope=self.scope, score=self.score, block=self.block, bias=self.bias)
        for name, only in (("scope", "both"), ("score", "l1"), ("block", 1), ("bias", "dense")):
            if (value := getattr(self, name)) != only:
                raise ValueError(f"{name}: expected {only!r} with per='example', got {value!r}")
        return PerExample(ratio=self.ratio, k=self.k)

    @property
    def claims(self) -> dict[str, Collection[str]]:
        return {"rows": self.chosen}

    def wants(self, name: str) -> Wants:
        return {"rows": self.rows if name in self.chosen else None}
