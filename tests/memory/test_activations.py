"""ReLU, ReLU6, LeakyReLU and Dropout that keep bits, against PyTorch's own: the same bits in outputs and gradients."""

import math

import pytest
import torch
import torch.nn as nn
from torch.autograd.graph import saved_tensors_hooks

from tests.memory.twins import ACTIVATIONS, assert_same_bits, lean, run
from wuskern import ops

LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "permuted": lambda x: x.permute(2, 0, 3, 1),
    "sliced": lambda x: x[..., ::2],
}
each_activation = pytest.mark.parametrize("make", ACTIVATIONS.values(), ids=ACTIVATIONS)


def images(dtype: torch.dtype, layout: str = "contiguous") -> torch.Tensor:
    x = torch.randn(3, 5, 8, 6).mul(4).to(dtype)
    line = x.view(-1)
    for i, value in enumerate((0.0, -0.0, 6.0, math.inf, -math.inf)):
        line[i :: 17 + i] = value
    return LAYOUTS[layout](x)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ops.DTYPES, ids=str)
@each_activation
def test_the_same_bits(make, dtype, layout, inplace):
    x, layer = images(dtype, layout), make(inplace=inplace)
    dy = torch.randn(x.shape).to(dtype)
    if make is ACTIVATIONS["negative slope"] and inplace:  # which PyTorch refuses in backward
        assert_same_bits(run(lean(layer), x, dy)[1], run(make(), x, dy)[1])
        return
    for ours, stock in zip(run(lean(layer), x, dy), run(layer, x, dy), strict=True):
        assert_same_bits(ours, stock)


@each_activation
def test_a_nan_passes(make):
    """A long line, so that PyTorch has both of its ways at work; of ReLU6 these differ, and ours is that of its scalars."""
    x = torch.randn(1000)
    x[::9] = math.nan
    ours, stock = run(lean(make()), x), run(make(), x)
    assert_same_bits(ours[0], stock[0])
    if make is nn.ReLU6:
        assert ours[1][::9].tolist() == [1] * 112
        ours[1][::9] = stock[1][::9] = 0
    assert_same_bits(ours[1], stock[1])


@each_activation
def test_gradients_that_are_not_finite(make):
    x, dy = torch.randn(40), torch.randn(40)
    dy[::3], dy[1::3] = math.inf, math.nan
    assert_same_bits(run(lean(make()), x, dy)[1], run(make(), x, dy)[1])


def test_bounds_by_hand():
    x = torch.tensor([-1.0, 0.0, 1.0, 6.0, 7.0])
    assert run(lean(nn.ReLU()), x)[1].tolist() == [0, 0, 1, 1, 1]
    assert run(lean(nn.ReLU6()), x)[1].tolist() == [0, 0, 1, 0, 0]
    assert run(lean(nn.LeakyReLU(0.5)), x)[1].tolist() == [0.5, 0.5, 1, 1, 1]


@pytest.mark.parametrize("dy", ["expanded", "transposed", "channels_last"])
@each_activation
def test_gradients_that_lie_otherwise(make, dy):
    x = images(torch.float32)
    given = {
        "expanded": torch.tensor(2.0).expand(x.shape),
        "transposed": torch.randn(3, 5, 6, 8).transpose(2, 3),
        "channels_last": torch.randn(x.shape).contiguous(memory_format=torch.channels_last),
    }[dy]
    ours, stock = run(lean(make()), x, given)[1], run(make(), x, given)[1]
    torch.testing.assert_close(ours, stock, rtol=0, atol=0)


@pytest.mark.parametrize("p", [0.0, 1.0, 0.5])
@pytest.mark.parametrize("inplace", [False, True])
def test_dropout_at_its_ends_and_in_evaluation(p, inplace):
    layer, x = nn.Dropout(p, inplace), torch.randn(5, 7)
    for mode in (True, False):
        layer.train(mode)
        for ours, stock in zip(run(lean(layer), x), run(layer, x), strict=True):
            assert_same_bits(ours, stock)


def test_dropout_draws_as_many_numbers_as_pytorch():
    after = []
    for layer in (nn.Dropout(0.3), lean(nn.Dropout(0.3))):
        torch.manual_seed(5)
        layer(torch.randn(33, requires_grad=True))
        after.append(torch.rand(4))
    assert torch.equal(*after)


@pytest.mark.parametrize("inplace", [False, True])
@each_activation
def test_a_bit_for_each_element_is_kept(make, inplace):
    kept = []
    x = torch.randn(100, 1001, requires_grad=True).mul(1)
    with saved_tensors_hooks(lambda t: kept.append(t.untyped_storage().nbytes()) or t, lambda t: t):
        lean(make(inplace=inplace))(x)
    assert kept == [-(-x.numel() // 8)]


@each_activation
def test_stock_where_nothing_is_kept(make):
    """No gradients, no input that needs one, nothing in it, whole numbers."""
    layer, x = lean(make()), torch.randn(4, 5)
    assert layer(x).grad_fn is None
    with torch.no_grad():
        assert layer(x.requires_grad_()).grad_fn is None
    assert "PiecewiseFunction" not in str(layer(torch.empty(0, 3, requires_grad=True)).grad_fn)
    if make is nn.ReLU:
        assert make()(torch.arange(-3, 3)).tolist() == layer(torch.arange(-3, 3)).tolist()


def test_shapes_of_one_element_and_none():
    for x in (torch.tensor(-1.5), torch.tensor([2.0]), torch.randn(1, 1, 3, 1)):
        for ours, stock in zip(run(lean(nn.ReLU()), x), run(nn.ReLU(), x), strict=True):
            assert_same_bits(ours, stock)


def test_what_is_changed_afterwards_does_not_matter():
    """PyTorch's ReLU keeps its output, and refuses a backward after a change of it; bits do not change."""
    x = torch.randn(50, requires_grad=True)
    y = lean(nn.ReLU())(x)
    expected = (x > 0).float()
    y.detach().zero_()
    y.sum().backward()
    assert torch.equal(x.grad, expected)


@pytest.mark.parametrize("make", [nn.ReLU, nn.ReLU6], ids=str)
def test_in_place_on_a_leaf_and_on_what_another_keeps_is_refused(make):
    layer = lean(make(inplace=True))
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
        layer(torch.randn(4, requires_grad=True))
    kept = torch.randn(4, requires_grad=True).sigmoid()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        layer(kept).sum().backward()


def test_in_place_on_a_view():
    grads = []
    for layer in (nn.ReLU(inplace=True), lean(nn.ReLU(inplace=True))):
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
        h = x.mul(2)
        layer(h[1:4, ::2])
        h.square().sum().backward()
        grads.append(x.grad)
    assert_same_bits(grads[1], grads[0])


def test_called_twice_and_through_twice():
    layer, x = lean(nn.ReLU()), torch.randn(20, requires_grad=True)
    (layer(x) + 2 * layer(-x)).sum().backward()
    assert torch.equal(x.grad, (x > 0).float() - 2 * (x < 0).float())
    y = layer(x).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert torch.equal(x.grad, 3 * (x > 0).float() - 2 * (x < 0).float())
