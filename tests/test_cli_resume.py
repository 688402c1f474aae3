"""``wuskern train --resume`` as a user meets it: after SIGKILL at any moment, and with files and arguments that do not fit."""

import json
import random
import signal
import subprocess
import sys

import pytest
import torch

from wuskern import cli

pytestmark = pytest.mark.usefixtures("one_thread", "one_thread_of_children")
WUS = "wus:warmup=1:threshold=1"
POLICY = f"dense,{WUS},{WUS.replace('wus', 'wus+lr')}+tinyprop,meprop:k=7:score=random+sieve:interval=1,frozen"
TRAIN = ["train", "--model", "mlp", "--width", ".1", "--policy", POLICY]


def numbers(out):
    """All runs without their seconds. Controls are as long as the seconds say."""
    runs = json.loads((out / "results.json").read_text())["runs"]
    return [(r["policy"], r["seed"], [{k: v for k, v in e.items() if "seconds" not in k} for e in r["epochs"]]) for r in runs]


def start(*arguments):
    command = [sys.executable, "-u", "-m", "wuskern", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def killed(process, lines):
    """Reads so many lines of epochs and kills, wherever the next epoch is by then. False: it was done before."""
    for line in process.stdout:
        lines -= line.startswith("seed ")
        if lines <= 0:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("times", [1, pytest.param(4, marks=pytest.mark.more)])
def test_it_survives_sigkill_at_any_moment(tmp_path, times):
    """So many times in a row, in any phase of the loop; the file before the kill is always whole."""
    plan = ["--epochs", "8", "--seeds", "2"]
    assert cli.main([*TRAIN, *plan, "--out", str(tmp_path / "whole")]) == 0

    out, path = tmp_path / "cut", tmp_path / "cut.pt"
    lines = random.Random(times)
    assert killed(start(*TRAIN, *plan, "--out", str(out), "--checkpoint", str(path)), lines.randint(1, 14))
    for _ in range(times - 1):
        assert killed(start("train", "--resume", str(path)), lines.randint(1, 14))
    assert cli.main(["train", "--resume", str(path)]) == 0
    assert numbers(out) == numbers(tmp_path / "whole")
    assert json.loads((out / "results.json").read_text())["complete"] is True


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A checkpoint of an experiment that was killed in its first seed, and its directory."""
    folder = tmp_path_factory.mktemp("interrupted")
    out, path = folder / "run", folder / "run.pt"
    assert killed(start(*TRAIN, "--epochs", "50", "--lr", ".01", "--out", str(out), "--checkpoint", str(path)), 20)
    return path, out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lr", ".02"], "--lr: expected 0.01 as in {path}, got 0.02"),
        (["--epochs", "51", "--lr", ".01"], "--epochs: expected 50 as in {path}, got 51"),
        (["--channels-last"], "--channels-last: expected False as in {path}, got True"),
        (["--policy", "wus"], f"--policy: expected {POLICY} as in {{path}}, got wus"),
        (["--out", "elsewhere"], "--out: expected {out} as in {path}, got elsewhere"),
        (["--image-size", "9"], "--image-size: expected None as in {path}, got 9"),
        (["--amp", "bf16"], "--amp: expected off as in {path}, got bf16"),
        (["--accumulate", "2"], "--accumulate: expected 1 as in {path}, got 2"),
        (["--recipe", "wus"], "--model: expected mlp as in {path}, got vgg11"),
    ],
)
def test_an_argument_that_disagrees_is_named_with_both_values(interrupted, capsys, arguments, message):
    path, out = interrupted
    before = path.read_bytes()
    assert cli.main(["train", "--resume", str(path), *arguments]) == 2
    assert capsys.readouterr().err == f"wuskern: {message.format(path=path, out=out)}\n"
    assert path.read_bytes() == before


def test_arguments_that_agree_may_be_given_and_another_checkpoint_written(interrupted, tmp_path):
    path, out = interrupted
    before, epochs = path.read_bytes(), len(torch.load(path, weights_only=True)["runs"][0]["record"]["epochs"])
    process = start("train", "--lr", "1e-2", "--out", str(out), "--resume", str(path), "--checkpoint", str(tmp_path / "new.pt"))
    assert killed(process, 9)
    assert path.read_bytes() == before
    assert len(torch.load(tmp_path / "new.pt", weights_only=True)["runs"][0]["record"]["epochs"]) > epochs


def test_damaged_and_foreign_files_end_with_2_and_one_line(interrupted, tmp_path, capsys):
    path, _ = interrupted
    content = torch.load(path, weights_only=True)
    del content["runs"][1]["optimizer"]
    files = {
        "half": path.read_bytes()[: path.stat().st_size // 2],
        "text": b"not a checkpoint\n",
        "foreign": {"state_dict": {"weight": torch.zeros(3)}},
        "layout": content | {"layout": 9},
        "less": content,
    }
    for name, file in files.items():
        if isinstance(file, bytes):
            (tmp_path / name).write_bytes(file)
        else:
            torch.save(file, tmp_path / name)
        assert cli.main(["train", "--resume", str(tmp_path / name)]) == 2, name
        message = capsys.readouterr().err
        assert message.startswith("wuskern: --resume: "), name
        assert len(message.splitlines()) == 1, name


def test_a_checkpoint_is_not_overwritten(interrupted, tmp_path, capsys):
    path, _ = interrupted
    before = path.read_bytes()
    assert cli.main([*TRAIN, "--out", str(tmp_path / "run"), "--checkpoint", str(path)]) == 2
    assert "--checkpoint: expected a new file (or --overwrite, or --resume to continue)" in capsys.readouterr().err
    assert path.read_bytes() == before
