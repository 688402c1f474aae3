"""Lightning: two processes under its DDP train as those of a loop of one's own, and go on from a checkpoint, bit for bit."""

import os
import subprocess
import sys

import pytest
import torch.distributed as dist

from tests.conftest import ROOT
from tests.integrations.lightning_ranks import CASES, WORLD

pytestmark = [
    pytest.mark.more,
    pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this PyTorch has no gloo"),
]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the two processes found, by case and process."""
    command = [sys.executable, "-m", "tests.integrations.lightning_ranks", str(tmp_path_factory.mktemp("ranks"))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(line.split(": ", 1) for line in done.stdout.splitlines() if " in process " in line)


@pytest.mark.parametrize("rank", range(WORLD))
@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_those_of_ones_own_loop(case: str, rank: int, said: dict[str, str]) -> None:
    assert said[f"{case} in process {rank}"] == "'same'"
