"""``python -m bench.finetune``: fine-tuning on a budget, all methods.

    python -m bench.finetune --folder build/evidence --out bench/results/finetune.json

installs weights and data into the folder, runs what is not in its runs.jsonl yet, and writes the results.
"""

import argparse
import json
from pathlib import Path

from bench.finetune import sources
from bench.finetune.grid import RATES, Plan, Runs, measure
from bench.finetune.methods import METHODS
from bench.results import FOLDER, provenance
from wuskern.train.results import replace

FORMAT = 1


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.finetune", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("build/evidence"), help="of the packages, and of runs.jsonl")
    parser.add_argument("--out", type=Path, default=FOLDER / "finetune.json")
    parser.add_argument("--tasks", nargs="+", default=["text", "cells"], choices=["text", "cells", "tiny"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--budgets", nargs="+", type=float, default=[30.0, 120.0], help="seconds")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tuning-seeds", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0, help="of the budgets, for another machine")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.tasks != ["tiny"]:
        sources.install(given.folder)
    plan = Plan(tuple(given.tasks), tuple(given.budgets), tuple(given.methods), given.seeds, given.tuning_seeds, given.scale)
    runs = Runs(given.folder / "runs.jsonl", given.folder)
    records = measure(plan, runs)
    tuning = [record for run, record in runs.done.items() if record not in records]
    about = {"sources": sources.record(given.folder)} if given.tasks != ["tiny"] else {}
    content = {
        "format": FORMAT, **provenance(), **about, "plan": vars(given) | {"folder": "", "out": ""}, "rates": RATES,
        "runs": records, "tuning": tuning,
    }  # fmt: skip
    replace(given.out, json.dumps(content, indent=1))
    print(given.out)


if __name__ == "__main__":
    main()
