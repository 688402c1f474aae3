"""What the generators share: inputs numbered from 0, each by a random generator of its own, until the time is up."""

import argparse
import random
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from wuskern.kernels import backends

SHOWN = 20  # faults


def parser(description: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--seconds", type=float, default=60, help="how long to try inputs (default: 60)")
    made.add_argument("--count", type=int, help="or how many")
    made.add_argument("--seed", type=int, default=0, help="of all inputs (default: 0)")
    made.add_argument("--only", type=int, help="the number of the one input to try, as a fault names it")
    made.add_argument("--library", type=Path, help="the folder of the compiled library (default: that of the package)")
    return made


def load_library(chosen: argparse.Namespace) -> None:
    """Loads the compiled library, or ends the program. PyTorch's warnings, of slow layouts and the like, are silenced."""
    warnings.filterwarnings("ignore", category=UserWarning)
    if chosen.library is not None:
        backends.LIBRARY_DIR = chosen.library
    if obstacle := backends.library_obstacle("cpu"):
        raise SystemExit(f"the compiled library is needed: {obstacle}")


class Clock:
    """Says whether there is to be another input: ``--count`` of them, or until ``--seconds`` are over."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        self.count, self.seconds, self.start = chosen.count, chosen.seconds, time.monotonic()

    def share(self, tried: int) -> float:
        """How much of it is over, after so many inputs."""
        passed = time.monotonic() - self.start
        return tried / max(self.count, 1) if self.count is not None else passed / self.seconds

    def goes_on(self, tried: int) -> bool:
        return tried < self.count if self.count is not None else self.share(tried) < 1


def run(chosen: argparse.Namespace, attempt: Callable[[random.Random], str | None]) -> int:
    """Calls ``attempt`` for one input after the other; what it answers is a fault. Gives the exit status."""
    torch.set_num_threads(1)
    clock, tried, faults = Clock(chosen), 0, []
    while chosen.only is not None or clock.goes_on(tried):
        number = tried if chosen.only is None else chosen.only
        torch.default_generator.manual_seed(number)  # torch.manual_seed notes down a traceback each time
        if (fault := attempt(random.Random(f"{chosen.seed} {number}"))) is not None:
            faults.append(f"{fault} (--seed {chosen.seed} --only {number})")
        tried += 1
        if chosen.only is not None:
            break
    for fault in faults[:SHOWN]:
        print(fault, file=sys.stderr)
    print(f"{tried} inputs from seed {chosen.seed}, {len(faults)} faults")
    return int(bool(faults) or not tried)
