"""The op piecewise_, on every backend that runs here, against PyTorch's activations and the bits of pack_bits."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import backends_that_run, obstacle_to, on_backend
from tests.ops.test_pack_bits import expected, special
from tests.strategies import strided_gradients
from wuskern import ops
from wuskern.common.shapes import fills_memory

pytestmark = pytest.mark.op("piecewise_")
DTYPES = list(ops.DTYPES)
LINE = torch.zeros(9)
ACTIVATIONS = {  # PyTorch's function, and low, high, nan, outside
    "relu": (F.relu, 0.0, None, True, None),
    "relu6": (F.relu6, 0.0, 6.0, True, None),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.25), 0.0, None, False, 0.25),
    "hardtanh": (lambda x: F.hardtanh(x, -0.5, 0.5), -0.5, 0.5, True, None),
    "slopes": (lambda x: torch.where(x.isnan() | ((x > -0.5) & (x < 0.5)), x, x * 2), -0.5, 0.5, True, 2.0),
}
each_activation = pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)


def check(x, function, low, high, nan, outside, inplace: bool) -> None:
    given, y = x.clone(), x if inplace else torch.full_like(x, 7)
    bits = ops.piecewise_(y, x, low, high, nan, outside)
    torch.testing.assert_close(y, function(given), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(y.signbit() | y.isnan(), function(given).signbit() | y.isnan())
    assert y.stride() == given.stride()
    assert bits.tolist() == expected(given, low, high, nan)
    assert inplace or torch.equal(x.nan_to_num(), given.nan_to_num())


def test_hand_worked(backend):
    x = torch.tensor([1.0, -1.0, 0.0, 7.0, 2.0, 6.0, -2.0, 3.0, math.inf])
    y = torch.empty(9)
    assert ops.piecewise_(y, x, 0.0, 6.0).tolist() == [0b10010001, 0]
    assert y.tolist() == [1, 0, 0, 6, 2, 6, 0, 3, 6]
    assert ops.piecewise_(x, x, 0.0, None, False, 0.5).tolist() == [0b10111001, 1]
    assert x.tolist() == [1, -0.5, 0, 7, 2, 6, -1, 3, math.inf]


@each_activation
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cases(dtype, inplace, activation, backend):
    for n in (0, 1, 7, 8, 9, 16, 17, 31, 1000):
        check(special(torch.randn(n).to(dtype)), *activation, inplace)
    x = special(torch.randn(3, 5, 4, 6).to(dtype))
    for one in (x, x.contiguous(memory_format=torch.channels_last), x.permute(2, 0, 3, 1)):
        check(one.clone(), *activation, inplace)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_product_is_rounded_once(dtype, backend):
    if (backend, dtype) == ("triton", torch.bfloat16):
        pytest.skip("Triton's interpreter rounds bfloat16 in another way")
    check(special(torch.randn(1000).to(dtype)), lambda x: F.leaky_relu(x, 0.3), 0.0, None, False, 0.3, inplace=False)


def test_more_than_a_block(backend):
    x = torch.randn(40_003 if backend != "triton" else 9_003)
    check(x[1:], *ACTIVATIONS["relu6"], inplace=True)  # unaligned, too


@settings(max_examples=40)
@given(strided_gradients(DTYPES), st.sampled_from([*ACTIVATIONS.values()]), st.booleans())
def test_any_layout(drawn, activation, inplace):
    for name in backends_that_run("piecewise_"):
        with on_backend(name):
            x = drawn[0].clone() if fills_memory(drawn[0]) else drawn[0].contiguous()
            check(x, *activation, inplace)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_opcheck(dtype, backend):
    x = torch.randn(2, 3, 4, 5)
    for one in (x, x.contiguous(memory_format=torch.channels_last), x[:0]):
        one = one.to(dtype)
        torch.library.opcheck(torch.ops.wuskern.piecewise_.default, (torch.empty_like(one), one, 0.0, 6.0, True, None))


def test_what_it_writes_to_counts_as_changed(backend):
    x = torch.randn(9)
    y = torch.empty(9)
    before = y._version, x._version
    ops.piecewise_(y, x, 0.0)
    assert y._version > before[0]
    assert x._version == before[1]


@pytest.mark.parametrize(
    ("y", "x", "rest", "message"),
    [
        (torch.zeros(3), torch.zeros(3).long(), (0.0,), "x: expected float64, float32, float16 or bfloat16, got torch.int64"),
        (torch.zeros(3), torch.zeros(3).half(), (0.0,), "y: expected torch.float16 as x has, got torch.float32"),
        (torch.zeros(4), torch.zeros(3), (0.0,), r"y: expected \[3\] in strides"),
        (torch.zeros(2, 3).t(), torch.zeros(3, 2), (0.0,), r"y: expected \[3, 2\] in strides \(2, 1\), got .* in \(1, 3\)"),
        (torch.zeros(8)[::2], torch.zeros(8)[::2], (0.0,), "x: expected a tensor that fills its memory"),
        (torch.zeros(3), torch.zeros(3), (0.0, None, False), "nan: expected True without outside"),
        (LINE[1:], LINE[:-1], (0.0,), "y: expected x itself or memory of its own"),
        (LINE[:-1], LINE[1:], (0.0,), "y: expected x itself or memory of its own"),
    ],
)
def test_wrong_arguments(y, x, rest, message):
    with pytest.raises((TypeError, ValueError), match=message):
        ops.piecewise_(y, x, *rest)


def test_the_compiled_op_guards_its_memory():
    if obstacle := obstacle_to("piecewise_", "native"):
        pytest.skip(obstacle)
    native = torch.ops.wuskern_native.piecewise_
    line = torch.zeros(9)
    for y, x in ((torch.zeros(3), torch.zeros(4)), (line[1:], line[:-1]), (torch.zeros(8)[::2], torch.zeros(8)[::2])):
        with pytest.raises(RuntimeError, match=r"[xy]: expected"):
            native(y, x, 0.0, None, True, None)
