"""Every op: its docstring is the contract, its schema and fake say the same to PyTorch, and its backend is chosen per call.

Two namespaces carry the same schemas. ``wuskern::<op>`` is the op that a graph sees; it checks its arguments, asks
``backends`` and runs. ``wuskern_native::<op>`` is where the compiled libraries register their kernels. The functions here
do in eager mode what ``wuskern::<op>`` does, without a dispatch into Python.

``rows`` are indices of output units: int64, ascending, each once, as :func:`select_rows` gives them. Their values are not
looked at here, which would wait for a GPU: one out of range raises on the CPU and is undefined elsewhere.

All tensors of a call are on one device. What is no argument of an op raises ``TypeError`` or ``ValueError`` by the argument's
name, before anything is read or written; ``wuskern_native``, called by itself, raises ``RuntimeError``.

A product of the chosen rows is summed by whoever multiplies. Our kernels sum in float32 (float64 for float64), in an order that
depends on the problem and the machine alone: the same bits each time. PyTorch's libraries, which multiply most on the CPU and
what is faster so on a GPU, sum as PyTorch has them, under its settings: cuBLAS may join partial sums in 16 bits unless
``torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction`` and its twin for fp16 are False, float32 may be TF32,
cuDNN's weight gradient may have other bits each time unless ``torch.use_deterministic_algorithms`` asks for the same, and a
processor without products of 16 bits may join the sums of images in 16 bits. ``backend("native")`` takes none on a GPU.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from wuskern import backends, checks
from wuskern.checks import DTYPES as DTYPES
from wuskern.checks import SCORES as SCORES
from wuskern.shapes import memory_format

NAMES: list[str] = []  # of all ops

_contract = torch.library.Library("wuskern", "DEF")
_native = torch.library.Library("wuskern_native", "DEF")
for _name in ("cpu_capability", "cuda_architectures"):  # what the two libraries say of themselves
    _native.define(f"{_name}() -> str")
_runs: dict[str, Callable[..., Any]] = {}


def declare(
    name: str,
    signature: str,
    check: checks.Check,
    fake: Callable[..., Any],
    flops: Callable[..., int],
    written: int = 0,
    elsewhere: Sequence[str] = (),
) -> None:
    """Both namespaces' op. ``written``: how many of its first arguments it writes to. ``elsewhere``: see checks.of_schema."""
    for library in (_contract, _native):
        library.define(name + signature, tags=torch.Tag.pt2_compliant_tag)
        register_flop_formula(getattr(getattr(torch.ops, library.ns), name))(flops)
    fits_schema = checks.of_schema(getattr(torch.ops.wuskern, name).default._schema, elsewhere)

    def checked_fake(*arguments: Any) -> Any:
        fits_schema(*arguments)
        check(*arguments)
        return fake(*arguments)

    def run(*arguments: Any) -> Any:
        fits_schema(*arguments)
        check(*arguments)
        first = arguments[0]
        device = "cpu" if first.is_cpu else first.device.type
        found = backends.choose(name, device, first.numel()).run(*arguments)
        if written:
            torch.autograd.graph.increment_version([t for t in arguments[:written] if t is not None])
        return found

    for library in (_contract, _native):
        torch.library.register_fake(f"{library.ns}::{name}", checked_fake, lib=library)
    _contract.impl(name, run, "CompositeExplicitAutograd")
    _runs[name] = run
    NAMES.append(name)


def call(name: str, *arguments: Any) -> Any:
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():  # a mode, such as FlopCounterMode, sees the op
        return getattr(torch.ops.wuskern, name).default(*arguments)
    return _runs[name](*arguments)


# ---- bias_grad ------------------------------------------------------------------------------------------------------


