"""``wuskern doctor --explain``."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from wuskern import cli
from wuskern.choices import TopColumns, TopK
from wuskern.doctor import explain_cpu
from wuskern.doctor.question import Question
from wuskern.kernels import backends
from wuskern.kernels.cpu import paths
from wuskern.kernels.problem import Problem
from wuskern.kinds import Conv2d

pytestmark = pytest.mark.skipif(
    backends.library_obstacle("cpu") is not None, reason=f"no compiled library: {backends.library_obstacle('cpu')}"
)


def answers(capsys, *arguments: str) -> dict[str, str]:
    assert cli.main(["doctor", "--explain", *arguments]) == 0
    lines = [line.split("  ", 1) for line in capsys.readouterr().out.splitlines()]
    return {what: answer.strip() for what, answer in lines}


def test_a_linear(capsys):
    said = answers(capsys, "linear", "96x80x64", "--ratio", ".1")
    assert said["problem"].startswith("Linear 80 x 64, 96 tokens, float32, ")
    assert said["choice"] == "8 of 80 rows (10.0%) by l1, scope both"
    assert said["reads of dY"] == "1 for scores and bias gradient (native), 0.10 for the chosen rows"
    assert said["dW"] == said["dX"] == f"mm: {paths.WHY['mm']}"
    assert 0 < float(said["floor"].split()[0]) < 1  # ms, by rates of this machine and load
    assert said["measured"].endswith("x the floor")
    assert said["dense"].endswith("x of that")


def test_a_conv2d(capsys):
    arguments = ("--k", "4", "--scope", "weight", "--stride", "2", "--channels-last", "--dtype", "bfloat16")
    said = answers(capsys, "conv2d", "2x8x16x10x3", *arguments)
    assert said["problem"].startswith("Conv2d 8 -> 16, 3x3, 2 images of 10x10, bfloat16, ")
    assert said["choice"] == "4 of 16 rows (25.0%) by l1, scope weight"
    assert said["dW"] == f"library: {paths.WHY['library']}"
    assert said["dX"] == "dense: scope is weight"


def test_columns_of_a_linear(capsys):
    said = answers(capsys, "linear", "96x80x64", "--columns", "16")
    assert said["choice"] == "16 of 64 columns (25.0%) by the input"
    assert said["reads of dY"] == "1 for the bias gradient (native)"
    assert said["reads of x"] == "1 for scores (native), 0.25 for the chosen columns (native), in forward"
    assert said["kept"] == "0.00614 MB of 0.0246 MB of x"
    assert said["dW"] == f"mm: {paths.WHY_COLUMNS['mm']}"
    assert said["dX"] == "dense: columns leave it whole"
    assert said["measured"].endswith("x the floor")


def test_columns_of_chosen_rows(capsys):
    said = answers(capsys, "linear", "96x80x64", "--columns", "16", "--k", "8")
    assert said["choice"] == "8 of 80 rows (10.0%) by l1, scope both; 16 of 64 columns (25.0%) by the input"
    assert said["dW"] == said["dX"] == f"mm: {paths.WHY['mm']}"
    assert said["kept"].startswith("0.00614 MB of ")


@pytest.mark.parametrize(
    ("shape", "more", "path"),
    [
        ("2x32x16x10x3", (), "library"),
        ("2x32x16x10x1", (), "images"),
        ("2x32x16x10x1", ("--channels-last",), "library"),
        ("2x32x16x10x1", ("--stride", "2"), "library"),
        pytest.param("2x32x16x10x1", ("--dtype", "bfloat16"), "library", marks=pytest.mark.more),
        ("2x32x16x10x3", ("--groups", "2"), "library"),
    ],
    ids=str,
)
def test_columns_of_a_conv2d_take_the_path_that_is_named(shape, more, path, capsys, monkeypatch):
    """A product of each image is a bmm; else torch's convolution is called, in float32 with 16 channels at least."""
    asked = []
    column_wgrad = Conv2d.column_wgrad
    monkeypatch.setattr(
        Conv2d, "column_wgrad", lambda *a: asked.append((calls(column_wgrad, *a), a[2].shape[1])) or asked[-1][0][1]
    )
    said = answers(capsys, "conv2d", shape, "--columns", "4", *more)
    assert said["dW"] == f"{path}: {paths.WHY_COLUMNS[path]}"
    (called, _), channels = asked[0]
    assert any("bmm" in name for name in called) == (path == "images")
    assert channels == (16 if path == "library" and not {"bfloat16", "--groups"} & set(more) else 4)


