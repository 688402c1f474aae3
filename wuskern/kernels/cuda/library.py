"""The products of the chosen rows by a GPU's libraries, cuBLAS and cuDNN, through PyTorch: way "library" of ``rule``.

Each takes dy gathered, as ``gather_rows`` gives it. (The CPU's libraries have paths of their own, see ``cpu``.) Sums and
bits are the library's, under PyTorch's settings: see :mod:`wuskern.ops`.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from wuskern.common.shapes import as_matrix, memory_format, with_padding

Pair = Sequence[int]


def rowsparse_wgrad(dy: Tensor, x: Tensor, rows: Tensor) -> Tensor:
    """The product of dy's rows with their padding, whose results are left out: sides and strides that libraries vectorise."""
    return torch.mm(with_padding(as_matrix(dy)).t(), as_matrix(x))[: dy.shape[-1]]


def rowsparse_dgrad(dy: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
    return torch.matmul(dy, weight.index_select(0, rows))


def rowsparse_wgrad_conv2d(
    dy: Tensor, x: Tensor, rows: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    weight = x.new_empty(rows.shape[0], x.shape[1] // groups, *kernel_size)
    geometry = (stride, padding, dilation, False, (0, 0), groups)
    dw = torch.ops.aten.convolution_backward(dy, x, weight, None, *geometry, (False, True, False))[1]
    return dw.contiguous()


def rowsparse_dgrad_conv2d(
    dy: Tensor, weight: Tensor, rows: Tensor, input_size: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    """The gradient with all operands in dy's memory format, the unread input too: the library takes its own from theirs."""
    images = memory_format(dy)
    size = dy.shape[0], weight.shape[1] * groups, *input_size
    unread = torch.empty(size, dtype=dy.dtype, device=dy.device, memory_format=images)
    chosen = weight.index_select(0, rows).contiguous(memory_format=images)
    geometry = (stride, padding, dilation, False, (0, 0), groups)
    return torch.ops.aten.convolution_backward(dy, unread, chosen, None, *geometry, (True, False, False))[0]


PRODUCTS: dict[str, Callable[..., Tensor]] = {
    "rowsparse_wgrad": rowsparse_wgrad,
    "rowsparse_dgrad": rowsparse_dgrad,
    "rowsparse_wgrad_conv2d": rowsparse_wgrad_conv2d,
    "rowsparse_dgrad_conv2d": rowsparse_dgrad_conv2d,
}


def runner(op: str, gather: Callable[[Tensor, Tensor, int], Tensor]) -> Callable[..., Tensor]:
    """The op by the library, whole dy being gathered by ``gather`` first."""
    product = PRODUCTS[op]

    def run(dy: Tensor, other: Tensor, rows: Tensor, *geometry: object) -> Tensor:
        dim = 1 if geometry else -1
        compact = dy if dy.shape[dim] == rows.shape[0] else gather(dy, rows, dim)
        out = product(compact, other, rows, *geometry)
        return out.contiguous(memory_format=memory_format(dy)) if op == "rowsparse_dgrad_conv2d" else out

    return run
