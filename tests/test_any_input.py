"""Any geometry gives stock's gradients; what stock refuses is refused in the same words."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.nn as nn
from hypothesis import given, settings
from torch import Tensor

import wuskern as wk
from tests.cases import LAYOUTS
from tests.oracle import Flag, gradients, plain, set_flags

pytestmark = pytest.mark.usefixtures("one_thread")

# ---- Conv2d's geometry ----------------------------------------------------------------------------------------------


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Conv2d, Tensor]:
    """A small layer in float64, and an input whose padded image is at least as large as the dilated kernel."""

    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    groups = draw(st.integers(1, 3))
    channels, out = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    kernel, dilation = pair(1, 4), pair(1, 3)
    padding = draw(st.sampled_from(["same", "valid", pair(0, 3)]))
    stride = (1, 1) if padding == "same" else pair(1, 3)
    mode = draw(st.sampled_from(["zeros", "circular", "reflect", "replicate"]))
    span = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    # reflect and circular take no more than the image has to give
    height, width = (draw(st.integers(s + 3, s + 6)) if mode != "zeros" else draw(st.integers(s, s + 4)) for s in span)
    batch = draw(st.sampled_from([0, 1, 2, 3]) if mode in ("zeros", "replicate") else st.integers(1, 3))
    layer = nn.Conv2d(
        channels, out, kernel, stride, padding, dilation, groups, draw(st.booleans()), mode, dtype=torch.float64
    )  # fmt: skip
    x = LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))](torch.randn(batch, channels, height, width, dtype=torch.float64))
    if draw(st.booleans()):
        layer = layer.to(memory_format=torch.channels_last)
    return layer, x[0] if batch and draw(st.booleans()) else x


@st.composite
def flags(draw: st.DrawFn, layer: nn.Conv2d) -> Flag:
    """A skip, or as many rows in each group."""
    of_group = layer.out_channels // layer.groups
    k = draw(st.integers(0, of_group))
    if k == 0:
        return True
    index = [g * of_group + row for g in range(layer.groups) for row in draw(st.permutations(range(of_group)))[:k]]
    return wk.Rows(index, draw(st.sampled_from(["weight", "both"])), draw(st.sampled_from(["dense", "rows"])))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_conv2d_of_any_geometry(data):
    layer, x = data.draw(convolutions())
    flag = data.draw(flags(layer))
    expected = gradients(set_flags(plain(copy.deepcopy(layer)), flag), x)
    strides = {name: value.stride() for name, value in gradients(layer, x).items() if value is not None}
    if isinstance(flag, wk.Rows) and len(flag.index) < layer.out_channels:
        strides["weight"] = layer.weight.stride()  # stock's differ where a dimension has the size 1
    ours = gradients(set_flags(wk.convert(layer), flag), x)
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert (ours[name] is None) == (value is None), name
        if value is not None:
            torch.testing.assert_close(ours[name], value)
            assert ours[name].stride() == strides[name], name


# ---- dtypes without a kernel of ours --------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda **k: wk.SkippableLinear(5, 3, **k), lambda **k: wk.SkippableConv2d(2, 3, 3, **k)])
def test_complex_numbers_take_the_stock_path(make):
    ours = set_flags(make(dtype=torch.complex64), True)
    x = torch.randn(2, 2, 5, 5, dtype=torch.complex64, requires_grad=True)
    ours(x).abs().sum().backward()
    assert ours.weight.grad is None  # a constant, by stock's own means
    assert x.grad is not None


# ---- what stock refuses ---------------------------------------------------------------------------------------------


def refusal(layer: Callable[[Any], Any], x: Any) -> tuple[type, str] | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            layer(x)
    except Exception as error:
        return type(error), str(error)
    return None


LINEAR_INPUTS = {
    "features": torch.zeros(5, 5),
    "no features": torch.zeros(0),
    "0-d": torch.tensor(1.0),
    "float64": torch.zeros(2, 4, dtype=torch.float64),
    "int64": torch.zeros(2, 4, dtype=torch.int64),
    "meta": torch.zeros(2, 4, device="meta"),
    "str": "x",
    "None": None,
    "list": [1.0] * 4,
}
CONV_INPUTS = {
    "channels": torch.zeros(1, 3, 9, 9),
    "channels, unbatched": torch.zeros(3, 9, 9),
    "no channels": torch.zeros(1, 0, 9, 9),
    "0-d": torch.tensor(1.0),
    "2-d": torch.zeros(9, 9),
    "5-d": torch.zeros(1, 1, 4, 9, 9),
    "small image": torch.zeros(1, 4, 1, 1),
    "small image, unbatched": torch.zeros(4, 1, 1),
    "no pixels": torch.zeros(1, 4, 0, 9),
    "float64": torch.zeros(1, 4, 9, 9, dtype=torch.float64),
    "int64": torch.zeros(1, 4, 9, 9, dtype=torch.int64),
    "None": None,
}
CONVS = {
    "plain": dict(kernel_size=3),
    "dilated": dict(kernel_size=3, dilation=9),
    "same": dict(kernel_size=3, padding="same"),
    "same even": dict(kernel_size=2, padding="same"),
    "valid": dict(kernel_size=3, padding="valid"),
    "reflect": dict(kernel_size=3, padding=1, padding_mode="reflect"),
    "circular": dict(kernel_size=3, padding=(1, 2), padding_mode="circular"),
    "replicate": dict(kernel_size=3, padding="same", padding_mode="replicate"),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("x", LINEAR_INPUTS)
def test_linear_refuses_in_the_words_of_stock(x, bias):
    layer = nn.Linear(4, 3, bias)
    assert refusal(layer, LINEAR_INPUTS[x]) == refusal(set_flags(wk.convert(layer), True), LINEAR_INPUTS[x])


@pytest.mark.parametrize("geometry", CONVS)
@pytest.mark.parametrize("x", CONV_INPUTS)
@pytest.mark.parametrize("bias", [True, False])
def test_conv2d_refuses_in_the_words_of_stock(geometry, x, bias):
    layer = nn.Conv2d(4, 2, bias=bias, **CONVS[geometry])
    assert refusal(layer, CONV_INPUTS[x]) == refusal(set_flags(wk.convert(layer), True), CONV_INPUTS[x])


def test_autocast_refuses_in_the_words_of_stock():
    layer, x = nn.Conv2d(4, 2, 3, padding="same"), torch.zeros(1, 4, 9, 9, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        expected = refusal(layer, x)
        assert expected is not None
        assert refusal(set_flags(wk.convert(layer), True), x) == expected


def test_the_constructors_refuse_in_the_words_of_stock():
    for arguments in [dict(padding="full"), dict(padding="same", stride=2), dict(groups=3), dict(padding_mode="mirror")]:
        expected = refusal(lambda _, a=arguments: nn.Conv2d(4, 2, 3, **a), None)
        assert expected is not None
        assert refusal(lambda _, a=arguments: wk.SkippableConv2d(4, 2, 3, **a), None) == expected
