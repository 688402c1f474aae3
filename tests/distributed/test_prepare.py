"""What a prepared DDP sends, and what the gradients are afterwards."""

import dataclasses

import pytest
import torch
import torch.distributed as dist
import torch.nn as nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.utils.checkpoint import checkpoint

import wuskern as wk
from tests.distributed.models import draw, wrapped


class Sent:
    """Counts the elements of each all_reduce, which is how our hook and the lagged scores travel."""

    def __enter__(self):
        self.original, self.elements = dist.all_reduce, []

        def counted(tensor, *args, **kwargs):
            self.elements.append(tensor.numel())
            return self.original(tensor, *args, **kwargs)

        dist.all_reduce = counted
        return self.elements

    def __exit__(self, *_):
        dist.all_reduce = self.original


# ---- what is sent ---------------------------------------------------------------------------------------------------


def count_sent(rank):
    model, _ = wrapped(nn.Sequential(nn.Linear(5, 20), nn.Linear(20, 10, bias=False), nn.BatchNorm1d(10)))
    first, second = model.module[0], model.module[1]

    def step():
        model.zero_grad()
        with Sent() as elements:
            model(draw(rank, 4, 5)).pow(2).mean().backward()
        return sum(elements)

    found = {"dense": step()}
    wk.set_skip(model.module, True)
    found["skip"] = step()
    wk.set_skip(model.module, False)
    first.rows, second.rows = wk.Rows([1, 7]), wk.Rows([3])
    found["rows"] = step()
    wk.set_rows(model.module, wk.TopK(k=2))
    found["first TopK"], found["TopK"] = step(), step()
    second.rows = wk.Rows([4, 5], sparse=True)
    found["sparse"] = step() - 20  # elements of the first layer's scores
    assert second.weight.grad._indices().tolist() == [[4, 5]]
    return found


def test_what_is_sent(ranks):
    biases, norm = 20, 20
    expected = {
        "dense": 5 * 20 + 20 * 10 + biases + norm,
        "skip": biases + norm,
        "rows": 2 * 5 + 1 * 20 + biases + norm,
        "first TopK": 2 * 5 + 2 * 20 + biases + norm + 2 * 30,  # the scores of 30 rows by their weights, and by the step
        "TopK": 2 * 5 + 2 * 20 + biases + norm + 30,
        "sparse": 2 * 5 + 2 * 20 + biases + norm,
    }
    assert ranks.run(count_sent) == [expected] * 2


def share_weights(rank):
    """One weight of two layers, and one of a layer and of an embedding."""
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 6, bias=False))
    model[2].weight, model[3].weight = model[1].weight, model[0].weight
    model, _ = wrapped(model)
    tokens = torch.arange(8).view(2, 4)[rank]
    grads = {}
    for flags in [(True, True), (True, None), (True, [2]), ([0], [2, 3]), (None, [1])]:
        for layer, flag in zip((model.module[1], model.module[2]), flags, strict=True):
            layer.skip, layer.rows = flag is True, wk.Rows(flag) if isinstance(flag, list) else None
        model.module[3].skip = True
        model.zero_grad()
        model(tokens % 6).pow(2).mean().backward()
        grads[str(flags)] = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    return grads


def test_shared_weights_send_what_any_owner_trains(ranks):
    first, second = ranks.run(share_weights)
    assert first["(True, True)"][1] is None
    for name, grads in first.items():
        for mine, other in zip(grads, second[name], strict=True):
            assert (mine is None) == (other is None)
            assert mine is None or torch.equal(mine, other), name
    rows = first["([0], [2, 3])"][1].abs().sum(1) > 0
    assert rows.tolist() == [True, False, True, True]
    assert first["(True, None)"][1].abs().sum(1).all()


class Branches(nn.Module):
    """Rank 1 leaves one layer out."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, x, both):
        return self.a(x) + self.b(x) if both else self.a(x)


def leave_out(rank, rows):
    torch.manual_seed(0)
    model, _ = wrapped(Branches(), find_unused_parameters=True)
    weight = model.module.b.weight
    model.module.b.rows = rows
    for _ in range(2):
        model.zero_grad()
        model(draw(0, 5, 3), rank == 0).sum().backward()
    assert weight.grad.is_sparse == bool(rows.sparse)
    return weight.grad.to_dense()


@pytest.mark.parametrize("sparse", [None, True])
@pytest.mark.parametrize("rows", [wk.Rows([1, 3]), wk.TopK(k=2)], ids=["Rows", "TopK"])
def test_a_layer_that_one_rank_does_not_use(ranks, rows, sparse):
    first, second = ranks.run(leave_out, dataclasses.replace(rows, sparse=sparse))
    assert torch.equal(first, second)
    of_one = draw(0, 5, 3).sum(0) / 2  # dY is ones; half of it, for the other rank has none
    kept = first.abs().sum(1) > 0
    assert kept.sum() == 2
    torch.testing.assert_close(first[kept], of_one.expand(2, 3))


def accumulate_over_steps(rank):
    """No zero_grad in between: as under plain DDP, and nobody's gradient of the earlier step is lost."""
    model, _ = wrapped(nn.Linear(3, 8, bias=False))
    found = []
    for plan in PLANS:
        model.module.plan = plan
        model(draw(rank, 5, 3)).sum().backward()
        grad = model.module.weight.grad
        found.append((grad.is_sparse, grad.to_dense().clone()))
    return found


PLANS = [wk.Plan(rows=wk.Rows(rows, sparse=True)) for rows in ([0, 1], [1, 3])] + [wk.Plan(), wk.Plan(skip=True)]


