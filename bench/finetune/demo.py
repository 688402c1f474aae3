"""``python -m bench.finetune.demo``: two minutes of fine-tuning real weights: dense, LoRA, and a frozen front that runs once.

    python -m bench.finetune.demo [--task text] [--seconds 25] [--folder build/evidence] [--out runs/finetune-demo]

Each trains for the same seconds of wall time, with the learning rate that suits it; a part of the test set is looked at on the
way, outside of that time. It says in two sentences what came of it, and draws accuracy over seconds.
"""

import argparse
from pathlib import Path

from bench.finetune import sources
from bench.finetune.clock import WallClock
from bench.finetune.curve import Curve, curve, draw
from bench.finetune.tasks import get
from bench.finetune.training import Run

LOOKS, SAMPLES = 6, 500
SHOWN = {"dense": 3e-4, "LoRA r8": 3e-3, "prefix+cache": 1e-3}  # with their learning rates


def verdict(curves: dict[str, Curve], seconds: float) -> str:
    """What came of it, in two sentences."""
    ends = {method: found[-1][1] for method, found in curves.items()}
    reached = ", ".join(f"{method} {100 * accuracy:.1f} %" for method, accuracy in ends.items())
    ours, best = ends["prefix+cache"], max(accuracy for method, accuracy in ends.items() if method != "prefix+cache")
    sooner = next((at for at, accuracy in curves["prefix+cache"] if accuracy >= best), None)
    if sooner is None:
        compared = f"The frozen front stayed {100 * (best - ours):.1f} points below the best of the others"
    else:
        compared = f"The frozen front reached what the best of the others ended with after {sooner:.0f} s"
    return f"After {seconds:g} s on the same data: {reached}. {compared} (one seed, {SAMPLES} test samples)."


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.finetune.demo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--task", default="text", choices=["text", "cells", "tiny"])
    parser.add_argument("--seconds", type=float, default=25.0, help="of training, for each method")
    parser.add_argument("--folder", type=Path, default=Path("build/evidence"), help="of the packages")
    parser.add_argument("--out", type=Path, default=Path("runs/finetune-demo"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    sources.install(given.folder, [given.task])
    task, curves = get(given.task, given.folder), {}
    for method, rate in SHOWN.items():
        what = Run(task.name, method, given.seconds, rate, 0, "fp32")
        curves[method] = curve(what, task, WallClock(), LOOKS, SAMPLES)
        print(f"{method:13}" + "  ".join(f"{at:.0f} s {100 * accuracy:.1f} %" for at, accuracy in curves[method]), flush=True)
    draw(curves, given.out / "curves.png")
    print(f"\n{verdict(curves, given.seconds)}\n{given.out / 'curves.png'}")


if __name__ == "__main__":
    main()
