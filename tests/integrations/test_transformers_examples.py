"""The programs of examples/ that need transformers' Trainer, accelerate or peft."""

import importlib.util
import runpy
import sys

import pytest

from tests.conftest import ROOT

EXAMPLES = ROOT / "examples"
pytestmark = [
    pytest.mark.more,
    pytest.mark.skipif(not EXAMPLES.exists(), reason="there are no examples beside the tests"),
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning"),  # there is no GPU to pin for
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # of peft, by transformers
]


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """What a program prints, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def printed(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return printed


def needs(*packages):
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


def test_trainer(run):
    needs("transformers", "accelerate")
    assert "epoch 1: " in run("trainer.py", "--epochs=1")
    assert "epoch 3: " in run("trainer.py", "--epochs=3")  # it goes on


def test_accelerate(run):
    needs("accelerate", "sklearn")
    assert "epoch 1: " in run("accelerate_loop.py", "--epochs=2")
    again = run("accelerate_loop.py", "--epochs=3")
    assert "epoch 2: " in again
    assert "epoch 1: " not in again


def test_lora(run):
    needs("peft", "sklearn")
    found = [run("peft_lora.py", "--epochs=1", *more) for more in ((), ("--stock",))]
    assert all("8410 of" in text and "epoch 0: " in text for text in found)
