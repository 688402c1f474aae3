"""The command line as a user meets it: a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import wuskern
from wuskern import backends

SMALL = ["train", "--model", "mlp", "--width", ".1", "--epochs", "2"]


def wuskern_process(*arguments, **kwargs):
    return subprocess.run([sys.executable, "-m", "wuskern", *arguments], capture_output=True, text=True, **kwargs)


def test_doctor():
    result = wuskern_process("doctor")
    assert result.returncode == 0
    assert result.stdout.rstrip() == str(wuskern.doctor())


def test_train_compares_policies(tmp_path):
    out = tmp_path / "run"
    methods = ("wus", "wus+lr", "frozen")
    windows = ["--warmup", "0", "--window", "1", "--threshold", "1"]
    arguments = ["--policy", "dense,wus,frozen,wus+lr", "--seeds", "2", *windows, "--out", str(out)]
    result = wuskern_process(*SMALL, "--epochs", "4", *arguments)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert sum(line.startswith("seed ") and "/4  " in line for line in lines) == 2 * 4 * 4
    for method in methods:
        assert any(line.startswith(f"  dense in the time of {method} ") for line in lines)
        assert any(line.startswith(f"{method} took ") and " dense in the same time: " in line for line in lines)
    assert f"picture: {out}/accuracy.png" in lines

    content = json.loads((out / "results.json").read_text())
    assert content["complete"] is True
    assert (content["arguments"]["seeds"], content["arguments"]["schedule"]) == (2, "cosine")
    assert {(r["policy"], r["seed"]) for r in content["runs"]} == {(p, s) for p in ("dense", *methods) for s in (0, 1)}
    assert [e["mode"] for e in content["runs"][1]["epochs"]] == ["full", "full", "skip", "skip"]
    assert [(c["control_of"], c["seed"]) for c in content["controls"]] == [(m, s) for s in (0, 1) for m in methods]
    assert all(len(c["epochs"]) == c["planned"] for c in content["controls"])
    assert [row["policy"] for row in content["summary"] if row["loss"] is not None] == list(methods)
    assert (out / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_train_with_chosen_rows(tmp_path):
    out = tmp_path / "run"
    chosen = ["--k", "6", "--scope", "weight", "--score", "l2", "--block", "2", "--bias", "rows"]
    result = wuskern_process(*SMALL, "--policy", "topk,dense", *chosen, "--out", str(out))
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert sum(line.startswith("seed 0  topk ") and "  rows  " in line for line in lines) == 2
    assert any(line.startswith("  dense in the time of topk ") for line in lines)
    assert any(line.startswith("topk computes ") and "backward FLOPs in each step. It took " in line for line in lines)

    content = json.loads((out / "results.json").read_text())
    expected = dict(ratio=None, k=6, scope="weight", score="l2", block=2, bias="rows", per="batch")
    assert expected.items() <= content["arguments"].items()
    topk = content["summary"][1]
    assert (topk["policy"], topk["s"], topk["f"]) == ("topk", None, None)
    assert 0 < topk["computed"] <= 1
    assert [e["mode"] for e in content["runs"][1]["epochs"]] == ["rows", "rows"]
    assert [c["control_of"] for c in content["controls"]] == ["topk"]


def test_train_per_example(tmp_path):
    result = wuskern_process(*SMALL, "--policy", "topk", "--per", "example", "--out", str(tmp_path / "run"))
    assert result.returncode == 0, result.stderr
    arguments = json.loads((tmp_path / "run" / "results.json").read_text())["arguments"]
    assert (arguments["per"], arguments["ratio"], arguments["k"]) == ("example", 0.1, None)


def test_train_on_an_npz(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"x_train": rng.random((80, 3, 6, 6)), "y_train": rng.integers(0, 4, 80)}
    np.savez(tmp_path / "a.npz", **arrays, x_test=arrays["x_train"][:9], y_test=arrays["y_train"][:9])
    result = wuskern_process(*SMALL, "--data", str(tmp_path / "a.npz"), "--out", str(tmp_path / "run"))
    assert result.returncode == 0, result.stderr


def test_ctrl_c_leaves_valid_results(tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-u", "-m", "wuskern", *SMALL, "--epochs", "100000", "--policy", "dense,wus", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    for line in process.stdout:
        if "epoch   3" in line:
            break
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
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
        (["--policy", "magic"], "--policy: expected one of dense, wus, wus+lr, frozen, topk, got 'magic'"),
        (["--model", "vgg12"], "--model: expected one of mlp, alexnet, vgg11, vgg16, resnet18, got 'vgg12'"),
        (["--schedule", "step"], "--schedule: expected one of constant, cosine, got 'step'"),
        (["--lr-factor", "1"], "--lr-factor: expected a number between 0 and 1, got 1.0"),
        (["--data", "cifar10"], "--data-dir: expected with cifar10 and cifar100, and only there, got None with 'cifar10'"),
        (["--checkpoint", "/"], "--checkpoint: expected a new file"),
        (["--resume", "absent.pt"], "--resume: expected a checkpoint that can be read, got 'absent.pt'"),
        (["--optimizer", "lion"], "--optimizer: expected one of sgd, adamw, got 'lion'"),
        (["--data", "absent.npz"], "--data: expected a readable .npz file of plain arrays, got 'absent.npz'"),
        (["--epochs", "0"], "--epochs: expected at least 1, got 0"),
        (["--lr", "nan"], "--lr: expected a positive number, got nan"),
        (["--width", "inf"], "--width: expected a positive number, got inf"),
        (["--batch", "1"], "--batch: expected at least 2, got 1"),
        (["--weight-decay", "nan"], "--weight-decay: expected a number from 0, got nan"),
        (["--device", "meta"], "--device: expected one that this PyTorch can use, got 'meta'"),
        (["--image-size", "200000"], "wuskern: "),
        (["--window", "0"], "window: expected at least 1, got 0"),
        (["--policy", "topk", "--ratio", "2"], "wuskern: ratio: expected a number over 0 and up to 1, got 2.0"),
        (["--policy", "topk", "--k", "51"], "wuskern: 1: k: expected a multiple of block * groups = 1 up to 50, got 51"),
        (["--ratio", ".1", "--k", "5"], "argument --k: not allowed with argument --ratio"),
        (["--policy", "topk", "--scope", "input"], "wuskern: scope: expected one of weight, both, got 'input'"),
        (["--policy", "topk", "--per", "example", "--model", "vgg11"], "wuskern: 0: rows: expected TopK or Rows for a Conv2d"),
        (["--device", "abacus"], "--device: expected one that this PyTorch can use, got 'abacus'"),
        (["--epochs", "many"], "argument --epochs: invalid int value: 'many'"),
    ],
)
def test_bad_arguments_end_with_2_and_one_line(tmp_path, arguments, message):
    out = tmp_path / "run"
    result = wuskern_process(*SMALL, *arguments, "--out", str(out))
    assert result.returncode == 2
    assert message in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert not out.exists()


@pytest.mark.parametrize("command", ["doctor", "train"])
@pytest.mark.parametrize(("variable", "value"), [("WUSKERN_BACKEND", "fast"), ("WUSKERN_CPU_CAPABILITY", "mmx")])
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
    result = wuskern_process(*SMALL, "--out", str(tmp_path / "file" / "run"))
    assert result.returncode == 2
    assert result.stderr.startswith("wuskern: --out: ")


def test_a_checkpoint_that_cannot_be_written(tmp_path):
    result = wuskern_process(*SMALL, "--out", str(tmp_path / "run"), "--checkpoint", str(tmp_path / "absent" / "a.pt"))
    assert result.returncode == 2
    assert result.stderr.startswith("wuskern: --checkpoint: ")
    assert len(result.stderr.splitlines()) == 1


def test_a_last_batch_of_one_image_is_left_out(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"x_train": rng.random((9, 4, 4)), "y_train": rng.integers(0, 2, 9)}
    np.savez(tmp_path / "a.npz", **arrays, x_test=arrays["x_train"], y_test=arrays["y_train"])
    arguments = ["--model", "vgg11", "--batch", "4", "--data", str(tmp_path / "a.npz"), "--out", str(tmp_path / "run")]
    result = wuskern_process(*SMALL, *arguments)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "run" / "results.json").read_text())["runs"][0]["epochs"][0]["steps"] == 2


def test_results_are_not_overwritten(tmp_path):
    (tmp_path / "results.json").write_text("mine")
    result = wuskern_process(*SMALL, "--out", str(tmp_path))
    assert result.returncode == 2
    assert "--out: expected a directory without results.json (or --overwrite)" in result.stderr
    assert (tmp_path / "results.json").read_text() == "mine"
    assert wuskern_process(*SMALL, "--out", str(tmp_path), "--overwrite").returncode == 0
