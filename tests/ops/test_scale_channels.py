"""The op scale_channels, on every backend that runs here, against a product that PyTorch broadcasts."""

import pytest
import torch
from hypothesis import given, settings
from torch.utils.flop_counter import FlopCounterMode

from tests.cases import GRADIENTS
from tests.conftest import backends_that_run, obstacle_to, on_backend
from tests.ops.test_gather_rows import strides
from tests.ops.test_scale_by_bits import rounds
from tests.strategies import strided_gradients
from wuskern import ops

pytestmark = pytest.mark.op("scale_channels")
DTYPES = list(ops.DTYPES)


def check(dy: torch.Tensor, dim: int) -> None:
    scale = torch.randn(dy.shape[dim], dtype=torch.promote_types(dy.dtype, torch.float32), device=dy.device)
    got = ops.scale_channels(dy, scale, dim)
    expected = (dy.transpose(dim, -1) * scale).transpose(dim, -1).to(dy.dtype)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    dense = dy.numel() and dy.stride() in [t.stride() for t in (dy.clone(), dy.contiguous())]
    assert not dense or strides(got) == strides(dy)


def test_hand_worked(backend):
    dy = torch.tensor([[1.0, 2.0], [3.0, -4.0]])
    assert ops.scale_channels(dy, torch.tensor([2.0, 0.5]), 1).tolist() == [[2, 1], [6, -2]]
    assert ops.scale_channels(dy, torch.tensor([2.0, 0.5]), 0).tolist() == [[2, 4], [1.5, -2]]


@pytest.mark.pairs
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", GRADIENTS, ids=str)
def test_cases(case, dtype, backend, device):
    if not rounds(backend, dtype):
        pytest.skip("Triton's interpreter does not round in bfloat16")
    check(case.make(dtype, device), case.dim)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_more_than_a_task(dtype, backend):
    if not rounds(backend, dtype):
        pytest.skip("Triton's interpreter does not round in bfloat16")
    for shape in ((3, 130, 9, 11), (700, 65), (2, 3, 5, 7, 4)):
        check(torch.randn(shape).to(dtype), 1)


@settings(max_examples=40)
@given(strided_gradients(DTYPES))
def test_any_layout(drawn):
    for name in backends_that_run("scale_channels"):
        if not rounds(name, drawn[0].dtype):
            continue
        with on_backend(name):
            check(*drawn)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_opcheck(dtype, backend):
    dy = torch.randn(2, 3, 4, 5).to(dtype)
    for one in (dy, dy.contiguous(memory_format=torch.channels_last), dy[..., ::2], dy[:0]):
        torch.library.opcheck(torch.ops.wuskern.scale_channels.default, (one, torch.randn(3), 1))


def test_flops():
    with FlopCounterMode(display=False) as counter:
        ops.scale_channels(torch.randn(3, 4), torch.randn(4), 1)
    assert counter.get_total_flops() == 12


def test_wrong_arguments():
    with pytest.raises(TypeError, match=r"scale: expected torch.float32, got torch.float16"):
        ops.scale_channels(torch.zeros(3, 4).half(), torch.zeros(4).half(), 1)
    with pytest.raises(ValueError, match=r"scale: expected \[4\], got \[3\]"):
        ops.scale_channels(torch.zeros(3, 4), torch.zeros(3), 1)
    with pytest.raises(ValueError, match="dim: expected a dimension of dy, which has 2, got 2"):
        ops.scale_channels(torch.zeros(3, 4), torch.zeros(3), 2)


def test_the_compiled_op_guards_its_memory():
    if obstacle := obstacle_to("scale_channels", "native"):
        pytest.skip(obstacle)
    dy, scale = torch.zeros(3, 4), torch.zeros(4)
    for wrong in ((dy.int(), scale, 1), (dy, scale.double(), 1), (dy, scale, 0), (dy, scale, 2), (dy, torch.zeros(8)[::2], 1)):
        with pytest.raises(RuntimeError, match=r"(dy|scale|dim): expected"):
            torch.ops.wuskern_native.scale_channels(*wrong)
