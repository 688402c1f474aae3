"""The products that our paths leave to PyTorch's convolutions, over formats, kernels, strides, dilations and groups: where the
library is wrong, ours must not be. (python -m tests.fuzz.convolutions tries many more.)"""

import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.cases import MEMORY_FORMATS, Conv
from tests.fuzz import convolutions
from tests.rowsparse import DTYPES, conv_tensors, need_library, stock_dgrad, stock_wgrad
from wuskern.kernels import reference
from wuskern.kernels.cpu import paths
from wuskern.kernels.problem import Problem

pytestmark = pytest.mark.usefixtures("one_thread")
KERNELS = [(1, 1), (3, 3), (1, 3)]
STRIDES = [(1, 1), (1, 2), (2, 1)]
DILATIONS = [(1, 1), (2, 1), (1, 2)]
# Wide images, on which oneDNN takes its ways for many pixels; and a narrow one, whose outer taps meet padding alone.
IMAGES = [((9, 33), (1, 1)), ((6, 1), (1, 2))]


def problems(dtype, layout):
    for kernel, stride, dilation, groups, (size, padding) in itertools.product(KERNELS, STRIDES, DILATIONS, (1, 2), IMAGES):
        if all(d * (k - 1) < n + 2 * p for d, k, n, p in zip(dilation, kernel, size, padding, strict=True)):
            case = Conv("", 2, 4 * groups, 6 * groups, size, kernel, stride, padding, dilation, groups)
            yield case, conv_tensors(case, dtype, layout, 2 * groups)


@pytest.mark.parametrize("layout", MEMORY_FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_path_of_dw_is_right(dtype, layout):
    need_library()
    for case, t in problems(dtype, layout):
        assert convolutions.wrong(convolutions.wgrad_runs(t), stock_wgrad, t) == [], repr(case)


@pytest.mark.parametrize("layout", MEMORY_FORMATS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_path_of_dx_is_right(dtype, layout):
    need_library()
    for case, t in problems(dtype, layout):
        assert convolutions.wrong(convolutions.dgrad_runs(t), stock_dgrad, t) == [], repr(case)


class Formats(TorchDispatchMode):
    """Those of x in the weight gradients that PyTorch was asked for."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, op, types, arguments=(), keywords=None):
        if op is torch.ops.aten.convolution_backward.default:
            x = arguments[1]
            planes = x.stride() == torch.empty(x.shape, device="meta").stride()
            self.seen.append("planes" if planes else "channels_last")
        return op(*arguments, **(keywords or {}))


@pytest.mark.parametrize("channels", [1, 3, 15, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_onednn_is_not_given_what_it_writes_beyond(dtype, channels):
    """Images in channels_last, a 1x1 kernel with strides and fewer channels than a vector has elements: it then writes beyond
    its memory, which no sum shows."""
    dy, x = torch.randn(2, 3, 4, 4).to(dtype), torch.randn(2, channels, 8, 8).to(dtype)
    dy, x = (t.contiguous(memory_format=torch.channels_last) for t in (dy, x))
    x = x.as_strided(x.shape, (64 * channels, 1, 8 * channels, channels))  # those of one channel too
    with Formats() as formats:
        reference.library_wgrad(dy, x, (1, 1), (2, 2), (0, 0), (1, 1), 1)
    assert formats.seen == ["planes" if channels < 16 else "channels_last"]


@pytest.mark.parametrize("capability", ["baseline", "avx2", "avx512"])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 1), (1, 2)])
def test_groups_of_bfloat16_go_to_channels_last_only_where_that_is_right(dilation, capability):
    op, sides = "rowsparse_wgrad_conv2d", ((9, 32), (3, 3), (1, 1), (1, 1))
    problem = Problem(op, torch.bfloat16, 3, 32, 4, 4, *sides, dilation, groups=4, planes=True)
    assert paths.conv2d_wgrad_path(problem, capability) == ("library" if dilation[0] > 1 else "channels_last")
