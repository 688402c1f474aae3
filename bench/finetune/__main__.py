"""``python -m bench.finetune``: fine-tuning on a budget, all methods.

    python -m bench.finetune time     # what steps take: 30 minutes, with nothing else on the machine
    python -m bench.finetune          # the same, and all accuracies: hours, beside other work if need be
    python -m bench.finetune --budgets 30 --tasks text

installs weights and data into the folder, runs what is not in its clocks.jsonl and runs.jsonl yet, and writes the results.
"""

import argparse
import json
from pathlib import Path

from bench.finetune import sources
from bench.finetune.grid import COMPARED, LONGER, RATES, ROUNDS, TIMED, Clocks, Lines, Plan, Runs, measure
from bench.finetune.methods import METHODS
from bench.results import FOLDER, provenance
from wuskern.train.results import replace

FORMAT = 1


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.finetune", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", nargs="?", default="all", choices=["all", "time"])
    parser.add_argument("--folder", type=Path, default=Path("build/evidence"), help="of the packages, and of what was run")
    parser.add_argument("--out", type=Path, default=FOLDER / "finetune.json")
    parser.add_argument("--tasks", nargs="+", default=["text", "cells"], choices=["text", "cells", "tiny"])
    parser.add_argument("--methods", nargs="+", default=list(COMPARED), choices=list(METHODS))
    parser.add_argument("--longer", nargs="*", default=list(LONGER), choices=list(METHODS), help="methods of all budgets")
    parser.add_argument("--budgets", nargs="+", type=float, default=[30.0, 120.0], help="seconds")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tuning-seeds", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="processes in which the runs that are not timed go on")
    parser.add_argument("--timed", type=float, default=TIMED, help="seconds of each round in which a method is timed")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="in which each method is timed")
    given = parser.parse_args()
    sources.install(given.folder, given.tasks)
    clocks = Clocks(Lines(given.folder / "clocks.jsonl"), given.folder, seconds=given.timed)
    clocks.time(given.tasks, given.methods, given.rounds)
    if given.what == "time":
        return
    plan = Plan(
        tuple(given.tasks), tuple(given.budgets), tuple(given.methods), tuple(given.longer), given.seeds, given.tuning_seeds
    )
    runs = Runs(Lines(given.folder / "runs.jsonl"), clocks, given.workers)
    records = measure(plan, runs)
    content = {
        "format": FORMAT, "environment": provenance("cpu"), "sources": sources.record(given.folder, given.tasks),
        "rates": RATES, "runs": records,
        "tuning": [record for record in runs.lines.records if record["split"] == "validation"],
        "clocks": [record | {"phases": [len(steps) for steps in record["phases"]]} for record in clocks.lines.records],
    }  # fmt: skip
    replace(given.out, json.dumps(content, indent=1))
    print(given.out)


if __name__ == "__main__":
    main()
