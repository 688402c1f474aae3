"""``wuskern doctor --explain``: how one row-sparse backward is computed on this CPU, why so, and how far from its floor."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from wuskern import functional
from wuskern.common.shapes import output_size
from wuskern.doctor.question import Question
from wuskern.doctor.report import Line, Report
from wuskern.kernels import backends
from wuskern.kernels.cpu import native
from wuskern.kernels.cpu.paths import WHY
from wuskern.kernels.cpu.product import product
from wuskern.kernels.problem import Problem

REPEATS = 9
RATE_SIDE = 1024  # of the square matrices whose product says what the machine can do
COPY_BYTES = 2**26


def report(question: Question) -> Report:
    """The answer, after about a second of measuring."""
    if obstacle := backends.library_obstacle("cpu"):
        raise ValueError(f"--explain: expected the compiled library, whose paths it tells, got none: {obstacle}")
    dtype, share = question.wgrad.dtype, question.wgrad.k / question.wgrad.out
    title = f"{question.layer}, {str(dtype).removeprefix('torch.')}, {torch.get_num_threads()} threads"
    head: tuple[Line, ...] = (("problem", title), ("choice", question.rows))
    if question.is_dense:
        return Report(head)
    least, by_rates = floor(question), _rates(dtype)
    seconds = max(least.operations / by_rates.operations, least.moved / by_rates.moved)
    ours, dense = _medians(*backwards(question))
    stats = backends.choose("row_stats", "cpu").backend
    return Report(
        (
            *head,
            ("reads of dY", f"1 for scores and bias gradient ({stats}), {share:.2f} for the chosen rows"),
            ("dW", _path(question.wgrad)),
            ("dX", _path(question.dgrad) if question.choice.scope == "both" else "dense: scope is weight"),
            ("floor", f"{1e3 * seconds:.3f} ms: {_in_words(least, by_rates)}"),
            ("measured", f"{1e3 * ours:.3f} ms, {ours / seconds:.2f}x the floor"),
            ("dense", f"{1e3 * dense:.3f} ms, {dense / ours:.2f}x of that"),
        )
    )


def _path(problem: Problem) -> str:
    path = native.path_of(problem)
    return f"{path}: {WHY[path]}"


def backwards(question: Question) -> tuple[Callable[[], object], Callable[[], object]]:
    """The backward from the chosen rows, and stock's of all rows, on random tensors."""
    p, choice = question.wgrad, question.choice
    if not p.is_conv2d:
        sizes = (p.batch, p.out), (p.batch, p.channels), (p.out, p.channels)
        dy, x, weight = (torch.randn(size).to(p.dtype) for size in sizes)
        return (
            lambda: functional.linear_backward(dy, x, weight, rows=choice),
            lambda: (dy.matmul(weight), dy.t().mm(x), dy.sum(0)),
        )
    sides, images = (p.stride, p.padding, p.dilation), p.memory_format
    output = output_size(p.size, p.kernel_size, *sides)
    sizes_of_images = (p.batch, p.out, *output), (p.batch, p.channels, *p.size)
    shape_of_weight = p.out, p.channels // p.groups, *p.kernel_size
    dy, x, weight = (
        torch.randn(size).to(p.dtype).contiguous(memory_format=images) for size in (*sizes_of_images, shape_of_weight)
    )
    backward, wanted = torch.ops.aten.convolution_backward, (True, True, True)
    return (
        lambda: functional.conv2d_backward(dy, x, weight, choice, *sides, p.groups),
        lambda: backward(dy, x, weight, [p.out], *sides, False, (0, 0), p.groups, wanted),
    )


# ---- the floor ------------------------------------------------------------------------------------------------------


class Amounts(NamedTuple):
    """Multiplications and additions, and bytes that are read or written; or how many a second."""

    operations: float
    moved: float


def floor(question: Question) -> Amounts:
    """The least that must be done: the products of the chosen rows, each operand once, dy's chosen rows twice."""
    p = question.wgrad
    rows_of_dgrad = p.k if question.choice.scope == "both" else p.out
    elements = p.tokens * p.out + 2 * p.tokens * p.k + 2 * p.inputs + 2 * p.k * p.features
    return Amounts(2 * p.tokens * p.features * (p.k + rows_of_dgrad), p.dtype.itemsize * elements)


def _in_words(least: Amounts, by_rates: Amounts) -> str:
    work = f"{least.operations / 1e9:.3g} GFLOP at {by_rates.operations / 1e9:.0f} GFLOP/s"
    memory = f"{least.moved / 1e6:.3g} MB at {by_rates.moved / 1e9:.0f} GB/s"
    return f"the larger of {work} and {memory}, rates measured now"


def _rates(dtype: torch.dtype) -> Amounts:
    """Operations a second of a product in ``dtype``, by the better of torch's and ours, and bytes a second of a copy."""
    a, b = torch.randn(2, RATE_SIDE, RATE_SIDE).to(dtype)
    source = torch.randn(COPY_BYTES // 4)
    target = torch.empty_like(source)
    fastest = min(min(_times(lambda: a @ b)), min(_times(lambda: product(a, b))))
    return Amounts(2 * RATE_SIDE**3 / fastest, 2 * COPY_BYTES / min(_times(lambda: target.copy_(source))))


def _medians(*functions: Callable[[], object]) -> list[float]:
    """The median seconds of each function, all timed in turn."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(REPEATS):
        for function, of_function in zip(functions, times, strict=True):
            of_function += _times(function, 1)
    return [statistics.median(of_function) for of_function in times]


def _times(function: Callable[[], object], count: int = REPEATS) -> list[float]:
    """Seconds of each of ``count`` calls, after a first one."""
    function()
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return seconds
