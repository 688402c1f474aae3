"""A frozen prefix under DDP, two processes on the CPU: as one process on the joint batch, and all ranks freeze alike."""

import pytest
import torch
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel

import wuskern as wk
from tests.distributed.ranks import WORLD
from wuskern.policies import AutoFreeze, PeriodicFreezing

METHODS = {
    "periodic": lambda net, x: PeriodicFreezing(net, x, start=2, freeze=2, train=2, share=0.7),
    "by gradients": lambda net, x: AutoFreeze(net, x, interval=2),
}


def train(rank: int, world: int, method: str, prepared: bool) -> tuple[list[torch.Tensor], list[int]]:
    """Eight steps, a period each; each rank has its part of a batch. The weights at the end, the depth in each step."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 5), nn.Tanh(), nn.Linear(5, 3))
    net[1].eval()  # its statistics would be those of a part
    wk.convert(net.double())
    trained: nn.Module = net
    if world > 1:
        trained = DistributedDataParallel(net, find_unused_parameters=True)
        if prepared:
            wk.distributed.prepare(trained)
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9, weight_decay=0.1)
    batches = torch.Generator().manual_seed(1)
    policy = METHODS[method](net, torch.randn(2, 2, 5, 5, dtype=torch.float64, generator=batches))
    policy.attach(optimizer)
    if world > 1:
        with pytest.raises(ValueError, match="model: expected the one inside, got DistributedDataParallel around it"):
            METHODS[method](trained, torch.randn(2, 2, 5, 5, dtype=torch.float64))
    depths = []
    for _ in range(8):
        x, y = (torch.randn(8, *size, dtype=torch.float64, generator=batches) for size in ((2, 5, 5), (3,)))
        mine = slice(8 // world * rank, 8 // world * (rank + 1))
        optimizer.zero_grad()
        (trained(x[mine]) - y[mine]).square().mean().backward()
        before = [p.detach().clone() for p in policy.frozen_parameters()]
        depths.append(policy.depth)
        optimizer.step()
        assert all(map(torch.equal, before, policy.frozen_parameters()))
        policy.after_step()
        policy.step()
    return [p.detach() for p in net.parameters()], depths


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_equal_one_process_on_the_joint_batch(ranks, method, prepared):
    (first, depths), (second, same) = ranks.run(train, WORLD, method, prepared)
    expected, wanted = train(0, 1, method, False)
    assert depths == same == wanted
    assert max(depths) > 0
    for a, b, value in zip(first, second, expected, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, value)
