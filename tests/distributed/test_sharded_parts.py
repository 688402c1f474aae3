"""FSDP2 with parts of weights: columns, rows by scores, mixed precision, micro-batches, another number of processes; tensor
parallelism, of which skip alone works; and what is refused. In float64 the oracle is one process on the joint batch."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
import torch.nn as nn
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import wuskern as wk
from tests.distributed.models import draw, raises
from tests.distributed.training import BATCH, LAYERS, OPTIMIZERS, alone, batches, loss_of, network, plan_of

pytestmark = pytest.mark.more
# A step of each layer: None, True (skip), rows, columns, or a pair of both.
PLAN = [
    (None, None, None),
    (wk.Columns([1]), wk.Columns([3, 40, 71]), ([1, 5], wk.Columns([0, 9]))),
    (True, True, True),
    (([2, 7], wk.Columns([0])), [1, 2, 9], None),
    (True, (True, wk.Columns([5])), [2]),
    (None, True, None),
]


def sharded(model, deep=True, **options):
    """One group of parameters for each layer and one for the rest, or one for all."""
    for layer in [model[i] for i in LAYERS] if deep else []:
        fully_shard(layer, **options)
    return fully_shard(model, **options)


def train(rank, optimizer, micro, deep, options):
    model = sharded(wk.convert(network()), deep, **options)
    layers, update = [model[i] for i in LAYERS], OPTIMIZERS[optimizer](model.parameters())
    mine = slice(BATCH // 2 * rank, BATCH // 2 * (rank + 1))
    history = []
    for step, flags in zip(batches(len(PLAN), micro), PLAN, strict=True):
        for layer, flag in zip(layers, flags, strict=True):
            layer.plan = plan_of(flag, compact=False)
        wk.distributed.check_flags(model)
        update.zero_grad()
        for number, (x, y) in enumerate(step):
            model.set_requires_gradient_sync(number == micro - 1)
            loss_of(model, x[mine], y[mine]).backward()
        assert [layer.weight.grad is None for layer in layers] == [layer.skip for layer in layers]
        update.step()
        history.append([p.full_tensor().detach() for p in model.parameters()])
    return history


@pytest.mark.parametrize("deep", [True, False], ids=["each layer", "whole"])
@pytest.mark.parametrize("options", [{}, {"reshard_after_forward": False}], ids=["reshard", "keep"])
@pytest.mark.parametrize(("optimizer", "micro"), [("sgd", 1), ("adamw", 1), ("adamw", 3)])
def test_two_shards_equal_one_process(ranks, optimizer, micro, deep, options):
    expected = alone(copy.deepcopy(PLAN), optimizer=optimizer, micro=micro)
    for found in ranks.run(train, optimizer, micro, deep, options):
        for step, (of_step, right) in enumerate(zip(found, expected, strict=True)):
            for a, value in zip(of_step, right, strict=True):
                torch.testing.assert_close(a, value, rtol=1e-9, atol=1e-12, msg=lambda m, s=step: f"step {s}: {m}")


# ---- mixed precision ---------------------------------------------------------------------------------------------------


def mixed(rank, reduce_dtype):
    """Gradients of converted layers, and of stock ones whose gradients are cut by hand, both under the same policy."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=reduce_dtype)
    stock, ours = network().float(), wk.convert(network().float())
    for model in (stock, ours):
        sharded(model, mp_policy=policy)
    x, y = draw(rank, BATCH, 2, 5, 5).float(), draw(rank + 2, BATCH, 6).bfloat16()
    for flags in PLAN:
        for i, flag in zip(LAYERS, flags, strict=True):
            ours[i].plan = plan_of(flag, compact=False)
        for model in (stock, ours):
            model.zero_grad()
            loss_of(model, x, y).backward()
        for (name, p), q in zip(ours.named_parameters(), stock.parameters(), strict=True):
            plan = ours[int(name[0])].plan if name.endswith("weight") else wk.Plan()
            if plan.skip:
                assert p.grad is None
                continue
            right, mask = q.grad.full_tensor(), torch.ones(q.shape)
            if plan.rows is not None:
                mask *= torch.zeros(len(mask)).index_fill(0, plan.rows.index, 1).view(-1, *[1] * (mask.ndim - 1))
            if plan.columns is not None:
                mask *= torch.zeros(mask.shape[1]).index_fill(0, plan.columns.index, 1).view(1, -1, *[1] * (mask.ndim - 2))
            found = p.grad.full_tensor()
            assert found.dtype == right.dtype == torch.float32
            torch.testing.assert_close(found, right * mask, rtol=0.02, atol=0.02 * right.abs().max().item())
            assert not found[mask == 0].any()


@pytest.mark.parametrize("reduce_dtype", [None, torch.float32], ids=str)
def test_mixed_precision(ranks, reduce_dtype):
    ranks.run(mixed, reduce_dtype)


# ---- a checkpoint for another number of processes ----------------------------------------------------------------------

METRICS = [0.5, 0.5, 0.5, 0.9, 0.2, 0.2]
SAVED = 3  # steps


def windows(model, steps, policy, update, mine):
    """A training whose policy begins a window of skipped steps before the checkpoint, and ends it behind it."""
    for step in steps:
        draws = torch.Generator().manual_seed(step)
        x = torch.randn(BATCH, 3, generator=draws, dtype=torch.float64)
        update.zero_grad()
        model(x[mine]).square().mean().backward()
        update.step()
        policy.step(METRICS[step])


def made_for_windows():
    torch.manual_seed(0)
    model = wk.convert(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)).double())
    policy = wk.policies.WUS(model, warmup=0, window=2, threshold=0.1, patience=2, guard=1.0)
    return model, policy


