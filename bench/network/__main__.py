"""``python -m bench.network``: accuracy over time of two processes with a slow link between them.

    python -m bench.network --folder build/evidence --out bench/results/network.json

Two gloo processes of one thread each, in network namespaces joined by a link of 100 Mbit/s or 1 Gbit/s (needs root, ip and tc),
and on the loopback as the control that shows the link's share: MiniLM on text (weights and data are installed into the folder),
and VGG-11 on the digits from scratch. Every method has the same wall time. It runs what is not in the folder's network.jsonl
yet, and writes the results.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bench import link
from bench.finetune import sources
from bench.network.grid import LEARNING, LOOPBACK, RATES, Plan, Runs, summary
from bench.network.methods import METHODS, PEERS
from bench.render import table
from bench.results import FOLDER, provenance
from wuskern.train.results import replace

FORMAT = 1


def render(content: dict[str, Any]) -> str:
    """Markdown: a table for each task and rate."""
    parts = []
    rows = content["rows"]
    for task, rate in dict.fromkeys((row["task"], row["rate"]) for row in rows):
        of_both = [row for row in rows if (row["task"], row["rate"]) == (task, rate)]
        body = [_line(row) for row in of_both]
        said = f"**{task}, {rate}**, {of_both[0]['budget']:g} s, {min(row['seeds'] for row in of_both)} seeds or more:"
        header = ["method", "steps", "sent in a step, bytes", "accuracy", "dense's, sooner", "over the best peer"]
        parts += [said, table(header, body)]
    return "\n\n".join(parts)


def _line(row: dict[str, Any]) -> list[str]:
    name = row["method"] if row["method"] in PEERS else f"ours: {row['method']}"
    sent = "-" if row["sent"] is None else f"{row['sent']:,.0f}"
    sooner, over = ("-" if row[key] is None else f"{row[key]:.2f}x" for key in ("sooner", "over_best_peer"))
    return [name, f"{row['steps']:,.0f}", sent, f"{100 * row['accuracy']:.2f} %", sooner, over]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.network", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("build/evidence"), help="of the packages, and of network.jsonl")
    parser.add_argument("--out", type=Path, default=FOLDER / "network.json")
    parser.add_argument("--tasks", nargs="+", default=["text", "vgg11"], choices=list(LEARNING))
    parser.add_argument("--rates", nargs="+", default=list(RATES), help="as tc writes them, or loopback")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of a run")
    given = parser.parse_args(arguments)
    if set(given.rates) != {LOOPBACK} and (reason := link.obstacle()):
        print(f"bench.network: expected Linux with root's rights and iproute2, got: {reason}", file=sys.stderr)
        return 2
    given.folder.mkdir(parents=True, exist_ok=True)
    of_text = "text" in given.tasks
    if of_text:
        sources.install(given.folder, ["text"])
    plan = Plan(tuple(given.tasks), tuple(given.rates), tuple(given.methods), given.seeds, given.budget)
    runs = Runs(given.folder / "network.jsonl", given.folder if of_text else None)
    records = [runs(run) for run in plan.runs()]
    about = {"sources": sources.record(given.folder, ["text"])} if of_text else {}
    content = {
        "format": FORMAT, "environment": provenance("cpu"), **about, "plan": vars(given) | {"folder": "", "out": ""},
        "rates": LEARNING, "rows": summary(records), "runs": records,
    }  # fmt: skip
    replace(given.out, json.dumps(content, indent=1))
    print(render(content))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
