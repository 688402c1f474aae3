"""``wuskern train`` in two processes: the training of one, resumed bit for bit; a killed process is not waited for."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.train import test_checkpoint
from tests.train.test_loop import settings
from wuskern import cli
from wuskern.train import checkpoint, command, data, processes
from wuskern.train.experiment import Experiment
from wuskern.train.methods import parse

SMALL = ["-m", "wuskern", "train", "--model", "mlp", "--width", ".1"]
WUS = "wus:warmup=0:window=1:threshold=1:patience=2"
TOGETHER = "memory:ratio=.3+freeze:start=1:end=3+sieve:keep=.5:interval=1"
MESIMP = "mesimp:k=10:prune=.3:cycle=1"
SPFDE = "spfde:sparsity=.5:interval=1:sieve_interval=1:start=1:end=3"
PRUNED_BY_BATCH = "mesimp:ratio=.3:per=batch:prune=.3:cycle=2"  # by the scores of the step before, in all processes
METHODS = parse(f"dense,{test_checkpoint.WUSLR},meprop:ratio=.3,{TOGETHER},{MESIMP},{PRUNED_BY_BATCH},{SPFDE}")


@pytest.mark.more
def test_torchrun_trains_as_one_process_does(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"x_train": rng.random((128, 6, 6)), "y_train": rng.integers(0, 4, 128)}
    np.savez(tmp_path / "a.npz", **arrays, x_test=arrays["x_train"][:40], y_test=arrays["y_train"][:40])
    arguments = [
        *SMALL,
        "--policy",
        f"dense,{WUS},{TOGETHER},{MESIMP},{SPFDE}",
        "--epochs",
        "5",
        "--batch",
        "32",
        "--accumulate",
        "2",
        "--data",
        str(tmp_path / "a.npz"),
    ]
    torchrun = (
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "localhost:0",
    )
    found = {}
    for name, launcher in (("one", ()), ("two", torchrun)):
        command = [sys.executable, *launcher, *arguments, "--out", str(tmp_path / name)]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        result = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("results: ") == 1  # one process speaks
        assert (tmp_path / name / "accuracy.png").exists()
        found[name] = json.loads((tmp_path / name / "results.json").read_text())
    assert found["two"]["arguments"] == found["one"]["arguments"] | {"out": str(tmp_path / "two"), "processes": 2}
    for one, two in zip(found["one"]["runs"], found["two"]["runs"], strict=True):
        assert [e["mode"] for e in two["epochs"]] == [e["mode"] for e in one["epochs"]]
        for key in ("loss", "train_accuracy", "test_accuracy"):
            assert [e[key] for e in two["epochs"]] == pytest.approx([e[key] for e in one["epochs"]], rel=1e-4)
    assert "skip" in [e["mode"] for e in found["two"]["runs"][1]["epochs"]]


def interrupted_and_resumed(rank, folder):
    """The numbers and weights of an experiment that runs through, and of one that dies after three checkpoints."""
    images = data.load("digits")
    images = replace(images, x_train=images.x_train[:161], y_train=images.y_train[:161])

    def experiment(name):
        setting = settings(model="mlp", epochs=5, accumulate=2)
        path = Path(folder) / name
        path.with_suffix("").mkdir(exist_ok=True)
        made = Experiment(setting, METHODS, 1, images, path.with_suffix(""), {}, path, say=lambda _: None)
        made._report = lambda _: None
        return made

    def through(made):
        numbers, weights = test_checkpoint.finished(made)
        return numbers, {key: {name: t.tolist() for name, t in state.items()} for key, state in weights.items()}

    expected = through(experiment("through.pt"))
    dying = experiment("dies.pt")
    saves, left = dying.save_checkpoint, [3]

    def save():
        saves()
        left[0] -= 1
        if left[0] == 0:
            raise test_checkpoint.Killed

    dying.save_checkpoint = save
    with pytest.raises(test_checkpoint.Killed):
        dying.run()
    torch.distributed.barrier()
    again = experiment("dies.pt")
    again.resume(checkpoint.load(Path(folder) / "dies.pt"))
    random = [[run.random.states[0].tolist() for run in made.runs] for made in (dying, again)]
    assert random[0] == random[1]
    return expected, through(again), random[0]


def test_an_experiment_resumes_bit_for_bit(ranks):
    with tempfile.TemporaryDirectory() as folder:
        first, second = ranks.run(interrupted_and_resumed, folder)
    for expected, found, _ in (first, second):
        assert found == expected
    assert first[0] == second[0]
    assert all(mine != other for mine, other in zip(first[2], second[2], strict=True))  # for dropout


def shares(rank):
    whole = torch.arange(7)
    parts = processes.of_all(processes.share(whole).tolist())
    total = processes.total(torch.tensor([float(rank + 1)])).item()
    return parts, total, processes.of_first(f"of {rank}")


def test_what_processes_share(ranks):
    assert ranks.run(shares) == [([0, 1, 2, 3, 4, 5], 3.0, "of 0")] * 2
    assert processes.share(torch.arange(7)).tolist() == list(range(7))
    assert processes.of_all([1]) == [1]


def test_a_killed_process_is_not_waited_for(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []
    try:
        for rank in ("0", "1"):
            env = os.environ | dict(WORLD_SIZE="2", RANK=rank, MASTER_ADDR="127.0.0.1", MASTER_PORT=port, OMP_NUM_THREADS="1")
            command = [sys.executable, "-u", *SMALL, "--epochs", "100000", "--policy", "wus", "--out", str(tmp_path)]
            pipe = subprocess.PIPE
            started.append(subprocess.Popen([*command, "--dist-timeout", "120"], stdout=pipe, stderr=pipe, text=True, env=env))
        first, second = started
        for line in first.stdout:
            if "epoch   3" in line:
                break
        second.send_signal(signal.SIGKILL)
        _, said = first.communicate(timeout=600)
    finally:
        for process in started:
            process.kill()
            process.communicate()
    assert first.returncode == 1, said
    assert "wuskern: rank 0: another process ended, or did not answer within 120 s (" in said
    assert "Traceback" not in said


def refused(rank):
    found = []
    for arguments in (["--policy", "dense,frozen"], ["--batch", "3"]):
        with pytest.raises(ValueError) as error:  # noqa: PT011
            command.prepare(cli._parser().parse_args(["train", *arguments]), "cpu")
        found.append(str(error.value))
    return found


def test_arguments_that_two_processes_refuse(ranks, monkeypatch, capsys, tmp_path):
    for found in ranks.run(refused):
        assert found[0].startswith("--policy: expected others than frozen under torchrun")
        assert found[1] == "--batch: expected at least 4, got 3"
    assert cli.main(["train", "--dist-timeout", "0"]) == 2
    assert "--dist-timeout: expected a positive number, got 0.0" in capsys.readouterr().err
    content = {"experiment": "0", "arguments": {"processes": 2}, "files": {}, "data": 0, "finished": [], "runs": []}
    checkpoint.save(tmp_path / "a.pt", **content)
    assert cli.main(["train", "--resume", str(tmp_path / "a.pt")]) == 2
    assert "--resume: expected 2 processes as in" in capsys.readouterr().err
