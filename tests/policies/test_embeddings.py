"""Policies pass converted embeddings over: every method trains as it does where the embedding is a stock layer, bit for bit."""

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

import wuskern as wk
from wuskern.policies import METHODS, Savings
from wuskern.train import methods, pairs

pytestmark = pytest.mark.usefixtures("one_thread")

EPOCHS, STEPS, BATCH, SAMPLES = 3, 2, 4, 12
TOKENS = torch.randint(12, (SAMPLES, 9), generator=torch.Generator().manual_seed(1))
LABELS = torch.randint(4, (SAMPLES,), generator=torch.Generator().manual_seed(2))
NEW = wk.Rows([3, 11])


class Net(nn.Module):
    """Tokens as the pixels of an image: convolutions and Linears behind an embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(12, 8)
        layers = nn.Conv2d(8, 8, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 16), nn.ReLU()
        self.blocks = nn.Sequential(*layers, nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.blocks(self.embedding(tokens).transpose(1, 2).unflatten(2, (3, 3)))


def trained(name: str, embeddings: bool, rows: wk.Rows | None = None) -> tuple[nn.Module, list[object]]:
    """The model after the run, and what the method's savings were."""
    model = wk.convert(Net(), embeddings=embeddings)
    if rows is not None:
        model.embedding.rows = rows
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    given = methods.Given(model, optimizer, TOKENS[:2], SAMPLES, seed=0)
    policy = methods.build(methods.parse(pairs.trial(name))[0], given, EPOCHS).policy
    reports: list[object] = []
    if policy is None:  # a sampler
        return model, reports
    assert "embedding" not in policy.layers
    policy.attach(optimizer)
    savings = Savings(policy, TOKENS[:2])
    torch.manual_seed(5)
    for _ in range(EPOCHS):
        for step in range(STEPS):
            policy.before_step()
            part = slice(BATCH * step, BATCH * (step + 1))
            F.cross_entropy(model(TOKENS[part]), LABELS[part]).backward()
            optimizer.step()
            optimizer.zero_grad()
            savings.count(BATCH)
            policy.after_step()
        reports.append(savings.report())
        policy.after_epoch()
        policy.step(0.5)
        model.train()
    state = policy.state_dict()
    policy.load_state_dict(state)
    return model, reports


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_as_with_a_stock_embedding(name):
    (ours, savings), (stock, expected) = trained(name, True), trained(name, False)
    assert isinstance(ours.embedding, wk.SkippableEmbedding)
    assert savings == expected
    for (key, value), other in zip(ours.state_dict().items(), stock.state_dict().values(), strict=True):
        assert torch.equal(value, other), key


@pytest.mark.parametrize("name", METHODS)
def test_the_embeddings_plan_is_its_owners(name):
    model, _ = trained(name, True, NEW)
    assert model.embedding.plan == wk.Plan(rows=NEW)
    before = Net().embedding.weight
    moved = (model.embedding.weight != before).any(1).nonzero().flatten().tolist()
    assert moved in ([], [3, 11])


def test_embeddings_alone_are_nothing_to_decide_about():
    with pytest.raises(ValueError, match="model: expected at least one converted layer that is no embedding, got none"):
        wk.policies.WUS(wk.convert(nn.Embedding(3, 4), embeddings=True))


def test_a_frozen_embedding_runs_stocks_forward():
    """Whatever its plan is."""
    model = wk.convert(Net(), embeddings=True)
    model.embedding.rows = NEW
    policy = wk.policies.SingleShotFreezing(model, TOKENS[:2], at=0, until=9)
    policy.after_epoch()
    assert policy.depth > 0
    model(TOKENS[:2]).sum().backward()
    assert model.embedding.weight.grad is None
    assert model.blocks[-1].weight.grad.any()
