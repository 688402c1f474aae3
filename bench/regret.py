"""Regret of a choice: the time of the chosen path over that of the best one, per problem.

    python -m bench.regret [PATH.json]                 # the CPU's paths (kernels/cpu/paths.py)
    python -m bench.regret --device cuda [PATH.json]   # a GPU's ways (kernels/cuda/rule.py); see bench/gpu/regret.py

The problems are none of those that the rules of kernels/cpu/paths.py were made from, which are the convolutions of networks in
tests/cases.py. All paths of a problem are verified against the first, then timed in turn within one run, each called once
before it is timed; the regret compares their medians.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from bench.gpu import regret as on_cuda
from bench.results import provenance
from tests.cases import MEMORY_FORMATS, Conv
from wuskern.bench.clocks import settle_allocator
from wuskern.kernels import backends
from wuskern.kernels.cpu import conv2d, native, paths, product
from wuskern.kernels.problem import Problem
from wuskern.train.results import replace

RATIOS = (0.02, 0.1, 0.3)
ROUNDS = 9
CONVS = [
    Conv("44px", 16, 48, 64, 44, 3, 1, 1),
    Conv("26px", 24, 112, 96, 26, 3, 1, 1),
    Conv("15px", 32, 160, 224, 15, 3, 1, 1),
    Conv("6px", 40, 416, 352, 6, 3, 1, 1),
    Conv("5x5", 24, 72, 56, 16, 5, 1, 2),
    Conv("dilated", 8, 112, 144, 22, 3, 1, 2, 2),
    Conv("1x1 30px", 16, 288, 72, 30, 1),
    Conv("1x1 15px", 32, 224, 896, 15, 1),
]
LINEARS = [(1300, 900, 700), (300, 3000, 1600), (7000, 400, 512), (9000, 256, 320)]  # tokens, N, K

Paths = dict[str, Callable[[], Tensor]]


@dataclasses.dataclass(frozen=True)
class Race:
    """A problem, the path chosen for it, and all that it could take."""

    name: str
    chosen: str
    paths: Paths


def conv_races(convs: list[Conv] = CONVS, ratios: tuple[float, ...] = RATIOS) -> Iterator[Race]:
    for case in convs:
        for dtype in (torch.float32, torch.bfloat16):
            for layout, like in MEMORY_FORMATS.items():
                for ratio in ratios:
                    yield from _conv_races(case, dtype, layout, like, max(1, int(case.out * ratio)))


def _conv_races(case: Conv, dtype: torch.dtype, layout: str, like: torch.memory_format, k: int) -> Iterator[Race]:
    layer = dataclasses.replace(case, out=k).layer(dtype).to(memory_format=like)
    with torch.no_grad():
        x = case.input(dtype).contiguous(memory_format=like)
        dy = torch.randn_like(layer(x)).contiguous(memory_format=like)
    weight = layer.weight.detach()
    geometry = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    sides, planes = (tuple(x.shape[2:]), *geometry), like is torch.contiguous_format
    of_dw = Problem("rowsparse_wgrad_conv2d", dtype, *x.shape[:2], k, k, *sides, layer.groups, planes)
    of_dx = of_dw._replace(op="rowsparse_dgrad_conv2d")
    name = f"{case.name} {layout} {str(dtype)[6:]} k={k}"
    wgrad = {p: lambda p=p: conv2d.WGRAD[p](dy, x, of_dw) for p in paths.conv2d_wgrad_paths(of_dw)}
    yield Race(f"{name} dW", native.path_of(of_dw), wgrad)
    dgrad = {p: lambda p=p: conv2d.DGRAD[p](dy, weight, of_dx) for p in paths.conv2d_dgrad_paths(of_dx)}
    yield Race(f"{name} dX", native.path_of(of_dx), dgrad)


def linear_races() -> Iterator[Race]:
    for tokens, n, inputs in LINEARS:
        for ratio in RATIOS:
            k = max(1, int(n * ratio))
            x, dy, weight = torch.randn(tokens, inputs), torch.randn(tokens, k), torch.randn(k, inputs)
            for kind, a, b in (("dW", dy.t(), x.t()), ("dX", dy, weight.t())):
                chosen = product.product_path(dy.dtype, a.shape[0], b.shape[0], a.shape[1])
                ways = {p: lambda p=p, a=a, b=b: product.PRODUCTS[p](a, b) for p in product.PRODUCTS}
                yield Race(f"Linear {tokens}x{n}x{inputs} k={k} {kind}", chosen, ways)


def measure(race: Race) -> dict[str, float]:
    """Milliseconds of each path: the median over the rounds."""
    results = {name: run() for name, run in race.paths.items()}
    first = next(iter(results.values())).double()
    for name, result in results.items():
        assert (result.double() - first).norm() <= 2e-2 * first.norm(), (race.name, name)
    seconds: dict[str, list[float]] = {name: [] for name in race.paths}
    for _ in range(ROUNDS):
        for name, run in race.paths.items():
            run()
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(times) for name, times in seconds.items()}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.regret", description=__doc__.splitlines()[0])
    parser.add_argument("path", nargs="?", type=Path, metavar="PATH.json", help="write what was measured there")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    asked = parser.parse_args(arguments)
    if obstacle := _obstacle(asked.device):
        print(obstacle, file=sys.stderr)
        return 1
    settle_allocator()
    torch.manual_seed(0)
    if asked.device == "cuda":
        rows = on_cuda.rows("cuda")
    else:
        rows = [on_cuda.told(race.name, race.chosen, measure(race)) for race in (*linear_races(), *conv_races())]
    regrets = [row["regret"] for row in rows]
    print(f"regret of {len(rows)} problems: median {statistics.median(regrets):.1%}, worst {max(regrets):.1%}")
    if asked.path is not None:
        replace(asked.path, json.dumps({"environment": provenance(asked.device), "rows": rows}, indent=1))
    return 0


def _obstacle(device: str) -> str | None:
    if device == "cuda":
        return None if torch.cuda.is_available() else "this machine has no GPU that PyTorch sees"
    obstacle = backends.library_obstacle("cpu")
    return obstacle and f"no compiled library: {obstacle}"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
