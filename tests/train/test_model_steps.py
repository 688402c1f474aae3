"""One step of every network beside the same one of stock layers, in float64 and, for images, channels_last."""

import copy

import pytest
import torch
import torch.nn.functional as F

import wuskern as wk
from wuskern.modules import skippable_layers
from wuskern.policies import MeProp
from wuskern.train.models import FOR_TEXT, MODELS, build

RATIO = 0.3


def prepared(name):
    """A small network with converted layers, gradients of all of its stock twin, and a function that gives its own."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    if name in FOR_TEXT:
        model = build(name, 6, (), 30, 0.25)
        x, y = torch.randint(30, (2, 2, 6), generator=generator)
    else:
        model = build(name, 3, (8, 8), 7, 0.25).to(memory_format=torch.channels_last)
        x = torch.randn(4, 3, 8, 8, generator=generator, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
        y = torch.randint(7, (4,), generator=generator)
    stock = model.double()
    model = wk.convert(copy.deepcopy(stock))

    def gradients(of):
        torch.manual_seed(1)  # dropout
        of.zero_grad()
        F.cross_entropy(of(x).flatten(0, -2), y.flatten()).backward()
        return {name: p.grad for name, p in of.named_parameters()}

    return model, gradients(stock), lambda: gradients(model)


@pytest.mark.parametrize("name", MODELS)
def test_a_skip_leaves_out_the_weights_and_nothing_else(name):
    model, stock, gradients = prepared(name)
    wk.set_skip(model, True)
    skipped = {f"{layer}.weight" for layer in skippable_layers(model)}
    for parameter, grad in gradients().items():
        if parameter in skipped:
            assert grad is None, parameter
        else:
            torch.testing.assert_close(grad, stock[parameter], rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", MODELS)
def test_chosen_rows_of_all_layers_but_the_last_are_those_of_stock(name):
    model, stock, gradients = prepared(name)
    policy = MeProp(model, ratio=RATIO, scope="weight")
    assert policy.dense == (list(policy.layers)[-1],)
    grads = gradients()
    for layer_name, layer in policy.layers.items():
        grad = grads.pop(f"{layer_name}.weight")
        dense = stock[f"{layer_name}.weight"]
        out, groups = layer.units.out, layer.units.groups
        kept = grad.flatten(1).any(1)
        most = out if layer_name in policy.dense else max(1, int(RATIO * out) // groups) * groups
        assert 0 < kept.sum() <= most, layer_name
        torch.testing.assert_close(grad[kept], dense[kept], rtol=1e-7, atol=1e-10)
    for parameter, grad in grads.items():  # biases, norms, embeddings
        torch.testing.assert_close(grad, stock[parameter], rtol=1e-7, atol=1e-10)


def test_a_depthwise_convolution_has_all_its_rows_or_is_refused_by_name():
    """Each row is a group of its own, and rows are chosen as many in each group."""
    model, stock, gradients = prepared("efficientnet")
    depthwise = [name for name, layer in skippable_layers(model).items() if layer.units.groups > 1]
    assert len(depthwise) == 16
    MeProp(model, ratio=RATIO, scope="weight")
    grads = gradients()
    for name in depthwise:
        torch.testing.assert_close(grads[f"{name}.weight"], stock[f"{name}.weight"], rtol=1e-7, atol=1e-10)
    wk.set_rows(model, None)
    for arguments, problem in (
        ({"k": 1}, "k: expected a multiple of block . groups = 8 up to 8, got 1"),
        ({"ratio": RATIO, "block": 2}, r"block: expected a divisor of 1 rows \(of each group\), got 2"),
    ):
        with pytest.raises(ValueError, match=f"{depthwise[0]}: {problem}"):
            MeProp(model, **arguments)
    assert all(layer.rows is None for layer in skippable_layers(model).values())
