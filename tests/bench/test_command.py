"""``wuskern bench``, as a user calls it: what it measures, writes and prints, and what it refuses."""

import importlib.util
import json
import os
import re

import pytest
import torch

from wuskern import cli
from wuskern.bench import ceilings, measure, plugin, variants

pytest.importorskip("pytest_benchmark")
LINEAR = ["bench", "linear", "48x24x40", "--ratio", ".2"]


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """Ceilings of small products, in a folder whose settings and environment would break any other run of pytest."""
    monkeypatch.setattr(ceilings, "SIDE", {"cpu": 32})
    monkeypatch.setattr(ceilings, "last_level_cache", lambda device: 2**16)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    (tmp_path / "conftest.py").write_text("raise RuntimeError('a conftest of somebody else')\n")
    monkeypatch.setenv("PYTEST_ADDOPTS", "--no-such-option")


def plain(value):
    """Whether a value is plain JSON: strings, numbers, and lists and mappings of them."""
    if isinstance(value, dict):
        return all(isinstance(name, str) and plain(inner) for name, inner in value.items())
    return isinstance(value, str | int | float) or (isinstance(value, list) and all(map(plain, value)))


def test_every_variant_is_a_benchmark_with_plain_parameters_and_its_numbers(capsys):
    before, threads = dict(os.environ), torch.get_num_threads()
    assert cli.main([*LINEAR, "--dtype", "bf16", "--rounds", "4", "--threads", "1", "--benchmark-json", "x.json"]) == 0
    assert (dict(os.environ), torch.get_num_threads()) == (before, threads)
    assert sorted(os.listdir()) == ["conftest.py", "pytest.ini", "x.json"]
    with open("x.json") as file:
        written = {row["params"]["variant"]: row for row in json.load(file)["benchmarks"]}
    assert list(written) == list(variants.SAID)
    shown = {line.split("  ")[0]: line for line in capsys.readouterr().out.splitlines() if line}
    for name, row in written.items():
        assert row["params"] == dict(kind="linear", shape="48x24x40", dtype="bfloat16", ratio=0.2, device="cpu", variant=name)
        facts, stats = row["extra_info"], row["stats"]
        assert plain(row["params"])
        assert plain(facts)
        assert (stats["rounds"], facts["threads"], facts["rounds"]) == (4, 1, 4)
        assert stats["median"] == pytest.approx(facts["milliseconds"] / 1e3, abs=1e-8)
        assert facts["share_of_floor"] == pytest.approx(facts["floor_milliseconds"] / facts["milliseconds"], rel=0.02, abs=1e-4)
        assert f"{facts['milliseconds']:.3f}" in shown[name]
        assert f"{facts['times_faster']:.2f}x" in shown[name]
    assert written["stock"]["extra_info"]["times_faster"] == 1
    assert "GEMM bfloat16 GFLOP/s" in written["rows"]["extra_info"]


def test_runs_that_are_kept_are_compared(capsys):
    for further in (["--benchmark-autosave"], ["--benchmark-compare", "0001"]):
        assert cli.main([*LINEAR, "--rounds", "1", *further]) == 0
    assert "test_layer[rows] (NOW)" in capsys.readouterr().out
    assert os.path.isdir(".benchmarks")


def test_a_convolution_is_verified_alone_where_nothing_is_timed(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(measure, "verify", lambda variants, results, x, dy: seen.append((x, dy, set(results))))
    words = "conv2d 2x6x8x9x3 --stride 2 --padding 0 --groups 2 --channels-last --dtype fp16 --benchmark-disable"
    assert cli.main(["bench", *words.split()]) == 0
    ((x, dy, names),) = seen
    assert names == set(variants.SAID)
    assert (x.shape, dy.shape, x.dtype) == ((2, 6, 9, 9), (2, 8, 4, 4), torch.float16)
    assert x.is_contiguous(memory_format=torch.channels_last)
    out = capsys.readouterr().out
    assert "10 variants are right; nothing was timed" in out
    assert "Conv2d 6 -> 8, 3x3, 2 images of 9x9 (2x6x8x9x3,stride=2,padding=0,groups=2,channels_last), float16" in out


def test_a_depthwise_convolution_has_no_columns():
    assert plugin.names(measure.Asked("conv2d", (2, 4, 8, 5, 3), torch.float32, 0.5, padding=1, groups=4)) == [
        name for name in variants.SAID if "columns" not in name
    ]


def test_a_wrong_result_ends_the_run_with_its_name(monkeypatch, capsys):
    monkeypatch.setattr(variants.ops, "bias_grad", lambda dy, dim: dy.sum(0) * 1.01)  # rows have theirs from row_stats
    assert cli.main([*LINEAR, "--rounds", "1"]) == 1
    out = capsys.readouterr().out
    assert re.search(r"^not timed, since a result is wrong: (skip|columns|bias_grad): error \S+ is over ", out, re.MULTILINE)
    assert "vs dense" not in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("dense 4x4x4", "KIND: expected one of linear, conv2d, got 'dense'"),
        ("linear 4x4", "SHAPE: expected TOKENSxOUTxIN in positive numbers, got '4x4'"),
        ("linear 4x0x4", "SHAPE: expected TOKENSxOUTxIN in positive numbers, got '4x0x4'"),
        ("conv2d 4x4x4x4", "SHAPE: expected BATCHxCHANNELSxOUTxSIDExKERNEL in positive numbers, got '4x4x4x4'"),
        ("conv2d 4x4x4x2x5 --padding 0", "SHAPE: expected a kernel of at most 2, with padding, got 5"),
        ("conv2d 4x4x6x8x3 --groups 3", "--groups: expected a divisor of 4 channels and of 6 output channels, got 3"),
        ("linear 4x4x4 --ratio 0", "--ratio: expected a number over 0 and up to 1, got 0.0"),
        ("linear 4x4x4 --dtype int8", "--dtype: expected one of float32, bf16, fp16, bfloat16, float16, float64, got 'int8'"),
        ("linear 4x4x4 --device tpu", "--device: expected one of cpu, cuda, got 'tpu'"),
        ("linear 4x4x4 --rounds 0", "--rounds: expected at least 1, got 0"),
        ("linear 4x4x4 --channels-last", "--channels-last: expected conv2d with it, got linear"),
        ("linear 4x4x4 --benchmark-json a/b", "--benchmark-json: expected a file in a folder that is there, got 'a/b'"),
        ("linear", "the following arguments are required: SHAPE (see wuskern bench --help)"),
    ],
)
def test_wrong_input_is_one_line(words, said, capsys):
    assert cli.main(["bench", *words.split()]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"wuskern: {said}\n")


def test_without_pytest_benchmark_one_line_says_how_to_get_it(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pytest_benchmark" else find(name))
    assert cli.main(LINEAR) == 2
    assert capsys.readouterr().err == "wuskern: bench needs pytest-benchmark: pip install 'wuskern[bench]'\n"
