"""What a skipping layer computes in backward, and what it keeps for it."""

import copy
import gc
import weakref

import hypothesis.strategies as st
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from hypothesis import given, settings
from torch.autograd import forward_ad
from torch.profiler import ProfilerActivity, profile

import wuskern as wk
from tests.accuracy import assert_as_right_as_stock
from tests.cases import LAYERS, LAYOUTS, MEMORY_FORMATS


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
@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events")  # torch 2.10's own
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
    assert "aten::sum" in ran  # the bias gradient of so few numbers
    assert not ran & {"aten::mm", "aten::matmul", "aten::convolution", "aten::convolution_backward"}
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


@pytest.mark.parametrize("layout", MEMORY_FORMATS.values(), ids=MEMORY_FORMATS)
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


# ---- derivatives of other kinds -------------------------------------------------------------------------------------


def penalty(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor | None]:
    """The gradients of a gradient penalty, with respect to x and all parameters."""
    x = x.clone().requires_grad_()
    (dx,) = torch.autograd.grad(model(x).pow(3).sum(), x, create_graph=True)
    dx.mul(2).pow(2).sum().backward()
    return [x.grad, *(p.grad for p in model.parameters())]


@pytest.mark.parametrize(("make", "shape"), LAYERS, ids=["linear", "conv2d"])
@pytest.mark.parametrize("layout", [lambda t: t, lambda t: t.movedim(1, -1).contiguous().movedim(-1, 1)], ids=["", "last"])
def test_a_second_derivative_is_that_of_a_frozen_weight(make, shape, layout):
    ours, x = make().double(), layout(torch.randn(shape, dtype=torch.float64))
    stock = wk.revert(copy.deepcopy(ours))
    stock.weight.requires_grad_(False)
    ours.skip = True
    for got, expected in zip(penalty(ours, x), penalty(stock, x), strict=True):
        torch.testing.assert_close(got, expected)
    assert ours.weight.grad is None


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # of torch's own dual numbers
@pytest.mark.parametrize(("make", "shape"), LAYERS, ids=["linear", "conv2d"])
def test_forward_mode_and_torch_func_see_a_constant(make, shape):
    layer, x = make().double(), torch.randn(shape, dtype=torch.float64)
    stock = wk.revert(copy.deepcopy(layer))
    layer.skip = True
    tangents = {name: torch.randn_like(p) for name, p in layer.named_parameters()}
    with forward_ad.dual_level():
        dual = {name: forward_ad.make_dual(p.detach(), tangents[name]) for name, p in layer.named_parameters()}
        _, got = forward_ad.unpack_dual(torch.func.functional_call(layer, dual, forward_ad.make_dual(x, x.sin())))
        _, expected = forward_ad.unpack_dual(
            torch.func.functional_call(stock, dual | {"weight": stock.weight.detach()}, forward_ad.make_dual(x, x.sin()))
        )
    torch.testing.assert_close(got, expected)

    def loss(model: nn.Module, parameters: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, parameters, x).pow(2).sum()

    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    of_each = torch.func.vmap(torch.func.grad(lambda p, x: loss(layer, p, x)), (None, 0))(parameters, x)
    expected = torch.func.vmap(torch.func.grad(lambda p, x: loss(stock, p, x)), (None, 0))(parameters, x)
    torch.testing.assert_close(of_each["bias"], expected["bias"])
    assert not of_each["weight"].any()


@pytest.mark.parametrize(("make", "shape"), LAYERS, ids=["linear", "conv2d"])
def test_a_batched_backward_of_a_skip(make, shape):
    layer, x = make().double(), torch.randn(shape, dtype=torch.float64, requires_grad=True)
    y = wk.revert(copy.deepcopy(layer))(x)
    directions = torch.randn(3, *y.shape, dtype=torch.float64)
    expected = torch.autograd.grad(y, x, directions, is_grads_batched=True)
    layer.skip = True
    torch.testing.assert_close(torch.autograd.grad(layer(x), x, directions, is_grads_batched=True), expected)


RESTRICTED = [
    dict(rows=wk.TopK(k=2)),
    dict(rows=wk.Rows([1, 3], "both")),
    dict(columns=wk.Columns([1, 2])),
    dict(tokens=wk.Tokens(k=1)),
    dict(rows=wk.PerExample(k=1)),
]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.parametrize("parts", RESTRICTED, ids=["TopK", "Rows", "Columns", "Tokens", "PerExample"])
@pytest.mark.parametrize(("make", "shape"), LAYERS, ids=["linear", "conv2d"])
def test_with_rows_columns_or_tokens_they_raise(make, shape, parts):
    layer = make()
    if isinstance(parts.get("rows"), wk.PerExample) and not isinstance(layer, nn.Linear):
        return
    layer.plan = wk.Plan(**parts)
    x = torch.randn(shape, requires_grad=True)
    for of in (lambda y: y.pow(2).sum(), lambda y: y.sum()):  # the gradient of the second one's output has no graph
        for wanted in ([x], [layer.weight], [layer.bias]):
            (gradient,) = torch.autograd.grad(of(layer(x)), wanted, create_graph=True)
            gradient.mul_(2)  # may be changed in place
            with pytest.raises(RuntimeError, match="a layer of wuskern with rows, columns or tokens has no second derivative"):
                gradient.sum().backward()
    y = layer(x)
    with pytest.raises(RuntimeError, match="no batched backward"):
        torch.autograd.grad(y, x, torch.ones(3, *y.shape), is_grads_batched=True)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="no forward-mode derivative"):
        layer(forward_ad.make_dual(x.detach(), torch.ones_like(x)))
    with pytest.raises(RuntimeError, match=r"no part in torch\.func"):
        torch.func.grad(lambda x: layer(x).sum())(x)


