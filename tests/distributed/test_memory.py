"""Layers that keep less under plain DDP, two processes on the CPU, against PyTorch's layers."""

import pytest
import torch
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel

import wuskern as wk

pytestmark = pytest.mark.more


def train(rank: int, world: int, memory: bool) -> dict:
    """Each rank with a half of each batch, and a seed of its own for Dropout."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.LeakyReLU(),
        nn.Flatten(), nn.Dropout(0.3), nn.Linear(16, 8), nn.ReLU6(), nn.Linear(8, 3),
    )  # fmt: skip
    model[4].requires_grad_(False)
    wk.convert(model, memory=memory)
    trained = DistributedDataParallel(model, gradient_as_bucket_view=memory)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    wk.policies.WUS(model).attach(optimizer)
    batch = torch.Generator().manual_seed(1)
    torch.manual_seed(100 + rank)
    for skip in (False, True, True, False):
        trained.train()
        model[4].eval()
        wk.set_skip(model, skip)
        x, y = torch.randn(8, 2, 6, 6, generator=batch), torch.randn(8, 3, generator=batch)
        mine = slice(8 // world * rank, 8 // world * (rank + 1))
        optimizer.zero_grad()
        (trained(x[mine]) - y[mine]).pow(2).mean().backward()
        optimizer.step()
    return {name: t.detach().clone() for name, t in model.state_dict().items()}


def test_two_ranks_train_as_with_pytorchs_layers(ranks):
    stock, ours = ranks.run(train, 2, False), ranks.run(train, 2, True)
    for mine, theirs in zip(ours, stock, strict=True):
        for name, value in theirs.items():
            torch.testing.assert_close(mine[name], value, rtol=1e-5, atol=1e-6)
