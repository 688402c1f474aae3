"""What ``wuskern train`` does with files that are in the way, that others use, and that are not what they seem."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch

from wuskern import cli
from wuskern.train import checkpoint, files, results
from wuskern.train.experiment import Experiment

pytestmark = pytest.mark.usefixtures("one_thread")
METHODS = "dense,wus:warmup=0:window=1:threshold=1+memory:ratio=.5+sieve:keep=.5:interval=1"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "images.npz"
    rng = np.random.default_rng(0)
    x, y = rng.random((40, 1, 4, 4), dtype=np.float32), np.arange(40) % 3
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
    return path


@pytest.fixture
def train(images, tmp_path, monkeypatch, capsys):
    """Runs the command in a folder of its own; its exit code, and its last line of complaint, which is the only one."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, resumed=False):
        what = ["--data", str(images), "--model", "mlp", "--width", ".05", "--batch", "8", "--epochs", "2", "--policy", "dense"]
        code = cli.main(["train", *([] if resumed else what), *map(str, arguments)])
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("wuskern: ")]
        assert len(said) == (code != 0)
        return code, said[-1] if said else ""

    return run


class Killed(BaseException):
    """Stands for the end of the process after a checkpoint was written."""


@pytest.fixture
def killed(train, monkeypatch):
    """Runs until so many checkpoints are written."""

    def run(rounds, *arguments):
        save, left = checkpoint.save, [rounds]

        def counted(*args, **kwargs):
            save(*args, **kwargs)
            left[0] -= 1
            if left[0] == 0:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "save", counted)
            with pytest.raises(Killed):
                train(*arguments)

    return run


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# ---- somebody else's ------------------------------------------------------------------------------------------------


def test_a_second_process_is_refused_and_names_the_first(train, tmp_path):
    who = f"in use by process {os.getpid()} on {socket.gethostname()}"
    with files.claimed(tmp_path / "c.pt"):
        code, said = train("--out", "out", "--checkpoint", "c.pt")
    assert (code, said.endswith(who), names(tmp_path)) == (2, True, [])
    assert said.startswith("wuskern: --checkpoint: ")
    (tmp_path / "out").mkdir()
    with files.claimed(tmp_path / "out" / "results.json"):
        code, said = train("--out", "out")
    assert (code, said.endswith(who), names(tmp_path / "out")) == (2, True, [])
    assert said.startswith("wuskern: --out: ")


def test_nothing_is_left_beside_results_and_checkpoint(train, tmp_path):
    assert train("--out", "out", "--checkpoint", "out/c.pt") == (0, "")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["accuracy.png", "c.pt", "front.png", "results.json"]


def test_another_folder_s_results_are_not_overwritten_by_resuming_there(train, killed, tmp_path, monkeypatch):
    """The place is relative, and so another one."""
    killed(2, "--out", "out", "--checkpoint", "c.pt")
    theirs = tmp_path / "elsewhere" / "out" / "results.json"
    theirs.parent.mkdir(parents=True)
    theirs.write_text('{"experiment": "theirs"}')
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, said = train("--resume", tmp_path / "c.pt", resumed=True)
    assert (code, theirs.read_text()) == (2, '{"experiment": "theirs"}')
    assert "--out: expected a directory without results.json of another experiment (or --overwrite), got out" in said
    monkeypatch.chdir(tmp_path)
    assert train("--resume", "c.pt", resumed=True) == (0, "")
    assert json.loads((tmp_path / "out" / "results.json").read_text())["complete"] is True