@pytest.mark.parametrize(("make", "shape"), LAYERS, ids=["linear", "conv2d"])
def test_a_first_derivative_with_a_graph_is_the_same(make, shape):
    layer, x = make(), torch.randn(shape, requires_grad=True)
    layer.skip = True
    y = layer(x).pow(2).sum()
    expected = torch.autograd.grad(y, (x, layer.bias), retain_graph=True)
    for got, value in zip(torch.autograd.grad(y, (x, layer.bias), create_graph=True), expected, strict=True):
        assert torch.equal(got, value)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo does it
@pytest.mark.parametrize(("make", "shape"), LAYERS, ids=["linear", "conv2d"])
def test_it_compiles_into_one_graph(make, shape):
    layer, x = make(), torch.randn(shape, requires_grad=True)
    layer.skip = True
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    found = (torch.autograd.grad(function(x).pow(2).sum(), (x, layer.bias)) for function in (compiled, layer))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected)


# ---- dX of a convolution, by each of its paths -----------------------------------------------------------------------

FORMATS = (
    LAYOUTS
    | {
        "one element": lambda t: t[:1, :1, :1, :1].expand(t.shape),  # stride 0 throughout
        "channels sliced": lambda t: torch.cat((t, t), 1)[:, : t.shape[1]],
        "channels_last sliced": lambda t: torch.cat((t, t), 1).contiguous(memory_format=torch.channels_last)[:, : t.shape[1]],
    }
)


@st.composite
def convolutions(draw):
    """Arguments of F.conv2d and a gradient of the output, each in a memory format of its own."""

    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
    groups = draw(st.integers(1, 3))
    channels, out = groups * draw(st.sampled_from([1, 2, 8])), groups * draw(st.sampled_from([1, 2, 8]))
    kernel, stride, dilation = draw(st.sampled_from([(1, 1), (3, 3), (1, 2), (3, 2)])), pair(1, 3), pair(1, 2)
    padding = tuple(draw(st.integers(0, d * (k - 1))) for d, k in zip(dilation, kernel, strict=True))
    side = tuple(max(draw(st.sampled_from([1, 2, 7, 33])), d * (k - 1) + 1) for d, k in zip(dilation, kernel, strict=True))
    x = torch.randn(draw(st.sampled_from([0, 1, 2, 17])), channels, *side).to(dtype)
    weight = torch.randn(out, channels // groups, *kernel).to(dtype)
    x, weight = (FORMATS[draw(st.sampled_from(sorted(FORMATS)))](t) for t in (x, weight))
    arguments = (weight, None, stride, padding, dilation, groups)
    dy = torch.randn(F.conv2d(x, *arguments).shape).to(dtype)
    return x, arguments, FORMATS[draw(st.sampled_from(sorted(FORMATS)))](dy)


@settings(max_examples=60, deadline=None)
@given(convolutions())
def test_dx_of_any_formats_has_stocks_values_and_strides(problem):
    x, arguments, dy = problem
    found = []
    for skip in (False, True):
        leaf = x.detach().requires_grad_()
        y = wk.functional.conv2d(leaf, *arguments, skip=skip)
        found.append(torch.autograd.grad(y, leaf, dy)[0])
    stock, ours = found
    assert ours.stride() == stock.stride()
    weight, _, *geometry = arguments
    geometry = [*geometry[:3], False, (0, 0), geometry[3]]
    exact, magnitudes = (
        torch.ops.aten.convolution_backward(of(dy), of(x), of(weight), None, *geometry, (True, False, False))[0]
        for of in (torch.Tensor.double, lambda t: t.double().abs())
    )
    assert_as_right_as_stock(ours, stock, exact, magnitudes)


def test_a_1x1_convolution_that_pads_is_no_product_of_its_images():
    stock, x = nn.Conv2d(3, 4, 1, padding=1), torch.randn(2, 3, 40, 40)
    ours, found = wk.convert(copy.deepcopy(stock)), []
    ours.skip = True
    for layer in (stock, ours):
        leaf = x.detach().requires_grad_()
        layer(leaf).square().sum().backward()
        found.append(leaf.grad)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(("kernel", "padding"), [(3, 1), (1, 0)])
def test_no_input_is_made_up_for_its_shape(kernel, padding):
    """A skipped convolution allocates dX and db in backward, and nothing else of the input's size."""
    for layout in MEMORY_FORMATS.values():
        layer = wk.SkippableConv2d(16, 32, kernel, padding=padding)
        x = torch.randn(8, 16, 48, 48).contiguous(memory_format=layout)
        layer.skip = True
        y = layer(x.requires_grad_())
        dy = torch.randn_like(y)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as events:
            torch.autograd.grad(y, x, dy)
        allocated = [e.self_cpu_memory_usage for e in events.events() if e.self_cpu_memory_usage > 0]
        assert sum(a >= x.numel() * 4 for a in allocated) == 1, layout
