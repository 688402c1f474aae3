"""A step of a table of tokens of which 64 new ones train: forward, backward, and the optimizer.

Ours is ``SkippableEmbedding`` with fixed ``Rows`` and ``wuskern.optim.AdamW``. Beside it ``nn.Embedding`` as it is, with
torch's AdamW (fused), which moves and decays all of the table; ``nn.Embedding(sparse=True)`` with SparseAdam, which moves the
tokens of the batch; and peft's trainable tokens with torch's AdamW, if peft is installed. ``plain``: the new rows as a
parameter of their own behind a constant table, put together in forward.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

import wuskern as wk

NEW, LR, DECAY, PASSES = 64, 1e-3, 0.01, 7
SHAPES = [(30522, 384), (50257, 768)]
BATCH, SMOKE = (16, 128), (2, 16)
Case = tuple[nn.Module, Optimizer]


class Joined(nn.Module):
    """The new rows behind a constant table."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("old", table[:-NEW].clone())
        self.weight = Parameter(table[-NEW:].clone())

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, torch.cat((self.old, self.weight)))


def ours(table: Tensor) -> Case:
    layer = wk.convert(nn.Embedding.from_pretrained(table.clone(), freeze=False), embeddings=True)
    layer.rows = wk.Rows(torch.arange(len(table) - NEW, len(table), device=table.device))
    return layer, wk.optim.AdamW(layer.parameters(), lr=LR, weight_decay=DECAY)


def dense(table: Tensor) -> Case:
    layer = nn.Embedding.from_pretrained(table.clone(), freeze=False)
    return layer, torch.optim.AdamW(layer.parameters(), lr=LR, weight_decay=DECAY, fused=True)


def sparse(table: Tensor) -> Case:
    layer = nn.Embedding.from_pretrained(table.clone(), freeze=False, sparse=True)
    return layer, torch.optim.SparseAdam(list(layer.parameters()), lr=LR)


def plain(table: Tensor) -> Case:
    layer = Joined(table)
    return layer, torch.optim.AdamW(layer.parameters(), lr=LR, weight_decay=DECAY, fused=True)


def trainable_tokens(table: Tensor) -> Case:
    """As peft has them: rows of their own, copied into the table in each forward."""
    import peft

    model = nn.Sequential(nn.Embedding.from_pretrained(table.clone(), freeze=False))
    tokens = list(range(len(table) - NEW, len(table)))
    model = peft.get_peft_model(model, peft.TrainableTokensConfig(target_modules=["0"], token_indices=tokens))
    trained = [p for p in model.parameters() if p.requires_grad]
    return model, torch.optim.AdamW(trained, lr=LR, weight_decay=DECAY, fused=True)


def makers() -> dict[str, Callable[[Tensor], Case]]:
    found = {"ours": ours, "dense": dense, "sparse": sparse, "plain": plain}
    try:
        import peft  # noqa: F401
    except ImportError:
        return found
    return found | {"peft": trainable_tokens}


@dataclass
class Problem:
    """The same table for each variant. The first step, which makes the state, is done."""

    start: Tensor
    cases: dict[str, Case]
    tokens: Tensor
    dy: Tensor

    def step(self, name: str) -> None:
        layer, optimizer = self.cases[name]
        layer(self.tokens).backward(self.dy)
        optimizer.step()
        optimizer.zero_grad()

    def new(self, name: str) -> Tensor:
        """The rows that train, as they are now."""
        layer = self.cases[name][0]
        with torch.no_grad():
            return layer(torch.arange(len(self.start) - NEW, len(self.start), device=self.start.device))


def problem(shape: tuple[int, int], batch: tuple[int, int], device: str) -> Problem:
    """A batch of which one token in 16 is new."""
    table = torch.randn(shape, device=device)
    tokens = torch.randint(shape[0] - NEW, batch, device=device)
    is_new = torch.rand(batch, device=device) < 1 / 16
    tokens = torch.where(is_new, torch.randint(shape[0] - NEW, shape[0], batch, device=device), tokens)
    cases = {name: make(table) for name, make in makers().items()}
    made = Problem(table, cases, tokens, torch.randn(*batch, shape[1], device=device))
    for name in made.cases:
        made.step(name)
    return made


def verify(_: Any, first: Problem) -> None:
    """Two steps in: the new rows as those of a parameter of their own, the others where they were, in ours and the peers."""
    layer = first.cases["ours"][0]
    assert torch.equal(layer.weight.detach()[:-NEW], first.start[:-NEW])
    for name in first.cases:
        if name != "sparse":  # which decays nothing
            torch.testing.assert_close(first.new(name), first.new("plain"))
    assert not torch.equal(first.cases["dense"][0].weight.detach()[:-NEW], first.start[:-NEW])


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_embedding(shape, device, race, benchmark):
    batch, timed = (SMOKE, (2048, shape[1])) if benchmark.disabled else (BATCH, shape)
    size = torch.float32.itemsize * shape[1]
    peers = [name for name in makers() if name not in ("ours", "dense")]
    race(
        {name: lambda p, name=name: p.step(name) for name in makers()},
        group="embedding",
        case="x".join(map(str, shape)),
        inputs=lambda: (problem(timed, batch, device),),
        verify=verify,
        peer="dense",
        derived={f"over_{name}": lambda t, name=name: t[name] / t["ours"] for name in peers},
        moved=(3 * batch[0] * batch[1] + PASSES * NEW) * size,
        copies=1,
        rehearse=True,
        new=NEW,
        tokens=batch[0] * batch[1],
    )
