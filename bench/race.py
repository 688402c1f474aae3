"""The race: variants of one problem, verified first, then timed in turn within one run, as wuskern/bench/turns.py says."""

import itertools
from collections.abc import Callable
from typing import Any

from torch.utils.flop_counter import FlopCounterMode

from wuskern.bench.ceilings import Ceilings
from wuskern.bench.clocks import clock_of, copies_for, on_host, repeat_for
from wuskern.bench.turns import WARM_UP, Derived, HandClock, Seconds, Variants, medians, times, turns
from wuskern.common.memory import peak_bytes

ROUNDS = 21
OURS = "ours"
Row = dict[str, Any]

race_clock = HandClock()  # it goes while "ours" runs, so that pytest-benchmark's table is of those timings


class Race:
    """What the fixture ``race`` hands out; see :meth:`__call__`."""

    def __init__(
        self,
        benchmark: Any,
        ceilings: Ceilings,
        record: Callable[[Row], None],
        rounds: int = ROUNDS,
        copies: int | None = None,
    ) -> None:
        self.benchmark, self.ceilings, self.record, self.rounds, self.copies = benchmark, ceilings, record, rounds, copies
        self.device = ceilings.device

    def __call__(
        self,
        variants: Variants,
        *,
        group: str,
        case: str,
        inputs: Callable[[], tuple[Any, ...]],
        verify: Callable[..., None],
        peer: str,
        floor: Callable[[Seconds], float] | None = None,
        derived: Derived | None = None,
        moved: int = 0,
        flops: int | None = None,
        dtype: Any = None,
        copies: int | None = None,
        repeat: int | None = None,
        rounds: int | None = None,
        rehearse: bool = False,
        host: bool = False,
        **facts: Any,
    ) -> None:
        """Verifies, measures, and records the row; in a smoke run (``--benchmark-disable``) it only verifies.

        Args:
            variants: name -> function of one set of inputs; "ours" is ours.
            group, case: where the row belongs, and its name there.
            inputs: makes one set; called once per copy.
            verify: ``verify(results, *set)`` with each variant's result by name; raises where one is wrong.
            peer: the variant that ours is compared with, as ``faster``: seconds of the peer over ours.
            floor: seconds that cannot be undercut, from the seconds of a round; ours over it is ``of_floor``.
            derived: further numbers, each a function of the seconds of a round.
            moved: bytes that must be read or written. flops: by default what FlopCounterMode sees in ours (which cannot be
                ``autograd.grad`` of a leaf through a module). dtype: of the matrix products, None where there are none.
            copies, repeat: sets of inputs, and calls per timing; by default as wuskern/bench/clocks.py says.
            rounds: at most so many, for a group of many long cases.
            rehearse: each is called once before it is timed, so that it meets the state that it leaves itself.
            host: time the host alone, also on a GPU.
            facts: go into the row as they are.
        """
        first = inputs()
        verify({name: function(*first) for name, function in variants.items()}, *first)
        self.benchmark.group = group
        if self.benchmark.disabled:
            self.benchmark.pedantic(lambda: None)
            return

        clock = on_host if host else clock_of(self.device)
        copies = self.copies or copies or copies_for(moved, self.device)
        sets = [first, *(inputs() for _ in range(copies - 1))]
        repeat = repeat or repeat_for(clock(variants[OURS], [first]), self.device)
        rounds = min(self.rounds, rounds or self.rounds)
        seconds: list[Seconds] = []
        rounds_of_all = turns(variants, clock, itertools.cycle(sets), repeat, rehearse)

        def one_round() -> None:
            seconds.append(next(rounds_of_all))
            race_clock.seconds += seconds[-1][OURS]

        self.benchmark.pedantic(one_round, rounds=rounds, warmup_rounds=WARM_UP)

        peaks = {name: peak_bytes(lambda f=function: f(*first), self.device) for name, function in variants.items()}
        row = {"group": group, "case": case, "peer": peer, **facts}
        row |= times(seconds[WARM_UP:])
        functions: Derived = {"faster": lambda t: t[peer] / t[OURS]}
        if floor is not None:
            functions["of_floor"] = lambda t: t[OURS] / floor(t)
        row["derived"] = medians(seconds[WARM_UP:], functions | (derived or {}))
        row |= self._rates(
            row["milliseconds"][OURS] / 1e3, moved, _flops(variants[OURS], first) if flops is None else flops, dtype
        )
        row |= {"peak_bytes": peaks, "rounds": rounds, "repeat": repeat, "copies": copies}
        self.record(row)

    def _rates(self, seconds: float, moved: int, flops: int, dtype: Any) -> dict[str, Any]:
        """Zeros where a case states no bytes, or has no matrix product."""
        least = self.ceilings.seconds(moved, flops, dtype)
        return {
            "bytes": moved,
            "flops": flops,
            "GB/s": round(moved / seconds / 1e9, 3),
            "GFLOP/s": round(flops / seconds / 1e9, 3),
            "of_ceiling": round(least / seconds, 4),
        }


def _flops(function: Callable[..., object], arguments: tuple[Any, ...]) -> int:
    with FlopCounterMode(display=False) as counter:
        function(*arguments)
    return counter.get_total_flops()
