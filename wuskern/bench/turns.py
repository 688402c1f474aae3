"""Variants of one problem that are timed in turn, and the numbers of their rounds.

Every round times each variant once, in an order that rotates, each timing on the set of inputs used longest ago. All
ratios are taken within a round, where the machine is the same for all, and stated as their median over the rounds. (The
quotient of two stated medians can therefore differ a little from the stated ratio.) The spread of anything is its
interquartile range; of times, over the median.
"""

import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from wuskern.bench.clocks import Clock

WARM_UP = 3
Variants = Mapping[str, Callable[..., object]]  # functions of one set of inputs
Seconds = dict[str, float]  # of one round, by variant
Derived = dict[str, Callable[[Seconds], float]]


class HandClock:
    """The timer that pytest-benchmark reads: it stands still until somebody moves its ``seconds`` on, by what was measured."""

    __name__ = "hand_clock"

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def turns(variants: Variants, clock: Clock, sets: Iterator[tuple[Any, ...]], repeat: int, rehearse: bool) -> Iterator[Seconds]:
    """Rounds without end: each variant timed once, the first of a round being the second of the round before.

    Args:
        sets: of inputs, in turn. repeat: calls per timing. rehearse: each is called once before it is timed, so that it meets
            the state that it leaves itself.
    """
    names = list(variants)
    for turn in itertools.count():
        shift = turn % len(names)
        seconds = {}
        for name in names[shift:] + names[:shift]:
            if rehearse:
                variants[name](*next(sets))
            seconds[name] = clock(variants[name], [next(sets) for _ in range(repeat)])
        yield {name: seconds[name] for name in names}


def times(rounds: list[Seconds]) -> dict[str, Seconds]:
    """The median of each variant in milliseconds, and its spread."""
    columns = {name: [seconds[name] for seconds in rounds] for name in rounds[0]}
    middle = {name: statistics.median(of_variant) for name, of_variant in columns.items()}
    return {
        "milliseconds": {name: round(1e3 * median, 6) for name, median in middle.items()},
        "spread": {name: round(iqr(of_variant) / middle[name], 4) for name, of_variant in columns.items()},
    }


def medians(rounds: list[Seconds], functions: Derived) -> dict[str, dict[str, float]]:
    """The median and the interquartile range of each function of a round."""
    values = {name: [function(seconds) for seconds in rounds] for name, function in functions.items()}
    return {name: {"median": round(statistics.median(v), 4), "iqr": round(iqr(v), 4)} for name, v in values.items()}


def iqr(values: list[float]) -> float:
    """The interquartile range; 0 for fewer than four values."""
    if len(values) < 4:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4)
    return high - low
