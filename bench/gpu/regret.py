"""Regret of a GPU's choice between native, triton and library (kernels/cuda/rule.py, which nobody has held against a GPU).

All ways of a problem are verified against the library's, then timed in turn, L2 flushed; medians.
"""

import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.cases import Conv
from wuskern.bench.clocks import clock_of
from wuskern.kernels import backends
from wuskern.kernels.cuda import rule
from wuskern.kernels.cuda.gpus import capability_of
from wuskern.kernels.problem import Problem, problem_of

ROUNDS = 9
Milliseconds = dict[str, float]  # by way


@dataclass(frozen=True)
class Case:
    """An op and what makes its arguments: a Linear's (tokens, N, K), or a convolution in NHWC; k rows."""

    op: str
    of: tuple[int, int, int] | Conv
    k: int
    whole: bool = False  # dy with all of its rows

    def arguments(self, device: str, dtype: torch.dtype) -> tuple[Any, ...]:
        return (self._linear if isinstance(self.of, tuple) else self._conv2d)(device, dtype)

    def _linear(self, device: str, dtype: torch.dtype) -> tuple[Any, ...]:
        tokens, out, inputs = self.of
        other = (tokens, inputs) if "wgrad" in self.op else (out, inputs)
        dy, other = (torch.randn(s, device=device, dtype=dtype) for s in ((tokens, out if self.whole else self.k), other))
        return dy, other, self._rows(out, device)

    def _conv2d(self, device: str, dtype: torch.dtype) -> tuple[Any, ...]:
        conv, like = self.of, {"memory_format": torch.channels_last}
        with torch.device("meta"):
            layer = conv.layer()
            shape = layer(conv.input()).shape
        geometry = layer.stride, layer.padding, layer.dilation, layer.groups
        rows = conv.out if self.whole else self.k
        wgrad = "wgrad" in self.op
        sizes = (shape[0], rows, *shape[2:]), (conv.batch, conv.channels, conv.side, conv.side) if wgrad else layer.weight.shape
        dy, other = (torch.randn(s, device=device, dtype=dtype).contiguous(**like) for s in sizes)
        return dy, other, self._rows(conv.out, device), layer.kernel_size if wgrad else (conv.side, conv.side), *geometry

    def _rows(self, out: int, device: str) -> Tensor:
        return torch.randperm(out, device=device)[: self.k].sort()[0]

    def __str__(self) -> str:
        of = "x".join(map(str, self.of)) if isinstance(self.of, tuple) else self.of.name
        return f"{self.op} {of} k={self.k}{' whole' if self.whole else ''}"


def cases(linears: Sequence[tuple[int, int, int]], convs: Sequence[Conv], ratios: Sequence[float]) -> Iterator[Case]:
    for shape, ratio, part in itertools.product(linears, ratios, ("wgrad", "dgrad")):
        yield Case(f"rowsparse_{part}", shape, max(1, int(ratio * shape[1])))
    for conv, ratio, part in itertools.product(convs, ratios, ("wgrad", "dgrad")):
        yield Case(f"rowsparse_{part}_conv2d", conv, max(1, int(ratio * conv.out)))


CASES = list(
    cases(
        [(1000, 2048, 2048), (3000, 3072, 768), (12000, 1536, 6144), (20000, 2560, 2560)],
        [
            Conv("96ch 40px 3x3", 48, 96, 96, 40, 3, 1, 1),
            Conv("384ch 10px 3x3", 100, 384, 384, 10, 3, 1, 1),
            Conv("192 to 768 20px 1x1", 48, 192, 768, 20, 1),
        ],
        (0.05, 0.15),
    )
)


def measure(case: Case, device: str, dtype: torch.dtype = torch.bfloat16) -> tuple[Problem, Milliseconds]:
    """Medians of each way that runs here; ``AssertionError`` where one is wrong."""
    arguments = case.arguments(device, dtype)
    runs, _ = backends.ways(case.op, device)
    results = {way: run(*arguments).double() for way, run in runs.items()}
    exact = results["library"]
    for way, result in results.items():
        assert (result - exact).norm() <= 2e-2 * exact.norm(), (str(case), way)
    clock = clock_of(device)
    seconds: dict[str, list[float]] = {way: [] for way in runs}
    for _ in range(ROUNDS):
        for way, run in runs.items():
            seconds[way].append(clock(run, [arguments]))
    milliseconds = {way: 1e3 * statistics.median(times) for way, times in seconds.items()}
    return problem_of(case.op, *arguments), milliseconds


def rows(device: str, cases: Sequence[Case] = CASES) -> list[dict[str, Any]]:
    """The regret of each case."""
    capability = capability_of(torch.device(device))
    measured = ((str(case), *measure(case, device)) for case in cases)
    return [told(name, rule.choose(p, capability, tuple(times)).way, times) for name, p, times in measured]


def told(name: str, chosen: str, milliseconds: Milliseconds) -> dict[str, Any]:
    """A row of the results, printed."""
    regret = milliseconds[chosen] / min(milliseconds.values()) - 1
    times = ", ".join(f"{way} {time:.3f}" for way, time in milliseconds.items())
    print(f"{regret:6.1%}  {name}: {chosen} of {times} ms", flush=True)
    return {"problem": name, "chosen": chosen, "milliseconds": milliseconds, "regret": regret}
