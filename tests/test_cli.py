"""The command line as a user meets it, for the most part in this process."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import wuskern
from wuskern import cli
from wuskern.kernels import backends

pytestmark = pytest.mark.usefixtures("one_thread", "one_thread_of_children")
SMALL = ["train", "--model", "mlp", "--width", ".1", "--epochs", "2"]


def wuskern_process(*arguments, **kwargs):
    return subprocess.run([sys.executable, "-m", "wuskern", *arguments], capture_output=True, text=True, **kwargs)


def wuskern_here(*arguments):
    """The same in this process, without the seconds that a new one takes to import torch."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(arguments)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def test_doctor():
    result = wuskern_process("doctor")
    assert result.returncode == 0
    assert result.stdout.rstrip() == str(wuskern.doctor())


def test_train_compares_methods(tmp_path):
    out = tmp_path / "run"
    wus = "wus:warmup=0:window=1:threshold=1"
    methods = (wus, wus.replace("wus", "wus+lr"), "meprop:k=6:scope=weight+sieve:keep=.5", "frozen")
    arguments = ["--policy", ",".join(("frozen", "dense", *methods)), "--seeds", "2", "--memory", "--out", str(out)]
    result = wuskern_here(*SMALL, "--epochs", "4", *arguments)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert sum(line.startswith("seed ") and "/4  " in line for line in lines) == 2 * 5 * 4
    for method in methods:
        assert any(line.startswith(f"  dense in the time of {method} ") for line in lines)
        assert any(line.startswith(f"{method} ") and " dense in the same time: " in line for line in lines)
    assert f"picture: {out}/accuracy.png" in lines

    content = json.loads((out / "results.json").read_text())
    assert content["complete"] is True
    assert (content["arguments"]["seeds"], content["arguments"]["schedule"]) == (2, "cosine")
    runs = {(r["policy"], r["seed"]): r["epochs"] for r in content["runs"]}
    assert list(runs) == [(p, s) for s in (0, 1) for p in ("dense", *methods)]
    modes = {policy: [e["mode"] for e in epochs] for (policy, seed), epochs in runs.items() if seed == 0}
    assert [modes[p] for p in ("dense", methods[2])] == [["full"] * 4, ["rows"] * 4]
    assert all(modes[p] == ["full", "full", "skip", "skip"] for p in (*methods[:2], "frozen"))
    assert [(c["control_of"], c["seed"]) for c in content["controls"]] == [(m, s) for s in (0, 1) for m in methods]
    assert all(len(c["epochs"]) == c["planned"] for c in content["controls"])
    assert [row["policy"] for row in content["summary"] if row["loss"] is not None] == list(methods)
    assert {e["steps"] for e in runs[methods[2], 0]} == {12}  # 718 of 1,437 images, 64 in a step
    assert {round(e["saved"]["samples"], 3) for e in runs[methods[2], 0]} == {0.5}
    assert set(content["peak_bytes"]) == {"dense", *methods}
    for name in ("accuracy.png", "front.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_recipes_are_listed():
    result = wuskern_here("recipes")
    assert result.returncode == 0, result.stderr
    names = [block.split(":")[0] for block in result.stdout.split("\n\n")]
    assert names == sorted(path.stem for path in (Path(wuskern.__file__).parent / "train/recipes").glob("*.toml"))
    assert result.stdout.count("  wuskern train --recipe ") == len(names)


def test_a_recipe_of_ones_own_and_arguments_that_win_over_it(tmp_path):
    recipe = tmp_path / "mine.toml"
    train = 'model = "mlp"\nwidth = 0.1\nepochs = 3\nchannels_last = true\npolicy = ["dense", "meprop:k=5"]'
    recipe.write_text(f'title = "mine"\nsource = "me"\n[train]\n{train}\n')
    result = wuskern_here("train", "--recipe", str(recipe), "--epochs", "2", "--out", str(tmp_path / "run"))
    assert result.returncode == 0, result.stderr
    arguments = json.loads((tmp_path / "run" / "results.json").read_text())["arguments"]
    expected = dict(model="mlp", width=0.1, epochs=2, channels_last=True, policy="dense,meprop:k=5")
    assert expected.items() <= arguments.items()


def test_train_on_an_npz(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"x_train": rng.random((80, 3, 6, 6)), "y_train": rng.integers(0, 4, 80)}
    np.savez(tmp_path / "a.npz", **arrays, x_test=arrays["x_train"][:9], y_test=arrays["y_train"][:9])
    result = wuskern_here(*SMALL, "--data", str(tmp_path / "a.npz"), "--out", str(tmp_path / "run"))
    assert result.returncode == 0, result.stderr


def test_ctrl_c_leaves_valid_results(tmp_path):
    out = tmp_path / "run"
    heard = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # jobs in the background ignore it
    code = f"{heard}; runpy.run_module('wuskern', run_name='__main__')"
    command = [sys.executable, "-u", "-c", code, *SMALL, "--epochs", "100000", "--policy", "dense,wus", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    try:
        for line in process.stdout:
            if "epoch   3" in line:
                break
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == 130, stderr
    assert "interrupted: the results hold what was done" in stdout
    assert "Traceback" not in stderr
    content = json.loads((out / "results.json").read_text())
    assert content["complete"] is False
    assert len(content["runs"][0]["epochs"]) >= 2
    assert (out / "accuracy.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "magic"], "--policy: expected one of dense, wus, wus+lr, meprop, "),
        (["--model", "vgg12"], "--model: expected one of mlp, alexnet, vgg11, vgg16, "),
        (["--schedule", "step"], "--schedule: expected one of constant, cosine, got 'step'"),
        (["--policy", "wus+lr:factor=1"], "wuskern: factor: expected a number between 0 and 1, got 1"),
        (["--data", "cifar10"], "--data-dir: expected with cifar10 and cifar100, and only there, got None with 'cifar10'"),
        (["--checkpoint", "/"], "--checkpoint: expected a new file"),
        (["--resume", "absent.pt"], "--resume: expected a checkpoint that can be read, got 'absent.pt'"),
        (["--optimizer", "lion"], "--optimizer: expected one of sgd, adamw, row-sgd, row-adamw, got 'lion'"),
        (["--data", "absent.npz"], "--data: expected a readable .npz file of plain arrays, got 'absent.npz'"),
        (["--epochs", "0"], "--epochs: expected at least 1, got 0"),
        (["--lr", "nan"], "--lr: expected a positive number, got nan"),
        (["--width", "inf"], "--width: expected a positive number, got inf"),
        (["--batch", "1"], "--batch: expected at least 2, got 1"),
        (["--weight-decay", "nan"], "--weight-decay: expected a number from 0, got nan"),
        (["--device", "cpu:7"], "--device: expected one that this PyTorch can use, got 'cpu:7' (the CPU is one device)"),
        (["--momentum", "1"], "--momentum: expected a number from 0 and under 1, got 1.0"),
        (["--checkpoint", ""], "argument --checkpoint: expected a path, got ''"),
        (["--epo", "3"], "unrecognized arguments: --epo 3"),
        (["--dist-timeout", "1e9"], "--dist-timeout: expected at most 100000000, got 1000000000.0"),
        (["--device", "meta"], "--device: expected one that this PyTorch can use, got 'meta'"),
        (["--image-size", "200000"], "wuskern: "),
        (["--policy", "wus:window=0"], "window: expected at least 1, got 0"),
        (["--policy", "meprop:ratio=2"], "wuskern: ratio: expected a number over 0 and up to 1, got 2"),
        (["--policy", "meprop:k=51"], "wuskern: 1: k: expected at most 50, got 51"),
        (["--policy", "meprop:ratio=.1:scope=input"], "wuskern: scope: expected one of weight, both, got 'input'"),
        (
            ["--policy", "meprop:k=5+memory:k=5"],
            "expected one to decide of layer 1 which rows have gradients, got MeProp and ScoreMemory",
        ),
        (["--policy", "meprop:k=5:per=example", "--model", "vgg11"], "wuskern: 0: rows: expected TopK or Rows for a Conv2d"),
        (["--amp", "fp8"], "--amp: expected one of off, bf16, fp16, got 'fp8'"),
        (["--accumulate", "33"], "--accumulate: expected at most 32, two samples each, got 33"),
        (["--workers", "2"], "--workers: expected --host with it, got 2 without"),
        (["--data", "text"], "--model: expected "),
        (["--recipe", "magic"], "--recipe: expected one of accelerating, "),
        (["--device", "abacus"], "--device: expected one that this PyTorch can use, got 'abacus'"),
        (["--epochs", "many"], "argument --epochs: invalid int value: 'many'"),
    ],
)
def test_bad_arguments_end_with_2_and_one_line(tmp_path, capsys, arguments, message):
    """In this process: one of its own shows the same in test_results_are_not_overwritten."""
    out = tmp_path / "run"
    assert cli.main([*SMALL, *arguments, "--out", str(out)]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert message in said
    assert not out.exists()


@pytest.mark.parametrize(("command", "variable", "value"), [
    ("train", "WUSKERN_BACKEND", "fast"), ("doctor", "WUSKERN_CPU_CAPABILITY", "mmx"),
    pytest.param("doctor", "WUSKERN_BACKEND", "fast", marks=pytest.mark.more),
    pytest.param("train", "WUSKERN_CPU_CAPABILITY", "mmx", marks=pytest.mark.more),
])  # fmt: skip
def test_a_wrong_environment_ends_with_2_and_one_line(tmp_path, command, variable, value):
    if variable == "WUSKERN_CPU_CAPABILITY" and backends.library_obstacle("cpu"):
        pytest.skip("the CPU library is not built")
    arguments = [*SMALL, "--out", str(tmp_path / "run")] if command == "train" else ["doctor"]
    result = wuskern_process(*arguments, env=os.environ | {variable: value})
    assert result.returncode == 2
    assert f"{variable}: expected" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("mine")
    result = wuskern_here(*SMALL, "--out", str(tmp_path / "file" / "run"))
    assert result.returncode == 2
    assert result.stderr.startswith("wuskern: --out: ")


def test_a_checkpoint_that_cannot_be_written(tmp_path):
    result = wuskern_here(*SMALL, "--out", str(tmp_path / "run"), "--checkpoint", str(tmp_path / "absent" / "a.pt"))
    assert result.returncode == 2
    assert result.stderr.startswith("wuskern: --checkpoint: ")
    assert len(result.stderr.splitlines()) == 1


def test_a_last_batch_of_one_image_is_left_out(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"x_train": rng.random((9, 4, 4)), "y_train": rng.integers(0, 2, 9)}
    np.savez(tmp_path / "a.npz", **arrays, x_test=arrays["x_train"], y_test=arrays["y_train"])
    arguments = ["--model", "vgg11", "--batch", "4", "--data", str(tmp_path / "a.npz"), "--out", str(tmp_path / "run")]
    result = wuskern_here(*SMALL, *arguments)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "run" / "results.json").read_text())["runs"][0]["epochs"][0]["steps"] == 2


def test_results_are_not_overwritten(tmp_path):
    (tmp_path / "results.json").write_text("mine")
    result = wuskern_here(*SMALL, "--out", str(tmp_path))
    assert result.returncode == 2
    assert "--out: expected a directory without results.json (or --overwrite)" in result.stderr
    assert (tmp_path / "results.json").read_text() == "mine"
    assert wuskern_here(*SMALL, "--out", str(tmp_path), "--overwrite").returncode == 0
