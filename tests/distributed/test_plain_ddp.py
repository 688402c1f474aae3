"""Skipped and row-sparse weights under plain DDP, two processes on the CPU: nothing hangs, what is skipped does not move, ranks
agree."""

import torch
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel

import wuskern as wk
from tests.oracle import Flag, set_flags

STEPS: list[Flag] = [False, True, True, wk.Rows([0, 2]), False, wk.Rows([1], scope="both"), wk.Rows([0, 1])]


def train(rank: int, world: int) -> dict:
    """Two ranks see one half of each batch; one process sees the whole."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(4 * 9, 3))
    wk.convert(model)
    trained: nn.Module = model
    if world > 1:
        trained = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    wk.policies.WUS(model).attach(optimizer)
    batch = torch.Generator().manual_seed(1)
    for flag in STEPS:
        x, y = torch.randn(8, 2, 5, 5, generator=batch), torch.randn(8, 3, generator=batch)
        mine = slice(8 // world * rank, 8 // world * (rank + 1))
        set_flags(model, flag)
        before = [m.weight.detach().clone() for m in (model[0], model[2])]
        optimizer.zero_grad()
        (trained(x[mine]) - y[mine]).pow(2).mean().backward()
        optimizer.step()
        moved = [not torch.equal(m.weight, b) for m, b in zip((model[0], model[2]), before, strict=True)]
        assert moved == [flag is not True] * 2
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_two_ranks_equal_one_process_on_the_joint_batch(ranks):
    first, second = ranks.run(train, 2)
    for name, value in train(0, 1).items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value)
