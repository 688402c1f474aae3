"""The CPU's half of backend ``native`` that is Python: the products of the chosen rows. Each gathers them where dy is whole,
asks ``paths`` for a path, and takes it: of a Linear one of ``product``, of a Conv2d one of ``conv2d``. And the choice of the
rows, which is two compiled ops."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from wuskern.kernels.cpu import paths
from wuskern.kernels.cpu.conv2d import DGRAD, WGRAD
from wuskern.kernels.cpu.product import product, product_path
from wuskern.kernels.problem import Problem, problem_of

_library = torch.library.Library("wuskern_native", "FRAGMENT")
_library.define("new_output(Tensor like, int[] size) -> Tensor")  # for product.py
_library.define("write_rows(Tensor(a!) target, Tensor? stale, Tensor rows, Tensor values) -> ()")  # for delivery/dense_grad.py
_library.define("spread_rows(Tensor(a!) target, Tensor rows, Tensor values) -> ()")  # for the same, on a GPU

Pair = Sequence[int]


def path_of(problem: Problem) -> str:
    """The path that a problem takes on this processor, with the user's settings."""
    if not problem.is_conv2d:
        k, features, tokens = problem.k, problem.features, problem.tokens
        return product_path(problem.dtype, *((k, features, tokens) if problem.is_wgrad else (tokens, features, k)))
    choose = paths.conv2d_wgrad_path if problem.is_wgrad else paths.conv2d_dgrad_path
    return choose(problem, vectors())


@functools.cache
def vectors() -> str:
    """The instruction set that the compiled kernels take."""
    return torch.ops.wuskern_native.cpu_capability()


def _gathered(dy: Tensor, rows: Tensor, dim: int) -> Tensor:
    return dy if dy.shape[dim] == rows.shape[0] else torch.ops.wuskern_native.gather_rows.default(dy, rows, dim)


# A Linear's small products take microseconds: ``product`` asks for its path by plain numbers, and no Problem is made.


def rowsparse_wgrad(dy: Tensor, x: Tensor, rows: Tensor) -> Tensor:
    dy = _gathered(dy, rows, -1)
    if dy.numel() == 0 or x.numel() == 0:
        return x.new_zeros(rows.shape[0], x.shape[-1])
    return product(dy.reshape(-1, dy.shape[-1]).t(), x.reshape(-1, x.shape[-1]).t())


def rowsparse_dgrad(dy: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
    dy, weight = _gathered(dy, rows, -1), weight.index_select(0, rows)
    if dy.numel() == 0 or weight.numel() == 0:
        return dy.new_zeros(*dy.shape[:-1], weight.shape[1])
    return product(dy.reshape(-1, dy.shape[-1]), weight.t()).view(*dy.shape[:-1], weight.shape[1])


def rowsparse_wgrad_conv2d(
    dy: Tensor, x: Tensor, rows: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    problem = problem_of("rowsparse_wgrad_conv2d", dy, x, rows, kernel_size, stride, padding, dilation, groups)
    dy = _gathered(dy, rows, 1)
    if dy.numel() == 0 or x.numel() == 0:
        return x.new_zeros(problem.k, x.shape[1] // groups, *kernel_size)
    return WGRAD[path_of(problem)](dy, x.contiguous(memory_format=problem.memory_format), problem)


def rowsparse_dgrad_conv2d(
    dy: Tensor, weight: Tensor, rows: Tensor, input_size: Pair, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Tensor:
    problem = problem_of("rowsparse_dgrad_conv2d", dy, weight, rows, input_size, stride, padding, dilation, groups)
    dy, weight = _gathered(dy, rows, 1), weight.index_select(0, rows)
    if dy.numel() == 0 or weight.numel() == 0:
        size = problem.batch, problem.channels, *problem.size
        return torch.empty(size, dtype=dy.dtype, memory_format=problem.memory_format).zero_()
    return DGRAD[path_of(problem)](dy, weight, problem)


def top_rows(dy: Tensor, dim: int, score: str, k: int, block: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    db, scores = torch.ops.wuskern_native.row_stats.default(dy, dim, score)
    return db, scores, torch.ops.wuskern_native.select_rows.default(scores, k, block, groups)


OPS: dict[str, Callable[..., Any]] = {
    "top_rows": top_rows,
    "rowsparse_wgrad": rowsparse_wgrad,
    "rowsparse_dgrad": rowsparse_dgrad,
    "rowsparse_wgrad_conv2d": rowsparse_wgrad_conv2d,
    "rowsparse_dgrad_conv2d": rowsparse_dgrad_conv2d,
}
