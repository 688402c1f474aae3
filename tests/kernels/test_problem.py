"""The one descriptor of a product of the chosen rows."""

import pytest
import torch

from wuskern.common.shapes import output_size
from wuskern.kernels.problem import OPS, Problem, problem_of

GEOMETRY = (1, 1), (1, 1), (1, 1), 2
CONV = Problem("rowsparse_wgrad_conv2d", torch.float32, 2, 6, 8, 4, (5, 6), (3, 3), *GEOMETRY, planes=True)


def test_a_problem_is_read_off_the_arguments():
    dy, x, weight, rows = torch.empty(2, 8, 5, 6), torch.empty(2, 6, 5, 6), torch.empty(8, 3, 3, 3), torch.arange(4)
    assert problem_of("rowsparse_wgrad_conv2d", dy, x, rows, [3, 3], *GEOMETRY) == CONV
    assert problem_of("rowsparse_dgrad_conv2d", dy, weight, rows, [5, 6], *GEOMETRY) == CONV._replace(
        op="rowsparse_dgrad_conv2d"
    )
    linear = problem_of("rowsparse_dgrad", torch.empty(3, 7, 9), torch.empty(9, 4), rows)
    assert linear == Problem("rowsparse_dgrad", torch.float32, 21, 4, 9, 4)
    assert problem_of("rowsparse_wgrad", torch.empty(9, 21).t(), torch.empty(21, 4), rows).planes


def test_images_lie_as_x_where_there_is_one_else_as_dy():
    dy, x, rows = torch.empty(2, 8, 5, 6), torch.empty(2, 6, 5, 6), torch.arange(4)
    last = x.contiguous(memory_format=torch.channels_last)
    assert problem_of("rowsparse_wgrad_conv2d", dy, last, rows, (3, 3), *GEOMETRY).memory_format is torch.channels_last
    dy_last, weight = dy.contiguous(memory_format=torch.channels_last), torch.empty(8, 3, 3, 3)
    assert problem_of("rowsparse_dgrad_conv2d", dy_last, weight, rows, (5, 6), *GEOMETRY) == CONV._replace(
        op="rowsparse_dgrad_conv2d", planes=False
    )


def test_counts_by_hand():
    """Two images of 5 x 6 with 6 channels in two groups, 3 x 3 with stride 2: 3 x 3 pixels of dy."""
    p = CONV._replace(stride=(2, 2))
    assert output_size(p.size, p.kernel_size, p.stride, p.padding, p.dilation) == [3, 3]
    assert (p.tokens, p.features, p.inputs) == (2 * 9, 3 * 9, 2 * 6 * 30)
    assert p.operations == 2 * 18 * 27 * 4
    assert (p.chosen_bytes, p.input_bytes, p.weight_bytes) == (4 * 18 * 4, 4 * 360, 4 * 4 * 27)


@pytest.mark.parametrize("op", OPS)
def test_an_op_says_what_it_is(op):
    p = CONV._replace(op=op)
    assert p.is_wgrad == ("wgrad" in op)
    assert p.is_conv2d == ("conv2d" in op)


@pytest.mark.gpu
def test_tf32_is_what_torch_allows_each_library():
    dy, x, rows = torch.empty(2, 8, 5, 6).cuda(), torch.empty(2, 6, 5, 6).cuda(), torch.arange(4).cuda()
    assert problem_of("rowsparse_wgrad_conv2d", dy, x, rows, (3, 3), *GEOMETRY).tf32  # torch's default
    assert not problem_of("rowsparse_wgrad", dy[0, :, :, 0].t(), x[0, :, :, 0].t(), rows).tf32
