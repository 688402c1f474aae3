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


def split(flag):
    """What a layer does as a pair: about rows, True for a skip, and about columns."""
    if isinstance(flag, tuple):
        return flag
    return (None, flag) if isinstance(flag, wk.Columns | wk.TopColumns) else (flag, None)


# ---- stock, one process ---------------------------------------------------------------------------------------------


def alone(plan, optimizer="sgd", micro=1, compact=False):
    """Weights after each step. ``plan[step][i]`` is what layer i does: None, True (skip), a list of rows, a TopK, Columns, a
    TopColumns, or a pair of rows and columns.

    A TopK takes the rows with the largest sum of |dY| over the last step's batches (l2: of dY * dY), at first those with the
    largest sum of |weight|. TopColumns take the columns with the largest sum of x * x over these batches, at first, or by the
    weight, those with the largest sum of weight * weight.
    """
    model = network()
    layers = [model[i] for i in LAYERS]
    update = OPTIMIZERS[optimizer](model.parameters())
    scores, column_scores = [None] * len(layers), [None] * len(layers)
    history = []
    for step, flags in zip(batches(len(plan), micro), plan, strict=True):
        pairs = [split(flag) for flag in flags]
        for i, (layer, (of_rows, of_columns)) in enumerate(zip(layers, pairs, strict=True)):
            if scores[i] is None and isinstance(of_rows, wk.TopK):
                scores[i] = layer.weight.detach().abs().flatten(1).sum(1)
            if column_scores[i] is None and of_rows is not True and getattr(of_columns, "score", None) == "input":
                column_scores[i] = of_weight(layer)
        rows = [chosen(flag, score) for (flag, _), score in zip(pairs, scores, strict=True)]
        columns = [chosen_columns(flag, *of) for (_, flag), *of in zip(pairs, column_scores, layers, strict=True)]
        update.zero_grad()
        found = [torch.zeros(layer.weight.shape[0], dtype=torch.float64) for layer in layers]
        inputs = [torch.zeros(layer.weight.shape[1], dtype=torch.float64) for layer in layers]
        for x, y in step:
            outputs = []
            handles = [layer.register_forward_hook(lambda _m, i, o, keep=outputs: keep.append((i[0], o))) for layer in layers]
            loss = loss_of(model, x, y)
            for handle in handles:
                handle.remove()
            for _, output in outputs:
                output.retain_grad()
            loss.backward()
            for (flag, _), total, of_x, (given, output) in zip(pairs, found, inputs, outputs, strict=True):
                dy = output.grad.transpose(0, 1).flatten(1)
                total += dy.square().sum(1) if isinstance(flag, wk.TopK) and flag.score == "l2" else dy.abs().sum(1)
                of_x += given.detach().transpose(0, 1).flatten(1).square().sum(1)
        seen = [isinstance(flag, wk.TopK) for flag, _ in pairs]
        scores = [new if observed else old for new, old, observed in zip(found, scores, seen, strict=True)]
        seen = [flag is not True and getattr(columns, "score", None) == "input" for flag, columns in pairs]
        column_scores = [new if observed else old for new, old, observed in zip(inputs, column_scores, seen, strict=True)]
        lazily = restrict(layers, list(zip(rows, columns, strict=True)), compact)
        update.step()
        with torch.no_grad():
            for layer, kept, grad in lazily:
                layer.weight[kept] -= LR * grad[kept]
        history.append([p.detach().clone() for p in model.parameters()])
    return history


def of_weight(layer):
    return layer.weight.detach().square().transpose(0, 1).flatten(1).sum(1)


def chosen(flag, scores):
    if not isinstance(flag, wk.TopK):
        return flag
    return scores.topk(flag.count(len(scores))).indices.sort().values.tolist()


def chosen_columns(flag, scores, layer):
    if flag is None or isinstance(flag, wk.Columns):
        return None if flag is None else list(flag.numbers)
    scores = of_weight(layer) if scores is None or flag.score == "weight" else scores
    return scores.topk(flag.count(len(scores))).indices.sort().values.tolist()


def restrict(layers, kept, compact):
    """Drops what is skipped and zeros the other rows and columns; what is compact is taken out, and returned."""
    lazily = []
    for layer, (rows, columns) in zip(layers, kept, strict=True):
        if rows is True:
            layer.weight.grad = None
        elif rows is not None or columns is not None:
            mask = torch.zeros(layer.weight.shape[:2], dtype=torch.bool)
            out, inputs = mask.shape
            mask[torch.tensor(rows or range(out))[:, None], torch.tensor(columns or range(inputs))] = True
            grad = layer.weight.grad * mask.view(*mask.shape, *[1] * (layer.weight.ndim - 2))
            sparse = compact and columns is None
            layer.weight.grad = None if sparse else grad
            lazily += [(layer, rows, grad)] if sparse else []
    return lazily


# ---- ours, one of two processes -------------------------------------------------------------------------------------


def plan_of(flag, compact):
    rows, columns = split(flag)
    skip, rows = rows is True, wk.Rows(rows) if isinstance(rows, list) else rows if isinstance(rows, wk.TopK) else None
    if compact and rows is not None and columns is None:
        rows = dataclasses.replace(rows, sparse=True)
    return wk.Plan(skip=skip, rows=rows, columns=columns)


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
        plans = [plan_of(flag, compact) for flag in flags]
        for layer, of_layer in zip(layers, plans, strict=True):
            layer.plan = of_layer
        update.zero_grad()
        for number, (x, y) in enumerate(step):
            with contextlib.nullcontext() if number == micro - 1 else model.no_sync():
                loss_of(model, x[mine], y[mine]).backward()
        for layer, of_layer in zip(layers, plans, strict=True):
            assert layer.plan is of_layer
            assert (layer.weight.grad is None) == of_layer.skip
            assert of_layer.skip or layer.weight.grad.is_sparse == bool(getattr(of_layer.rows, "sparse", False))
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
