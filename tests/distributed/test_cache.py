"""A cache of activations in each of two processes, under DDP: the training of one process without it, on the joint batch."""

import pytest
import torch
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

import wuskern as wk
from tests.distributed.models import raises
from tests.distributed.ranks import WORLD
from wuskern.policies import ActivationCache, Indexed, ProgressiveFreezing, SingleShotFreezing

SAMPLES, BATCH, EPOCHS, CHUNK = 44, 4, 4, 4  # a batch of each process


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.front = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
        self.back = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x):
        return self.back(self.front(x))


def data():
    draw = torch.Generator().manual_seed(5)
    return [{"x": torch.randn(2, 6, 6, generator=draw, dtype=torch.float64), "y": torch.randn(3, generator=draw).double()}
            for _ in range(SAMPLES)]  # fmt: skip


def freezing_net(method):
    torch.manual_seed(1)
    net = wk.convert(Net().double())
    net.front[1].eval()
    samples = torch.stack([sample["x"] for sample in data()])
    if method == "at once":
        return net, samples, SingleShotFreezing(net, samples[:2], at=0, share=0.5)
    return net, samples, ProgressiveFreezing(net, samples[:2], start=0, end=3, share=1.0)


def sampler(rank, shuffle):
    return DistributedSampler(range(SAMPLES), WORLD, rank, shuffle=shuffle, drop_last=True)


def optimizer_of(net, policy):
    made = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9, weight_decay=0.01)
    policy.attach(made)
    return made


def cached(rank, method, how, prepared, shuffle):
    """The weights after each epoch; how many layers did not run at its end, and what share of the chunks is kept."""
    net, samples, policy = freezing_net(method)
    ddp = DistributedDataParallel(net, find_unused_parameters=True)
    if prepared:
        wk.distributed.prepare(ddp)
    optimizer, order = optimizer_of(net, policy), sampler(rank, shuffle)
    dataset = Indexed(data())
    cache = ActivationCache(policy, samples, chunk=CHUNK)
    if how == "listen":
        cache.listen()
    history, layers = [], []
    for epoch in range(EPOCHS):
        order.set_epoch(epoch)
        for batch in DataLoader(dataset, BATCH, sampler=order, drop_last=True):
            index, x, y = batch["sample_index"], batch["x"], batch["y"]
            optimizer.zero_grad()
            if how == "listen":
                output = ddp(x, sample_index=index)
            else:
                with cache.at(index):
                    output = ddp(x)
            (output - y).square().mean().backward()
            optimizer.step()
        history.append([p.detach().clone() for p in net.parameters()])
        layers.append((policy.depth, cache.layers, cache.reason))
        policy.step()
    return history, layers, sum(cache._filled) / len(cache._filled)


def alone(method, shuffle):
    net, samples, policy = freezing_net(method)
    optimizer, targets = optimizer_of(net, policy), torch.stack([sample["y"] for sample in data()])
    orders, history = [sampler(rank, shuffle) for rank in range(WORLD)], []
    for epoch in range(EPOCHS):
        for order in orders:
            order.set_epoch(epoch)
        of_ranks = [torch.tensor(list(order)).split(BATCH)[: SAMPLES // WORLD // BATCH] for order in orders]
        for parts in zip(*of_ranks, strict=True):
            index = torch.cat(parts)
            optimizer.zero_grad()
            (net(samples[index]) - targets[index]).square().mean().backward()
            optimizer.step()
        history.append([p.detach().clone() for p in net.parameters()])
        policy.step()
    return history


@pytest.mark.parametrize("prepared", [False, True], ids=["plain", "prepared"])
@pytest.mark.parametrize("how", ["at", "listen"])
@pytest.mark.parametrize(("method", "shuffle"), [("at once", True), ("more and more", True), ("more and more", False)])
def test_cached_in_two_processes(ranks, method, how, prepared, shuffle):
    expected = alone(method, shuffle)
    for history, layers, _ in ranks.run(cached, method, how, prepared, shuffle):
        assert layers[-1][1] == layers[-1][0] > 0  # what is frozen does not run
        assert layers[-1][2] is None
        for epoch, (found, right) in enumerate(zip(history, expected, strict=True)):
            for a, value in zip(found, right, strict=True):
                torch.testing.assert_close(a, value, rtol=1e-9, atol=1e-12, msg=lambda m, e=epoch: f"epoch {e}: {m}")


def own_samples(rank):
    """Each process has samples of its own, and a cache of these alone: by their numbers among them."""
    net, samples, policy = freezing_net("at once")
    ddp = DistributedDataParallel(net, find_unused_parameters=True)
    mine = samples[rank * SAMPLES // WORLD : (rank + 1) * SAMPLES // WORLD]
    cache, whole = ActivationCache(policy, mine, chunk=CHUNK), ActivationCache(policy, samples, chunk=CHUNK)
    for index in torch.arange(len(mine)).split(BATCH):
        for kept, number in ((cache, index), (whole, index + rank * len(mine))):
            net.zero_grad()
            with kept.at(number):
                ddp(mine[index]).square().mean().backward()
    return cache.nbytes / whole.nbytes, raises(RuntimeError, cache, torch.arange(2))


def test_each_process_may_keep_its_own_samples(ranks):
    for share, refused in ranks.run(own_samples):
        assert share == 1 / WORLD
        assert refused.startswith("cache: expected `with cache.at(index): ddp(batch)`")
