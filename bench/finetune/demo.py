"""``python -m bench.finetune.demo``: two minutes of fine-tuning real weights: dense, LoRA, and a frozen front that runs once.

    python -m bench.finetune.demo [--task text] [--seconds 25] [--folder build/evidence] [--out runs/finetune-demo]

Each trains for the same seconds of wall time, with the learning rate that suits it; a part of the test set is looked at on the
way, outside of that time. It says in two sentences what came of it, and draws accuracy over seconds.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.finetune import sources
from bench.finetune.clock import WallClock
from bench.finetune.methods import METHODS
from bench.finetune.tasks import Task, get
from bench.finetune.training import Run, test, train

LOOKS, SAMPLES = 6, 500
METHODS_SHOWN = {"dense": 3e-4, "LoRA r8": 1e-3, "prefix+cache": 1e-3}  # with their learning rates


@dataclass
class LookingClock(WallClock):
    """A wall clock that stops while somebody looks: ``look()`` gives an accuracy, at each of the ``times``.

    Attributes:
        seen: seconds and accuracies.
    """

    times: list[float]
    look: Callable[[], float]
    seen: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __call__(self) -> float:
        now = super().__call__()
        while self.times and now >= self.times[0]:
            self.times.pop(0)
            self.seen.append((now, self.look()))
        self.begin += self.elapsed() - now
        return now


def curve(task: Task, method: str, seconds: float) -> list[tuple[float, float]]:
    """Seconds and test accuracies of a training with the method."""
    what = Run(task.name, method, seconds, METHODS_SHOWN[method], 0, "fp32")
    some = task.test.part(slice(SAMPLES))
    model = task.make(what.seed).train()
    torch.manual_seed(what.seed)
    looked: list[Any] = []  # the model that is looked at, once there is one

    def look() -> float:
        accuracy = test(looked[0], some, what)[0]
        looked[0].train()
        return accuracy

    clock = LookingClock([seconds * i / LOOKS for i in range(1, LOOKS)], look)
    prepared = METHODS[method](model, task, what.seed)
    looked.append(prepared.model)
    _, ended = train(prepared, task.train, what, clock)
    return [*clock.seen, (ended, look())]


def verdict(curves: dict[str, list[tuple[float, float]]], seconds: float) -> str:
    """What came of it, in two sentences."""
    ends = {method: found[-1][1] for method, found in curves.items()}
    reached = ", ".join(f"{method} {100 * accuracy:.1f} %" for method, accuracy in ends.items())
    ours, best = ends["prefix+cache"], max(accuracy for method, accuracy in ends.items() if method != "prefix+cache")
    sooner = next((at for at, accuracy in curves["prefix+cache"] if accuracy >= best), None)
    if sooner is None:
        compared = (
            f"The frozen front never reached what the best of the others did: it ended {100 * (best - ours):.1f} points below"
        )
    else:
        compared = f"The frozen front reached what the best of the others ended with after {sooner:.0f} s"
    return f"After {seconds:g} s on the same data: {reached}. {compared} (one seed, {SAMPLES} test samples)."


def draw(curves: dict[str, list[tuple[float, float]]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for method, found in curves.items():
        axes.plot(*zip(*((at, 100 * accuracy) for at, accuracy in found), strict=True), marker="o", label=method)
    axes.set(xlabel="seconds of training, caching included", ylabel="test accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.finetune.demo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--task", default="text", choices=["text", "cells", "tiny"])
    parser.add_argument("--seconds", type=float, default=25.0, help="of training, for each method")
    parser.add_argument("--folder", type=Path, default=Path("build/evidence"), help="of the packages")
    parser.add_argument("--out", type=Path, default=Path("runs/finetune-demo"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.task != "tiny":
        given.folder.mkdir(parents=True, exist_ok=True)
        sources.install(given.folder)
    task, curves = get(given.task, given.folder), {}
    for method in METHODS_SHOWN:
        curves[method] = curve(task, method, given.seconds)
        print(f"{method:13}" + "  ".join(f"{at:.0f} s {100 * accuracy:.1f} %" for at, accuracy in curves[method]), flush=True)
    draw(curves, given.out / "curves.png")
    print(f"\n{verdict(curves, given.seconds)}\n{given.out / 'curves.png'}")


if __name__ == "__main__":
    main()