def test_results_that_came_in_between_are_not_overwritten_by_resuming(train, killed, tmp_path):
    """The same folder, the same arguments, another experiment."""
    killed(2, "--out", "out", "--checkpoint", "c.pt")
    assert train("--out", "out", "--overwrite") == (0, "")
    theirs = (tmp_path / "out" / "results.json").read_bytes()
    assert train("--resume", "c.pt", resumed=True)[0] == 2
    assert (tmp_path / "out" / "results.json").read_bytes() == theirs
    assert train("--resume", "c.pt", "--overwrite", resumed=True) == (0, "")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("overwrite = true", "--recipe: expected nothing of what is written over in 'mine', got overwrite"),
        ('checkpoint = "victim"', "--recipe: expected nothing of what is written over in 'mine', got checkpoint"),
        ('resume = "victim"', "--recipe: expected nothing of what is written over in 'mine', got resume"),
        ('recipe = "wus"', "--recipe: expected nothing of what is written over in 'mine', got recipe"),
        ("over = true", "--recipe: expected a number or text as over in 'mine', got True"),
        ('check = "victim"', "unrecognized arguments: --check=victim"),
        ("lr = 1\nlr-x = 2", "unrecognized arguments: --lr-x=2"),
        ("text_bytes = 1\ntext-bytes = 2", "--recipe: expected each argument once in 'mine', got text-bytes twice"),
        ('channels_last = "yes"', "--recipe: expected true or false as channels_last in 'mine', got 'yes'"),
        ("epochs = true", "--recipe: expected a number or text as epochs in 'mine', got True"),
        ("epochs = {a = 1}", "--recipe: expected a number or text as epochs in 'mine', got {'a': 1}"),
        ('lr = ["a"]', "--recipe: expected a number or text as lr in 'mine', got ['a']"),
        ('out = "victims"', "--overwrite: expected --out with it, since mine.toml says --out=victims"),
    ],
)
def test_a_recipe_does_not_choose_what_is_overwritten(train, tmp_path, line, message):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "mine.toml").write_text(f"[train]\n{line}\n")
    code, said = train("--recipe", "mine.toml", "--overwrite")
    assert code == 2
    assert message in said
    assert names(tmp_path) == ["mine.toml", "victim"]


def test_a_recipe_may_say_where_new_results_go(train, tmp_path):
    (tmp_path / "mine.toml").write_text('[train]\nout = "theirs"\n')
    assert train("--recipe", "mine.toml") == (0, "")
    assert train("--recipe", "mine.toml", "--overwrite", "--out=mine") == (0, "")
    assert names(tmp_path) == ["mine", "mine.toml", "theirs"]


@pytest.mark.parametrize(
    ("argument", "suffix"), [("--resume", ""), ("--data", ".npz"), ("--data", ".txt"), ("--recipe", ".toml")]
)
def test_a_pipe_is_not_waited_for(train, tmp_path, argument, suffix):
    os.mkfifo(tmp_path / f"pipe{suffix}")
    code, said = train(argument, f"pipe{suffix}")
    assert code == 2
    assert f"{argument}: expected " in said
    assert "no regular file" in said


