"""``wuskern doctor --explain``: how one backward of some rows or columns is computed on this CPU, why so, and how far from its
floor."""

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
from wuskern.kernels.cpu.paths import WHY, WHY_COLUMNS, column_path
from wuskern.kernels.cpu.product import product
from wuskern.kernels.problem import Problem

REPEATS = 9
RATE_SIDE = 1024  # of the square matrices whose product says what the machine can do
COPY_BYTES = 2**26


def report(question: Question) -> Report:
    """The answer, after about a second of measuring."""
    if obstacle := backends.library_obstacle("cpu"):
        raise ValueError(f"--explain: expected the compiled library, whose paths it tells, got none: {obstacle}")
    dtype = question.whole.dtype
    title = f"{question.layer}, {str(dtype).removeprefix('torch.')}, {torch.get_num_threads()} threads"
    head: tuple[Line, ...] = (("problem", title), ("choice", question.choice))
    if question.is_dense:
        return Report(head)
    least, by_rates = floor(question), _rates(dtype)
    seconds = max(least.operations / by_rates.operations, least.moved / by_rates.moved)
    ours, dense = _medians(*backwards(question))
    return Report(
        (
            *head,
            *_reads(question),
            ("dW", _dw(question)),
            ("dX", _path(question.dgrad) if question.of_both else question.why_dx_is_dense),
            ("floor", f"{1e3 * seconds:.3f} ms: {_in_words(least, by_rates)}"),
            ("measured", f"{1e3 * ours:.3f} ms, {ours / seconds:.2f}x the floor"),
            ("dense", f"{1e3 * dense:.3f} ms, {dense / ours:.2f}x of that"),
        )
    )


def _reads(question: Question) -> list[Line]:
    """How often dY is read, and x, beside by the products; and how much of x is kept."""
    p, backend = question.whole, {op: backends.choose(op, "cpu").backend for op in ("row_stats", "bias_grad", "gather_rows")}
    of_dy = f"1 for the bias gradient ({backend['bias_grad']})"
    if question.rows is not None:
        of_dy = f"1 for scores and bias gradient ({backend['row_stats']}), {p.k / p.out:.2f} for the chosen rows"
    lines = [("reads of dY", of_dy)]
    if question.columns is not None:
        share, scored = question.k_columns / p.channels, f"1 for scores ({backend['row_stats']})"
        gathered = f"{share:.2f} for the chosen columns ({backend['gather_rows']}), in forward"
        lines.append(("reads of x", f"{scored}, {gathered if question.gathers else 'no gather, with so few channels'}"))
        lines.append(("kept", f"{question.wgrad.input_bytes / 1e6:.3g} MB of {p.input_bytes / 1e6:.3g} MB of x"))
    return lines


def _dw(question: Question) -> str:
    if question.rows is not None:
        return _path(question.wgrad)
    path = column_path(question.wgrad)
    return f"{path}: {WHY_COLUMNS[path]}"


def _path(problem: Problem) -> str:
    path = native.path_of(problem)
    return f"{path}: {WHY[path]}"


def backwards(question: Question) -> tuple[Callable[[], object], Callable[[], object]]:
    """The backward of the chosen part, with the gather of its columns, and stock's of all, on random tensors."""
    p, rows, columns = question.whole, question.rows, question.columns
    if not p.is_conv2d:
        sizes = (p.batch, p.out), (p.batch, p.channels), (p.out, p.channels)
        dy, x, weight = (torch.randn(size).to(p.dtype) for size in sizes)
        return (
            lambda: functional.linear_backward(dy, x, weight, rows, columns=columns),
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
        lambda: functional.conv2d_backward(dy, x, weight, rows, *sides, p.groups, columns=columns),
        lambda: backward(dy, x, weight, [p.out], *sides, False, (0, 0), p.groups, wanted),
    )


# ---- the floor ------------------------------------------------------------------------------------------------------


class Amounts(NamedTuple):
    """Multiplications and additions, and bytes that are read or written; or how many a second."""

    operations: float
    moved: float


def floor(question: Question) -> Amounts:
    """The least that must be done: the products of what is chosen, each operand once, what is gathered twice more."""
    p, dw = question.whole, question.wgrad
    rows_of_dgrad = p.k if question.of_both else p.out
    gathered = 2 * p.tokens * p.k * (question.rows is not None) + 2 * dw.inputs * question.gathers
    weights = rows_of_dgrad * p.features + dw.k * dw.features  # W for dX, and dW
    elements = p.tokens * p.out + gathered + 2 * p.inputs + weights  # dY, x, dX
    operations = 2 * p.tokens * (dw.k * dw.features + rows_of_dgrad * p.features)
    return Amounts(operations, p.dtype.itemsize * elements)


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
