"""Accuracy over the seconds of one long training with each of some methods.

    python -m bench.finetune.curve        # two clocks of a minute, alone on the machine, and then hours beside other work
    python -m bench.finetune.curve --task text --seconds 120 --rates dense=3e-4 LISA=1e-3

Each method trains once, for as many steps as fit into these seconds on an idle machine; a part of the test set is looked at on
the way, outside of that time.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.finetune import sources
from bench.finetune.clock import Clock
from bench.finetune.grid import Clocks, Lines
from bench.finetune.methods import METHODS
from bench.finetune.tasks import TASKS, Task, get
from bench.finetune.training import Run, test, train
from bench.results import FOLDER, provenance
from wuskern.train.results import replace

TIMED = 60.0  # seconds by which a step is timed
Curve = list[tuple[float, float]]  # seconds and accuracies


@dataclass
class Looking:
    """A clock that stops while somebody looks: ``look()`` gives an accuracy, at each of the ``times``.

    Attributes:
        seen: seconds and accuracies.
    """

    clock: Clock
    times: list[float]
    look: Callable[[], float]
    seen: Curve = field(default_factory=list)

    def __call__(self) -> float:
        now = self.clock()
        while self.times and now >= self.times[0]:
            self.times.pop(0)
            self.seen.append((now, self.look()))
            self.clock.forget()
        return now

    def next_phase(self) -> None:
        self.clock.next_phase()

    def forget(self) -> None:
        self.clock.forget()


def curve(what: Run, task: Task, clock: Clock, looks: int, samples: int) -> Curve:
    """Seconds and accuracies of a training: ``looks`` of them by the first ``samples`` of the test set."""
    some = task.test.part(slice(samples))
    model = task.make(what.seed).train()
    torch.manual_seed(what.seed)
    looked: list[Any] = []  # the model that is looked at, once there is one

    def look() -> float:
        accuracy = test(looked[0], some, what)[0]
        looked[0].train()
        return accuracy

    looking = Looking(clock, [what.budget * i / looks for i in range(1, looks)], look)
    prepared = METHODS[what.method](model, task, what.seed)
    looked.append(prepared.model)
    _, ended = train(prepared, task.train, what, looking)
    return [*looking.seen, (ended, look())]


def draw(curves: dict[str, Curve], path: Path) -> None:
    """Writes a picture of accuracy over seconds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for method, found in curves.items():
        axes.plot(*zip(*((at, 100 * accuracy) for at, accuracy in found), strict=True), marker="o", markersize=3, label=method)
    axes.set(xlabel="seconds of training, caching included", ylabel="test accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)


def rates(texts: list[str]) -> dict[str, float]:
    """The learning rates of methods, from "METHOD=RATE"."""
    pairs = (text.rpartition("=") for text in texts)
    return {method: float(rate) for method, _, rate in pairs}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.finetune.curve", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--task", default="long", choices=list(TASKS))
    parser.add_argument("--seconds", type=float, default=2400.0, help="of training, for each method")
    parser.add_argument("--rates", nargs="+", default=["dense=3e-4", "prefix+cache=1e-3"], metavar="METHOD=RATE")
    parser.add_argument("--looks", type=int, default=24)
    parser.add_argument("--samples", type=int, default=2000, help="of the test set, at each look")
    parser.add_argument("--timed", type=float, default=TIMED, help="seconds by which a step is timed")
    parser.add_argument("--folder", type=Path, default=Path("build/evidence"), help="of the packages, and of what was run")
    parser.add_argument("--out", type=Path, default=FOLDER / "finetune-curve.json", help="and a picture beside it")
    given = parser.parse_args()
    sources.install(given.folder, [given.task])
    chosen = rates(given.rates)
    clocks = Clocks(Lines(given.folder / "clocks.jsonl"), given.folder, seconds=given.timed)
    clocks.time([given.task], list(chosen), rounds=1)
    lines = Lines(given.folder / "curves.jsonl")
    records = []
    for method, rate in chosen.items():
        what = Run(given.task, method, given.seconds, rate, 0, clocks.faster(given.task, method))
        done = [record for record in lines.records if record["what"] == asdict(what)]
        if not done:
            clock = clocks.clock(what)
            found = curve(what, get(given.task, given.folder), clock, given.looks, given.samples)
            done.append({"what": asdict(what), "curve": found})
            lines.add(done[0])
        records.append(done[0])
        print(method, "  ".join(f"{at:.0f} s {100 * accuracy:.1f} %" for at, accuracy in done[0]["curve"]), flush=True)
    replace(given.out, json.dumps({"environment": provenance("cpu"), "curves": records}, indent=1))
    draw({record["what"]["method"]: record["curve"] for record in records}, given.out.with_suffix(".png"))
    print(given.out)


if __name__ == "__main__":
    main()
