"""Where the time of training steps goes."""

import itertools
import time

import torch

PHASES = ("data", "fprop", "backward", "optimizer")


class Phases:
    """A clock of phases: the time between two marks counts for the phase that the second one names.

    On a GPU marks are events, which nobody waits for until the end.
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda = device if device.type == "cuda" else None
        self.marks: list[tuple[str, float | torch.cuda.Event]] = [("", self._now())]

    def _now(self) -> "float | torch.cuda.Event":
        if self.cuda is None:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.cuda))
        return event

    def mark(self, phase: str) -> None:
        self.marks.append((phase, self._now()))

    def end(self) -> dict[str, float]:
        """The seconds spent in each phase."""
        if self.cuda is not None:
            torch.cuda.synchronize(self.cuda)
        seconds = dict.fromkeys(PHASES, 0.0)
        for (_, before), (phase, now) in itertools.pairwise(self.marks):
            seconds[phase] += now - before if isinstance(now, float) else before.elapsed_time(now) / 1e3  # type: ignore
        return seconds
