"""Each pair of ways to run a step, in some test: compiler, precision, gradients, accumulation, processes.

The oracle is one process of stock PyTorch in eager mode on the joint batch, in the same precision, with operands detached by
hand. So that rows chosen by scores are known beforehand, the network makes the same few rows by far the largest everywhere.
"""

import contextlib
import copy
import itertools
from typing import NamedTuple

import pytest
import torch
import torch.nn as nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import wuskern as wk
from tests import oracle

WAYS = {
    "call": ("eager", "compile"),
    "precision": ("fp32", "bf16 autocast", "fp16 + scaler"),
    "gradients": ("dense", "skip", "TopK", "Rows compact"),
    "accumulate": (1, 4),
    "processes": ("single", "DDP", "FSDP2"),
}
STEPS, LR, BATCH, WIDTHS = 3, 1e-3, 16, (12, 16, 8)
LARGE = ([0, 3, 5, 11], [1, 4])  # rows of the two layers; a quarter of them
TOLERANCE = {"fp32": 1e-5, "bf16 autocast": 2e-2, "fp16 + scaler": 4e-3}  # of a weight's way, relative


class Combination(NamedTuple):
    call: str
    precision: str
    gradients: str
    accumulate: int
    processes: str

    def __str__(self) -> str:
        return ", ".join(map(str, self))


def pairs(combination):
    """Of values, each with the position of its way."""
    return set(itertools.combinations(enumerate(combination), 2))


def pairwise():
    """Combinations that hold every pair of values: each time the one with the most that are missing."""
    everything = [Combination(*values) for values in itertools.product(*WAYS.values())]
    missing, chosen = set().union(*map(pairs, everything)), []
    while missing:
        chosen.append(max(everything, key=lambda combination: len(pairs(combination) & missing)))
        missing -= pairs(chosen[-1])
    return chosen


COMBINATIONS = pairwise()


# ---- one run --------------------------------------------------------------------------------------------------------


def network():
    """Every gradient of a hidden unit is the same sum, times the unit's column of the second weight: six times larger in the
    large rows than in others, and halved at most by the activation."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(*WIDTHS[:2]), nn.LeakyReLU(0.5), nn.Linear(*WIDTHS[1:]))
    with torch.no_grad():
        model[2].weight.copy_(torch.rand(WIDTHS[-1], 1) + 0.5).mul_(torch.randn(WIDTHS[1]).sign() / 8)
        for layer, rows in zip((model[0], model[2]), LARGE, strict=True):
            layer.weight[rows] *= 6
        model[2].weight[:, LARGE[0]] *= 6
    return model


def loss_of(model, x):
    scale = torch.full((WIDTHS[-1],), 0.05)
    scale[LARGE[1]] = 1.0
    return (model(x).float() * scale).square().mean()


def flags_of(combination):
    return {
        "dense": (False, (None, None)),
        "skip": (True, (None, None)),
        "TopK": (False, (wk.TopK(ratio=0.25),) * 2),
        "Rows compact": (False, tuple(map(wk.Rows, LARGE))),
    }[combination.gradients]


def autocast(combination):
    dtype = {"bf16 autocast": torch.bfloat16, "fp16 + scaler": torch.float16}.get(combination.precision)
    return torch.autocast("cpu", dtype) if dtype else contextlib.nullcontext()


def inputs(step, part, accumulate):
    """Of one micro-batch of the joint batch."""
    x = torch.randn(BATCH, WIDTHS[0], generator=torch.Generator().manual_seed(step))
    return x.chunk(accumulate)[part]


def expected(combination):
    """The weights after the steps, by the oracle."""
    model = oracle.plain(network())
    skip, rows = flags_of(combination)
    for layer, chosen, large in zip((model[0], model[2]), rows, LARGE, strict=True):
        layer.skip, layer.rows = skip, None if chosen is None else wk.Rows(large)
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=0.9)
    for step in range(STEPS):
        optimizer.zero_grad()
        for part in range(combination.accumulate):
            with autocast(combination):
                loss = loss_of(model, inputs(step, part, combination.accumulate)) / combination.accumulate
            loss.backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


def trained(rank, combination):
    """The same by wuskern; in a process group each process takes its share of every micro-batch."""
    model = wk.convert(network())
    layers = (model[0], model[2])
    world = 1 if combination.processes == "single" else 2
    for layer, chosen in zip(layers, flags_of(combination)[1], strict=True):
        layer.skip, layer.rows = flags_of(combination)[0], chosen
    wrapped = model
    if combination.processes == "DDP":
        wrapped = DistributedDataParallel(model)
        wk.distributed.prepare(wrapped)
    elif combination.processes == "FSDP2":
        for layer in layers:
            fully_shard(layer)
        fully_shard(model)
    compact = combination.gradients == "Rows compact" and combination.processes != "FSDP2"  # which shards dense gradients
    kind = wk.optim.SGD if compact else torch.optim.SGD
    optimizer = kind(model.parameters(), LR, momentum=0.9)
    call = torch.compile(wrapped, backend="aot_eager") if combination.call == "compile" else wrapped
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=combination.precision == "fp16 + scaler")
    for step in range(STEPS):
        optimizer.zero_grad()
        for part in range(combination.accumulate):
            last = part == combination.accumulate - 1
            held = wrapped.no_sync() if combination.processes == "DDP" and not last else contextlib.nullcontext()
            if combination.processes == "FSDP2":
                wrapped.set_requires_gradient_sync(last)
            x = inputs(step, part, combination.accumulate).chunk(world)[rank]
            with held:
                with autocast(combination):
                    loss = loss_of(call, x) / combination.accumulate
                scaler.scale(loss).backward()
        wk.unscale_(scaler, optimizer)
        scaler.step(optimizer)
        scaler.update()
    return [p.full_tensor().detach() if isinstance(p, DTensor) else p.detach() for p in model.parameters()]


# ---- the tests ------------------------------------------------------------------------------------------------------


def test_each_pair_is_in_some_combination():
    seen = set().union(*map(pairs, COMBINATIONS))
    for (i, a), (j, b) in itertools.combinations(enumerate(WAYS.values()), 2):
        assert {((i, x), (j, y)) for x in a for y in b} <= seen


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by torch's compiler
@pytest.mark.parametrize("combination", COMBINATIONS, ids=str)
def test_a_combination_trains_as_stock_in_one_process(combination, ranks):
    torch._dynamo.reset()
    single = combination.processes == "single"
    start = list(copy.deepcopy(network()).parameters())
    for found in [trained(0, combination)] if single else ranks.run(trained, combination):
        for ours, plain, before in zip(found, expected(combination), start, strict=True):
            way = (plain - before).norm()
            assert (ours - plain).norm() <= TOLERANCE[combination.precision] * way
