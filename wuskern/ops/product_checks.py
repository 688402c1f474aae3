"""The conditions that the products of the chosen rows, and whole backwards, set for their arguments; see ``checks``."""

from collections.abc import Sequence

from torch import Tensor

from wuskern.common.shapes import output_size
from wuskern.ops.checks import at_most, floating, indices, pair_of_integers, rank, strided

MOST = 2**30  # of a geometry's integers: kernels count with 32 bits, and sums of two of them fit
MOST_PIXELS = 2**31 - 1  # along a side of an image, with its padding; and taps of a kernel

Pair = Sequence[int]


def _operands(dy: Tensor, other: Tensor, name: str, rows: Tensor) -> None:
    indices(rows)
    floating("dy", dy)
    if other.dtype != dy.dtype:
        raise TypeError(f"{name}: expected {dy.dtype} as dy has, got {other.dtype}")


def rowsparse_wgrad(dy: Tensor, x: Tensor, rows: Tensor) -> None:
    _operands(dy, x, "x", rows)
    if dy.ndim < 1 or x.ndim < 1 or dy.shape[:-1] != x.shape[:-1]:
        raise ValueError(f"x: expected {[*dy.shape[:-1], 'K']}, got {list(x.shape)}")
    at_most(rows, dy.shape[-1], "dy")


def rowsparse_dgrad(dy: Tensor, weight: Tensor, rows: Tensor) -> None:
    _operands(dy, weight, "weight", rows)
    rank("weight", weight, 2)
    _units(dy, -1, weight, rows)


def rowsparse_wgrad_conv2d(
    dy: Tensor, x: Tensor, rows: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> None:
    _operands(dy, x, "x", rows)
    _in_groups(dy, rows, groups)
    if x.ndim != 4 or x.shape[0] != dy.shape[0] or x.shape[1] % groups:
        raise ValueError(f"x: expected {[dy.shape[0], f'a multiple of {groups}', 'H', 'W']}, got {list(x.shape)}")
    geometry(dy, x.shape[2:], kernel_size, stride, padding, dilation)
    at_most(rows, dy.shape[1], "dy")


def rowsparse_dgrad_conv2d(
    dy: Tensor, weight: Tensor, rows: Tensor, input_size: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> None:
    _operands(dy, weight, "weight", rows)
    rank("weight", weight, 4)
    _in_groups(dy, rows, groups)
    if weight.shape[0] % groups:
        raise ValueError(f"groups: expected a divisor of {weight.shape[0]} units of weight, got {groups}")
    geometry(dy, input_size, weight.shape[2:], stride, padding, dilation)
    _units(dy, 1, weight, rows)


def _units(dy: Tensor, dim: int, weight: Tensor, rows: Tensor) -> None:
    if dy.ndim < 1 or dy.shape[dim] not in (weight.shape[0], rows.shape[0]) or weight.shape[0] < rows.shape[0]:
        expected = f"{weight.shape[0]} units as weight has, or those of {rows.shape[0]} rows"
        raise ValueError(f"dy: expected {expected}, got {list(dy.shape)}")


def _in_groups(dy: Tensor, rows: Tensor, groups: int) -> None:
    rank("dy", dy, 4)
    if groups < 1 or rows.shape[0] % groups or dy.shape[1] % groups:
        raise ValueError(f"groups: expected a divisor of {rows.shape[0]} rows and {dy.shape[1]} channels of dy, got {groups}")


def geometry(dy: Tensor, size: Pair, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair) -> None:
    """Raises unless dy, of four dimensions, has the pixels which such a convolution makes of an input of ``size``."""
    pixels, fits = dy.shape, True
    for side in (0, 1):
        k, s, p, d = kernel_size[side], stride[side], padding[side], dilation[side]
        if not (1 <= k < MOST and 1 <= s < MOST and 0 <= p < MOST and 1 <= d < MOST):
            for name, value, least in (("kernel_size", k, 1), ("stride", s, 1), ("padding", p, 0), ("dilation", d, 1)):
                if not least <= value < MOST:
                    raise ValueError(f"{name}: expected integers from {least} to 2**30, got {value}")
        n, extent = size[side], d * (k - 1) + 1
        if n < 0 or n + 2 * p > MOST_PIXELS:
            raise ValueError(f"input_size: expected from 0 to 2**31 - 1 pixels with their padding, got {tuple(size)}")
        if extent > n + 2 * p:
            raise ValueError(f"kernel_size: expected one that fits into {n + 2 * p} pixels, got {k} with dilation {d}")
        fits = fits and pixels[2 + side] == (n + 2 * p - extent) // s + 1
    if kernel_size[0] * kernel_size[1] > MOST_PIXELS:
        raise ValueError(f"kernel_size: expected fewer than 2**31 taps, got {tuple(kernel_size)}")
    if not fits:
        out = output_size(size, kernel_size, stride, padding, dilation)
        raise ValueError(f"dy: expected {['B', 'N', *out]} for an input of {list(size)}, got {list(pixels)}")


# ---- a whole backward -------------------------------------------------------------------------------------------------


def linear_backward(dy: Tensor, x: Tensor, weight: Tensor) -> None:
    _backward(dy, x, weight)
    rank("weight", weight, 2)
    if x.ndim < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x: expected {['...', weight.shape[1]]}, got {list(x.shape)}")
    if dy.shape != (*x.shape[:-1], weight.shape[0]):
        raise ValueError(f"dy: expected {[*x.shape[:-1], weight.shape[0]]}, got {list(dy.shape)}")


def conv2d_backward(dy: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> None:
    _backward(dy, x, weight)
    for name, pair in (("stride", stride), ("padding", padding), ("dilation", dilation)):
        pair_of_integers(name, pair)
    if not isinstance(groups, int) or groups < 1:
        raise ValueError(f"groups: expected an integer from 1, got {groups!r}")
    for name, t in (("dy", dy), ("x", x), ("weight", weight)):
        rank(name, t, 4)
    if weight.shape[0] % groups:
        raise ValueError(f"groups: expected a divisor of {weight.shape[0]} units of weight, got {groups}")
    if x.shape[1] != weight.shape[1] * groups:
        raise ValueError(f"x: expected {weight.shape[1] * groups} channels, got {list(x.shape)}")
    if dy.shape[:2] != (x.shape[0], weight.shape[0]):
        raise ValueError(f"dy: expected {[x.shape[0], weight.shape[0], 'HO', 'WO']}, got {list(dy.shape)}")
    if 0 in x.shape[2:]:
        raise ValueError(f"x: expected at least one pixel, got {list(x.shape)}")
    geometry(dy, x.shape[2:], weight.shape[2:], stride, padding, dilation)


def _backward(dy: Tensor, x: Tensor, weight: Tensor) -> None:
    for name, t in (("dy", dy), ("x", x), ("weight", weight)):
        strided(name, t)
        if t.device != dy.device:
            raise ValueError(f"{name}: expected it on {dy.device} as dy is, got {t.device}")
        floating(name, t)
        if t.dtype != dy.dtype:
            raise TypeError(f"{name}: expected {dy.dtype} as dy has, got {t.dtype}")