# ---- a full disk ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("full", ["c.pt", "results.json", "accuracy.png", "front.png"])
def test_a_disk_that_becomes_full_is_one_line_and_loses_nothing(train, tmp_path, monkeypatch, capsys, full):
    """In the second round. The other file has it, the full one the round before; what was trained is said in any case."""
    replace, count = os.replace, [0]

    def filling(old, new):
        count[0] += os.path.basename(new) == full
        if os.path.basename(new) == full and count[0] > (2 if full == "c.pt" else full == "results.json"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(old, new)

    monkeypatch.setattr(files.os, "replace", filling)
    printed = []
    monkeypatch.setattr(Experiment, "say", lambda _, text: printed.append(text), raising=False)
    where = full if full == "c.pt" else f"out/{full}"
    expected = f"wuskern: {where} cannot be written: No space left on device"
    assert train("--out", "out", "--checkpoint", "c.pt", "--epochs", "3") == (1, expected)
    rounds = {
        "c.pt": len(checkpoint.load(tmp_path / "c.pt")["runs"][0]["record"]["epochs"]),
        "results.json": len(json.loads((tmp_path / "out" / "results.json").read_text())["runs"][0]["epochs"]),
    }
    assert rounds == ({"c.pt": 3, "results.json": 3} if "png" in full else {"c.pt": 2, "results.json": 2} | {full: 1})
    assert not [name for name in [*names(tmp_path), *names(tmp_path / "out")] if name.startswith(".")]
    monkeypatch.setattr(files.os, "replace", replace)
    assert train("--resume", "c.pt", resumed=True) == (0, "")
    assert json.loads((tmp_path / "out" / "results.json").read_text())["complete"] is True


@pytest.mark.parametrize("command", ["recipes", "doctor"])
def test_a_full_standard_output_is_one_line(monkeypatch, capsys, command):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert cli.main([command]) == 1
    assert capsys.readouterr().err == "wuskern: [Errno 28] No space left on device\n"


# ---- checkpoints that somebody made ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def genuine(images, tmp_path_factory):
    """Of an experiment in its second seed, at the second of four epochs: what it holds, and where its results are."""
    folder = tmp_path_factory.mktemp("genuine")
    save, left = checkpoint.save, [7]

    def counted(*args, **kwargs):
        save(*args, **kwargs)
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", counted)
        what = ["--data", str(images), "--model", "mlp", "--width", ".05", "--batch", "8", "--epochs", "4", "--seeds", "2"]
        where = ["--out", str(folder / "out"), "--checkpoint", str(folder / "c.pt")]
        with pytest.raises(Killed):
            cli.main(["train", *what, "--schedule", "constant", "--policy", METHODS, *where])
    return folder / "c.pt"


def at(content, *path):
    for key in path:
        content = content[key]
    return content


def put(value, *path):
    return lambda content: at(content, *path[:-1]).__setitem__(path[-1], value)


def deep(levels):
    found = []
    for _ in range(levels):
        found = [found]
    return found


def drop(*path):
    return lambda content: at(content, *path[:-1]).__delitem__(path[-1])


RUN = ("runs", 1)
EPOCH = ("record", "epochs", 1)
CRAFTED = {
    "a command": put("x", "arguments", "command"),
    "overwriting": put(True, "arguments", "overwrite"),
    "another checkpoint": put("victim", "arguments", "checkpoint"),
    "an argument less": drop("arguments", "lr"),
    "epochs as text": put("4", "arguments", "epochs"),
    "epochs that are no number": put("many", "arguments", "epochs"),
    "half an epoch": put(2.5, "arguments", "epochs"),
    "a tensor as an argument": put(torch.zeros(2), "arguments", "host"),
    "no model": put(5, "arguments", "model"),
    "the CPU as text": put("no", "arguments", "host"),
    "a rate that is none": put(float("nan"), "arguments", "lr"),
    "another seed than trained": put(7, "finished", 0, "seed"),
    "an unfinished finished run": drop("finished", 0, "epochs", 3),
    "a method less": drop("finished", 0),
    "an epoch that is none": put(3, "finished", 0, "epochs", 0),
    "an epoch without its phases": put({}, "finished", 0, "epochs", 0, "phase_seconds"),
    "no time": put(0.0, "finished", 0, "epochs", 3, "total_seconds"),
    "an accuracy over 1": put(2.0, "finished", 0, "epochs", 3, "test_accuracy"),
    "a saving that is none": put({}, *RUN, *EPOCH, "saved"),
    "a mode that is none": put("x", *RUN, *EPOCH, "mode"),
    "an epoch less": drop(*RUN, *EPOCH),
    "a run less": drop(*RUN),
    "a run that is none": put(True, *RUN),
    "no runs where some are due": put([], "runs", 0),
    "a weight of another shape": put(torch.zeros(3), *RUN, "model", "1.weight"),
    "momenta of another shape": put(torch.zeros(3), *RUN, "optimizer", "state", 0, "momentum_buffer"),
    "momenta that are none": put((1,), *RUN, "optimizer", "state", 0, "momentum_buffer"),
    "momenta of another weight": put([1, 0, 2, 3, 4, 5], *RUN, "optimizer", "param_groups", 0, "params"),
    "another momentum": put(0.5, *RUN, "optimizer", "param_groups", 0, "momentum"),
    "a negative rate": put(-1.0, *RUN, "optimizer", "param_groups", 0, "lr"),
    "a method in the schedule's place": put(5, *RUN, "schedule", "step"),
    "another epoch of the schedule": put(9, *RUN, "schedule", "last_epoch"),
    "other rates of the schedule": put([9.0], *RUN, "schedule", "base_lrs"),
    "no policy": put(None, *RUN, "policy"),
    "a history of words": put("x", *RUN, "policy", "policies", 0, "history"),
    "a skip that is none": put(None, *RUN, "policy", "policies", 0, "left"),
    "a sampler of other samples": put(torch.arange(3), *RUN, "sampler", "forgotten"),
    "no random state": put([], *RUN, "random"),
    "a random state that is none": put(torch.zeros(3), *RUN, "order"),
    "a tensor without data": put(torch.empty(3, device="meta"), *RUN, "random", 0),
    "a depth without end": put(deep(3000), *RUN, "policy"),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_checkpoint_is_one_line(genuine, train, tmp_path, name):
    """A whole file of safe types, with the right layout and checksums."""
    content = torch.load(genuine, weights_only=True)
    CRAFTED[name](content)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20 * limit)
    torch.save(content, tmp_path / "crafted.pt")
    sys.setrecursionlimit(limit)
    before = (genuine.parent / "out" / "results.json").read_bytes(), (tmp_path / "crafted.pt").read_bytes()
    code, said = train("--resume", "crafted.pt", resumed=True)
    assert code == 2
    assert "expected " in said or "argument --" in said
    assert ((genuine.parent / "out" / "results.json").read_bytes(), (tmp_path / "crafted.pt").read_bytes()) == before
    assert names(tmp_path) == ["crafted.pt"]


def test_the_genuine_one_goes_on(genuine, train, tmp_path):
    (tmp_path / "c.pt").write_bytes(genuine.read_bytes())
    assert train("--resume", "c.pt", resumed=True) == (0, "")
    assert results.experiment_of(genuine.parent / "out" / "results.json") == checkpoint.load(genuine)["experiment"]


# ---- processes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE: expected with RANK, MASTER_ADDR, MASTER_PORT, as torchrun sets them, got 2 alone"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "1"}, "WORLD_SIZE: expected with MASTER_ADDR, as torchrun sets them"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE: expected a whole number from 1, as torchrun sets it, got 'two'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE: expected a whole number from 1, as torchrun sets it, got '0'"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE: expected a whole number from 1, as torchrun sets it, got ''"),
        ({"RANK": "2"}, "RANK: expected a number under WORLD_SIZE = 2, got 2"),
        ({"RANK": "-1"}, "RANK: expected a whole number from 0, as torchrun sets it, got '-1'"),
        ({"MASTER_PORT": "x"}, "MASTER_PORT: expected a whole number from 0, as torchrun sets it, got 'x'"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK: expected a whole number from 0, as torchrun sets it, got 'x'"),
    ],
)
def test_an_environment_that_is_not_torchruns_is_one_line(train, monkeypatch, environment, message):
    whole = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name in (*whole, "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (environment if "WORLD_SIZE" in environment else whole | environment).items():
        monkeypatch.setenv(name, value)
    code, said = train("--out", "out")
    assert code == 2
    assert said.startswith(f"wuskern: {message}")


def test_a_killed_process_leaves_no_more_than_the_next_one_removes(images, train, tmp_path):
    """Killed while it writes: the half of a checkpoint and both locks stay, and are gone after the next run."""
    code = (
        "import os, sys; from wuskern import cli; from wuskern.train import files\n"
        "files.os.replace = lambda *_: os.kill(os.getpid(), 9)\n"
        "cli.main(sys.argv[1:])"
    )
    what = [
        "train",
        "--data",
        str(images),
        "--model",
        "mlp",
        "--width",
        ".05",
        "--batch",
        "8",
        "--epochs",
        "1",
        "--policy",
        "dense",
    ]
    where = ["--out", "out", "--checkpoint", "c.pt"]
    process = subprocess.run([sys.executable, "-c", code, *what, *where], cwd=tmp_path, capture_output=True)
    assert process.returncode == -signal.SIGKILL
    assert [name.rpartition(".")[2] for name in names(tmp_path)] == ["tmp", "lock", "out"]
    assert train(*where) == (0, "")
    assert names(tmp_path) == ["c.pt", "out"]
    assert names(tmp_path / "out") == ["accuracy.png", "front.png", "results.json"]
