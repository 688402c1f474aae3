"""Each field of a plan in which one process may differ from the others: named by rank and layer, before anything waits. And a
process alone that has NaN."""

import pytest
import torch
import torch.nn as nn

import wuskern as wk
from tests.distributed.models import draw, raises, wrapped
from tests.distributed.ranks import GROUP_TIMEOUT

# What rank 0 has, and what rank 1.
DIFFERENT = {
    "skip": (wk.Plan(), wk.Plan(skip=True)),
    "no rows": (wk.Plan(), wk.Plan(rows=wk.Rows([1]))),
    "other rows": (wk.Plan(rows=wk.Rows([1, 2])), wk.Plan(rows=wk.Rows([1, 3]))),
    "more rows": (wk.Plan(rows=wk.Rows([1])), wk.Plan(rows=wk.Rows([1, 3]))),
    "kind of rows": (wk.Plan(rows=wk.Rows([1])), wk.Plan(rows=wk.TopK(k=1))),
    "k": (wk.Plan(rows=wk.TopK(k=1)), wk.Plan(rows=wk.TopK(k=2))),
    "ratio": (wk.Plan(rows=wk.TopK(ratio=0.5)), wk.Plan(rows=wk.TopK(ratio=0.25))),
    "scope": (wk.Plan(rows=wk.TopK(k=2)), wk.Plan(rows=wk.TopK(k=2, scope="both"))),
    "scope of fixed rows": (wk.Plan(rows=wk.Rows([1])), wk.Plan(rows=wk.Rows([1], "both"))),
    "bias": (wk.Plan(rows=wk.TopK(k=2)), wk.Plan(rows=wk.TopK(k=2, bias="rows"))),
    "bias of fixed rows": (wk.Plan(rows=wk.Rows([1])), wk.Plan(rows=wk.Rows([1], bias="rows"))),
    "score": (wk.Plan(rows=wk.TopK(k=2)), wk.Plan(rows=wk.TopK(k=2, score="l2"))),
    "block": (wk.Plan(rows=wk.TopK(k=2)), wk.Plan(rows=wk.TopK(k=2, block=2))),
    "sparse": (wk.Plan(rows=wk.TopK(k=2)), wk.Plan(rows=wk.TopK(k=2, sparse=True))),
    "sparse of fixed rows": (wk.Plan(rows=wk.Rows([1])), wk.Plan(rows=wk.Rows([1], sparse=True))),
    "per example": (wk.Plan(rows=wk.PerExample(k=2)), wk.Plan(rows=wk.PerExample(k=3))),
    "columns": (wk.Plan(columns=wk.Columns([1])), wk.Plan(columns=wk.Columns([2]))),
    "kind of columns": (wk.Plan(columns=wk.Columns([1])), wk.Plan(columns=wk.TopColumns(k=1))),
    "score of columns": (wk.Plan(columns=wk.TopColumns(k=2)), wk.Plan(columns=wk.TopColumns(k=2, score="weight"))),
    "block of columns": (wk.Plan(columns=wk.TopColumns(k=2)), wk.Plan(columns=wk.TopColumns(k=2, block=2))),
    "columns beside rows": (wk.Plan(rows=wk.Rows([1])), wk.Plan(rows=wk.Rows([1]), columns=wk.Columns([1]))),
    "tokens": (wk.Plan(tokens=wk.Tokens(k=2)), wk.Plan(tokens=wk.Tokens(k=3))),
    "pick of tokens": (wk.Plan(tokens=wk.Tokens(k=2)), wk.Plan(tokens=wk.Tokens(k=2, pick="crs"))),
}


def diverging(rank, exact):
    model, _ = wrapped(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)), prepare=dict(exact=exact))
    x, found = draw(rank, 5, 4), {}
    for name, plans in DIFFERENT.items():
        model.module[2].plan = plans[rank]
        found[name] = raises(RuntimeError, model, x), raises(RuntimeError, wk.distributed.check_flags, model)
        model.module[2].plan = plans[0]
        wk.distributed.check_flags(model)
    model.module[2].plan = wk.Plan()
    model(x).sum().backward()  # the processes are still in step
    return found


@pytest.mark.parametrize("exact", [False, True])
def test_each_field_of_a_plan(ranks, exact):
    first, second = ranks.run(diverging, exact)
    assert first == second
    assert list(first) == list(DIFFERENT)
    for name, messages in first.items():
        for message in messages:
            of_first, _, of_second = message.rpartition("rank 1 has ")
            assert of_first.startswith("layers: expected the same plan in all processes, got 2: rank 0 has "), name
            assert of_second == str(DIFFERENT[name][1]), name
            assert f"rank 0 has {DIFFERENT[name][0]}, " in of_first, name


def timeout_of_exact(rank):
    _, prepared = wrapped(nn.Linear(3, 4), dict(exact=True))
    return prepared.exact.group._get_backend(torch.device("cpu")).options._timeout


def test_the_group_for_exact_scores_waits_as_long_as_ddps(ranks):
    assert ranks.run(timeout_of_exact) == [GROUP_TIMEOUT] * 2


def diverging_embedding(rank):
    model, _ = wrapped(wk.convert(nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 4)), embeddings=True))
    model.module[0].rows = wk.Rows([1, 2 + rank])
    return raises(RuntimeError, model, torch.arange(6).view(2, 3))


def test_rows_of_an_embedding(ranks):
    for found in ranks.run(diverging_embedding):
        assert "got 0: rank 0 has rows=Rows([1, 2], 'weight', 'dense'), rank 1 has rows=Rows([1, 3]" in found


def other_layers(rank):
    """FSDP2's check, of models whose layers were converted in one process alone."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    wk.convert(model, lambda _, name: name == "0" or rank == 0)
    return raises(RuntimeError, wk.distributed.check_flags, model)


def test_a_layer_that_one_process_lacks(ranks):
    for found in ranks.run(other_layers):
        assert found.endswith("got 1: rank 0 has dense, rank 1 has no such layer")


# ---- NaN ---------------------------------------------------------------------------------------------------------------


def with_nan(rank, rows, exact):
    """Weights after a step in which one example of rank 1 was NaN, and after another one."""
    model, _ = wrapped(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4)), prepare=dict(exact=exact))
    update, history = torch.optim.SGD(model.parameters(), 0.1), []
    wk.set_rows(model.module, rows)
    for step in range(4):
        x = draw(10 * step + rank, 5, 4)
        if (step, rank) == (1, 1):
            x[2, 1] = torch.nan
        update.zero_grad()
        model(x).square().sum().backward()
        update.step()
        history.append([p.detach().clone() for p in model.parameters()])
    return history


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("rows", [None, wk.TopK(k=2), wk.TopK(k=2, score="l2"), wk.Rows([0, 3])], ids=str)
def test_nan_of_one_process_is_in_all(ranks, rows, exact):
    first, second = ranks.run(with_nan, rows, exact)
    for step, (mine, others) in enumerate(zip(first, second, strict=True)):
        for a, b in zip(mine, others, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
            assert a.isnan().any() == (step > 0)
