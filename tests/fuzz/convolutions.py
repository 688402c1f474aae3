"""Convolutions of any format, kernel, stride, dilation and groups by every path that ours may take, against float64."""

import random
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from tests.cases import MEMORY_FORMATS, Conv
from tests.fuzz import timebox
from tests.rowsparse import DTYPES, ConvTensors, conv_tensors, stock_dgrad, stock_wgrad
from wuskern import ops
from wuskern.kernels import reference
from wuskern.kernels.cpu import conv2d, paths

MOST = 200_000  # elements of an operand

Runs = dict[str, Callable[[], Tensor]]


def wgrad_runs(t: ConvTensors) -> Runs:
    """The chosen rows of dW: by each path that can have it, by the reference, and as the op chooses."""
    problem, size = t.wgrad_problem, t.weight.shape[2:]

    def by(path: str) -> Callable[[], Tensor]:
        return lambda: conv2d.WGRAD[path](t.gathered(), t.x, problem)

    return {
        **{path: by(path) for path in paths.conv2d_wgrad_paths(problem)},
        "reference": lambda: reference.rowsparse_wgrad_conv2d(t.dy, t.x, t.rows, size, *t.geometry),
        "op": lambda: ops.rowsparse_wgrad_conv2d(t.dy, t.x, t.rows, size, *t.geometry),
    }


def dgrad_runs(t: ConvTensors) -> Runs:
    """The same of dX from the chosen rows."""
    problem, size = t.dgrad_problem, t.x.shape[2:]

    def by(path: str) -> Callable[[], Tensor]:
        return lambda: conv2d.DGRAD[path](t.gathered(), t.weight[t.rows], problem)

    return {
        **{path: by(path) for path in paths.conv2d_dgrad_paths(problem)},
        "reference": lambda: reference.rowsparse_dgrad_conv2d(t.dy, t.weight, t.rows, size, *t.geometry),
        "op": lambda: ops.rowsparse_dgrad_conv2d(t.dy, t.weight, t.rows, size, *t.geometry),
    }


def fill_fresh_memory(size: int, dtype: torch.dtype) -> None:
    """With NaN what the next tensors of this size may get: a sum that is left out shows."""
    blocks = [torch.full((size + more,), float("nan"), dtype=dtype) for more in (0, 8, 16, 32)]
    del blocks


Answer = Callable[[ConvTensors], Tensor]


def wrong(runs: Runs, answer: Answer, t: ConvTensors) -> list[str]:
    """The ways whose result is not the ``answer`` in float64. Sums of integers are exact; where a processor has no products of
    16 bits, the library adds up in 16 bits, and what an element may miss is a share of the sum of its absolute products."""
    found, exact, dtype = [], answer(t.double()), t.x.dtype
    for name, run in runs.items():
        fill_fresh_memory(exact.numel(), dtype)
        result = run()
        if torch.equal(result, exact.to(dtype)):
            continue
        may_miss = 4 * torch.finfo(dtype).eps * answer(absolute(t.double()))
        if dtype.itemsize > 2 or not ((result.double() - exact).abs() <= may_miss).all():
            found.append(name)
    return found


def absolute(t: ConvTensors) -> ConvTensors:
    return replace(t, dy=t.dy.abs(), x=t.x.abs(), weight=t.weight.abs())


def draw(r: random.Random) -> tuple[Conv, torch.dtype, str, int]:
    """A convolution, its dtype and memory format, and how many rows of each group are chosen."""
    while True:
        groups, size = r.choice([1, 1, 2, 3, 4, 8]), (r.choice([1, 2, 5, 9, 16, 33]), r.choice([1, 2, 5, 9, 16, 33, 64]))
        kernel, padding = (r.choice([1, 2, 3, 5, 7]), r.choice([1, 2, 3, 5, 7])), (r.randrange(5), r.randrange(5))
        stride, dilation = (r.choice([1, 1, 2, 3]), r.choice([1, 1, 2, 3])), (r.choice([1, 1, 2, 3]), r.choice([1, 1, 2, 3]))
        channels, each, batch = r.choice([1, 2, 3, 4, 8, 16, 17]), r.choice([1, 2, 3, 4, 8, 16, 17]), r.choice([1, 2, 3, 16])
        fits = all(d * (k - 1) < n + 2 * p for d, k, n, p in zip(dilation, kernel, size, padding, strict=True))
        pixels = (size[0] + 2 * padding[0]) * (size[1] + 2 * padding[1])
        if fits and batch * groups * max(channels, each) * pixels <= MOST:
            break
    case = Conv("", batch, groups * channels, groups * each, size, kernel, stride, padding, dilation, groups)
    return case, r.choice([*DTYPES, torch.bfloat16]), r.choice(list(MEMORY_FORMATS)), r.randint(1, each)


def attempt(r: random.Random) -> str | None:
    case, dtype, layout, each = draw(r)
    t = conv_tensors(case, dtype, layout, each * case.groups)
    found = [f"dW by {way}" for way in wrong(wgrad_runs(t), stock_wgrad, t)]
    found += [f"dX by {way}" for way in wrong(dgrad_runs(t), stock_dgrad, t)]
    return f"{', '.join(found)}: {case}, {dtype}, {layout}, {each} rows of a group: {case!r}" if found else None


def main() -> int:
    chosen = timebox.parser(__doc__).parse_args()
    timebox.load_library(chosen)
    return timebox.run(chosen, attempt)


if __name__ == "__main__":
    raise SystemExit(main())