def test_gradients_accumulate_over_synchronised_steps(ranks):
    mean = (draw(0, 5, 3).sum(0) + draw(1, 5, 3).sum(0)) / 2
    times = torch.tensor(
        [[1.0, 1, 0, 0, 0, 0, 0, 0], [1, 2, 0, 1, 0, 0, 0, 0], [2, 3, 1, 2, 1, 1, 1, 1], [2, 3, 1, 2, 1, 1, 1, 1]]
    )
    for found in ranks.run(accumulate_over_steps):
        assert [is_sparse for is_sparse, _ in found] == [True, False, False, False]  # dense past an older gradient
        for (_, grad), count in zip(found, times, strict=True):
            torch.testing.assert_close(grad, count[:, None] * mean)


def hold_while_skipping(rank, set_to_none):
    """What a step with a sparse gradient left is there, or zeros of it, in a step that gives none."""
    model, _ = wrapped(nn.Linear(3, 4))
    model.module.rows = wk.Rows([1, 3], sparse=True)
    model(draw(rank, 5, 3)).sum().backward()
    if set_to_none is not None:
        model.zero_grad(set_to_none)
    model.module.skip = True
    model(draw(rank, 5, 3)).sum().backward()
    return model.module.weight.grad


@pytest.mark.parametrize(("set_to_none", "rows"), [(None, [0.0, 1, 0, 1]), (False, [0.0] * 4), (True, None)], ids=str)
def test_a_sparse_gradient_is_held_while_the_weight_is_skipped(ranks, set_to_none, rows):
    mean = (draw(0, 5, 3).sum(0) + draw(1, 5, 3).sum(0)) / 2
    for grad in ranks.run(hold_while_skipping, set_to_none):
        assert (grad is None) == (rows is None)
        if rows is not None:
            torch.testing.assert_close(grad, torch.tensor(rows)[:, None] * mean)


def change_between_micro_batches(rank, sparse, flags):
    model, _ = wrapped(nn.Linear(3, 4, bias=False))
    layer = model.module
    for number, flag in enumerate(flags):
        layer.skip, layer.rows = flag is True, wk.Rows(flag, sparse=sparse) if isinstance(flag, list) else None
        with model.no_sync() if number < len(flags) - 1 else torch.enable_grad():
            model(draw(rank, 5, 3)).sum().backward()
    return layer.weight.grad.is_sparse, layer.weight.grad.to_dense()


@pytest.mark.parametrize("sparse", [None, True])
def test_micro_batches_that_train_different_rows(ranks, sparse):
    mean = (draw(0, 5, 3).sum(0) + draw(1, 5, 3).sum(0)) / 2
    for is_sparse, grad in ranks.run(change_between_micro_batches, sparse, [[0, 1], True, [1, 3]]):
        assert is_sparse == bool(sparse)
        torch.testing.assert_close(grad, torch.tensor([1.0, 2.0, 0.0, 1.0])[:, None] * mean)
    for _, grad in ranks.run(change_between_micro_batches, sparse, [None, [1]]):
        torch.testing.assert_close(grad, torch.tensor([1.0, 2.0, 1.0, 1.0])[:, None] * mean)


def clear_late(rank, sparse):
    """Gradients are cleared between forward and backward, as some loops do."""
    model, _ = wrapped(nn.Linear(3, 8, bias=False))
    found = []
    for rows in ([0, 1], [1, 3]):
        model.module.rows = wk.Rows(rows, sparse=sparse)
        loss = model(draw(rank, 5, 3)).sum()
        model.zero_grad()
        loss.backward()
        grad = model.module.weight.grad
        found.append((grad._indices().tolist(), grad._values()))
    return found


def test_gradients_cleared_after_forward(ranks):
    mean = (draw(0, 5, 3).sum(0) + draw(1, 5, 3).sum(0)) / 2
    for found in ranks.run(clear_late, True):
        for (index, values), rows in zip(found, ([0, 1], [1, 3]), strict=True):
            assert index == [rows]
            torch.testing.assert_close(values, mean.expand(2, 3))


# ---- checkpointed layers, hooks of the user's own -------------------------------------------------------------------


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 8))

    def forward(self, x, recompute):
        return checkpoint(self.inner, x, use_reentrant=False) if recompute else self.inner(x)


def checkpointed(rank):
    grads = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model, _ = wrapped(Checkpointed())
        for flag in (wk.TopK(k=2), wk.TopK(k=2), True):
            wk.set_skip(model.module, flag is True)
            if flag is not True:
                wk.set_rows(model.module, flag)
            model.zero_grad()
            model(draw(rank, 5, 3), recompute).pow(2).sum().backward()
            grads.append([None if p.grad is None else p.grad.clone() for p in model.parameters()])
    return grads[:3], grads[3:]


def test_checkpointed_layers_keep_the_rows_of_forward(ranks):
    for plain, recomputed in ranks.run(checkpointed):
        for expected, found in zip(plain, recomputed, strict=True):
            for a, b in zip(expected, found, strict=True):
                assert (a is None and b is None) or torch.equal(a, b)


def own_hook(rank):
    group = dist.group.WORLD
    made = {}
    for name, own in (("ours", None), ("theirs", (group, default_hooks.allreduce_hook))):
        torch.manual_seed(0)
        model, _ = wrapped(nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 4)), prepare=dict(comm_hook=own))
        model.module[0].rows, model.module[1].skip = wk.Rows([1, 2]), True
        model(draw(rank, 5, 3)).pow(2).sum().backward()
        made[name] = [p.grad for p in model.parameters()]
    return made["ours"], made["theirs"]


def test_a_hook_of_the_users_own_gets_what_is_sent(ranks):
    for ours, theirs in ranks.run(own_hook):
        for a, b in zip(ours, theirs, strict=True):
            assert (a is None and b is None) or torch.equal(a, b)
