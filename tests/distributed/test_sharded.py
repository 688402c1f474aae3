"""FSDP2 and distributed checkpoints: sharded by torch, with skip, the dense form of rows, and a policy's state."""

import copy

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn as nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import wuskern as wk
from tests.distributed.training import BATCH, LAYERS, OPTIMIZERS, alone, batches, loss_of, network

PLAN = [
    (None, None, None),
    (True, True, True),
    ([0, 3], [1, 2, 9], None),
    (True, [0, 1], [2]),
    (None, True, None),
    ([1], None, True),
]


def sharded(rank, optimizer):
    model = wk.convert(network())
    layers = [model[i] for i in LAYERS]
    for layer in layers:
        fully_shard(layer)
    fully_shard(model)
    update = OPTIMIZERS[optimizer](model.parameters())
    mine = slice(BATCH // 2 * rank, BATCH // 2 * (rank + 1))
    for ((x, y),), flags in zip(batches(len(PLAN), 1), PLAN, strict=True):
        for layer, flag in zip(layers, flags, strict=True):
            layer.skip, layer.rows = flag is True, wk.Rows(flag) if isinstance(flag, list) else None
        update.zero_grad()
        loss_of(model, x[mine], y[mine]).backward()
        assert [layer.weight.grad is None for layer in layers] == [flag is True for flag in flags]
        assert all(isinstance(p, DTensor) for p in model.parameters())
        update.step()
    return [p.full_tensor().detach() for p in model.parameters()]


def test_fsdp2_equals_one_process(ranks):
    for optimizer in OPTIMIZERS:
        expected = alone(copy.deepcopy(PLAN), optimizer=optimizer)[-1]
        for found in ranks.run(sharded, optimizer):
            for a, value in zip(found, expected, strict=True):
                torch.testing.assert_close(a, value, rtol=1e-9, atol=1e-12)


METRICS = [0.5, 0.5, 0.5, 0.9, 0.2]
WINDOWS = dict(warmup=0, window=1, threshold=0.1, patience=2, guard=1.0)


def saved_and_loaded(rank, kind, folder):
    """Trains, saves, trains on; then the same from the checkpoint."""

    def make():
        model = wk.convert(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)).double())
        prepared = None
        if kind == "fsdp":
            fully_shard(model)
        else:
            model = DistributedDataParallel(model)
            prepared = wk.distributed.prepare(model)
        update = torch.optim.AdamW(model.parameters(), 0.1)
        policy = wk.policies.WUS(model, **WINDOWS)
        policy.attach(update)
        return model, update, policy, prepared

    def train(model, update, policy, steps):
        for step in steps:
            if kind == "ddp":
                wk.set_rows(model, wk.TopK(k=2))
            draw = torch.Generator().manual_seed(10 * step + rank)
            update.zero_grad()
            model(torch.randn(5, 3, generator=draw, dtype=torch.float64)).pow(2).mean().backward()
            update.step()
            policy.step(METRICS[step])

    def content(model, update, policy, prepared):
        weights, moments = get_state_dict(model, update)
        state = {"model": weights, "optimizer": moments, "policy": policy.state_dict()}
        return state | ({"rows": prepared.state_dict()} if prepared else {})

    def whole(model, policy):
        tensors = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
        return [t.detach().clone() for t in tensors], policy.state_dict(), [layer.skip for layer in policy.layers.values()]

    first = make()
    train(*first[:3], range(3))
    dcp.save(content(*first), checkpoint_id=folder)
    train(*first[:3], range(3, 5))

    again = make()
    train(*again[:3], range(1))  # a state to load into, as DCP wants it
    state = content(*again)
    dcp.load(state, checkpoint_id=folder)
    set_state_dict(again[0], again[1], model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    again[2].load_state_dict(state["policy"])
    if again[3]:
        again[3].load_state_dict(state["rows"])
    train(*again[:3], range(3, 5))
    dist.barrier()
    return whole(first[0], first[2]), whole(again[0], again[2])


def test_distributed_checkpoints_hold_policy_and_rows(ranks, tmp_path):
    for kind in ("ddp", "fsdp"):
        for expected, found in ranks.run(saved_and_loaded, kind, str(tmp_path / kind)):
            assert str(found[1:]) == str(expected[1:])  # an entry of NaN among the policy's numbers
            assert found[1]["history"] == METRICS
            for a, b in zip(expected[0], found[0], strict=True):
                assert torch.equal(a, b)