def save(rank, folder):
    model, policy = made_for_windows()
    fully_shard(model)
    update = torch.optim.AdamW(model.parameters(), 0.1)
    policy.attach(update)
    windows(model, range(SAVED), policy, update, slice(BATCH // 2 * rank, BATCH // 2 * (rank + 1)))
    weights, moments = get_state_dict(model, update)
    dcp.save({"model": weights, "optimizer": moments, "policy": policy.state_dict()}, checkpoint_id=folder)
    return model[0].skip


LOADING = """
import os, sys, torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from tests.distributed import test_sharded_parts as t

dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
model, policy = t.made_for_windows()
fully_shard(model)
update = torch.optim.AdamW(model.parameters(), 0.1)
policy.attach(update)
weights, moments = get_state_dict(model, update)
state = {"model": weights, "optimizer": moments, "policy": policy.state_dict()}
dcp.load(state, checkpoint_id=sys.argv[1])
set_state_dict(model, update, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
policy.load_state_dict(state["policy"])
assert model[0].skip
share = t.BATCH // world
t.windows(model, range(t.SAVED, len(t.METRICS)), policy, update, slice(share * rank, share * (rank + 1)))
full = [p.full_tensor().detach() for p in model.parameters()]
if rank == 0:
    torch.save((full, model[0].skip), sys.argv[2])
dist.destroy_process_group()
"""


@pytest.mark.parametrize("world", [1, 4])
def test_a_checkpoint_goes_on_with_other_processes(ranks, tmp_path, world):
    assert ranks.run(save, str(tmp_path / "saved")) == [True, True]  # in the window
    (tmp_path / "load.py").write_text(LOADING)
    root = str(Path(__file__).parents[2])
    launcher = "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world), str(tmp_path / "load.py")
    command = [sys.executable, "-W", "ignore", *launcher, str(tmp_path / "saved"), str(tmp_path / "found.pt")]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    result = subprocess.run(command, capture_output=True, text=True, env=env, cwd=root, timeout=300)
    assert result.returncode == 0, result.stderr
    found, skips = torch.load(tmp_path / "found.pt")
    model, policy = made_for_windows()
    update = torch.optim.AdamW(model.parameters(), 0.1)
    policy.attach(update)
    windows(model, range(len(METRICS)), policy, update, slice(None))
    assert skips == model[0].skip
    for a, value in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(a, value.detach(), rtol=1e-9, atol=1e-12)


# ---- optimizers for parts, sparse gradients ----------------------------------------------------------------------------


def refused(rank):
    model = fully_shard(wk.convert(nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 4)).double()))
    update = wk.optim.AdamW(model.parameters(), 0.1)
    model(draw(rank, 5, 3)).sum().backward()
    update.step()  # of all, as torch does
    model[0].skip = True
    update.zero_grad()
    model(draw(rank, 5, 3)).sum().backward()
    update.step()
    model[0].skip, model[1].columns = False, wk.Columns([1])
    before = [p.full_tensor().detach().clone() for p in model.parameters()]
    model(draw(rank, 5, 3)).sum().backward()
    found = [raises(ValueError, update.step)]
    assert all(map(torch.equal, before, [p.full_tensor() for p in model.parameters()]))
    model[1].plan = wk.Plan(rows=wk.Rows([1], sparse=True))
    found.append(raises(RuntimeError, model(draw(rank, 5, 3)).sum().backward))
    return found


def test_optimizers_for_parts_and_sparse_gradients_are_refused(ranks):
    for optimizer, form in ranks.run(refused):
        assert optimizer.startswith("optimizer: expected torch.optim.AdamW for a DTensor of which rows or columns train, got ")
        assert "sparse" in form.lower()


# ---- tensor parallelism ------------------------------------------------------------------------------------------------


def parallel(rank):
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    stock = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6)).double()
    model = wk.convert(copy.deepcopy(stock))
    parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    updates = [torch.optim.SGD(m.parameters(), 0.1, momentum=0.9, weight_decay=0.1) for m in (stock, model)]
    for step, skips in enumerate([(False, False), (True, False), (True, True), (False, True), (False, False)]):
        x = draw(step, 5, 4)
        for i, skip in zip((0, 2), skips, strict=True):
            model[i].skip = skip
        for m, update in zip((stock, model), updates, strict=True):
            update.zero_grad()
            m(x).square().mean().backward()
        for i, skip in zip((0, 2), skips, strict=True):
            assert (model[i].weight.grad is None) == skip
            stock[i].weight.grad = None if skip else stock[i].weight.grad
        for update in updates:
            update.step()
        for p, q in zip(stock.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(q.full_tensor(), p)
    found = []
    for part in (dict(rows=wk.Rows([1])), dict(columns=wk.Columns([1])), dict(tokens=wk.Tokens(k=1))):
        model[0].plan = wk.Plan(**part)
        found.append(raises(RuntimeError, model, x))
        with torch.no_grad():
            torch.testing.assert_close(model(x), stock(x))
    return found


def test_tensor_parallel_linears_skip_and_refuse_parts(ranks):
    for found in ranks.run(parallel):
        assert len(found) == 3
        for message in found:
            assert message.startswith("weight: expected a plain tensor for rows, columns or tokens, got a DTensor")


def parallelized_first(rank):
    model = nn.Sequential(nn.Linear(4, 8))
    parallelize_module(model, init_device_mesh("cpu", (2,)), {"0": ColwiseParallel()})
    return raises(ValueError, wk.convert, model)


def test_what_is_parallel_already_is_not_converted(ranks):
    for found in ranks.run(parallelized_first):
        assert "DTensor" in found
