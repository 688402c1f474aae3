"""The measurement behind ``wuskern bench``: all variants of one layer, verified, and then timed in turn."""

import itertools
import time
from collections.abc import Callable

import torch

from wuskern.bench.asked import Amounts, Asked
from wuskern.bench.ceilings import Ceilings
from wuskern.bench.clocks import clock_of, copies_for, repeat_for, settle_allocator
from wuskern.bench.turns import WARM_UP, Derived, Seconds, medians, times, turns
from wuskern.bench.variants import STOCK, STOCK_SUM, Variants
from wuskern.bench.verify import verify
from wuskern.train.results import environment

ROUNDS, BOX = 11, 60.0
LONG = 2.0  # seconds of a round: what is so long is verified on a part of the batch, and neither rehearsed nor warmed up
PART = 16
Facts = dict[str, str | int | float]


def baseline(variant: str) -> str:
    """What a variant is compared with: the layer that trains whole, or the sum over dY."""
    return STOCK_SUM if variant in ("bias_grad", STOCK_SUM) else STOCK


class Measured:
    """What was measured: ``seconds`` of each round, by variant; ``facts`` of each variant, plain numbers and strings. Without
    ``timed`` the variants have been verified and not timed, and both are empty.

    Args:
        rounds: None: ROUNDS of them, or as many as fit into BOX seconds, at least one.

    Attributes:
        verified: the size of the batch that was verified.
    """

    def __init__(self, asked: Asked, rounds: int | None, timed: bool = True) -> None:
        settle_allocator()
        torch.manual_seed(0)
        self.asked, self.ceilings, self.variants = asked, Ceilings(asked.device), Variants(asked)
        self.seconds: list[Seconds] = []
        self.facts: dict[str, Facts] = {}
        round_takes = len(self.variants.runs) * self._expected()
        self.is_short = round_takes < LONG
        self.verified = self._verify()
        if timed:
            print(f"{len(self.variants.runs)} variants are right; each round takes about {round_takes:.1g} s", flush=True)
            self._measure(rounds)

    def _expected(self) -> float:
        """The seconds that a variant will take, by stock's on a part of the batch."""
        part, clock = self.asked.part(PART), clock_of(self.asked.device)
        batch, run = part.batch(self.variants.stock), self.variants.runs[STOCK]
        return min(clock(run, [batch]) for _ in range(3)) * self.asked.sizes[0] / part.sizes[0]

    def _verify(self) -> int:
        asked = self.asked if self.is_short else self.asked.part(PART)
        batch = asked.batch(self.variants.stock)
        verify(self.variants, {name: run(*batch) for name, run in self.variants.runs.items()}, *batch)
        return asked.sizes[0]

    def _measure(self, rounds: int | None) -> None:
        runs, device, stock = self.variants.runs, self.asked.device, self.variants.stock
        first = self.asked.batch(stock)
        amounts = Amounts(self.asked, *first, weight=stock.weight)
        clock, moved = clock_of(device), sum(part.moved for part in amounts.of(STOCK))
        sets = [first, *(self.asked.batch(stock) for _ in range(copies_for(moved, device) - 1))]
        repeat = repeat_for(clock(runs["skip"], [first]), device) if self.is_short else 1
        of_rounds = turns(runs, clock, itertools.cycle(sets), repeat, rehearse=self.is_short)
        for _ in range(WARM_UP if self.is_short else 0):
            next(of_rounds)
        start = time.perf_counter()
        while not self.seconds or (len(self.seconds) < (rounds or ROUNDS) and (rounds or time.perf_counter() - start < BOX)):
            self.seconds.append(next(of_rounds))
        self._state(amounts, {"calls_per_round": repeat, "copies_of_inputs": len(sets)})

    def _state(self, amounts: Amounts, of_run: Facts) -> None:
        """Makes the facts of each variant of the seconds."""
        runs = self.variants.runs
        ratios: Derived = {name: _ratio(name) for name in runs}
        over, of_all = medians(self.seconds, ratios), times(self.seconds)
        floors = {name: amounts.floor(name, self.ceilings) for name in runs}
        of_run = of_run | {"rounds": len(self.seconds), "verified_batch": self.verified, **self._environment()}
        for name in runs:
            seconds = of_all["milliseconds"][name] / 1e3
            self.facts[name] = {
                "milliseconds": of_all["milliseconds"][name],
                "spread": of_all["spread"][name],
                "baseline": baseline(name),
                "times_faster": over[name]["median"],
                "times_faster_iqr": over[name]["iqr"],
                "floor_milliseconds": round(1e3 * floors[name], 6),
                "share_of_floor": round(floors[name] / seconds, 4),
                "flops": sum(part.flops for part in amounts.of(name)),
                "bytes": sum(part.moved for part in amounts.of(name)),
                **of_run,
            }

    def _environment(self) -> Facts:
        plain = {name: value for name, value in environment(self.asked.device).items() if isinstance(value, str | int | float)}
        return plain | {"floor": "forward and backward, each the slower of bytes and FLOPs"} | self.ceilings.as_dict()


def _ratio(name: str) -> Callable[[Seconds], float]:
    return lambda seconds: seconds[baseline(name)] / seconds[name]
