"""Embeddings are converted on request alone, and say so."""

import copy
import logging

import pytest
import torch
import torch.nn as nn
import torch.nn.utils.parametrizations

import wuskern as wk
from tests.test_convert import Tied


class Scaled(nn.Embedding):
    pass


def test_embeddings_are_converted_on_request_and_reverted(caplog):
    stock, tokens = Tied(), torch.tensor([1, 2, 8])
    model = copy.deepcopy(stock)
    with caplog.at_level(logging.INFO, logger="wuskern"):
        wk.convert(model)
    on_request = "embeddings are converted on request: convert(model, embeddings=True)"
    assert f"left alone: embedding: {on_request}" in caplog.messages
    assert type(model.embedding) is nn.Embedding
    objects = [id(m) for m in model.modules()], [id(p) for p in model.parameters()]
    wk.convert(model, embeddings=True)
    assert type(model.embedding) is wk.SkippableEmbedding
    assert isinstance(model.embedding, nn.Embedding)
    assert ([id(m) for m in model.modules()], [id(p) for p in model.parameters()]) == objects
    assert all(finding.obstacle is None for finding in wk.survey(model))
    assert type(wk.convert(model).embedding) is wk.SkippableEmbedding
    for m in (model, stock):
        m(tokens).pow(2).sum().backward()
    assert torch.equal(model.head.weight.grad, stock.head.weight.grad)
    wk.set_rows(model, wk.Rows([1]), filter_fn=lambda module, name: name == "embedding")
    wk.revert(model)
    assert [(type(m), sorted(m.__dict__)) for m in model.modules()] == [(type(m), sorted(m.__dict__)) for m in stock.modules()]


def test_why_an_embedding_is_left_alone():
    model = nn.ModuleDict({
        "plain": nn.Embedding(3, 4), "subclass": Scaled(3, 4), "normed": nn.Embedding(3, 4, max_norm=1.0),
        "left out": nn.Embedding(3, 4), "bag": nn.EmbeddingBag(3, 4),
        "parametrized": torch.nn.utils.parametrizations.weight_norm(nn.Embedding(3, 4)), "head": nn.Linear(4, 3),
    })  # fmt: skip
    found = {f.name: f.obstacle for f in wk.survey(model, lambda module, name: name != "left out", embeddings=True)}
    assert found == {
        "plain": None,
        "subclass": "Scaled is a subclass with a behaviour of its own",
        "normed": "its max_norm changes the weight in forward",
        "left out": "filter_fn left it out",
        "parametrized": "its weight is parametrized",
        "head": None,
    }
    assert type(wk.convert(nn.Embedding(3, 4), embeddings=True)) is wk.SkippableEmbedding
    with pytest.raises(ValueError, match=r"got Embedding: the model itself: embeddings are converted on request"):
        wk.convert(nn.Embedding(3, 4))