def bias_grad(dy: Tensor, dim: int) -> Tensor:
    """Gradient of a bias: ``db[c] = sum of dy over every dimension but dim``, in one read of ``dy``.

    Args:
        dy: gradient of the output, ``[..., N]`` with ``dim=-1`` (Linear) or ``[B, C, *spatial]`` with ``dim=1`` (Conv),
            of any rank >= 1 and any strides; float64, float32, float16 or bfloat16.
        dim: the dimension that is kept.

    Returns:
        ``[dy.shape[dim]]`` in the dtype of ``dy``; zeros where ``dy`` is empty. Sums are taken in float32 or wider
        (float64 for float64), in an order that depends on shape, strides and machine alone.

    Raises:
        TypeError: another dtype.
        ValueError: ``dim`` out of range, or a 0-d ``dy``.

    Equivalent to ``dy.sum([d for d in range(dy.ndim) if d != dim])``. Reads ``dy`` once wherever its dimensions fold to
    [outer, channels, inner] with unit stride in one of the last two; any other layout is copied first.
    """
    return call("bias_grad", dy, dim)


def _additions(dy_shape: torch.Size, dim: int, **_: Any) -> int:
    """One addition for each element but the first of a sum."""
    return max(0, dy_shape.numel() - dy_shape[dim])


declare(
    "bias_grad", "(Tensor dy, int dim) -> Tensor", checks.gradient, lambda dy, dim: dy.new_empty((dy.shape[dim],)), _additions
)


# ---- row_stats ------------------------------------------------------------------------------------------------------


def row_stats(dy: Tensor, dim: int, score: str = "l1") -> tuple[Tensor, Tensor]:
    """Gradient of a bias, and a score for each of its elements, in one read of ``dy``.

    Args:
        dy, dim: as for :func:`bias_grad`.
        score: "l1", the sum of ``|dy|`` over every dimension but ``dim``, or "l2", that of ``dy * dy``.

    Returns:
        The bias gradient as :func:`bias_grad` gives it, and scores ``[dy.shape[dim]]`` in float32 (float64 for float64).
        A NaN in ``dy`` makes the score of its row NaN.

    Raises:
        TypeError: another dtype.
        ValueError: ``dim`` out of range, a 0-d ``dy``, or another score.

    Reads ``dy`` once where :func:`bias_grad` does. The scores are those of meProp (arXiv 1706.06197, unified top-k) and
    ssProp (arXiv 2408.12561), which take "l1".
    """
    return call("row_stats", dy, dim, score)


def _row_stats_fake(dy: Tensor, dim: int, score: str) -> tuple[Tensor, Tensor]:
    exact = torch.promote_types(dy.dtype, torch.float32)
    return dy.new_empty((dy.shape[dim],)), dy.new_empty((dy.shape[dim],), dtype=exact)


def _row_stats_flops(dy_shape: torch.Size, dim: int, score: str, **_: Any) -> int:
    """Two sums, and for "l2" one product for each element."""
    return 2 * _additions(dy_shape, dim) + (dy_shape.numel() if score == "l2" else 0)


declare("row_stats", "(Tensor dy, int dim, str score) -> (Tensor, Tensor)", checks.row_stats, _row_stats_fake, _row_stats_flops)


# ---- select_rows ----------------------------------------------------------------------------------------------------


def select_rows(scores: Tensor, k: int, block: int = 1, groups: int = 1) -> Tensor:
    """The ``k`` rows with the largest scores.

    Args:
        scores: ``[N]``; float64, float32, float16 or bfloat16. Random ones choose at random:
            ``torch.rand(N, generator=g)``.
        k: how many, 1 to N, a multiple of ``block * groups``.
        block: rows are taken in aligned blocks of so many, by the sum of their scores.
        groups: the rows are ``groups`` equal parts, and as many are taken from each.

    Returns:
        ``[k]``: int64, ascending, each row once. A NaN ranks before every number. Of equal scores the lower index wins.

    Raises:
        TypeError: another dtype.
        ValueError: ``scores`` is not 1-d, or ``k``, ``block`` or ``groups`` do not fit its length.
    """
    return call("select_rows", scores, k, block, groups)


declare(
    "select_rows",
    "(Tensor scores, int k, int block, int groups) -> Tensor",
    checks.select_rows,
    lambda scores, k, block, groups: scores.new_empty((k,), dtype=torch.int64),
    lambda scores_shape, k, block, groups, **_: scores_shape.numel(),  # a comparison each
)


