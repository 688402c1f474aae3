"""What ``prepare`` refuses by name, and what it says of processes that diverge."""

import copy

import torch
import torch.nn as nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

import wuskern as wk
from tests.distributed.models import draw, raises, wrapped


def refusals(rank):
    found = []
    model, _ = wrapped(nn.Linear(3, 4))
    found.append(raises(ValueError, wk.distributed.prepare, model))
    found.append(raises(TypeError, wk.distributed.prepare, model.module))
    hooked = DistributedDataParallel(wk.convert(nn.Linear(3, 4)))
    hooked.register_comm_hook(None, default_hooks.fp16_compress_hook)
    found.append(raises(ValueError, wk.distributed.prepare, hooked))
    found.append(raises(ValueError, wk.distributed.prepare, DistributedDataParallel(nn.Linear(3, 4))))
    unused = DistributedDataParallel(wk.convert(nn.Linear(3, 4)), find_unused_parameters=True)
    found.append(raises(ValueError, wk.distributed.prepare, unused, exact=True))
    state = powerSGD_hook.PowerSGDState(None)
    found.append(raises(ValueError, wk.distributed.prepare, unused, comm_hook=(state, powerSGD_hook.powerSGD_hook)))
    with model.join():
        found.append(raises(RuntimeError, model, draw(rank, 5, 3)))
    static, _ = wrapped(nn.Linear(3, 4), static_graph=True)
    static.module.skip = True
    found.append(raises(RuntimeError, static, draw(rank, 5, 3)))
    plain = DistributedDataParallel(wk.convert(nn.Linear(3, 4).double()))
    plain.module.rows = wk.TopK(k=1)
    plain(draw(rank, 5, 3)).sum().backward()  # the dense form, each rank with rows of its own
    plain.module.rows = wk.TopK(k=1, sparse=True)
    found.append(raises(RuntimeError, plain, draw(rank, 5, 3)))
    found.append(raises(TypeError, copy.deepcopy, model))
    return found


def test_refusals_by_name(ranks):
    expected = [
        "ddp_model: expected one that is not prepared yet",
        "ddp_model: expected a DistributedDataParallel, got SkippableLinear",
        "ddp_model: expected one without a communication hook, got fp16_compress_hook",
        "model: expected at least one converted layer",
        "exact: expected False with find_unused_parameters",
        "comm_hook: expected a hook that remembers nothing of a bucket's size, got PowerSGD",
        "join: expected none around a model of wuskern.distributed.prepare",
        "static_graph: expected a first iteration in which each weight gets a gradient, got skip of the model itself",
        "weight: a sparse gradient was asked for, by an optimizer of wuskern.optim or by sparse=True, but "
        "DistributedDataParallel would not send it: call wuskern.distributed.prepare(ddp_model) after wrapping",
        "ddp_model: a prepared one cannot be copied or pickled",
    ]
    for found in ranks.run(refusals):
        assert len(found) == len(expected)
        for message, start in zip(found, expected, strict=True):
            assert message.startswith(start)


def diverge(rank):
    model, _ = wrapped(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)))
    x, found = draw(rank, 5, 3), []
    model.module[1].skip = rank == 1
    found.append(raises(RuntimeError, model, x))
    model.module[1].skip = False
    model.module[0].rows = wk.Rows([0, rank]) if rank else wk.TopK(k=2)
    model.module[3].rows = wk.Rows([1, 2], bias="rows" if rank else "dense")
    found.append(raises(RuntimeError, model, x))
    wk.set_rows(model.module, wk.TopK(k=1 + rank))
    found.append(raises(RuntimeError, wk.distributed.check_flags, model))
    wk.set_rows(model.module, None)
    wk.set_tokens(model.module, wk.Tokens(k=1 + rank))
    found.append(raises(RuntimeError, wk.distributed.check_flags, model))
    wk.set_tokens(model.module, None)
    wk.set_rows(model.module, wk.TopK(k=2))
    wk.distributed.check_flags(model)
    model(x).sum().backward()  # the group is in step
    other = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4))
    wk.convert(other, lambda layer, name: name == "0" or rank == 0)
    found.append(raises(RuntimeError, wk.distributed.prepare, DistributedDataParallel(other)))
    return found


def test_a_divergence_names_layer_and_ranks(ranks):
    first, second = ranks.run(diverge)
    assert first == second
    start = "layers: expected the same plan in all processes, got "
    assert first[0] == start + "1: rank 0 has dense, rank 1 has skip=True"
    assert first[1].startswith(start + "0: rank 0 has rows=TopK(ratio=None, k=2, ")
    assert ", rank 1 has rows=Rows([0, 1], 'weight', 'dense'); 3: rank 0 has rows=Rows([1, 2], 'weight', 'dense'), " in first[1]
    assert first[1].endswith("rank 1 has rows=Rows([1, 2], 'weight', 'rows')")
    assert first[2].endswith("; and 1 more")
    assert "0: rank 0 has tokens=Tokens(ratio=None, k=1, pick='top'), rank 1 has tokens=Tokens(ratio=None, k=2" in first[3]
    assert "the same converted layers in all processes, got ['1'] in rank 1 only" in first[4]


def stray_gradient(rank):
    model, _ = wrapped(nn.Linear(3, 4))
    model.module.skip = True
    return raises(RuntimeError, (model(draw(rank, 5, 3)).sum() + model.module.weight.pow(2).sum()).backward)


def test_a_gradient_that_would_not_be_sent_is_an_error(ranks):
    for found in ranks.run(stray_gradient):
        assert "the model itself: expected no gradient of a weight that is skipped" in found


def stock_path(rank):
    model, _ = wrapped(nn.Linear(3, 4))
    model.module.rows = wk.Rows([1])
    x = draw(rank, 5, 3).as_subclass(type("Mine", (torch.Tensor,), {}))
    return raises(RuntimeError, model, x)


def test_a_layer_that_takes_the_stock_path_is_an_error(ranks):
    assert all("cannot take PyTorch's path: Mine is a subclass" in found for found in ranks.run(stock_path))


def metrics(rank):
    return [wk.distributed.broadcast_metric(rank + 0.1, src) for src in (0, 1)]


def test_a_metric_is_that_of_one_rank(ranks):
    assert ranks.run(metrics) == [[0.1, 1.1]] * 2
    assert wk.distributed.broadcast_metric(0.3) == 0.3
