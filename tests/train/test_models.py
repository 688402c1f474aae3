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


# Counted by hand from the published tables: convolutions in front of one linear layer, or alexnet's three.
@pytest.mark.parametrize(
    ("name", "convs", "parameters"),
    [
        ("alexnet", 5, 37_318_538),
        ("vgg11", 8, 9_231_114),
        ("vgg16", 13, 14_728_266),
        ("resnet18", 20, 11_173_962),
    ],
)
def test_published_sizes(name, convs, parameters):
    model = MODELS[name](3, (32, 32), 10, 1.0)
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == convs
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_mlp_has_two_hidden_layers_of_500():
    widths = [m.out_features for m in MODELS["mlp"](1, (8, 8), 10, 1.0) if isinstance(m, nn.Linear)]
    assert widths == [500, 500, 10]


def test_alexnet_is_the_published_table():
    model = MODELS["alexnet"](3, (32, 32), 10, 1.0)
    assert [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)] == [96, 256, 384, 384, 256]
    assert [m.out_features for m in model.modules() if isinstance(m, nn.Linear)] == [4096, 4096, 10]
    kinds = [type(m).__name__ for m in model]
    assert [kinds[i + 1] for i, kind in enumerate(kinds) if kind == "Dropout"] == ["Linear", "Linear"]
    assert [kinds[:i].count("Conv2d") for i, kind in enumerate(kinds) if kind == "MaxPool2d"] == [1, 2, 5]
    # 32 pixels become 16, 8 and 4
    assert next(m for m in model if isinstance(m, nn.Linear)).in_features == 256 * 4 * 4
