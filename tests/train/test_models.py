"""The networks: the papers' layers, in sizes that fit the image."""

import pytest
import torch
import torch.nn as nn

from wuskern.train.models import MODELS


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (9, 5), (32, 32)], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_any_image_size(name, size):
    model = MODELS[name](3, size, 7, 0.125)
    assert model(torch.randn(2, 3, *size)).shape == (2, 7)


# Counted by hand from the published tables: convolutions in front of one linear layer.
@pytest.mark.parametrize(
    ("name", "convs", "parameters"), [("vgg11", 8, 9_231_114), ("vgg16", 13, 14_728_266), ("resnet18", 20, 11_173_962)]
)
def test_published_sizes(name, convs, parameters):
    model = MODELS[name](3, (32, 32), 10, 1.0)
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == convs
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_mlp_has_two_hidden_layers_of_500():
    widths = [m.out_features for m in MODELS["mlp"](1, (8, 8), 10, 1.0) if isinstance(m, nn.Linear)]
    assert widths == [500, 500, 10]
