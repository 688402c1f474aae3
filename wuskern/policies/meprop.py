"""meProp (Sun et al.; ICML 2017, arXiv 1706.06197): backward through the largest output gradients only, in every step.

The papers: forward is exact; of the gradient of each layer's output the k largest survive, weight and input gradient come from
those alone; the bias gradient and the output layer stay dense. First per example (``per="example"``), then unified: the same
k units for the whole batch, by the sum of their |dY|. ssProp (Zhong et al.; arXiv 2408.12561) chooses a convolution's output
channels in that way. Ours: which layer counts as the output layer, that every other converted layer has the same choice,
convolutions and linear layers alike, and the scopes, scores and blocks that the papers do not have.
"""

from collections.abc import Collection
from typing import Any

import torch.nn as nn

from wuskern.choices import PerExample, RowChoice, TopK
from wuskern.policies.base import Wants
from wuskern.policies.constant import Constant

PER = ("batch", "example")


class MeProp(Constant):
    """Gives every converted layer but the output layer the same choice of rows, and leaves it there.

    It decides nothing over time, and ``step`` does nothing; ``wuskern.set_rows(model, None)`` ends it. A layer's ``skip`` is
    not touched, and wins.

    Args:
        model: a model with converted layers.
        ratio, k, scope, score, block, bias: as for ``wuskern.TopK``; ratio or k has to be given. The papers' choice: scope
            "both", score "l1", bias "dense" (ssProp: "rows").
        per: "batch", a ``TopK``; "example", a ``PerExample``, which saves no time, takes ratio or k alone, and is refused for
            a model with a convolution that is not in ``dense``.
        dense: names of the converted layers that keep the whole backward. None: the last one in the order of
            ``named_modules``, as the output layer.

    Attributes:
        rows: the choice. dense: the names, in the order of ``named_modules``.

    Raises:
        ValueError, TypeError: an argument out of its range, a name that is no converted layer, no layer left, or one that
            cannot have the choice, by name. No layer is then changed.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        ratio: float | None = None,
        k: int | None = None,
        scope: str = "both",
        score: str = "l1",
        block: int = 1,
        bias: str = "dense",
        per: str = "batch",
        dense: Collection[str] | None = None,
    ) -> None:
        super().__init__(model)
        self.rows = _choice(per, ratio, k, scope=scope, score=score, block=block, bias=bias)
        self.dense = self.names_or_last(dense)
        for name in self.layers:
            if name not in self.dense:
                self.check_choice(name, self.rows)
        self.apply()

    @property
    def claims(self) -> dict[str, Collection[str]]:
        return {"rows": self.layers.keys() - set(self.dense)}

    def wants(self, name: str) -> Wants:
        return {"rows": None if name in self.dense else self.rows}


def _choice(per: str, ratio: float | None, k: int | None, **unified: Any) -> RowChoice:
    if per not in PER:
        raise ValueError(f"per: expected one of {', '.join(PER)}, got {per!r}")
    if per == "batch":
        return TopK(ratio=ratio, k=k, **unified)
    for name, only in (("scope", "both"), ("score", "l1"), ("block", 1), ("bias", "dense")):
        if unified[name] != only:
            raise ValueError(f"{name}: expected {only!r} with per='example', got {unified[name]!r}")
    return PerExample(ratio=ratio, k=k)
