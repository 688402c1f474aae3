"""BatchNorm in evaluation mode that keeps nothing for a weight which does not train, against PyTorch's own."""

import copy

import pytest
import torch
import torch.nn as nn
from torch.autograd.graph import saved_tensors_hooks

from tests.accuracy import assert_as_right_as_stock
from tests.memory.twins import lean
from wuskern.memory.layers import LeanBatchNorm2d

NORMS = {
    "1d": (nn.BatchNorm1d, (9, 6)),
    "1d of lines": (nn.BatchNorm1d, (4, 6, 11)),
    "2d": (nn.BatchNorm2d, (4, 6, 5, 7)),
    "3d": (nn.BatchNorm3d, (2, 6, 3, 4, 5)),
}
each_norm = pytest.mark.parametrize(("make", "shape"), NORMS.values(), ids=NORMS)


def norm(make: type[nn.Module], dtype: torch.dtype = torch.float32, **arguments) -> nn.Module:
    """One in evaluation mode whose weight does not train."""
    layer = make(6, **arguments).to(dtype)
    if layer.affine:
        nn.init.uniform_(layer.weight, 0.5, 2)
        nn.init.normal_(layer.bias)
        layer.weight.requires_grad_(False)
    nn.init.normal_(layer.running_mean)
    nn.init.uniform_(layer.running_var, 0.5, 2)
    return layer.eval()


def gradients(layer: nn.Module, x: torch.Tensor, dy: torch.Tensor) -> tuple[torch.Tensor, ...]:
    layer, leaf = copy.deepcopy(layer), x.detach().requires_grad_()
    y = layer(leaf)
    y.backward(dy.to(y.dtype))
    return y.detach(), leaf.grad, getattr(layer.bias, "grad", None)


def kept(layer: nn.Module, x: torch.Tensor) -> int:
    sizes = []
    with saved_tensors_hooks(lambda t: sizes.append(t.untyped_storage().nbytes()) or t, lambda t: t):
        layer(x.detach().requires_grad_())
    return sum(sizes)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@each_norm
def test_gradients(make, shape, dtype, affine):
    layer, x, dy = norm(make, dtype, affine=affine), torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    exact = gradients(copy.deepcopy(layer).double(), x.double(), dy.double())
    stock, ours = gradients(layer, x, dy), gradients(lean(layer), x, dy)
    assert torch.equal(ours[0], stock[0])
    assert ours[1].stride() == stock[1].stride()
    for mine, theirs, right in zip(ours[1:], stock[1:], exact[1:], strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            assert mine.dtype is theirs.dtype
            assert_as_right_as_stock(mine, theirs, right, right.abs())
    assert kept(lean(layer), x) <= 6 * 8


@pytest.mark.parametrize("layout", ["channels_last", "transposed"])
def test_layouts(layout):
    layer, x = norm(nn.BatchNorm2d), torch.randn(4, 6, 5, 7)
    x = x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x.transpose(2, 3)
    ours, stock = (
        gradients(one, x, torch.randn(x.shape, generator=torch.Generator().manual_seed(1))) for one in (lean(layer), layer)
    )
    assert ours[0].stride() == stock[0].stride()
    for mine, theirs in zip(ours, stock, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_half_precision_beside_wide_parameters():
    """As under autocast on a GPU."""
    layer, x = norm(nn.BatchNorm2d), torch.randn(4, 6, 5, 7).bfloat16()
    dy = torch.randn(x.shape).bfloat16()
    ours, stock = gradients(lean(layer), x, dy), gradients(layer, x, dy)
    assert [t.dtype for t in ours] == [t.dtype for t in stock]
    for mine, theirs in zip(ours, stock, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("how", ["training", "trains", "no statistics"])
def test_stock_where_the_input_is_needed(how):
    layer = norm(nn.BatchNorm2d)
    if how == "training":
        layer.train()
    elif how == "trains":
        layer.weight.requires_grad_()
    else:
        layer = nn.BatchNorm2d(6, track_running_stats=False).eval().requires_grad_(False)
    x, dy = torch.randn(4, 6, 5, 7), torch.randn(4, 6, 5, 7)
    for mine, theirs in zip(gradients(lean(layer), x, dy), gradients(layer, x, dy), strict=True):
        assert (mine is None and theirs is None) or torch.equal(mine, theirs)
    assert kept(lean(layer), x) >= x.nbytes


def test_training_and_evaluation_in_turn():
    """The switch is looked at in each forward, and statistics move as PyTorch's do."""
    layer, x = norm(nn.BatchNorm2d), torch.randn(4, 6, 5, 7)
    twin = lean(layer)
    for mode in (True, False, True, True, False):
        layer.train(mode), twin.train(mode)
        for mine, theirs in zip(gradients(twin, x, x), gradients(layer, x, x), strict=True):
            torch.testing.assert_close(mine, theirs)
        layer(x), twin(x)
        assert all(torch.equal(a, b) for a, b in zip(twin.buffers(), layer.buffers(), strict=True))


def test_only_the_bias_trains():
    """The input needs no gradient: nothing but the bias's is computed."""
    layer, x = norm(nn.BatchNorm2d), torch.randn(4, 6, 5, 7)
    twin = lean(layer)
    twin(x).sum().backward()
    assert twin.bias.grad.tolist() == [4 * 5 * 7] * 6
    assert twin.weight.grad is None


def test_wrong_input_is_refused_in_pytorchs_words():
    with pytest.raises(ValueError, match=r"expected 4D input \(got 2D input\)"):
        lean(norm(nn.BatchNorm2d))(torch.randn(3, 6, requires_grad=True))
    with pytest.raises(RuntimeError, match="running_mean should contain 5 elements not 6"):
        lean(norm(nn.BatchNorm2d))(torch.randn(3, 5, 2, 2, requires_grad=True))


def test_it_is_still_a_batch_norm():
    assert isinstance(lean(nn.BatchNorm2d(6)), nn.BatchNorm2d)
    assert isinstance(nn.SyncBatchNorm.convert_sync_batchnorm(lean(nn.BatchNorm2d(6))), nn.SyncBatchNorm)
    assert issubclass(LeanBatchNorm2d, nn.modules.batchnorm._BatchNorm)