def test_few_channels_are_not_gathered(capsys):
    said = answers(capsys, "conv2d", "2x8x16x10x3", "--columns", "4")
    assert said["reads of x"] == "1 for scores (native), no gather, with so few channels"
    assert said["kept"] == "0.0064 MB of 0.0064 MB of x"


def calls(function, *arguments):
    """The names of the ops that a call makes, and what it returns."""
    names = []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            names.append(str(op))
            return op(*args, **(kwargs or {}))

    with Seen():
        return names, function(*arguments)


def test_all_rows(capsys):
    said = answers(capsys, "linear", "96x80x64", "--ratio", "1")
    assert said["choice"] == "dense: all of the weight is stock's own backward"
    assert "measured" not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gru", "4x4x4"), "--explain: expected one of linear, conv2d, got 'gru'"),
        (("linear", "4x4"), "--explain: expected TOKENSxOUTxIN in positive numbers, got '4x4'"),
        (("linear", "4x0x4"), "--explain: expected TOKENSxOUTxIN in positive numbers, got '4x0x4'"),
        (("conv2d", "4xax4x4x3"), "--explain: expected BATCHxCHANNELSxOUTxSIDExKERNEL in positive numbers, got '4xax4x4x3'"),
        (("linear", "4x4x4", "--k", "5"), "k: expected at most 4, got 5"),
        (("linear", "4x4x4", "--columns", "5"), "k: expected at most 4, got 5"),
        (
            ("conv2d", "4x4x4x8x3", "--columns", "3", "--groups", "2"),
            "k: expected a multiple of block * groups = 2 up to 4, got 3",
        ),
        (("conv2d", "4x4x4x8x3", "--columns", "2", "--groups", "4"), "got a depthwise convolution"),
        (("linear", "4x4x4", "--ratio", "2"), "ratio: expected a number over 0 and up to 1, got 2.0"),
        (("linear", "4x4x4", "--dtype", "int8"), "--dtype: expected one of float32, bfloat16, float16, float64, got 'int8'"),
        (("linear", "4x4x4", "--scope", "all"), "scope: expected one of weight, both, got 'all'"),
        (("conv2d", "4x4x4x8x3", "--groups", "3"), "groups: expected a divisor of 4 rows, got 3"),
    ],
    ids=str,
)
def test_wrong_questions(arguments, message, capsys):
    assert cli.main(["doctor", "--explain", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_floor_counts_what_must_be_done():
    """By hand: 64 tokens, 8 of 32 rows, 16 inputs."""
    linear = Problem("rowsparse_wgrad", torch.float32, 64, 16, out=32, k=8)
    both = explain_cpu.floor(Question(linear, TopK(k=8, scope="both")))
    assert both.operations == 2 * 64 * 16 * (8 + 8)
    assert both.moved == 4 * (64 * 32 + 2 * 64 * 8 + 2 * 64 * 16 + 2 * 8 * 16)  # dY; the gathered part; x, dX; W's rows, dW's
    weight = explain_cpu.floor(Question(linear, TopK(k=8)))
    assert weight.operations == 2 * 64 * 16 * (8 + 32)
    sides = (6, 6), (3, 3), (1, 1), (1, 1)
    conv = Problem("rowsparse_wgrad_conv2d", torch.float32, 2, 4, 8, 2, *sides, planes=True)
    assert explain_cpu.floor(Question(conv, TopK(k=2, scope="both"))).operations == 2 * (2 * 36) * (4 * 9) * (2 + 2)
    whole = Problem("rowsparse_wgrad", torch.float32, 64, 16, out=32, k=32)
    columns = explain_cpu.floor(Question(whole, None, TopColumns(k=4)))
    assert columns.operations == 2 * 64 * (32 * 4 + 32 * 16)
    assert columns.moved == 4 * (64 * 32 + 2 * 64 * 4 + 2 * 64 * 16 + 32 * 16 + 32 * 4)  # the gathered part; x, dX; W; dW
    block = explain_cpu.floor(Question(linear, TopK(k=8, scope="both"), TopColumns(k=4)))
    assert block.operations == 2 * 64 * (8 * 4 + 8 * 16)
