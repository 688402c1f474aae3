"""``python -m bench.condense runs/DIR/results.json OUT.json``: a training's results for the repository.

Of each epoch the test accuracy alone is kept; the summary, with its seconds by phase and its shares of FLOPs, is whole.
"""

import json
import sys
from pathlib import Path
from typing import Any

from wuskern.train.results import replace


def condensed(content: dict[str, Any]) -> dict[str, Any]:
    def run(record: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in record.items() if key != "epochs"} | {
            "seconds": round(record["epochs"][-1]["total_seconds"], 3),
            "test_accuracy": [round(epoch["test_accuracy"], 5) for epoch in record["epochs"]],
        }

    return content | {name: [run(record) for record in content[name]] for name in ("runs", "controls")}


def main(source: Path, out: Path) -> None:
    replace(out, json.dumps(condensed(json.loads(source.read_text()))))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