# ---- gather_rows ----------------------------------------------------------------------------------------------------


def gather_rows(dy: Tensor, rows: Tensor, dim: int) -> Tensor:
    """The chosen rows of a gradient of the output, next to each other: ``dy.index_select(dim, rows)``.

    Args:
        dy, dim: as for :func:`bias_grad`; ``dim`` is -1 or, of ``[B, C, H, W]``, 1.
        rows: ``[k]``, see the top of this module.

    Returns:
        ``[..., k]`` or ``[B, k, *spatial]`` in the dtype of ``dy``: channels_last where ``dy`` is that and not contiguous,
        else contiguous.

    Raises:
        TypeError, ValueError: as :func:`bias_grad`; ``rows`` is not 1-d int64.
        RuntimeError, IndexError: (CPU) a row out of range; nothing was read.

    Reads the cache lines that hold chosen elements, where ``dy`` lies in the order of the result; else all of it, twice.
    """
    return call("gather_rows", dy, rows, dim)


def _gather_rows_fake(dy: Tensor, rows: Tensor, dim: int) -> Tensor:
    shape = list(dy.shape)
    shape[dim] = rows.shape[0]
    return torch.empty(shape, dtype=dy.dtype, device=dy.device, memory_format=memory_format(dy))


declare(
    "gather_rows",
    "(Tensor dy, Tensor rows, int dim) -> Tensor",
    checks.gather_rows,
    _gather_rows_fake,
    lambda dy_shape, rows_shape, dim, **_: 0,
)


# ---- rowsparse_wgrad ------------------------------------------------------------------------------------------------


def rowsparse_wgrad(dy: Tensor, x: Tensor, rows: Tensor) -> Tensor:
    """Weight gradient of a Linear in the chosen rows: ``dy[:, rows].T @ x`` over all leading dimensions.

    Args:
        dy: ``[..., N]``; or already gathered, ``[..., k]`` (with ``k = N`` the two are the same).
        x: ``[..., K]``, the same leading dimensions and dtype.
        rows: ``[k]``, see the top of this module.

    Returns:
        ``[k, K]``, contiguous; zeros where there are no tokens. Summed as the top of this module says.

    Raises:
        TypeError, ValueError: dtypes, shapes or ``rows`` do not fit.

    Reads the chosen part of ``dy`` once, ``x`` once. Source: meProp (arXiv 1706.06197), unified top-k.
    """
    return call("rowsparse_wgrad", dy, x, rows)


def _rowsparse_wgrad_flops(dy_shape: torch.Size, x_shape: torch.Size, rows_shape: torch.Size, **_: Any) -> int:
    return 2 * x_shape.numel() * rows_shape[0]


declare(
    "rowsparse_wgrad",
    "(Tensor dy, Tensor x, Tensor rows) -> Tensor",
    checks.rowsparse_wgrad,
    lambda dy, x, rows: dy.new_empty((rows.shape[0], x.shape[-1])),
    _rowsparse_wgrad_flops,
)


