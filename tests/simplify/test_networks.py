"""Every network of the train room, half of its rows dead."""

import pytest
import torch
import torch.nn as nn

import wuskern as wk
from tests.simplify.networks import equal, kill, layers, shuffle_norms
from wuskern.simplify import norms_of_rows
from wuskern.train.models import MODELS, build


def masked(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    if name == "gpt":
        model, x = build(name, 8, (), 16, 0.25), torch.randint(0, 16, (2, 8))
    else:
        model, x = build(name, 3, (16, 16), 10, 0.125), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    wk.convert(model.double().eval())
    shuffle_norms(model)
    for layer in layers(model).values():
        nn.init.normal_(layer.weight, std=(2 / layer.weight[0].numel()) ** 0.5)  # so that each layer counts
        kill(layer, torch.arange(len(layer.weight)) % 2 == 0)
    return model, x


@pytest.mark.parametrize("name", MODELS)
def test_a_network_gives_what_it_gave(name):
    model, x = masked(name)
    smaller, report = wk.simplify(model, x)
    assert model(x).std() > 1e-3
    assert equal(smaller(x), model(x))
    assert report.parameters_after < report.parameters_before
    assert str(report).endswith(f"({report.parameters_after / report.parameters_before:.0%})")
    dead = {name: -(-rows.before // 2) for name, rows in report.layers.items()}
    assert all(rows.after + dead[name] == rows.before or rows.reasons for name, rows in report.layers.items())


@pytest.mark.parametrize(("name", "inner"), [("vit", "{}.mlp.0"), ("gpt", "{}.mlp.0"), ("mlp", "1")])
def test_the_hidden_layer_of_a_transformer_is_halved(name, inner):
    model, x = masked(name)
    _, report = wk.simplify(model, x)
    halved = [layer for layer, rows in report.layers.items() if rows.after * 2 == rows.before]
    assert inner.format(1) in halved
    assert all(".mlp.0" in layer for layer in halved) or name == "mlp"


def test_a_residual_network_shrinks_inside_its_blocks():
    """With live shifts: behind a ReLU those of dead units that are not above zero go, with all others kept by name."""
    model, x = masked("resnet18")
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.zero_()
            nn.init.zeros_(m.bias)
    smaller, report = wk.simplify(model, x)
    for name, rows in report.layers.items():
        if name.endswith("conv1"):
            assert rows.after * 2 == rows.before
            assert not rows.reasons
    assert equal(smaller(x), model(x))


def test_a_residual_sum_keeps_rows_that_are_dead_on_one_side_only():
    model, x = masked("resnet18")
    for layer in layers(model).values():
        nn.init.normal_(layer.weight, std=0.1)
    kill(model[3].conv2, [0, 1])
    smaller, report = wk.simplify(model, x)
    assert smaller[3].conv2.out_channels == model[3].conv2.out_channels
    assert report.layers["3.conv2"].reasons == {"add in 3 combines it with rows that are not dead": 2}
    assert equal(smaller(x), model(x))


def test_norms_that_are_silenced_let_the_rows_of_a_vgg_go():
    model, x = masked("vgg11")
    found = norms_of_rows(model, x)
    wanted = {name: (str(int(name) + 1),) for name, layer in layers(model).items() if isinstance(layer, nn.Conv2d)}
    assert found == wanted | {list(found)[-1]: ()}
    assert any("zero padding" in reason for rows in wk.simplify(model, x)[1].layers.values() for reason in rows.reasons)
    for norm in (model[int(name)] for names in found.values() for name in names):
        kill(norm, torch.arange(norm.num_features) % 2 == 0)
    smaller, report = wk.simplify(model, x)
    assert all(rows.after == rows.before // 2 for name, rows in report.layers.items() if name in wanted)
    assert equal(smaller(x), model(x))


def test_inside_an_mbconv_the_depthwise_and_the_squeezing_layers_go_along():
    model, x = masked("efficientnet")
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.zero_()
            nn.init.zeros_(m.bias)
    for layer in layers(model).values():
        nn.init.normal_(layer.weight, std=0.1)
    kill(model[4].layers[0], [3, 5])  # expands to 12 channels
    kill(model[4].layers[3], [0])  # depthwise
    smaller, report = wk.simplify(model, x)
    block = smaller[4].layers
    assert block[0].out_channels == block[3].groups == block[6].reduce.in_channels == block[7].in_channels == 9
    assert block[6].expand.out_channels == 9
    assert report.kept["4.layers.6.expand"].tolist() == [1, 2, 4, 6, 7, 8, 9, 10, 11]
    assert equal(smaller(x), model(x))
