"""Columns under a prepared DDP: what is sent, and the gradients of one process on the joint batch. Whole trainings:
test_trajectory."""

import pytest
import torch
import torch.nn as nn

import wuskern as wk
from tests.distributed.models import draw, wrapped
from tests.distributed.test_prepare import Branches, Sent


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(24, 5, bias=False))


def count_sent(rank):
    model, _ = wrapped(network())
    conv, linear = model.module[0], model.module[3]

    def sent():
        model.zero_grad()
        with Sent() as elements:
            model(draw(rank, 4, 4, 4, 4)).pow(2).mean().backward()
        return elements

    found = {"dense": sum(sent())}
    conv.columns, linear.columns = wk.Columns([0, 3]), wk.Columns([1, 2, 20])
    found["columns"] = sum(sent())
    conv.rows, linear.rows = wk.Rows([1, 5]), wk.Rows([4])
    found["blocks"] = sum(sent())
    wk.set_plan(model.module, rows=None, columns=wk.TopColumns(ratio=0.5))
    found["first by the input"], found["by the input"] = sent(), sent()
    wk.set_plan(model.module, columns=wk.TopColumns(ratio=0.5, score="random"))
    found["random"] = sum(sent())
    wk.set_plan(model.module, rows=wk.TopK(ratio=0.34), columns=wk.TopColumns(ratio=0.5, score="weight"))
    found["both by scores"] = sent()
    return found


def test_what_is_sent(ranks):
    bias, halves = 6, 6 * 1 * 9 + 5 * 12
    expected = {
        "dense": 6 * 2 * 9 + 24 * 5 + bias,
        "columns": 6 * 1 * 9 + 5 * 3 + bias,
        "blocks": 2 * 1 * 9 + 1 * 3 + bias,
        "first by the input": [4 + 24, bias + halves + 4 + 24],  # sums of the weights first; new scores go with the gradients
        "by the input": [bias + halves + 4 + 24],
        "random": bias + halves,
        "both by scores": [6 + 4 + 5 + 24, bias + 2 * 9 + 1 * 12 + 6 + 5],  # columns by the weight have no new scores
    }
    assert ranks.run(count_sent) == [expected] * 2


# ---- gradients ------------------------------------------------------------------------------------------------------

PARTS = {
    "columns": [dict(columns=wk.Columns([0, 2]))] * 3,
    "other columns": [dict(columns=wk.Columns(c)) for c in ([0, 2], [1, 2], [0, 3])],
    "groups that differ": [dict(columns=wk.Columns(c)) for c in ([0, 2], [1, 2])],
    "blocks": [dict(columns=wk.Columns([0, 2]), rows=wk.Rows([0, 4])), dict(columns=wk.Columns([0, 3]), rows=wk.Rows([1, 4]))],
    "columns and rows": [dict(columns=wk.Columns([0, 2])), dict(rows=wk.Rows([1, 4]))],
    "columns and all": [dict(columns=wk.Columns([1, 3])), {}, dict(skip=True)],
    "columns, then a skip": [dict(columns=wk.Columns([1, 3])), dict(skip=True)],
    "by the weight": [dict(columns=wk.TopColumns(ratio=0.5, score="weight"))] * 2,
}


def micro_batches(rank, plans, ddp):
    """The gradients after micro-batches of a convolution in groups and of a Linear, of which all but the last are not sent."""
    model, _ = wrapped(network(), **ddp)
    for number, parts in enumerate(plans):
        set_parts(model.module, parts)
        with model.no_sync() if number < len(plans) - 1 else torch.enable_grad():
            model(draw(10 * rank + number, 4, 4, 4, 4)).square().sum().backward()
    return [p.grad.clone() for p in model.parameters()]


def set_parts(net, parts):
    """Sets a plan of the convolution, and in the Linear, which has no groups, the same rows and columns."""
    for layer in (net[0], net[3]):
        layer.plan = wk.Plan(**parts)


@pytest.mark.parametrize("ddp", [{}, dict(bucket_cap_mb=1e-4, gradient_as_bucket_view=True)], ids=["plain", "views"])
@pytest.mark.parametrize("plans", PARTS.values(), ids=PARTS)
def test_micro_batches_equal_one_process(ranks, plans, ddp):
    net = wk.convert(network().double())
    for number, parts in enumerate(plans):
        set_parts(net, parts)
        both = torch.cat([draw(10 * rank + number, 4, 4, 4, 4) for rank in range(2)])
        (net(both).square().sum() / 2).backward()
    for found in ranks.run(micro_batches, plans, ddp):
        for mine, parameter in zip(found, net.parameters(), strict=True):
            torch.testing.assert_close(mine, parameter.grad, rtol=1e-12, atol=1e-12)


def sent_of_micro_batches(rank, plans):
    with Sent() as elements:
        micro_batches(rank, plans, {})
    return elements[-1]


def test_micro_batches_send_the_block_that_holds_all(ranks):
    bias = 6
    expected = {
        "columns": 6 * 9 + 5 * 2,
        "groups that differ": 6 * 2 * 9 + 5 * 3,  # of the convolution all, whose groups train one column and two
        "blocks": 3 * 2 * 9 + 3 * 3,
        "columns and rows": 6 * 2 * 9 + 5 * 24,
        "columns, then a skip": 6 * 9 + 5 * 2,
    }
    for name, elements in expected.items():
        assert ranks.run(sent_of_micro_batches, PARTS[name]) == [elements + bias] * 2, name


def accumulate_over_steps(rank):
    model, _ = wrapped(nn.Linear(4, 3, bias=False))
    found = []
    for columns in ([0, 1], [1, 3]):
        model.module.columns = wk.Columns(columns)
        model(draw(rank, 5, 4)).sum().backward()
        found.append(model.module.weight.grad.clone())
    return found


def test_gradients_accumulate_over_synchronised_steps(ranks):
    mean = (draw(0, 5, 4).sum(0) + draw(1, 5, 4).sum(0)) / 2
    for found in ranks.run(accumulate_over_steps):
        for grad, times in zip(found, ([1.0, 1, 0, 0], [1.0, 2, 0, 1]), strict=True):
            torch.testing.assert_close(grad, (torch.tensor(times) * mean).expand(3, 4))


def leave_out(rank, columns):
    torch.manual_seed(0)
    model, _ = wrapped(Branches(), find_unused_parameters=True)
    model.module.b.columns = columns
    for _ in range(2):
        model.zero_grad()
        model(draw(0, 5, 3), rank == 0).sum().backward()
    return model.module.b.weight.grad


@pytest.mark.parametrize("columns", [wk.Columns([0, 2]), wk.TopColumns(k=2), wk.TopColumns(k=2, score="random")], ids=str)
def test_a_layer_that_one_rank_does_not_use(ranks, columns):
    first, second = ranks.run(leave_out, columns)
    assert torch.equal(first, second)
    kept = first.any(0)
    assert kept.sum() == 2
    torch.testing.assert_close(first[:, kept], (draw(0, 5, 3).sum(0) / 2)[kept].expand(4, 2))
