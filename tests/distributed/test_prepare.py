"""What ``prepare`` sends, refuses and reports; exact and random rows; a hook of the user's own."""

import pytest
import torch
import torch.distributed as dist
import torch.nn as nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import wuskern as wk
from wuskern.rows import RowGrad, request_row_grad


def wrapped(model, prepare=None, **ddp):
    made = DistributedDataParallel(wk.convert(model.double()), **ddp)
    return made, wk.distributed.prepare(made, **(prepare or {}))


def draw(rank, *size):
    return torch.randn(size, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)


def raises(kind, call, *args, **kwargs):
    """The message. Both ranks have to arrive here: no group is left behind that waits."""
    try:
        call(*args, **kwargs)
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind.__name__}")


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
    request_row_grad(second.weight)
    second.rows = wk.Rows([4, 5])
    found["compact"] = step() - 20  # elements of the first layer's scores
    assert isinstance(second.weight.row_grad, RowGrad)
    return found


def test_what_is_sent(ranks):
    biases, norm = 20, 20
    expected = {
        "dense": 5 * 20 + 20 * 10 + biases + norm,
        "skip": biases + norm,
        "rows": 2 * 5 + 1 * 20 + biases + norm,
        "first TopK": 2 * 5 + 2 * 20 + biases + norm + 30,
        "TopK": 2 * 5 + 2 * 20 + biases + norm + 30,  # with the scores of 30 rows
        "compact": 2 * 5 + 2 * 20 + biases + norm + 10,  # the second layer's last scores
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


def leave_out(rank, rows, compact):
    torch.manual_seed(0)
    model, _ = wrapped(Branches(), find_unused_parameters=True)
    weight = model.module.b.weight
    if compact:
        request_row_grad(weight)
    model.module.b.rows = rows
    for _ in range(2):
        model.zero_grad()
        if compact:
            weight.row_grad = None
        model(draw(0, 5, 3), rank == 0).sum().backward()
    return weight.row_grad.dense(4) if compact else weight.grad


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("rows", [wk.Rows([1, 3]), wk.TopK(k=2)], ids=["Rows", "TopK"])
def test_a_layer_that_one_rank_does_not_use(ranks, rows, compact):
    first, second = ranks.run(leave_out, rows, compact)
    assert torch.equal(first, second)
    of_one = draw(0, 5, 3).sum(0) / 2  # dY is ones; half of it, for the other rank has none
    kept = first.abs().sum(1) > 0
    assert kept.sum() == 2
    torch.testing.assert_close(first[kept], of_one.expand(2, 3))


def accumulate_over_steps(rank):
    """No zero_grad in between: as under plain DDP, and nobody's gradient of the earlier step is lost."""
    model, _ = wrapped(nn.Linear(3, 4, bias=False))
    request_row_grad(model.module.weight)
    for rows in ([0, 1], [1, 3]):
        model.module.rows = wk.Rows(rows)
        model(draw(rank, 5, 3)).sum().backward()
    found = model.module.weight.row_grad
    wk.set_rows(model.module, None)
    model(draw(rank, 5, 3)).sum().backward()
    model.module.skip = True
    model(draw(rank, 5, 3)).sum().backward()
    return found, model.module.weight.grad


def test_gradients_accumulate_over_synchronised_steps(ranks):
    mean = (draw(0, 5, 3).sum(0) + draw(1, 5, 3).sum(0)) / 2
    for found, dense in ranks.run(accumulate_over_steps):
        assert found.rows.tolist() == [0, 1, 3]
        torch.testing.assert_close(found.values, torch.stack([mean, 2 * mean, mean]))
        torch.testing.assert_close(dense, mean.expand(4, 3))


# ---- rows by exact scores, random rows ------------------------------------------------------------------------------


def exact_rows(rank, compact, micro):
    model, _ = wrapped(nn.Linear(3, 6, bias=False), prepare=dict(exact=True))
    layer, x, coefficients = model.module, draw(rank, 5, 3), draw(10 + rank, 3, 6)
    if compact:
        request_row_grad(layer.weight)
    layer.rows = wk.TopK(k=2)
    for i in range(micro):
        with model.no_sync() if i < micro - 1 else torch.enable_grad():
            (model(x) * coefficients[i]).sum().backward()
    assert layer.rows == wk.TopK(k=2)
    return layer.weight.row_grad.dense(6) if compact else layer.weight.grad


@pytest.mark.parametrize("micro", [1, 3])
@pytest.mark.parametrize("compact", [False, True])
def test_exact_rows_are_those_of_the_joint_batch(ranks, compact, micro):
    expected = torch.zeros(6, 3, dtype=torch.float64)
    for i in range(micro):
        both = [draw(10 + rank, 3, 6)[i] for rank in range(2)]
        for row in (5 * sum(c.abs() for c in both)).topk(2).indices:
            expected[row] += sum(c[row] * draw(rank, 5, 3).sum(0) for rank, c in enumerate(both)) / 2
    for found in ranks.run(exact_rows, compact, micro):
        torch.testing.assert_close(found, expected)


def random_rows(rank, exact):
    torch.manual_seed(rank)
    model, _ = wrapped(nn.Linear(3, 40, bias=False), prepare=dict(exact=exact))
    model.module.rows, found = wk.TopK(k=4, score="random"), []
    for _ in range(3):
        model.zero_grad()
        model(draw(rank, 5, 3)).sum().backward()
        found.append(model.module.weight.grad.abs().sum(1).nonzero().flatten().tolist())
    return found


@pytest.mark.parametrize("exact", [False, True])
def test_random_rows_are_the_same_in_all_ranks_and_new_in_each_step(ranks, exact):
    first, second = ranks.run(random_rows, exact)
    assert first == second
    assert len({tuple(rows) for rows in first}) == 3
    assert all(len(rows) == 4 for rows in first)


def resume_rows(rank):
    def run(model, prepared, steps):
        found = []
        for step in steps:
            model.zero_grad()
            (model(draw(rank, 5, 3)) * draw(20 + step, 12)).sum().backward()
            found.append(model.module.weight.grad.abs().sum(1).nonzero().flatten().tolist())
        return found

    results = []
    for score in ("l1", "random"):
        model, prepared = wrapped(nn.Linear(3, 12, bias=False))
        model.module.rows = wk.TopK(k=3, score=score)
        run(model, prepared, range(3))
        state = prepared.state_dict()
        expected = run(model, prepared, range(3, 6))
        again, anew = wrapped(nn.Linear(3, 12, bias=False))
        again.module.rows = wk.TopK(k=3, score=score)
        anew.load_state_dict(state)
        results.append((expected, run(again, anew, range(3, 6))))
    return results


def test_the_state_of_the_choice_continues(ranks):
    for result in ranks.run(resume_rows):
        for expected, found in result:
            assert found == expected


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


# ---- what is refused, and what is said ------------------------------------------------------------------------------


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
    static.module.skip, static.module.rows = False, wk.Rows([1])
    request_row_grad(static.module.weight)
    found.append(raises(RuntimeError, static, draw(rank, 5, 3)))
    plain = DistributedDataParallel(wk.convert(nn.Linear(3, 4).double()))
    plain.module.rows = wk.TopK(k=1)
    plain(draw(rank, 5, 3)).sum().backward()  # the dense form, each rank with rows of its own
    request_row_grad(plain.module.weight)
    found.append(raises(RuntimeError, plain, draw(rank, 5, 3)))
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
        "static_graph: expected a first iteration in which each weight gets a dense gradient, got skip of the model itself",
        "static_graph: expected a first iteration in which each weight gets a dense gradient, got compact rows of",
        "weight: row_grad was requested, but DistributedDataParallel would not send it: call wuskern.distributed.prepare",
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
    found.append(raises(RuntimeError, model, x))
    wk.set_rows(model.module, wk.TopK(k=2))
    model(x).sum().backward()  # the group is in step
    other = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4))
    wk.convert(other, lambda layer, name: name == "0" or rank == 0)
    found.append(raises(RuntimeError, wk.distributed.prepare, DistributedDataParallel(other)))
    return found


def test_a_divergence_names_layer_and_ranks(ranks):
    first, second = ranks.run(diverge)
    assert first == second
    start = "layers: expected the same skip and rows in all processes, got "
    assert first[0] == start + "1: rank 0 has all rows, rank 1 has skip"
    assert first[1].startswith(start + "0: rank 0 has TopK(ratio=None, k=2, ")
    assert ", rank 1 has Rows([0, 1], 'weight', 'dense'); 3: rank 0 has Rows([1, 2], 'weight', 'dense'), " in first[1]
    assert first[1].endswith("rank 1 has Rows([1, 2], 'weight', 'rows')")
    assert first[2].endswith("; and 1 more")
    assert "the same converted layers in all processes, got ['1'] in rank 1 only" in first[3]


def stray_gradient(rank):
    model, _ = wrapped(nn.Linear(3, 4))
    model.module.skip = True
    return raises(RuntimeError, (model(draw(rank, 5, 3)).sum() + model.module.weight.pow(2).sum()).backward)


def test_a_gradient_that_would_not_be_sent_is_an_error(ranks):
    for found in ranks.run(stray_gradient):
        assert "the model itself: expected no dense gradient of a weight that is skipped" in found


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
