"""An embedding with a plan: the gradient of some rows of its table, and nothing of the table's size.

A table is read and not multiplied by, and whole numbers have no gradient: so an embedding is no ``Kind`` as the others are, and
has an autograd Function of its own. What becomes of its gradient is what becomes of theirs.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._compile import _disable_dynamo  # torch.compiler.disable would import all of the compiler now

from wuskern.autograd import form, once, wanted_of_weight
from wuskern.choices import BatchRows, Plan, Rows, Units
from wuskern.common.shapes import as_matrix, is_batched
from wuskern.delivery.grad_home import GradHome
from wuskern.sparse_grad import RowGrad


@dataclass(frozen=True)
class Embedding:
    """The kind ``y = weight[tokens]``. tokens: whole numbers, of any shape. weight: ``[vocabulary, features]``.

    Attributes:
        padding_idx: the token without a gradient, from 0; None: all have one.
        scale_grad_by_freq: whether a token's gradient is divided by how often it is in the batch.
        sparse: torch's own flag, where the call is stock's.
    """

    padding_idx: int | None = None
    scale_grad_by_freq: bool = False
    sparse: bool = False

    def units(self, weight: Tensor) -> Units:
        return Units("Embedding", *weight.shape)

    def fprop(self, tokens: Tensor, weight: Tensor) -> Tensor:
        """The output y, of stock's own call."""
        return F.embedding(tokens, weight, self.padding_idx, None, 2.0, self.scale_grad_by_freq, self.sparse)

    def grad(self, choice: Rows | BatchRows, dy: Tensor, tokens: Tensor) -> RowGrad:
        """The gradient of the chosen rows, from dy as ``[..., features]``. Each row is a sum in the order of the tokens, by the
        library, which takes no atomics for it: the same bits each time."""
        dy, tokens = as_matrix(dy), tokens.reshape(-1).contiguous().long()
        if isinstance(choice, Rows):
            rows = choice.index.to(dy.device)
            return RowGrad(rows, self._summed(dy, self._places(tokens, rows), rows.shape[0]))
        rows, places = tokens.unique(return_inverse=True)
        values = self._summed(dy, places, rows.shape[0])
        if self.padding_idx is not None:
            kept = rows != self.padding_idx
            rows, values = rows[kept], values[kept]
        return RowGrad(rows, values)

    def _places(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """The place of each token in the ascending ``rows``; their number for one that is not there, and for padding."""
        k = rows.shape[0]
        places = torch.searchsorted(rows, tokens)
        found = rows.index_select(0, places.clamp(max=k - 1)) == tokens
        if self.padding_idx is not None:
            found = found & (tokens != self.padding_idx)
        return torch.where(found, places, k)

    def _summed(self, dy: Tensor, places: Tensor, k: int) -> Tensor:
        """The sums ``[k, features]`` of dy by place; what is at place k belongs to none of them."""
        sums = torch.ops.aten.embedding_dense_backward(dy, places, k + 1, k, self.scale_grad_by_freq)
        return sums.narrow(0, 0, k)


@dataclass(eq=False, slots=True)
class Lookup:
    """What one forward of an embedding passes to its backward, beside the tensors of the graph: as ``autograd.Call``."""

    kind: Embedding
    plan: Plan
    weight: Tensor
    sparse: bool
    home: GradHome | None


class EmbeddingFunction(torch.autograd.Function):
    """The autograd Function of an embedding: stock's output, and the gradient of the rows that the call's plan chooses."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor, call: Lookup) -> Tensor:
        ctx.call = call
        ctx.save_for_backward(None if call.plan.skip or not ctx.needs_input_grad[1] else tokens)
        return call.kind.fprop(tokens, weight)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        call: Lookup = ctx.call
        if call.plan.skip:
            return None, None, None
        if is_batched(dy):
            raise RuntimeError("an embedding with rows has no batched backward (vmap, is_grads_batched)")
        if not torch.is_grad_enabled():
            return None, _gradient(ctx, dy, call.sparse), None
        with torch.no_grad():
            computed = _gradient(ctx, dy, False)
        return None, *once(dy.device, computed), None


def _gradient(ctx: Any, dy: Tensor, sparse: bool) -> Tensor | None:
    """The gradient of the weight for autograd; None where it is not wanted, or has been delivered already."""
    call: Lookup = ctx.call
    needed, accumulated = wanted_of_weight(ctx)
    if not needed:
        return None
    assert isinstance(call.plan.rows, Rows | BatchRows)
    (tokens,) = ctx.saved_tensors
    grad = call.kind.grad(call.plan.rows, dy, tokens)
    return form(call.weight, call.home, grad, sparse and accumulated)


def look_up(tokens: Tensor, lookup: Lookup) -> Tensor:
    """The output y for a plan that leaves something out. The rows of a batch are stock's own gradient in the dense form; in the
    sparse one no compiled graph can know how many there are."""
    if not isinstance(lookup.plan.rows, BatchRows) or lookup.plan.skip:
        return _applied(tokens, lookup)
    if not lookup.sparse:
        return dataclasses.replace(lookup.kind, sparse=False).fprop(tokens, lookup.weight)
    return _applied_in_eager(tokens, lookup)


def _applied(tokens: Tensor, lookup: Lookup) -> Tensor:
    y: Tensor = EmbeddingFunction.apply(tokens, lookup.weight, lookup)
    return y


_applied_in_eager = _disable_dynamo(_applied)
