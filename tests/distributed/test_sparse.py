"""Masks under plain DDP, two processes on the CPU: the same zeros, the same changes, the same weights."""

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from tests.policies.test_sparse_zeros import KINDS, OPTIMIZERS, check_zeros, example, make, network


def ddp(rank: int, kind: str) -> dict[str, torch.Tensor]:
    net = network()
    update = OPTIMIZERS["adamw"](net.parameters())
    policy = make(kind, net, **({"interval": 1} if kind == "mest" else {}))
    policy.attach(update)
    trained = DistributedDataParallel(net)
    for step in range(6):
        policy.before_step()
        trained(example(step)[3 * rank :][:3]).square().mean().backward()
        update.step()
        update.zero_grad()
        policy.after_step()
        if step % 2:
            policy.step()
        check_zeros(policy, update)
    return {name: value.clone() for name, value in net.state_dict().items()} | policy.state_dict()["masks"]


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_choose_alike(kind, ranks):
    first, second = ranks.run(ddp, kind)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