def rowsparse_wgrad_conv2d(
    dy: Tensor,
    x: Tensor,
    rows: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Weight gradient of a Conv2d in the chosen output channels.

    Args:
        dy: ``[B, N, HO, WO]``; or already gathered, ``[B, k, HO, WO]`` (with ``k = N`` the two are the same).
        x: ``[B, C, H, W]``, the same dtype.
        rows: ``[k]``, see the top of this module; the same number in each group.
        kernel_size, stride, padding, dilation: two integers each. groups: as for ``F.conv2d``.

    Returns:
        ``[k, C / groups, kh, kw]``, contiguous. Summed as the top of this module says.

    Raises:
        TypeError, ValueError: dtypes, shapes or ``rows`` do not fit.

    Source: ssProp (arXiv 2408.12561).
    """
    return call("rowsparse_wgrad_conv2d", dy, x, rows, kernel_size, stride, padding, dilation, groups)


_GEOMETRY = "int[2] stride, int[2] padding, int[2] dilation, int groups"
declare(
    "rowsparse_wgrad_conv2d",
    f"(Tensor dy, Tensor x, Tensor rows, int[2] kernel_size, {_GEOMETRY}) -> Tensor",
    checks.rowsparse_wgrad_conv2d,
    lambda dy, x, rows, kernel_size, *rest: dy.new_empty((rows.shape[0], x.shape[1] // rest[-1], *kernel_size)),
    lambda dy_shape, x_shape, rows_shape, kernel_size, stride, padding, dilation, groups, **_: _conv2d_flops(
        dy_shape, rows_shape[0], x_shape[1] // groups, kernel_size
    ),
)


def _conv2d_flops(dy_shape: torch.Size, k: int, channels: int, kernel_size: Sequence[int]) -> int:
    return 2 * dy_shape[0] * math.prod(dy_shape[2:]) * k * channels * math.prod(kernel_size)


# ---- rowsparse_dgrad ------------------------------------------------------------------------------------------------


def rowsparse_dgrad(dy: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
    """Input gradient of a Linear from the chosen rows alone: ``dy[:, rows] @ weight[rows]``.

    Args:
        dy: ``[..., N]``; or already gathered, ``[..., k]``.
        weight: ``[N, K]``, the same dtype.
        rows: ``[k]``, see the top of this module.

    Returns:
        ``[..., K]``, contiguous. Summed as the top of this module says.

    Raises:
        TypeError, ValueError: dtypes, shapes or ``rows`` do not fit.

    Reads the chosen part of ``dy`` and of ``weight`` once. Source: meProp (arXiv 1706.06197), unified top-k.
    """
    return call("rowsparse_dgrad", dy, weight, rows)


def _rowsparse_dgrad_flops(dy_shape: torch.Size, weight_shape: torch.Size, rows_shape: torch.Size, **_: Any) -> int:
    return 2 * math.prod(dy_shape[:-1]) * rows_shape[0] * weight_shape[1]


declare(
    "rowsparse_dgrad",
    "(Tensor dy, Tensor weight, Tensor rows) -> Tensor",
    checks.rowsparse_dgrad,
    lambda dy, weight, rows: dy.new_empty((*dy.shape[:-1], weight.shape[1])),
    _rowsparse_dgrad_flops,
)


def rowsparse_dgrad_conv2d(
    dy: Tensor,
    weight: Tensor,
    rows: Tensor,
    input_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Input gradient of a Conv2d from the chosen output channels alone.

    Args:
        dy: ``[B, N, HO, WO]``; or already gathered, ``[B, k, HO, WO]``.
        weight: ``[N, C / groups, kh, kw]``, the same dtype.
        rows: ``[k]``, see the top of this module; the same number in each group.
        input_size: height and width of the input.
        stride, padding, dilation: two integers each. groups: as for ``F.conv2d``.

    Returns:
        ``[B, C, H, W]``: channels_last where ``dy`` is that and not contiguous, else contiguous. Summed as the top of this
        module says.

    Raises:
        TypeError, ValueError: dtypes, shapes or ``rows`` do not fit.
    """
    return call("rowsparse_dgrad_conv2d", dy, weight, rows, input_size, stride, padding, dilation, groups)


def _rowsparse_dgrad_conv2d_fake(dy: Tensor, weight: Tensor, rows: Tensor, input_size: Sequence[int], *rest: Any) -> Tensor:
    shape = dy.shape[0], weight.shape[1] * rest[-1], *input_size
    return torch.empty(shape, dtype=dy.dtype, device=dy.device, memory_format=memory_format(dy))


declare(
    "rowsparse_dgrad_conv2d",
    f"(Tensor dy, Tensor weight, Tensor rows, int[2] input_size, {_GEOMETRY}) -> Tensor",
    checks.rowsparse_dgrad_conv2d,
    _rowsparse_dgrad_conv2d_fake,
    lambda dy_shape, weight_shape, rows_shape, *_, **__: _conv2d_flops(
        dy_shape, rows_shape[0], weight_shape[1], weight_shape[2:]
    ),
)
