"""The programs in examples/ run; tests/test_docs.py has the first two."""

import importlib.util
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

EXAMPLES = ROOT / "examples"
pytestmark = [
    pytest.mark.skipif(not EXAMPLES.exists(), reason="there are no examples beside the tests"),
    pytest.mark.usefixtures("one_thread"),
]
# torchvision, which timm imports, lies apart; its library does not load beside a torch without CUDA.
TORCHVISION = Path(sys.prefix) / "torchvision"
unpinned = pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning")  # there is no GPU to pin for
DECLARED = """
import runpy, sys, torch
for name in ("nms", "qnms"):
    torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def needs(*packages: str) -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """What a program prints, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def printed(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return printed


def test_a_gan(run):
    assert "after 20 steps: mean radius" in run("gan.py", "--steps=20")


def test_biases_and_a_head(run):
    needs("sklearn")
    assert "1074 of 5826 parameters:\nepoch 0: " in run("bitfit.py", "--epochs=1")


def test_a_frozen_front_and_its_cache(run):
    needs("sklearn")
    assert "3 layers frozen next; 3 layers not run, 14 MiB" in run("frozen_cache.py", "--epochs=3")


@pytest.mark.more
@pytest.mark.filterwarnings(
    "ignore:.*(does not have many workers|LeafSpec|exists and is not empty|number of training batches):"
)
def test_lightning(run):
    needs("lightning", "sklearn")
    assert "epoch 1: " in run("lightning_loop.py", "--epochs=1")
    assert "epoch 3: " in run("lightning_loop.py", "--epochs=3")  # it goes on


@pytest.mark.more
def test_timm(tmp_path):
    needs("sklearn")
    if not (TORCHVISION / "timm").exists():
        pytest.skip(f"timm is not in {TORCHVISION}, where make puts it")
    command = [
        sys.executable,
        "-c",
        DECLARED,
        EXAMPLES / "timm_finetune.py",
        "--model=test_resnet",
        "--images=160",
        "--epochs=2",
    ]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{TORCHVISION}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "test_resnet: 100% of the weights are in converted layers" in done.stdout
    assert "epoch 1: loss " in done.stdout


@pytest.mark.more
@unpinned
def test_trainer(run):
    needs("transformers", "accelerate")
    assert "epoch 1: " in run("trainer.py", "--epochs=1")
    assert "epoch 3: " in run("trainer.py", "--epochs=3")  # it goes on


@pytest.mark.more
@unpinned
def test_accelerate(run):
    needs("accelerate", "sklearn")
    assert "epoch 1: " in run("accelerate_loop.py", "--epochs=2")
    again = run("accelerate_loop.py", "--epochs=3")
    assert "epoch 2: " in again
    assert "epoch 1: " not in again


@pytest.mark.more
@unpinned
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # of peft, by transformers
def test_lora(run):
    needs("peft", "sklearn")
    found = [run("peft_lora.py", "--epochs=1", *more) for more in ((), ("--stock",))]
    assert all("8410 of" in text and "epoch 0: " in text for text in found)


@pytest.mark.more
@unpinned
def test_a_bert_whose_front_is_frozen(run):
    needs("transformers", "accelerate")
    assert "12 layers did not run: kept\n9666 of 43618 numbers saved" in run("finetune_text.py")
