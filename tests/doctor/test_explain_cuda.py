"""``wuskern doctor --explain ... --device cuda``, without a GPU."""

import pytest
import torch

from wuskern import cli
from wuskern.kernels.cuda import choice
from wuskern.kernels.cuda.product import Product


def answers(capsys, *arguments: str) -> dict[str, str]:
    assert cli.main(["doctor", "--explain", *arguments, "--device", "cuda"]) == 0
    lines = [line.split("  ", 1) for line in capsys.readouterr().out.splitlines()]
    return {what: answer.strip() for what, answer in lines}


def test_a_linear(capsys):
    said = answers(capsys, "linear", "2048x4096x4096", "--dtype", "bfloat16", "--capability", "9.0")
    assert said["problem"] == "Linear 4096 x 4096, 2048 tokens, bfloat16"
    assert said["GPU"] == "9.0: the tiles of sm_90, the rates of H200"
    assert said["choice"] == "204 of 4096 rows (5.0%) by l1, scope both"
    p = Product("rowsparse_dgrad", "bfloat16", 2048, 4096, 204, 204, 2048 * 4096)
    assert said["dX"].startswith(f"{choice.choose(p, '9.0').way} on the compact dY: counted, with the rates of H200; floor")
    for way in choice.WAYS:
        assert f"{choice.counts(p, '9.0')[way].moved / 1e6:.3g} MB" in said[f"dX {way}"]
        assert f"dW {way}" in said


def test_a_conv2d(capsys):
    arguments = ("--k", "8", "--scope", "weight", "--stride", "2", "--channels-last", "--capability", "gfx942")
    said = answers(capsys, "conv2d", "16x64x512x28x3", *arguments)
    assert said["problem"] == "Conv2d 64 -> 512, 3x3, 16 images of 28x28, NHWC, float32"
    assert said["dX"] == "dense: scope is weight"
    p = Product("rowsparse_wgrad_conv2d", "float32", 16 * 14 * 14, 576, 8, 8, 16 * 64 * 784, taps=9)
    assert f"{choice.counts(p, 'gfx942')['native'].operations / 1e9:.3g} GFLOP" in said["dW native"]


def test_all_rows(capsys):
    said = answers(capsys, "linear", "96x80x64", "--ratio", "1", "--capability", "12.0")
    assert said["choice"] == "dense: all rows are stock's own backward"


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
