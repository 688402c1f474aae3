"""torchrun starts a training again of which a process was killed: it ends as the one that nothing happened to, to the bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from wuskern import cli

pytestmark = pytest.mark.more
ROOT = Path(__file__).parents[2]
WUS = "wus:warmup=0:window=1:threshold=1:patience=2"
METHODS = f"{WUS},memory:ratio=.3+freeze:start=1:end=3+sieve:keep=.5:interval=1"
SMALL = ["--model", "mlp", "--width", ".1", "--epochs", "4", "--batch", "128", "--policy", METHODS]


def torchrun(rank, forwards, *arguments, **variables):
    """``forwards``: after which the rank dies; 0: it does not."""
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this PyTorch has no gloo")
    launcher = "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"
    command = [sys.executable, "-W", "ignore", *launcher, "-m", "tests.distributed.restarted", str(rank), str(forwards)]
    env = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    return subprocess.run([*command, *arguments], capture_output=True, text=True, env=env, cwd=ROOT, timeout=300)


def of_loop(folder, rank, forwards):
    folder.mkdir()
    result = torchrun(rank, forwards, str(folder), TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
    assert result.returncode == 0, result.stderr
    return torch.load(folder / "end.pt")


def test_a_loop_of_ones_own(tmp_path):
    """Killed in the third epoch, in a window of skipped steps, and ahead of the first checkpoint."""
    weights, skipped, begin = of_loop(tmp_path / "through", 0, 0)
    assert begin == 0
    assert True in skipped
    for rank, forwards in ((0, 9), (1, 2)):
        again, skipped_again, went_on = of_loop(tmp_path / f"killed-{rank}", rank, forwards)
        assert went_on == (forwards - 1) // 4
        assert skipped == skipped_again
        assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_the_command_line_goes_on(tmp_path):
    found = {}
    for name, at in (("through", 0), ("killed", 60)):
        files = "--out", str(tmp_path / name), "--checkpoint", str(tmp_path / f"{name}.pt"), "--go-on"
        result = torchrun(1, at, "train", *SMALL, *files)
        assert result.returncode == 0, result.stderr
        assert ("exitcode: -9" in result.stderr) == bool(at)
        assert result.stdout.count("epoch   1/4") == 2  # of two methods, once
        found[name] = json.loads((tmp_path / name / "results.json").read_text())["runs"]
    for run, again in zip(found["through"], found["killed"], strict=True):
        for epoch, epoch_again in zip(run["epochs"], again["epochs"], strict=True):
            for key in ("mode", "loss", "train_accuracy", "test_accuracy"):
                assert epoch[key] == epoch_again[key]


def test_arguments_that_going_on_refuses(tmp_path, capsys):
    path = ["--checkpoint", str(tmp_path / "a.pt")]
    for arguments, said in (
        ([], "--go-on: expected --checkpoint with it, got none"),
        ([*path, "--resume", str(tmp_path / "a.pt")], "--go-on: expected no --resume beside it"),
        ([*path, "--overwrite"], "--go-on: expected no --overwrite beside it"),
    ):
        assert cli.main(["train", "--go-on", *arguments]) == 2
        assert said in capsys.readouterr().err
