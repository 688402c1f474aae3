"""``wuskern doctor --explain ... --device cuda``, without a GPU."""

import pytest
import torch

from wuskern import cli
from wuskern.kernels.cuda import rule
from wuskern.kernels.problem import Problem


def answers(capsys, *arguments: str) -> dict[str, str]:
    assert cli.main(["doctor", "--explain", *arguments, "--device", "cuda"]) == 0
    lines = [line.split("  ", 1) for line in capsys.readouterr().out.splitlines()]
    return {what: answer.strip() for what, answer in lines}


def test_a_linear(capsys):
    said = answers(capsys, "linear", "2048x4096x4096", "--dtype", "bfloat16", "--capability", "9.0")
    assert said["problem"] == "Linear 4096 x 4096, 2048 tokens, bfloat16"
    assert said["GPU"] == "9.0: the tiles of sm_90, the rates of H200"
    assert said["choice"] == "204 of 4096 rows (5.0%) by l1, scope both"
    p = Problem("rowsparse_dgrad", torch.bfloat16, 2048, 4096, out=204, k=204)
    decision = rule.choose(p, "9.0")
    assert said["dX"].startswith(f"{decision.way} on the compact dY: {decision.reason}; floor ")
    assert said["dX"].endswith(f"floor {1e6 * rule.floor(p, '9.0'):.1f} us")
    for way in rule.WAYS:
        assert f"{decision.works[way].moved / 1e6:.3g} MB" in said[f"dX {way}"]
        assert f"dW {way}" in said


def test_a_conv2d(capsys):
    arguments = ("--k", "8", "--scope", "weight", "--stride", "2", "--channels-last", "--capability", "gfx942")
    said = answers(capsys, "conv2d", "16x64x512x28x3", *arguments)
    assert said["problem"] == "Conv2d 64 -> 512, 3x3, 16 images of 28x28, NHWC, float32"
    assert said["dX"] == "dense: scope is weight"
    sides = (28, 28), (3, 3), (2, 2), (1, 1)
    p = Problem("rowsparse_wgrad_conv2d", torch.float32, 16, 64, 8, 8, *sides)
    assert f"{rule.choose(p, 'gfx942').works['triton'].operations / 1e9:.3g} GFLOP" in said["dW triton"]
    assert "dW native" not in said  # CUDA C++


def test_where_gathering_does_not_pay_all_rows_of_dy_are_multiplied(capsys):
    said = answers(capsys, "linear", "2048x64x4", "--k", "60", "--scope", "weight", "--capability", "8.0")
    assert " on the whole dY: " in said["dW"]


def test_columns(capsys):
    """By hand: 2048 tokens of 4096 inputs in bfloat16, of which 64 are gathered from sectors of 16."""
    said = answers(capsys, "linear", "2048x1024x4096", "--columns", "64", "--dtype", "bfloat16", "--capability", "9.0")
    assert said["choice"] == "64 of 4096 columns (1.6%) by the input"
    part, whole = 2 * 2048 * 64, 2 * 2048 * 4096
    touched = int(whole * (1 - (1 - 64 / 4096) ** 16))
    assert (
        said["gather of x"] == f"in forward, {(touched + part) / 1e6:.3g} MB: {1e6 * ((touched + part) / 4.8e12 + 3e-6):.1f} us"
    )
    assert said["scores of x"].startswith(f"in forward, {whole / 1e6:.3g} MB: {1e6 * (whole / 4.8e12 + 3e-6):.1f} us")
    assert said["kept"] == "0.262 MB of 16.8 MB of x"
    p = Problem("rowsparse_wgrad", torch.bfloat16, 2048, 64, out=1024, k=1024)
    assert said["dW"].startswith("library on the compact x: PyTorch's own product, most of it ")
    assert said["dW"].endswith(f"floor {1e6 * rule.floor(p, '9.0'):.1f} us")
    work = rule.choose(p, "9.0", ("library",)).works["library"]
    assert f"{work.moved / 1e6:.3g} MB, {work.operations / 1e9:.3g} GFLOP" in said["dW library"]
    assert "dW triton" not in said
    assert said["dX"] == "dense: columns leave it whole"


def test_columns_of_a_conv2d_and_of_chosen_rows(capsys):
    arguments = ("--columns", "16", "--capability", "9.0")
    said = answers(capsys, "conv2d", "16x64x512x28x3", *arguments)
    assert said["gather of x"].startswith(f"in forward, {2 * 4 * 16 * 28 * 28 * 16 / 1e6:.3g} MB")  # planes lie by themselves
    said = answers(capsys, "conv2d", "16x64x512x28x3", "--k", "8", *arguments)
    assert said["choice"] == "8 of 512 rows (1.6%) by l1, scope both; 16 of 64 columns (25.0%) by the input"
    assert " on the compact dY and x: " in said["dW"]
    assert "dW triton" in said
    assert " on the compact dY: " in said["dX"]


def test_all_rows(capsys):
    said = answers(capsys, "linear", "96x80x64", "--ratio", "1", "--capability", "12.0")
    assert said["choice"] == "dense: all of the weight is stock's own backward"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--device", "tpu"), "--device: expected one of cpu, cuda, got 'tpu'"),
        (("--device", "cuda", "--capability", "new"), "capability: expected such as sm_90, 9.0 or gfx942, got 'new'"),
    ],
    ids=str,
)
def test_wrong_questions(arguments, message, capsys):
    assert cli.main(["doctor", "--explain", "linear", "96x80x64", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU, which has a capability")
def test_without_a_gpu_a_capability_is_asked_for(capsys):
    assert cli.main(["doctor", "--explain", "linear", "96x80x64", "--device", "cuda"]) == 2
    assert "--capability: expected one, such as 9.0, on a machine without a GPU, got none" in capsys.readouterr().err
