"""What the machine can do, measured once per session by the clock of the races: bytes and flops a second."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from wuskern.bench.clocks import clock_of, last_level_cache

TIMINGS = 9
HOPELESS = 4.0  # times as long as the best so far
SIDE = {"cpu": 1024, "cuda": 8192}  # of the square matrices


@dataclass(frozen=True)
class Ceilings:
    """Rates of one device, each the fastest of TIMINGS: a ceiling is what the machine can do, not what it did on average."""

    device: str

    @functools.cached_property
    def bandwidth(self) -> dict[str, float]:
        """Bytes a second of a copy (read and write both count) and of a read (a float32 sum), on 4 last-level caches."""
        source = torch.randn(last_level_cache(self.device), device=self.device)  # 4 bytes each
        target = torch.empty_like(source)
        size = source.numel() * source.element_size()
        return {"copy": 2 * size / self._best(lambda: target.copy_(source)), "read": size / self._best(source.sum)}

    @property
    def bytes_per_second(self) -> float:
        return max(self.bandwidth.values())

    @functools.cached_property
    def _gemm(self) -> dict[torch.dtype, float]:
        return {}

    def flops_per_second(self, dtype: torch.dtype) -> float:
        """The rate of a square matrix product in ``dtype``, by the fastest of the layouts of wgrad, fprop and dgrad: where a
        processor lacks the instructions for a dtype, another layout can take thirty times as long."""
        if dtype not in self._gemm:
            side = SIDE[self.device]
            a, b = (torch.randn(side, side, device=self.device, dtype=dtype) for _ in range(2))
            self._gemm[dtype] = 2 * side**3 / self._best(lambda: a.t() @ b, lambda: a @ b.t(), lambda: a @ b)
        return self._gemm[dtype]

    def seconds(self, size: int, flops: int, dtype: torch.dtype | None) -> float:
        """The least that moving ``size`` bytes and, with a dtype, computing ``flops`` can take: the slower of the two."""
        computing = flops / self.flops_per_second(dtype) if dtype is not None else 0.0
        return max(size / self.bytes_per_second, computing)

    def as_dict(self) -> dict[str, float]:
        bandwidth = {f"{name} GB/s": round(rate / 1e9, 2) for name, rate in self.bandwidth.items()}
        return bandwidth | {f"GEMM {str(dtype)[6:]} GFLOP/s": round(rate / 1e9, 1) for dtype, rate in self._gemm.items()}

    def _best(self, *functions: Callable[[], object]) -> float:
        """The fewest seconds of any of the functions; one that is far behind is called once."""
        clock, best = clock_of(self.device), math.inf
        for function in functions:
            if (first := clock(function, [()])) < HOPELESS * best:
                best = min(best, first, *(clock(function, [()]) for _ in range(TIMINGS - 1)))
        return best
