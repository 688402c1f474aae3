"""SkippableLinear and SkippableConv2d: dense is stock bit for bit; skip gives dX and db, and no dW."""

import copy

import pytest
import torch
import torch.nn as nn

import wuskern as wk
from tests.accuracy import assert_as_right_as_stock, exact_channel_sums
from tests.cases import CONVS, LAYERS, LAYOUTS, MEMORY_FORMATS


def backward(layer: nn.Module, x: torch.Tensor, of_dy=torch.clone) -> dict[str, torch.Tensor | None]:
    """Output, its random gradient (always the same one), and the gradients of one forward and backward."""
    layer.zero_grad()
    x, dx = x.detach().requires_grad_(), []
    x.register_hook(dx.append)  # x.grad would have the strides of x, whatever backward gave
    y = layer(x)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    dy = of_dy(dy.to(torch.bfloat16).to(y))  # a value that every dtype holds exactly
    y.backward(dy)
    bias = layer.bias.grad if layer.bias is not None else None
    return {"y": y.detach(), "dy": dy, "x": dx[0], "weight": layer.weight.grad, "bias": bias}


def check_gradients(stock: nn.Module, x: torch.Tensor, expected: dict, skipped: dict) -> None:
    """Y, dX and db as right as stock's against float64, in stock's strides, and no weight gradient."""
    assert skipped["weight"] is None
    double = copy.deepcopy(stock).double()
    exact = backward(double, x.double())
    magnitudes = backward(with_magnitudes(double), x.double().abs(), torch.abs)
    for name in ("y", "x"):
        assert_as_right_as_stock(skipped[name], expected[name], exact[name], magnitudes[name])
        assert skipped[name].stride() == expected[name].stride()
    if expected["bias"] is not None:
        sums = exact_channel_sums(expected["dy"], -1 if isinstance(stock, nn.Linear) else -3)
        assert_as_right_as_stock(skipped["bias"], expected["bias"], sums, magnitudes["bias"])


def with_magnitudes(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        parameter.data.abs_()
    return layer


def check_against_stock(stock: nn.Module, ours: nn.Module, x: torch.Tensor) -> None:
    """Dense: the same bits. Skip: as right as stock."""
    expected, dense = backward(stock, x), backward(ours, x)
    for name, value in expected.items():
        assert (value is None and dense[name] is None) or torch.equal(dense[name], value), name
        if value is not None:
            assert dense[name].stride() == value.stride()

    ours.skip = True
    check_gradients(stock, x, expected, backward(ours, x))


@pytest.mark.pairs
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (7, 5), (2, 3, 5), (0, 5)], ids=str)
def test_linear(shape, bias, dtype):
    stock = nn.Linear(5, 20, bias, dtype=dtype)
    check_against_stock(stock, wk.convert(copy.deepcopy(stock)), torch.randn(shape).to(dtype))


@pytest.mark.pairs
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", MEMORY_FORMATS.values(), ids=MEMORY_FORMATS)
@pytest.mark.parametrize("case", CONVS, ids=str)
def test_conv2d(case, layout, dtype):
    stock = case.layer(dtype).to(memory_format=layout)
    x = case.input(dtype).contiguous(memory_format=layout)
    check_against_stock(stock, wk.convert(copy.deepcopy(stock)), x)


@pytest.mark.parametrize("case", [c for c in CONVS if c.batch], ids=str)
def test_conv2d_unbatched(case):
    stock = case.layer()
    check_against_stock(stock, wk.convert(copy.deepcopy(stock)), case.input()[0])


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name not in ("contiguous", "channels_last")])
@pytest.mark.parametrize("case", CONVS, ids=str)
def test_conv2d_of_a_strided_input(case, layout):
    stock = case.layer()
    check_against_stock(stock, wk.convert(copy.deepcopy(stock)), LAYOUTS[layout](case.input()))


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "channels_last"])
@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 5), (2, 3, 4, 5), (1, 5), (0, 3, 5)], ids=str)
def test_linear_of_a_strided_input(shape, layout):
    stock = nn.Linear(5, 20)
    check_against_stock(stock, wk.convert(copy.deepcopy(stock)), LAYOUTS[layout](torch.randn(shape)))


@pytest.mark.gpu
@pytest.mark.parametrize("layout", MEMORY_FORMATS.values(), ids=MEMORY_FORMATS)
@pytest.mark.parametrize("case", CONVS, ids=str)
def test_conv2d_on_a_gpu(case, layout):
    stock = case.layer().to("cuda", memory_format=layout)
    ours = wk.convert(copy.deepcopy(stock))
    ours.skip = True
    x = case.input().cuda().contiguous(memory_format=layout)
    check_gradients(stock, x, backward(stock, x), backward(ours, x))


