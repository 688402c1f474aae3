"""bench.profile on networks that take no time: two processes for each, and a table of what both say."""

import json
import os
import subprocess
import sys

import pytest

from bench import profile
from tests.conftest import ROOT

ROW = {
    "model": "net", "composed": 0.3, "measured": 0.32, "apart": 0.0625, "share": 0.9, "outside": 0.25, "verdict": "use it",
    "ways": {"dense": {"kept": 100}, "skip": {"kept": 75}},
}  # fmt: skip
ENVIRONMENT = {"processor": "P", "threads": 2, "torch": "2"}


def test_what_is_too_far_apart_is_in_bold():
    rows = [ROW, ROW | {"measured": 0.4, "apart": 0.25}]
    lines = profile.render({"environment": ENVIRONMENT, "rows": rows, "clock": "wall"}).splitlines()
    assert lines[2] == "| net | 90% | 25% | 30.0% | 32.0% | 6% | 75% | use it |"
    assert "| **25%** |" in lines[3]
    assert "seconds of the processor" not in lines[-1]


@pytest.mark.more
@pytest.mark.parametrize("name", profile.MODELS)
def test_both_parts_of_each_network(name, tmp_path):
    environment = profile._environment(name) | {"OMP_NUM_THREADS": "1"}
    package = "transformers" if name in profile.OF_TRANSFORMERS else "timm"
    found = subprocess.run([sys.executable, "-c", f"import {package}"], env=environment, capture_output=True, text=True)
    if "ModuleNotFoundError" in found.stderr:
        pytest.skip(f"{package} is not installed")
    out = tmp_path / "profile.json"
    words = ["--small", "--seconds", "40", "--models", name, "--clock", "process", "--out", str(out)]
    command = [sys.executable, "-m", "bench.profile", *words]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr  # 1: of networks as small as these the two are apart
    (row,) = json.loads(out.read_text())["rows"]
    assert row["steps"] >= profile.LEAST
    assert set(row["ways"]) >= {"dense", "skip"}
    assert f"| {name} |" in done.stdout
