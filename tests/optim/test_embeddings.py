"""New tokens of a pretrained table train alone, with a tied head or without: against stock PyTorch with a parameter of its own
for the new rows, beside a constant table."""

import copy
import itertools

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

import wuskern as wk

VOCABULARY, NEW, FEATURES, STEPS = 20, [17, 18, 19], 6, 20
OPTIMIZERS = {
    "AdamW": dict(lr=0.05, weight_decay=0.1),
    "Adam": dict(lr=0.05, weight_decay=0.1, amsgrad=True),
    "SGD": dict(lr=0.05, momentum=0.9, weight_decay=0.1, nesterov=True),
}
each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


class Model(nn.Module):
    def __init__(self, tied: bool, **options) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, FEATURES, dtype=torch.float64, **options)
        self.body = nn.Linear(FEATURES, FEATURES, dtype=torch.float64)
        self.head = nn.Linear(FEATURES, VOCABULARY, bias=False, dtype=torch.float64)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(self.embedding(tokens))))


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Tokens and what follows them; the third batch has no new token."""
    drawn = torch.randint(VOCABULARY, (2, 8), generator=torch.Generator().manual_seed(step))
    if step == 2:
        drawn = drawn % NEW[0]
    else:
        drawn[0, :2] = torch.tensor(NEW[1:])
    return drawn[0], drawn[1]


def by_stock(name: str, tied: bool, **options) -> dict[str, Tensor]:
    """The same training where the new rows are a parameter, put behind the old ones in forward. Rows without a gradient have
    zeros, as in the sparse form of fixed rows."""
    model = Model(tied, **options)
    old, body = model.embedding.weight.detach()[: NEW[0]], model.body
    new = Parameter(model.embedding.weight.detach()[NEW[0] :].clone())
    head = model.head.weight
    optimizer = getattr(torch.optim, name)([new, *body.parameters(), *([] if tied else [head])], **OPTIMIZERS[name])
    for step in range(STEPS):
        tokens, following = batch(step)
        table = torch.cat((old, new))
        embedded = F.embedding(tokens, table, options.get("padding_idx"))
        F.cross_entropy(F.linear(torch.tanh(body(embedded)), table if tied else head), following).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"embedding.weight": torch.cat((old, new)).detach(), **{f"body.{n}": p.detach() for n, p in body.named_parameters()}}


def by_ours(name: str, tied: bool, micro: int = 1, **options) -> dict[str, Tensor]:
    model = wk.convert(Model(tied, **options), embeddings=True)
    wk.set_rows(model, wk.Rows(NEW), filter_fn=lambda module, name: name in ("embedding", "head")[: 1 + tied])
    optimizer = getattr(wk.optim, name)(model.parameters(), **OPTIMIZERS[name])
    for step in range(STEPS):
        tokens, following = batch(step)
        for part, wanted in zip(tokens.chunk(micro), following.chunk(micro), strict=True):
            (F.cross_entropy(model(part), wanted) / micro).backward()
        grad = model.embedding.weight.grad
        assert grad.is_sparse
        assert wk.sparse_grad.to_rows(grad).rows.tolist() == NEW
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e6)
        optimizer.step()
        optimizer.zero_grad()
    return {n: p.detach() for n, p in model.named_parameters()}


CASES = [*itertools.product(OPTIMIZERS, (False, True), (1, 2), ({},)), ("AdamW", False, 1, {"padding_idx": 18})]


@pytest.mark.parametrize(("name", "tied", "micro", "options"), CASES, ids=str)
def test_new_tokens_train_as_a_parameter_of_their_own_and_no_other_moves(name, tied, micro, options):
    ours, stock = by_ours(name, tied, micro, **options), by_stock(name, tied, **options)
    for key, value in stock.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-9, atol=1e-12)
    before = Model(tied, **options).embedding.weight.detach()
    moved = (ours["embedding.weight"] != before).any(1).nonzero().flatten().tolist()
    assert moved == [row for row in NEW if row != options.get("padding_idx")]


@each_optimizer
def test_one_line_is_enough(name):
    """And no row besides moves by a bit, in float32."""
    model = wk.convert(Model(False), embeddings=True).float()
    model.embedding.rows = wk.Rows(NEW)
    before = copy.deepcopy(model.embedding.weight.detach())
    optimizer = getattr(wk.optim, name)(model.parameters(), **OPTIMIZERS[name])
    for step in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(batch(step)[0]), batch(step)[1]).backward()
        optimizer.step()
    assert (model.embedding.weight != before).any(1).nonzero().flatten().tolist() == NEW


def test_tokens_of_the_batch_move_as_those_of_torchs_sparse_embedding():
    """By SparseAdam, which knows no decay."""
    moved = []
    for ours in (True, False):
        torch.manual_seed(0)
        layer = nn.Embedding(VOCABULARY, FEATURES, sparse=not ours, padding_idx=3)
        if ours:
            wk.convert(layer, embeddings=True).rows = wk.BatchRows()
        kind = (lambda p: wk.optim.Adam(p, lr=0.1)) if ours else (lambda p: torch.optim.SparseAdam(list(p), lr=0.1))
        optimizer = kind(layer.parameters())
        for step in range(STEPS):
            optimizer.zero_grad()
            layer(batch(step)[0]).square().sum().backward()
            assert layer.weight.grad.is_sparse
            optimizer.step()
        moved.append(layer.weight.detach())
    torch.testing.assert_close(*moved)


def test_a_skipped_tied_weight_stays_and_a_half_skipped_one_does_not():
    model = wk.convert(Model(True), embeddings=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    wk.policies.WUS(model).attach(optimizer)
    for skips, moves in ((("embedding", "head"), False), (("embedding",), True), (("head",), True)):
        wk.set_skip(model, False)
        wk.set_skip(model, True, filter_fn=lambda module, name, skips=skips: name in skips)
        before = model.head.weight.detach().clone()
        optimizer.zero_grad(set_to_none=False)  # zeros, which would decay the weight
        if model.head.weight.grad is None:
            model.head.weight.grad = torch.zeros_like(before)
        F.cross_entropy(model(batch(0)[0]), batch(0)[1]).backward()
        optimizer.step()
        assert torch.equal(model.head.weight, before) != moves
