"""``wuskern doctor --explain``: how one row-sparse backward is computed on this CPU, why so, and how far from its floor."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from wuskern import functional
from wuskern.choices import TopK
from wuskern.doctor.report import Line, Report
from wuskern.kernels import backends
from wuskern.kernels.cpu import native
from wuskern.kernels.cpu.paths import WHY

REPEATS = 9
RATE_SIDE = 1024  # of the square matrices whose product says what the machine can do
COPY_BYTES = 2**26


@dataclasses.dataclass(frozen=True)
class Problem:
    """A backward: its tensors, what it does in words, its work, and its two ways."""

    title: str
    k: int
    out: int
    paths: list[Line]  # of dW and dX
    operations: int  # multiplications and additions of the chosen rows
    moved: int  # bytes that must be read or written
    ours: Callable[[], object]
    dense: Callable[[], object]


def linear(sides: Sequence[int], choice: TopK, dtype: torch.dtype) -> Problem:
    """``sides``: tokens, outputs and inputs."""
    _check_library()
    tokens, out, inputs = sides
    k = choice.count(out)
    dy, x, weight = (torch.randn(size).to(dtype) for size in ((tokens, out), (tokens, inputs), (out, inputs)))
    products = [("dW", (k, inputs, tokens))] + ([("dX", (tokens, inputs, k))] if choice.scope == "both" else [])
    paths = [(name, _say(native.product_path(dtype, *of_product), WHY)) for name, of_product in products]
    if choice.scope == "weight":
        paths.append(("dX", "dense: scope is weight"))
    return Problem(
        title=f"Linear {out} x {inputs}, {tokens} tokens",
        k=k,
        out=out,
        paths=paths,
        operations=2 * tokens * inputs * (k + (k if choice.scope == "both" else out)),
        moved=dtype.itemsize * (dy.numel() + 2 * tokens * k + 2 * x.numel() + 2 * k * inputs),
        ours=lambda: functional.linear_backward(dy, x, weight, rows=choice),
        dense=lambda: (dy.matmul(weight), dy.t().mm(x), dy.sum(0)),
    )


def conv2d(
    sides: Sequence[int],
    choice: TopK,
    dtype: torch.dtype,
    stride: int,
    padding: int | None,
    groups: int,
    channels_last: bool,
) -> Problem:
    """``sides``: batch, channels, output channels, side of the image and of the kernel."""
    _check_library()
    batch, channels, out, side, kernel = sides
    padding = kernel // 2 if padding is None else padding
    like = torch.channels_last if channels_last else torch.contiguous_format
    k = choice.count(out, groups)
    x = torch.randn(batch, channels, side, side).to(dtype).contiguous(memory_format=like)
    weight = torch.randn(out, channels // groups, kernel, kernel).to(dtype).contiguous(memory_format=like)
    geometry = (stride,) * 2, (padding,) * 2, (1, 1), groups
    dy = torch.randn_like(F.conv2d(x, weight, None, *geometry))
    wgrad, dgrad = native.conv2d_paths(x, weight, k, *geometry)
    paths = [("dW", _say(wgrad, WHY))]
    paths.append(("dX", _say(dgrad, WHY) if choice.scope == "both" else "dense: scope is weight"))
    of_unit = 2 * dy.numel() // out * weight[0].numel()
    return Problem(
        title=f"Conv2d {channels} -> {out}, {kernel}x{kernel}, {batch} images of {side}x{side}",
        k=k,
        out=out,
        paths=paths,
        operations=of_unit * (k + (k if choice.scope == "both" else out)),
        moved=dtype.itemsize * (dy.numel() + 2 * dy.numel() * k // out + 2 * x.numel() + 2 * k * weight[0].numel()),
        ours=lambda: functional.conv2d_backward(dy, x, weight, choice, *geometry),
        dense=lambda: torch.ops.aten.convolution_backward(
            dy, x, weight, [out], *geometry[:3], False, (0, 0), groups, (True, True, True)
        ),
    )


def report(problem: Problem, choice: TopK, dtype: torch.dtype) -> Report:
    """Measures for about a second."""
    title = f"{problem.title}, {str(dtype).removeprefix('torch.')}, {torch.get_num_threads()} threads"
    if problem.k == problem.out:
        return Report((("problem", title), ("choice", "dense: all rows are stock's own backward")))
    operations, bandwidth = _rates(dtype)
    floor = max(problem.operations / operations, problem.moved / bandwidth)
    ours, dense = _seconds(problem.ours, problem.dense)
    stats = backends.choose("row_stats", "cpu").backend
    return Report(
        (
            ("problem", title),
            (
                "choice",
                f"{problem.k} of {problem.out} rows ({problem.k / problem.out:.1%}) by {choice.score}, scope {choice.scope}",
            ),
            ("reads of dY", f"1 for scores and bias gradient ({stats}), {problem.k / problem.out:.2f} for the chosen rows"),
            *problem.paths,
            ("floor", f"{1e3 * floor:.3f} ms: {_least(problem, operations, bandwidth)}"),
            ("measured", f"{1e3 * ours:.3f} ms, {ours / floor:.2f}x the floor"),
            ("dense", f"{1e3 * dense:.3f} ms, {dense / ours:.2f}x of that"),
        )
    )


def _check_library() -> None:
    if obstacle := backends.library_obstacle("cpu"):
        raise ValueError(f"--explain: expected the compiled library, whose paths it tells, got none: {obstacle}")


def _least(problem: Problem, operations: float, bandwidth: float) -> str:
    work = f"{problem.operations / 1e9:.3g} GFLOP at {operations / 1e9:.0f} GFLOP/s"
    memory = f"{problem.moved / 1e6:.3g} MB at {bandwidth / 1e9:.0f} GB/s"
    return f"the larger of {work} and {memory}, rates measured now"


def _say(path: str, why: dict[str, str]) -> str:
    return f"{path}: {why[path]}"


def _rates(dtype: torch.dtype) -> tuple[float, float]:
    """Operations a second of a product in ``dtype``, by the better of torch's and ours, and bytes a second of a copy."""
    a, b = torch.randn(2, RATE_SIDE, RATE_SIDE).to(dtype)
    source = torch.randn(COPY_BYTES // 4)
    target = torch.empty_like(source)
    fastest = min(min(_times(lambda: a @ b)), min(_times(lambda: native.product(a, b))))
    return 2 * RATE_SIDE**3 / fastest, 2 * COPY_BYTES / min(_times(lambda: target.copy_(source)))


def _seconds(*functions: Callable[[], object]) -> list[float]:
    """Medians, the functions in turn."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(REPEATS):
        for function, its in zip(functions, times, strict=True):
            its += _times(function, 1)
    return [statistics.median(its) for its in times]


def _times(function: Callable[[], object], count: int = REPEATS) -> list[float]:
    function()
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return seconds
