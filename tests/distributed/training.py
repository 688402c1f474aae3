"""The same training in stock PyTorch, one process on the joint batch, and in two processes under DDP."""

import contextlib
import copy
import dataclasses

import torch
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel

import wuskern as wk

BATCH, LR = 8, 0.1
LAYERS = (0, 2, 4)  # of the network, those that are converted
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, LR, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, LR, weight_decay=0.1),
}


def network():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.Flatten(), nn.Linear(8 * 9, 10), nn.ReLU(), nn.Linear(10, 6, bias=False), nn.Tanh()
    ).double()


def batches(steps, micro):
    """[steps][micro] of (x, y), each of BATCH examples."""
    made = torch.Generator().manual_seed(1)

    def draw(*size):
        return torch.randn(size, generator=made, dtype=torch.float64)

    return [[(draw(BATCH, 2, 5, 5), draw(BATCH, 6)) for _ in range(micro)] for _ in range(steps)]


def loss_of(model, x, y):
    return (model(x) - y).pow(2).mean()


# ---- stock, one process ---------------------------------------------------------------------------------------------


def alone(plan, optimizer="sgd", micro=1, compact=False):
    """Weights after each step. ``plan[step][i]`` is what layer i does: None, True (skip), a list of rows, or a TopK.

    A TopK takes the rows with the largest sum of |dY| over the last step's batches (l2: of dY * dY), at first those with the
    largest sum of |weight|.
    """
    model = network()
    layers = [model[i] for i in LAYERS]
    update = OPTIMIZERS[optimizer](model.parameters())
    scores = [layer.weight.detach().abs().flatten(1).sum(1) for layer in layers]
    history = []
    for step, flags in zip(batches(len(plan), micro), plan, strict=True):
        rows = [chosen(flag, score) for flag, score in zip(flags, scores, strict=True)]
        update.zero_grad()
        found = [torch.zeros(len(score), dtype=torch.float64) for score in scores]
        for x, y in step:
            outputs = []
            handles = [layer.register_forward_hook(lambda _m, _i, o, keep=outputs: keep.append(o)) for layer in layers]
            loss = loss_of(model, x, y)
            for handle in handles:
                handle.remove()
            for output in outputs:
                output.retain_grad()
            loss.backward()
            for flag, total, output in zip(flags, found, outputs, strict=True):
                dy = output.grad.transpose(0, 1).flatten(1)
                total += dy.square().sum(1) if isinstance(flag, wk.TopK) and flag.score == "l2" else dy.abs().sum(1)
        observed = [isinstance(flag, wk.TopK) for flag in flags]
        scores = [new if seen else old for new, old, seen in zip(found, scores, observed, strict=True)]
        lazily = restrict(layers, flags, rows, compact)
        update.step()
        with torch.no_grad():
            for layer, kept, grad in lazily:
                layer.weight[kept] -= LR * grad[kept]
        history.append([p.detach().clone() for p in model.parameters()])
    return history


def chosen(flag, scores):
    if not isinstance(flag, wk.TopK):
        return flag
    return scores.topk(flag.count(len(scores))).indices.sort().values.tolist()


def restrict(layers, flags, rows, compact):
    """Drops what is skipped and zeros the other rows; what is compact is taken out, and returned."""
    lazily = []
    for layer, flag, kept in zip(layers, flags, rows, strict=True):
        if flag is True:
            layer.weight.grad = None
        elif flag is not None:
            grad = torch.zeros_like(layer.weight)
            grad[kept] = layer.weight.grad[kept]
            layer.weight.grad = None if compact else grad
            lazily += [(layer, kept, grad)] if compact else []
    return lazily


# ---- ours, one of two processes -------------------------------------------------------------------------------------


def under_ddp(rank, plan, optimizer="sgd", micro=1, compact=False, ddp=None, prepare=None, attach=False):
    """:func:`alone` on one half of each batch."""
    model = wk.convert(network())
    layers = [model[i] for i in LAYERS]
    model = DistributedDataParallel(model, **(ddp or {}))
    wk.distributed.prepare(model, **(prepare or {}))
    update = OPTIMIZERS[optimizer](model.parameters())
    if attach:
        wk.policies.WUS(model.module).attach(update)
    mine = slice(BATCH // 2 * rank, BATCH // 2 * (rank + 1))
    history = []
    for step, flags in zip(batches(len(plan), micro), plan, strict=True):
        for layer, flag in zip(layers, flags, strict=True):
            layer.skip = flag is True
            rows = wk.Rows(flag) if isinstance(flag, list) else flag if isinstance(flag, wk.TopK) else None
            layer.rows = dataclasses.replace(rows, sparse=True) if compact and rows is not None else rows
        update.zero_grad()
        for number, (x, y) in enumerate(step):
            with contextlib.nullcontext() if number == micro - 1 else model.no_sync():
                loss_of(model, x[mine], y[mine]).backward()
        for layer, flag in zip(layers, flags, strict=True):
            assert compact or layer.rows is flag or not isinstance(flag, wk.TopK)
            assert (layer.weight.grad is None) == (flag is True)
            assert flag is True or layer.weight.grad.is_sparse == (compact and flag is not None)
        consume(layers)
        update.step()
        history.append([p.detach().clone() for p in model.parameters()])
    return history


@torch.no_grad()
def consume(layers):
    for layer in layers:
        grad = layer.weight.grad
        if grad is not None and grad.is_sparse:
            layer.weight[grad._indices()[0]] -= LR * grad._values()
            layer.weight.grad = None


def assert_equal(ranks, plan, *, ddp=None, prepare=None, attach=False, **training):
    expected = alone(copy.deepcopy(plan), **training)
    both = ranks.run(run_under_ddp, plan, training, ddp, prepare, attach)
    for step, (first, second, right) in enumerate(zip(*both, expected, strict=True)):
        for a, b, value in zip(first, second, right, strict=True):
            assert torch.equal(a, b), step
            torch.testing.assert_close(a, value, rtol=1e-9, atol=1e-12, msg=lambda m, s=step: f"step {s}: {m}")


def run_under_ddp(rank, plan, training, ddp, prepare, attach):
    return under_ddp(rank, plan, ddp=ddp, prepare=prepare, attach=attach, **training)