def test_a_stock_layer_written_directly():
    layer = wk.SkippableConv2d(3, 4, 3, padding="same", device="cpu", dtype=torch.float64)
    assert isinstance(layer, nn.Conv2d)
    assert layer.state_dict().keys() == nn.Conv2d(3, 4, 3).state_dict().keys()
    layer.skip = True
    assert repr(layer).endswith("padding=same, skip=True)")


# ---- the flag --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "shape"), LAYERS, ids=["linear", "conv2d"])
@pytest.mark.parametrize("skip", [True, False])
def test_the_flag_is_latched_in_forward(make, shape, skip):
    layer = make()
    layer.skip = skip
    y = layer(torch.randn(shape))
    layer.skip = not skip
    y.sum().backward()
    assert (layer.weight.grad is None) == skip


@pytest.mark.parametrize(("make", "shape"), LAYERS, ids=["linear", "conv2d"])
def test_a_gradient_that_is_there_stays(make, shape):
    layer, x = make(), torch.randn(shape)
    layer(x).sum().backward()
    before = layer.weight.grad.clone()
    layer.skip = True
    layer(x).sum().backward()
    assert torch.equal(layer.weight.grad, before)


@pytest.mark.parametrize(("make", "shape"), LAYERS, ids=["linear", "conv2d"])
def test_without_gradients_it_is_the_stock_path(make, shape):
    layer = make()
    expected = layer(torch.zeros(shape))
    layer.skip = True
    with torch.no_grad():
        assert layer(torch.zeros(shape)).grad_fn is None
    torch.testing.assert_close(torch.export.export(layer, (torch.zeros(shape),)).module()(torch.zeros(shape)), expected)


@pytest.mark.parametrize(("make", "shape"), LAYERS, ids=["linear", "conv2d"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(make, shape, dtype):
    layer, x = make(), torch.randn(shape)
    grads = {}
    for layer.skip in (False, True):
        with torch.autocast("cpu", dtype):
            grads[layer.skip] = backward(layer, x)
    assert grads[True]["y"].dtype == dtype
    assert grads[True]["weight"] is None
    for name in ("x", "bias"):
        assert grads[True][name].dtype == torch.float32
        torch.testing.assert_close(grads[True][name], grads[False][name], rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize(("make", "shape"), LAYERS, ids=["linear", "conv2d"])
def test_copies_keep_the_flag_and_checkpoints_do_not_hold_it(make, shape):
    layer = make()
    layer.skip = True
    assert copy.deepcopy(layer).skip is True
    assert set(layer.state_dict()) == {"weight", "bias"}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_nested_tensors_take_the_stock_path():
    layer = wk.SkippableLinear(3, 2)
    layer.skip = True
    nested = torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(4, 3)], layout=torch.strided)
    assert [t.shape for t in layer(nested).unbind()] == [(2, 2), (4, 2)]


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", [wk.Plan(skip=True), wk.Plan(rows=wk.Rows([0])), wk.Plan(tokens=wk.Tokens(k=1))], ids=str)
@pytest.mark.parametrize(("make", "shape"), LAYERS, ids=["linear", "conv2d"])
def test_an_input_of_another_dtype_is_refused_as_stock_refuses_it(make, shape, plan):
    layer, x = wk.convert(make()), torch.randn(shape, dtype=torch.bfloat16, requires_grad=True)
    with pytest.raises(RuntimeError) as stock:
        layer(x)
    layer.plan = plan
    with pytest.raises(RuntimeError) as ours:
        layer(x)
    assert str(ours.value) == str(stock.value)


def test_bad_input():
    with pytest.raises(TypeError, match="skip: expected True or False, got 1"):
        wk.set_skip(wk.convert(nn.Linear(2, 2)), 1)
    with pytest.raises(ValueError, match="model: expected at least one converted layer"):
        wk.set_skip(nn.Linear(2, 2), True)
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got list"):
        wk.set_skip([], True)
    with pytest.raises(ValueError, match="padding: expected numbers, 'same' or 'valid', got 'full'"):
        wk.functional.conv2d(torch.zeros(1, 1, 4, 4, requires_grad=True), torch.zeros(1, 1, 3, 3), padding="full", skip=True)
    with pytest.raises(RuntimeError, match="strided"):
        wk.functional.conv2d(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 3, 3), stride=2, padding="same", skip=True)
