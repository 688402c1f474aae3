"""The command: python -m bench.memory {bytes,times}."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from bench.memory import step, times
from bench.memory.networks import NETWORKS, NETWORKS_BY_MODE
from bench.memory.tables import render
from bench.results import FOLDER, ROOT, provenance
from wuskern.bench.clocks import settle_allocator
from wuskern.train.results import replace

FORMAT = 1
ROUNDS = 41


def measure_bytes(torchvision: Path, memsave: Path | None) -> list[dict[str, Any]]:
    """A row for each network, mode and way. torchvision lies apart: where it is, transformers may not import."""
    rows = []
    for mode, grid in NETWORKS_BY_MODE.items():
        for network in grid["networks"]:
            for way in grid["ways"](NETWORKS[network]):
                if "memsave" in way and memsave is None:
                    continue
                apart = [str(torchvision)] if NETWORKS[network].of_images else []
                path = [str(ROOT), *apart, *([str(memsave)] if memsave else [])]
                rows.append(step.in_a_process(network, mode, way, os.environ | {"PYTHONPATH": os.pathsep.join(path)}))
                print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description="Memory kept where only biases train.")
    parser.add_argument("what", choices=("bytes", "times"))
    parser.add_argument("--out", type=Path, default=FOLDER / "memory.json", help="results, JSON [%(default)s]")
    parser.add_argument("--torchvision", type=Path, default=ROOT / ".venv" / "torchvision", help="where it lies")
    parser.add_argument("--memsave", type=Path, help="a folder with the package memsave_torch, of its public source")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of the times")
    arguments = parser.parse_args()
    content = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"format": FORMAT}
    part: dict[str, Any] = {"environment": provenance("cpu")}
    if arguments.what == "bytes":
        part["rows"] = measure_bytes(arguments.torchvision, arguments.memsave)
    else:
        settle_allocator()
        part |= {"rounds": arguments.rounds, "rows": times.measure(arguments.rounds)}
    content[arguments.what] = part
    replace(arguments.out, json.dumps(content, indent=1))
    print(render(content))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
