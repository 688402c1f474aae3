"""``wuskern profile`` of a user's file."""

import json
import sys

import pytest
import torch

from wuskern import cli
from wuskern.common import from_file

FILE = """
import torch
import torch.nn as nn

def network():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))

def both():
    return network(), torch.randn(4, 8)

def keywords():
    return {"input": torch.randn(4, 8)}

def nothing():
    return None

def broken():
    return network().no_such_thing

def wrong():
    return network(), torch.randn(4, 7)
"""


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """A function that runs the command on the file, and returns its exit code and what it printed."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(from_file, "_loaded", {})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(FILE)
    threads, before = torch.get_num_threads(), set(sys.modules)

    def run(*words):
        code = cli.main(["profile", *words])
        return code, capsys.readouterr()

    yield run
    torch.set_num_threads(threads)
    for name in set(sys.modules) - before:
        if name.endswith("own"):
            del sys.modules[name]


@pytest.mark.usefixtures("quick")
def test_a_model_and_its_batch(run, tmp_path):
    code, printed = run("own.py:both", "--seconds", "20", "--threads", "1", "--json", "found.json")
    assert (code, printed.err) == (0, "")
    content = json.loads((tmp_path / "found.json").read_text())
    assert content["environment"]["threads"] == 1
    assert content["covered"] == ["0", "2"]
    assert "way to train" in printed.out
    assert printed.out.startswith(content["verdict"][:60])


@pytest.mark.usefixtures("quick")
def test_a_batch_of_keywords_and_autocast(run):
    code, printed = run("own.py:network", "--batch", "own.py:keywords", "--dtype", "bf16")
    assert (code, printed.err) == (0, "")
    assert "float32 with bfloat16 autocast" in printed.out


WRONG = {
    "no file": (["there.py:both"], "FILE.py:make_model: expected a file, got there.py, which does not exist"),
    "no function": (["own.py"], "FILE.py:make_model: expected FILE.py:function, got 'own.py'"),
    "another function": (["own.py:all"], "FILE.py:make_model: expected a function of own.py, which has network, both"),
    "no model": (
        ["own.py:nothing"],
        "FILE.py:make_model: expected it to return a torch.nn.Module, or that and a batch, got None",
    ),
    "an error": (["own.py:broken"], "FILE.py:make_model: own.py, line 18: AttributeError: 'Sequential' object has no"),
    "no batch": (
        ["own.py:network"],
        "--batch: expected a function, or a batch beside the model that FILE.py:make_model returns",
    ),
    "two batches": (["own.py:both", "--batch", "own.py:keywords"], "returns, got both"),
    "a batch that does not fit": (["own.py:wrong"], "RuntimeError: mat1 and mat2 shapes cannot be multiplied"),
    "no time": (["own.py:both", "--seconds", "-1"], "--seconds: expected a positive number, got -1.0"),
    "no threads": (["own.py:both", "--threads", "0"], "--threads: expected at least 1, got 0"),
    "no dtype": (["own.py:both", "--dtype", "int8"], "--dtype: expected one of float32, bf16, got 'int8'"),
    "no folder": (
        ["own.py:both", "--json", "there/x.json"],
        "--json: expected a file in a folder that exists, got there/x.json",
    ),
}


@pytest.mark.parametrize(("words", "message"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_said_in_one_line(run, words, message):
    code, printed = run(*words)
    assert code == 2
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.count("\n") == 1
