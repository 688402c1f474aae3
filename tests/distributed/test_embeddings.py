"""New tokens of a table with a tied head in two processes: plain DDP with the dense form, and a prepared one, which sends these
rows alone. Against one process of stock PyTorch with a parameter of its own for them."""

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.distributed.fsdp import fully_shard
from torch.nn import Parameter
from torch.nn.parallel import DistributedDataParallel

import wuskern as wk
from tests.distributed.test_prepare import Sent

VOCABULARY, NEW, FEATURES, STEPS, BATCH = 12, [10, 11], 4, 4, 8
SETTINGS = {"plain": ("SGD", dict(lr=0.1, momentum=0.9)), "prepared": ("AdamW", dict(lr=0.1, weight_decay=0.2))}


def network():
    torch.manual_seed(2)
    body = nn.Linear(FEATURES, FEATURES)
    model = nn.Sequential(nn.Embedding(VOCABULARY, FEATURES), body, nn.Tanh(), nn.Linear(FEATURES, VOCABULARY, bias=False))
    model[3].weight = model[0].weight
    return model.double()


def batch(step):
    tokens, following = torch.randint(VOCABULARY, (2, BATCH), generator=torch.Generator().manual_seed(step))
    tokens[:2] = torch.tensor(NEW)  # in the first process
    return tokens, following


def alone(way):
    name, options = SETTINGS[way]
    model = network()
    table = model[0].weight.detach()
    old, new = table[: NEW[0]], Parameter(table[NEW[0] :].clone())
    optimizer = getattr(torch.optim, name)([new, *model[1].parameters()], **options)
    for step in range(STEPS):
        tokens, following = batch(step)
        whole = torch.cat((old, new))
        optimizer.zero_grad()
        F.cross_entropy(F.linear(torch.tanh(model[1](F.embedding(tokens, whole))), whole), following).backward()
        optimizer.step()
    return torch.cat((old, new)).detach()


def train(rank, way):
    name, options = SETTINGS[way]
    model = wk.convert(network(), embeddings=True)
    wk.set_rows(model, wk.Rows(NEW), filter_fn=lambda module, name: name != "1")
    ddp = DistributedDataParallel(model)
    if way == "prepared":
        wk.distributed.prepare(ddp)
    optimizer = getattr(wk.optim if way == "prepared" else torch.optim, name)(model.parameters(), **options)
    sent = []
    for step in range(STEPS):
        tokens, following = (t.chunk(2)[rank] for t in batch(step))
        optimizer.zero_grad()
        with Sent() as elements:
            F.cross_entropy(ddp(tokens), following).backward()
        sent.append(sum(elements))
        assert model[0].weight.grad.is_sparse == (way == "prepared")
        optimizer.step()
    return model[0].weight.detach(), sent[-1]


@pytest.mark.parametrize("way", SETTINGS)
def test_two_processes_train_new_tokens_as_one_does(way, ranks):
    expected, before = alone(way), network()[0].weight.detach()
    for found, sent in ranks.run(train, way):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        assert torch.equal(found[: NEW[0]], before[: NEW[0]])
        if way == "prepared":
            assert sent == len(NEW) * FEATURES + FEATURES * FEATURES + FEATURES


def other_plans(rank):
    """Gradients of a skipped table, and of the tokens of the batch: these are dense, as they differ between the processes."""
    model = wk.convert(network(), embeddings=True)
    ddp = DistributedDataParallel(model)
    wk.distributed.prepare(ddp)
    tokens = batch(0)[0].chunk(2)[rank]
    wk.set_skip(model, True, filter_fn=lambda module, name: name != "1")
    ddp(tokens).square().mean().backward()
    assert model[0].weight.grad is None
    wk.set_skip(model, False)
    model[0].rows = wk.BatchRows(sparse=True)
    model[3].skip = True
    ddp(tokens).square().mean().backward()
    return model[0].weight.grad


def test_a_skipped_table_and_tokens_of_the_batch(ranks):
    model = network()
    model[3].weight = Parameter(model[3].weight.detach().clone())
    model(batch(0)[0]).square().mean().backward()
    for found in ranks.run(other_plans):
        torch.testing.assert_close(found, model[0].weight.grad, rtol=1e-9, atol=1e-12)


def unprepared(rank):
    ddp = DistributedDataParallel(wk.convert(network(), embeddings=True))
    ddp.module[0].rows = wk.Rows(NEW, sparse=True)
    with pytest.raises(RuntimeError, match=r"call wuskern\.distributed\.prepare"):
        ddp(batch(0)[0])


def test_a_sparse_gradient_that_plain_ddp_would_not_send_is_refused(ranks):
    ranks.run(unprepared)


# ---- FSDP2 ----------------------------------------------------------------------------------------------------------


def untied():
    model = network()
    model[3].weight = Parameter(model[3].weight.detach().clone())
    return model


def step_by_hand(model, tokens, following, rows=None):
    """One step of SGD of the table, of some of its rows or of all."""
    model.zero_grad()
    F.cross_entropy(model(tokens), following).backward()
    grad = model[0].weight.grad
    with torch.no_grad():
        for row in range(VOCABULARY) if rows is None else rows:
            model[0].weight[row] -= 0.5 * grad[row]


def sharded(rank):
    model = wk.convert(untied(), embeddings=True)
    fully_shard(model)
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.5)
    for step, plan in enumerate([wk.Plan(rows=wk.Rows(NEW)), wk.Plan(skip=True), wk.Plan(rows=wk.BatchRows()), wk.Plan()]):
        model[0].plan = plan
        model.zero_grad()
        tokens, following = (t.chunk(2)[rank] for t in batch(step))
        F.cross_entropy(model(tokens), following).backward()
        optimizer.step()
    return model[0].weight.full_tensor().detach()


def test_a_sharded_table(ranks):
    model = untied()
    for step, rows in ((0, NEW), (2, None), (3, None)):
        step_by_hand(model, *batch(step), rows)
    for found in ranks.run(sharded):
        torch.testing.assert_close(found, model[0].weight.detach(), rtol=1e-9, atol=1e-12)
