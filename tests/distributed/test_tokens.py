"""Tokens under DDP, two processes on the CPU: each chooses of its own batch, and the sums are averaged."""

import copy
import dataclasses

import pytest
import torch
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel

import wuskern as wk
from tests.distributed.models import draw
from tests.distributed.ranks import WORLD

FLAGS = {"all rows": None, "rows": wk.Rows([1, 4])}


def model() -> nn.Module:
    torch.manual_seed(0)
    net = wk.convert(nn.Sequential(nn.Conv2d(2, 6, 3), nn.Flatten(), nn.Linear(54, 5)).double())
    wk.set_tokens(net, wk.Tokens(k=3))
    return net


def gradients(net: nn.Module, call: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    call(x).square().sum().backward()
    return [p.grad.to_dense() for p in net.parameters()]


def under_ddp(rank: int, prepared: bool, rows: str, compact: bool) -> tuple[list[torch.Tensor], ...]:
    net = model()
    net[0].rows = FLAGS[rows]
    alone = copy.deepcopy(net)
    if compact:
        net[0].rows = dataclasses.replace(net[0].rows, sparse=True)
    ddp = DistributedDataParallel(net)
    if prepared:
        wk.distributed.prepare(ddp)
    x = draw(rank, 8, 2, 5, 5)
    found = gradients(net, ddp, x)
    return [g.detach().clone() for g in found], gradients(alone, alone, x)


@pytest.mark.parametrize(
    ("prepared", "rows", "compact"),
    [
        (False, "all rows", False),
        (False, "rows", False),
        (True, "all rows", False),
        (True, "rows", False),
        (True, "rows", True),
    ],
)
def test_the_average_of_what_each_process_sums(ranks, prepared, rows, compact):
    (first, mine), (second, others) = ranks.run(under_ddp, prepared, rows, compact)
    for a, b, own, other in zip(first, second, mine, others, strict=True):
        torch.testing.assert_close(a, (own + other) / WORLD)
        assert torch.equal(a, b)


def skipping(rank: int) -> bool:
    net = model()
    wk.set_skip(net, True)
    ddp = DistributedDataParallel(net)
    wk.distributed.prepare(ddp)
    ddp(draw(rank, 8, 2, 5, 5)).square().sum().backward()
    return net[0].weight.grad is None and net[2].weight.grad is None


def test_skip_wins(ranks):
    """Here the weight stays in the graph, and what a skip leaves out is decided in backward."""
    assert ranks.run(skipping) == [True, True]
