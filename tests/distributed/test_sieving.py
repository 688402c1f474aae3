"""Two processes sieve the same samples as one that saw all that they saw."""

import torch

from wuskern.policies import SievingSampler

ARGUMENTS = dict(keep=0.5, rate=0.5, interval=2, seed=3)
EPOCHS, SIZE = 8, 22


def right(index: torch.Tensor, epoch: int) -> torch.Tensor:
    return (index * 7 + epoch * epoch) % 3 > 0


def sieve(rank, world):
    sampler, parts = SievingSampler(SIZE, rank=rank, world=world, **ARGUMENTS), []
    for epoch in range(EPOCHS):
        index = torch.tensor(list(sampler))
        sampler.record(index, right(index, epoch))
        parts.append(index.tolist())
        sampler.step()
    return sampler.state_dict(), parts


def sieve_as_one_of_two(rank):
    return sieve(rank, 2)


def test_processes_keep_the_same_samples_as_one(ranks):
    (first, mine), (second, other) = ranks.run(sieve_as_one_of_two)
    alone, everything = sieve(0, 1)
    for name, value in alone.items():
        assert torch.equal(torch.as_tensor(first[name]), torch.as_tensor(value)), name
        assert torch.equal(torch.as_tensor(second[name]), torch.as_tensor(value)), name
    for a, b, whole in zip(mine, other, everything, strict=True):
        assert len(a) == len(b)
        assert set(a) | set(b) == set(whole)
