"""The results file: what was measured, on what, from which commit."""

import json
import math
import re
import shutil
import statistics
import subprocess
from pathlib import Path
from typing import Any

from wuskern.bench.ceilings import Ceilings
from wuskern.doctor import package_version
from wuskern.kernels import backends
from wuskern.train.results import environment, replace
from wuskern.train.summary import interval

FORMAT = 2
ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "bench" / "results"
GENERATED = (":!bench/results", ":!bench/RESULTS.md")  # of the folders that are measured from
Row = dict[str, Any]


def write(path: Path, rows: list[Row], ceilings: Ceilings) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"format": FORMAT, "environment": provenance(ceilings.device), "ceilings": ceilings.as_dict(), "rows": rows}
    replace(path, json.dumps(content, indent=1))


def read(path: Path) -> dict[str, Any]:
    """Raises ``ValueError`` for a file that is not there or of another format."""
    try:
        content = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: expected results of make bench, got {error}") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise ValueError(f"{path}: expected format {FORMAT}, got {found}: measure again with make bench")
    return content


def paired(accuracies: list[tuple[float, float]], labels: int) -> dict[str, float]:
    """Of the runs of each seed and those that they are compared with: the mean difference in points and its 95 % interval."""
    mean, half = interval([100 * (own - other) for own, other in accuracies], 100 / labels)
    return {"points": mean, "low": mean - half, "high": mean + half}


def provenance(device: str) -> dict[str, Any]:
    """Versions, processor, compiler and commit; the clocks of a GPU."""
    found = environment(device) | {"triton": package_version("triton"), "compiler": compiler(device), "commit": commit()}
    return found | ({"clocks": _clocks()} if device == "cuda" else {})


def commit() -> str | None:
    """The commit that is measured, "-dirty" where code differs from it; None outside a git checkout."""
    folders = ("wuskern", "csrc", "bench", "tests", *GENERATED)
    try:
        name = _output("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD")
        changed = _output("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no", "--", *folders)
    except (OSError, subprocess.CalledProcessError):
        return None
    return name + ("-dirty" if changed else "")


def compiler(device: str) -> str | None:
    """What the library's ELF comment says, such as "GCC: (Debian 12.2.0-14) 12.2.0"."""
    path = backends.LIBRARY_DIR / backends.LIBRARIES[device]
    found = re.search(rb"(GCC: \([^)\0]*\) [\d.]+|clang version [\d.]+)", path.read_bytes()) if path.exists() else None
    return found[1].decode() if found else None


def _clocks() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    return _output("nvidia-smi", "--query-gpu=clocks.sm,clocks.mem,clocks.max.sm", "--format=csv,noheader", "-i", "0")


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def medians(rows: list[Row], name: str) -> list[float]:
    """The derived number ``name`` of every row that has it."""
    return [row["derived"][name]["median"] for row in rows if name in row["derived"]]


def geometric_mean(values: list[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))
