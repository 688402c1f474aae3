"""The networks: the papers' layers, in sizes that fit the image."""

import pytest
import torch
import torch.nn as nn

from wuskern.train.models import FOR_TEXT, MODELS, build
from wuskern.train.models.transformer import Attention

FOR_IMAGES = [name for name in MODELS if name not in FOR_TEXT]


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (9, 5), (32, 32)], ids=str)
@pytest.mark.parametrize("name", FOR_IMAGES)
def test_any_image_size(name, size):
    model = MODELS[name](3, size, 7, 0.125)
    assert model(torch.randn(2, 3, *size)).shape == (2, 7)


# Counted by hand from the published tables: convolutions, among them those of the shortcuts, and parameters.
@pytest.mark.parametrize(
    ("name", "convs", "parameters"),
    [
        ("alexnet", 5, 37_318_538),
        ("vgg11", 8, 9_231_114),
        ("vgg16", 13, 14_728_266),
        ("resnet18", 20, 11_173_962),
        ("resnet50", 53, 23_520_842),
        ("vit", 1, 2_693_578),
        ("efficientnet", 81, 4_020_358),  # 49 of the blocks and around them, 32 of squeeze-excitation
    ],
)
def test_published_sizes(name, convs, parameters):
    model = MODELS[name](3, (32, 32), 10, 1.0)
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == convs
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_resnet50_is_the_published_one_but_for_its_stem():
    model = MODELS["resnet50"](3, (32, 32), 1000, 1.0)
    assert sum(p.numel() for p in model.parameters()) == 25_557_032 - 64 * 3 * (7 * 7 - 3 * 3)


def test_vit_cuts_at_least_16_patches_of_one_size():
    for size, side, patches in ((32, 4, 64), (16, 4, 16), (9, 2, 16), (8, 2, 16), (4, 1, 16)):
        front = MODELS["vit"](1, (size, size), 10, 1.0)[0]
        assert front.conv.kernel_size == front.conv.stride == (side, side)
        assert front(torch.randn(2, 1, size, size)).shape == (2, 1 + patches, 192)


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


def test_gpt_has_the_size_counted_by_hand():
    model = build("gpt", 64, (), 256, 1.0)
    assert sum(p.numel() for p in model.parameters()) == 867_328
    assert model(torch.randint(256, (2, 64))).shape == (2, 64, 256)
    assert model(torch.randint(256, (2, 5))).shape == (2, 5, 256)


def test_gpt_sees_no_later_token_and_every_earlier_one():
    model = build("gpt", 9, (), 20, 0.5).eval()
    tokens = torch.randint(20, (1, 9), generator=torch.Generator().manual_seed(0))
    before = model(tokens)
    tokens[0, 4] = (tokens[0, 4] + 1) % 20
    changed = (model(tokens) - before).abs().amax(2)[0]
    assert changed[:4].max() < 1e-6
    assert changed[4:].min() > 1e-6


def test_attention_is_the_softmax_of_the_products_in_float64():
    torch.manual_seed(0)
    for causal in (False, True):
        layer = Attention(6, 2, causal).double()
        x = torch.randn(3, 5, 6, dtype=torch.float64)
        q, k, v = (x @ layer.qkv.weight.T + layer.qkv.bias).split(6, dim=-1)
        heads = []
        for own in (slice(0, 3), slice(3, 6)):
            scores = q[..., own] @ k[..., own].transpose(1, 2) / 3**0.5
            if causal:
                scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
            heads.append(scores.softmax(-1) @ v[..., own])
        torch.testing.assert_close(layer(x), layer.proj(torch.cat(heads, -1)))


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("vgg12", (8, 8), "--model: expected one of mlp, .*, gpt, torchvision/NAME, timm/NAME, got 'vgg12'"),
        ("gpt", (8, 8), r"--model: expected one for images \(mlp, .*\), got 'gpt'"),
        ("vgg11", (), r"--model: expected one for text \(gpt\), got 'vgg11'"),
    ],
)
def test_a_model_that_does_not_fit_the_data_is_refused(name, size, message):
    with pytest.raises(ValueError, match=message):
        build(name, 3, size, 10, 1.0)
