"""What ``wuskern train`` does with files that are in the way, that others use, and that are not what they seem."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from tests.small_trainings import SMALL, killed_after, said, write_images
from wuskern import cli
from wuskern.train import checkpoint, files

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "images.npz"
    write_images(path)
    return path


@pytest.fixture
def train(images, tmp_path, monkeypatch, capsys):
    """Runs the command in a folder of its own; its exit code, and its line of complaint."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, resumed=False):
        what = () if resumed else (*SMALL, "--data", images, "--epochs", 2, "--policy", "dense")
        return said(capsys, *what, *arguments)

    return run


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# ---- somebody else's ------------------------------------------------------------------------------------------------


def test_a_second_process_is_refused_and_names_the_first(train, tmp_path):
    who = f"in use by process {os.getpid()} on {socket.gethostname()}"
    with files.claimed(tmp_path / "c.pt"):
        code, words = train("--out", "out", "--checkpoint", "c.pt")
    assert (code, words.endswith(who), names(tmp_path)) == (2, True, [])
    assert words.startswith("wuskern: --checkpoint: ")
    (tmp_path / "out").mkdir()
    with files.claimed(tmp_path / "out" / "results.json"):
        code, words = train("--out", "out")
    assert (code, words.endswith(who), names(tmp_path / "out")) == (2, True, [])
    assert words.startswith("wuskern: --out: ")


def test_nothing_is_left_beside_results_and_checkpoint(train, tmp_path):
    assert train("--out", "out", "--checkpoint", "out/c.pt") == (0, "")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["accuracy.png", "c.pt", "front.png", "results.json"]


def test_another_folder_s_results_are_not_overwritten_by_resuming_there(train, tmp_path, monkeypatch):
    """The place is relative, and so another one."""
    with killed_after(2):
        train("--out", "out", "--checkpoint", "c.pt")
    theirs = tmp_path / "elsewhere" / "out" / "results.json"
    theirs.parent.mkdir(parents=True)
    theirs.write_text('{"experiment": "theirs"}')
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, words = train("--resume", tmp_path / "c.pt", resumed=True)
    assert (code, theirs.read_text()) == (2, '{"experiment": "theirs"}')
    assert "--out: expected a directory without results.json of another experiment (or --overwrite), got out" in words
    monkeypatch.chdir(tmp_path)
    assert train("--resume", "c.pt", resumed=True) == (0, "")
    assert json.loads((tmp_path / "out" / "results.json").read_text())["complete"] is True


def test_results_that_came_in_between_are_not_overwritten_by_resuming(train, tmp_path):
    """The same folder, the same arguments, another experiment."""
    with killed_after(2):
        train("--out", "out", "--checkpoint", "c.pt")
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
    code, words = train("--recipe", "mine.toml", "--overwrite")
    assert code == 2
    assert message in words
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
    code, words = train(argument, f"pipe{suffix}")
    assert code == 2
    assert f"{argument}: expected " in words
    assert "no regular file" in words


# ---- a full disk ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("full", ["c.pt", "results.json", "accuracy.png", "front.png"])
def test_a_disk_that_becomes_full_is_one_line_and_loses_nothing(train, tmp_path, monkeypatch, full):
    """In the second round. The other file has it, the full one has the round before."""
    replace, count = os.replace, [0]

    def filling(old, new):
        count[0] += os.path.basename(new) == full
        if os.path.basename(new) == full and count[0] > (2 if full == "c.pt" else full == "results.json"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(old, new)

    monkeypatch.setattr(files.os, "replace", filling)
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


def test_what_was_trained_is_said_where_it_cannot_be_drawn(images, tmp_path, monkeypatch, capsys):
    def none(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("wuskern.train.axes.replacing", none)
    assert cli.main(["train", *SMALL, "--data", str(images), "--epochs", "1", "--policy", "dense", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "policy  test accuracy" in said
    assert "picture:" not in said


@pytest.mark.parametrize("command", ["recipes", "doctor"])
def test_a_full_standard_output_is_one_line(monkeypatch, capsys, command):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert cli.main([command]) == 1
    assert capsys.readouterr().err == "wuskern: [Errno 28] No space left on device\n"


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
    code, words = train("--out", "out")
    assert code == 2
    assert words.startswith(f"wuskern: {message}")


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
