"""New tokens of a model of the package transformers, whose head is tied to its embedding."""

import pytest
import torch
import torch.nn as nn
from torch import Tensor

import wuskern as wk
from tests.test_transformers import FAMILIES

pytestmark = pytest.mark.usefixtures("one_thread")

TIED = [family for family in FAMILIES if family.model in ("BertForMaskedLM", "GPT2LMHeadModel")]
SIZE, NEW = 40, [40, 41, 42]


def tokens() -> Tensor:
    return torch.arange(16).reshape(2, 8) * 5 % 43


@pytest.mark.parametrize("family", TIED, ids=str)
def test_new_tokens_train_alone_and_the_layer_survives_resizing(family):
    model = wk.convert(family.make(), embeddings=True)
    embedding = model.get_input_embeddings()
    embedding.rows = wk.Rows([3])
    model.resize_token_embeddings(SIZE + len(NEW), mean_resizing=False)
    assert model.get_input_embeddings() is embedding
    assert isinstance(embedding, wk.SkippableEmbedding)
    head = model.get_output_embeddings()
    assert head.weight is embedding.weight
    wk.set_rows(model, wk.Rows(NEW), filter_fn=lambda module, name: module in (embedding, head))
    optimizer = wk.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(input_ids=tokens()).logits.flatten(0, 1), tokens().flatten()).backward()
        assert embedding.weight.grad.is_sparse
        optimizer.step()
    moved = {name: (p != before[name]).any() for name, p in model.named_parameters()}
    name = next(name for name, p in model.named_parameters() if p is embedding.weight)
    assert moved.pop(name)
    assert (embedding.weight != before[name]).any(1).nonzero().flatten().tolist() == NEW
    assert sum(moved.values()) > len(moved) / 2

    model.resize_token_embeddings(SIZE)
    with pytest.raises(ValueError, match="index: expected rows under 40, got 42"):
        model(input_ids=tokens() % SIZE)
    embedding.rows = None
    model(input_ids=tokens() % SIZE)
