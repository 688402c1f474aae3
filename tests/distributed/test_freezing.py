"""A frozen prefix under DDP, two processes on the CPU: as one process on the joint batch, and all ranks freeze alike."""

import pytest
import torch
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel

import wuskern as wk
from tests.distributed.ranks import WORLD
from wuskern.policies import AutoFreeze, PeriodicFreezing
from wuskern.policies.freezing import Prefix

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


class Redirected(nn.Module):
    """Its forward is another of its methods for one call, which calls the model again: how Lightning goes through DDP."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, x: torch.Tensor) -> torch.Tensor:
        return self(x).square().mean()

    def through(self, wrapper: nn.Module, x: torch.Tensor) -> torch.Tensor:
        original = self.forward

        def once(*args: torch.Tensor) -> torch.Tensor:
            self.forward = original
            return self.training_step(*args)

        self.forward = once
        return wrapper(x)


def test_a_forward_that_is_redirected_under_ddp():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        net, x = wk.convert(Redirected().double()), torch.randn(6, 4, dtype=torch.float64)
        prefix = Prefix(net, x)
        prefix.set(1)
        wrapped = DistributedDataParallel(net, find_unused_parameters=True)
        for _ in range(2):
            net.zero_grad()
            net.through(wrapped, x).backward()
            found = [p.grad for p in net.parameters()]
            net.zero_grad()
            net.training_step(x).backward()
            for p, q in zip(net.parameters(), found, strict=True):
                assert p.grad is None or torch.allclose(p.grad, q)
            assert [p.grad is None for p in net.parameters()] == [True] * 4 + [False] * 4
        assert not net.net[1].training
        prefix.set(0)
        net.through(wrapped, x).backward()
        assert all(p.grad is not None for p in net.parameters())
    finally:
        torch.distributed.destroy_process_group()
