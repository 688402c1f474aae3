"""Lightning: two processes under its DDP train as those of a loop of one's own, and go on from a checkpoint, bit for bit."""

import json
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
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """What each of the two processes found of each case."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "tests.integrations.lightning_ranks", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORLD)]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_those_of_ones_own_loop(case: str, found: list[dict[str, str]]) -> None:
    assert [of_rank[case] for of_rank in found] == ["same"] * WORLD
