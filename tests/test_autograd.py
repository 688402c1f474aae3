"""What a skipping layer computes in backward, and what it keeps for it."""

import copy
import gc
import weakref

import pytest
import torch
import torch.nn as nn
from torch.profiler import ProfilerActivity, profile

import wuskern as wk
from tests.cases import LAYERS

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def test_no_wgrad_primitive_runs(capfd):
    """oneDNN's own log names every primitive: the weight gradient is in it when dense, and absent when skipped."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    layer, x = wk.SkippableConv2d(16, 32, 3, padding=1), torch.randn(8, 16, 12, 12, requires_grad=True)
    logs = {}
    for layer.skip in (False, True):
        capfd.readouterr()
        with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
            layer(x).sum().backward()
        logs[layer.skip] = capfd.readouterr().out
    assert "backward_weights" in logs[False]
    assert "backward_data" in logs[True]
    assert "backward_weights" not in logs[True]


@pytest.mark.parametrize(("skip", "products"), [(False, 3), (True, 2)])
def test_linear_runs_one_product_less(skip, products):
    layer, x = wk.SkippableLinear(64, 32), torch.randn(16, 64, requires_grad=True)
    layer.skip = skip
    with profile(activities=[ProfilerActivity.CPU]) as events:
        layer(x).sum().backward()
    assert sum(e.count for e in events.key_averages() if e.key in ("aten::mm", "aten::addmm")) == products


def saved_bytes(layer: nn.Module, x: torch.Tensor) -> int:
    """Bytes that a forward keeps for backward, other than the parameters."""
    own = {p.data_ptr() for p in layer.parameters()}
    saved = []

    def pack(t: torch.Tensor) -> torch.Tensor:
        if t.data_ptr() not in own:
            saved.append(t.numel() * t.element_size())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = layer(x)
    assert y.requires_grad
    return sum(saved)


@pytest.mark.parametrize(("make", "shape"), LAYERS, ids=["linear", "conv2d"])
def test_the_input_is_not_kept(make, shape):
    layer, x = make(), torch.randn(shape, requires_grad=True)
    assert saved_bytes(layer, x) == x.numel() * 4
    layer.skip = True
    assert saved_bytes(layer, x) == 0

    activation = x * 2
    gone = weakref.ref(activation)
    y = layer(activation)
    del activation
    gc.collect()
    assert gone() is None, "something outside saved_tensors holds the input"
    y.sum().backward()


@pytest.mark.parametrize(("make", "shape"), LAYERS, ids=["linear", "conv2d"])
def test_only_what_is_asked_for_is_computed(make, shape):
    layer = make()
    layer.skip = True
    y = layer(torch.randn(shape)).sum()  # the input needs no gradient: no dgrad
    with profile(activities=[ProfilerActivity.CPU]) as events:
        y.backward()
    ran = {e.key for e in events.key_averages()}
    assert "wuskern::bias_grad" in ran
    assert not ran & {"aten::mm", "aten::matmul", "aten::convolution_backward"}
    assert layer.weight.grad is None
    assert layer.bias.grad is not None

    layer.bias.requires_grad_(False)
    layer.bias.grad = None
    x = torch.randn(shape, requires_grad=True)
    layer(x).sum().backward()
    assert layer.bias.grad is None
    assert x.grad is not None


@pytest.mark.parametrize(("make", "shape"), LAYERS, ids=["linear", "conv2d"])
def test_hooks_of_a_skipped_weight_are_not_called(make, shape):
    layer, calls = make(), []
    layer.weight.register_hook(calls.append)
    layer.weight.register_post_accumulate_grad_hook(calls.append)
    layer.skip = True
    layer(torch.randn(shape)).sum().backward()
    assert calls == []


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_slice_of_a_large_input(layout):
    """dX has stock's strides, and nothing as large as the sliced tensor is allocated."""
    large = torch.randn(2, 64, 9, 9).contiguous(memory_format=layout)
    stock = nn.Conv2d(4, 6, 3)
    ours = wk.convert(copy.deepcopy(stock))
    ours.skip = True
    grads = []
    for layer in (stock, ours):
        x = large[:, :4].detach().requires_grad_()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as events:
            layer(x).sum().backward()
        grads.append(x.grad)
    assert grads[0].stride() == grads[1].stride()
    torch.testing.assert_close(*grads)
    assert max(e.self_cpu_memory_usage for e in events.events()) < large.numel()  # a quarter of its bytes


@pytest.mark.parametrize(("make", "shape"), LAYERS, ids=["linear", "conv2d"])
def test_a_second_derivative_raises(make, shape):
    layer, x = make(), torch.randn(shape, requires_grad=True)
    layer.skip = True
    (dx,) = torch.autograd.grad(layer(x).pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        dx.sum().backward()
