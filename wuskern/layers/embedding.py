"""The layer ``SkippableEmbedding``: nn.Embedding with a plan."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from wuskern import functional
from wuskern.choices import Plan, Units
from wuskern.embedding import Embedding
from wuskern.modules import Skippable


class SkippableEmbedding(Skippable, nn.Embedding):
    """An ``nn.Embedding`` with a plan (see :class:`Skippable`): ``skip``, or ``rows``, which are tokens: ``wk.Rows(index)``,
    those that train, or ``wk.BatchRows()``. The table may grow and shrink.

    Refused by name: other choices of rows, columns, tokens, observers; in forward ``max_norm``, which moves rows there.

    input: whole numbers of any shape -> ``[..., embedding_dim]``.
    """

    @property
    def units(self) -> Units:
        return Units("Embedding", self.num_embeddings, self.embedding_dim)

    def _followed(self, plan: Plan) -> Plan:
        return plan  # what it leaves out shows in forward: the table may have grown by then

    def forward(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return F.embedding(
                input, self.weight, self.padding_idx, self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse
            )
        if not getattr(self, "_planned", False):  # a wrapper may call this after revert
            return nn.Embedding.forward(self, input)
        if self.max_norm is not None:
            raise ValueError(
                f"max_norm: expected None in an embedding with a plan, whose other rows it moves, got {self.max_norm}"
            )
        kind = Embedding(self.padding_idx, self.scale_grad_by_freq, self.sparse)
        return functional.planned_embedding(input, self.weight, kind, self._in_use, self._home)
