"""The clocks that a run's budget is spent by: the wall's, and one that gives the times of an earlier run again.

With the second, accuracies do not depend on what else runs on the machine, and can be had again bit for bit; what a step takes
was measured before, alone.
"""

import statistics
import time
from typing import Protocol


class Clock(Protocol):
    def __call__(self) -> float:
        """Seconds since the run began; asked once ahead of each step, and at the end."""

    def next_phase(self) -> None:
        """From here on steps take another time."""

    def forget(self) -> None:
        """What has happened since the last call took no time."""


class WallClock:
    """Seconds of wall time.

    Attributes:
        first: seconds ahead of the first step. phases: of each phase the seconds of its steps.
    """

    def __init__(self) -> None:
        self.begin = time.perf_counter()
        self.first: float | None = None
        self.phases: list[list[float]] = [[]]
        self._last = 0.0

    def elapsed(self) -> float:
        return time.perf_counter() - self.begin

    def __call__(self) -> float:
        now = self.elapsed()
        if self.first is None:
            self.first = now
        else:
            self.phases[-1].append(now - self._last)
        self._last = now
        return now

    def next_phase(self) -> None:
        self.phases.append([])

    def forget(self) -> None:
        self.begin += self.elapsed() - self._last


class ReplayedClock:
    """The times of earlier runs: each step takes what it took there, and those behind the last one the mean of a phase's second
    half.

    Args:
        first: seconds ahead of the first step. phases: as of :class:`WallClock`, none of them empty.
    """

    def __init__(self, first: float, phases: list[list[float]]) -> None:
        if not all(phases):
            raise ValueError(f"phases: expected steps in each, got {[len(steps) for steps in phases]}")
        self._now, self._phases, self._phase, self._step, self._begun = first, phases, 0, 0, False

    def __call__(self) -> float:
        if self._begun:
            steps = self._phases[self._phase]
            known = self._step < len(steps)
            self._now += steps[self._step] if known else statistics.fmean(steps[len(steps) // 2 :])
            self._step += 1
        self._begun = True
        return self._now

    def next_phase(self) -> None:
        self._phase, self._step = self._phase + 1, 0

    def forget(self) -> None:
        pass  # what was not timed takes none


def pooled(rounds: list[tuple[float, list[list[float]]]]) -> ReplayedClock:
    """A clock of the median times of several runs of the same work, as far as all of them went."""
    first = statistics.median(first for first, _ in rounds)
    phases = [
        [statistics.median(step) for step in zip(*alike, strict=False)]
        for alike in zip(*(phases for _, phases in rounds), strict=True)
    ]
    return ReplayedClock(first, phases)
