"""``wuskern train`` with a model and data of the user's own, and its logs, as a user meets them."""

import csv
import json
import sys
import types

import numpy as np
import pytest

from tests import pages
from tests.conftest import ROOT
from tests.small_trainings import SMALL, killed_after, said, write_images
from wuskern import cli
from wuskern.train import log

pytestmark = pytest.mark.usefixtures("one_thread")
OWN = """
import numpy as np
import torch.nn as nn

def make(classes, shape):
    return nn.Sequential(nn.Linear(shape[0], 12), nn.ReLU(), nn.Linear(12, classes))

def load():
    x = np.random.default_rng(0).normal(size=(60, 5))
    return x[:40], (x[:40, 0] > 0).astype(int), x[40:], (x[40:, 0] > 0).astype(int)
"""
TRAIN = ("--model", "own_net.py:make", "--data", "own_net.py:load", "--batch", "8", "--epochs", "3", "--out", "out")


@pytest.fixture
def train(tmp_path, monkeypatch, capsys):
    """Runs the command in a folder with a file of one's own; its exit code, and its line of complaint."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_net.py").write_text(OWN)
    write_images(tmp_path / "images.npz")
    return lambda *arguments: said(capsys, *arguments)


def numbers(path):
    runs = json.loads(path.read_text())["runs"]
    return [[{k: v for k, v in e.items() if "seconds" not in k} for e in run["epochs"]] for run in runs]


def test_it_trains_goes_on_and_says_what_it_trained(train, tmp_path):
    policies = ("--policy", "dense,wus:warmup=0:window=1:threshold=1")
    assert train(*TRAIN, *policies) == (0, "")
    with killed_after(3):
        train(*TRAIN, *policies, "--out", "cut", "--checkpoint", "c.pt", "--log", "csv")
    assert train("--resume", "c.pt") == (0, "")
    assert numbers(tmp_path / "cut" / "results.json") == numbers(tmp_path / "out" / "results.json")
    content = json.loads((tmp_path / "cut" / "results.json").read_text())
    assert content["arguments"]["model"] == "own_net.py:make"
    assert {name: len(checksum) for name, checksum in content["files"].items()} == {"model": 64, "data": 64}
    rows = list(csv.DictReader((tmp_path / "cut" / "log.csv").read_text().splitlines()))
    found = [(row["policy"], int(row["epoch"]), float(row["test_accuracy"])) for row in rows if row["planned"] == "3"]
    runs = [(run["policy"], e["number"], e["test_accuracy"]) for run in content["runs"] for e in run["epochs"]]
    assert (found, len(rows)) == (runs, len(set(map(str, rows)))), "a row for each epoch, once"


def test_a_file_that_changed_is_not_gone_on_with(train, tmp_path):
    with killed_after(2):
        train(*TRAIN, "--policy", "dense", "--checkpoint", "c.pt")
    (tmp_path / "own_net.py").write_text(OWN + "raise SystemExit('never run')\n")
    expected = "wuskern: --model: expected own_net.py as it was when c.pt was begun, got it changed since"
    assert train("--resume", "c.pt") == (2, expected)
    (tmp_path / "own_net.py").unlink()
    code, words = train("--resume", "c.pt")
    assert code == 2
    assert words.startswith("wuskern: --model: expected a file that can be read, got own_net.py (")


def test_a_recipe_names_them_from_where_the_command_runs(train, tmp_path):
    (tmp_path / "recipes").mkdir()
    train_table = 'model = "own_net.py:make"\ndata = "own_net.py:load"\npolicy = "dense"\nepochs = 1\nlog = "csv"\n'
    (tmp_path / "recipes" / "mine.toml").write_text(f"[train]\n{train_table}")
    assert train("--recipe", "recipes/mine.toml", "--out", "out") == (0, "")
    assert (tmp_path / "out" / "log.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "own_net.py"], "--model: expected FILE.py:function, got 'own_net.py'"),
        (["--model", "absent.py:make"], "--model: expected a file that can be read, got absent.py ("),
        (["--model", "own_net.py:absent"], "--model: expected a function of own_net.py, which has make, load, got 'absent'"),
        (["--data", "own_net.py:make"], "--data: own_net.py"),
        (["--width", ".5"], "--width: expected 1 for a model of your own, got 0.5"),
        (["--image-size", "9"], "--image-size: expected with images only, got 9 with own_net.py:load"),
        pytest.param(["--data", "digits"], "wuskern: mat1 and mat2 shapes cannot be multiplied", marks=pytest.mark.more),
        (["--checkpoint", "own_net.py"], "--checkpoint: expected a file of its own, got own_net.py, which is own_net.py too"),
        (["--log", "yaml"], "--log: expected one of csv, tensorboard, got 'yaml'"),
    ],
)
def test_what_is_wrong_is_one_line(train, tmp_path, arguments, message):
    code, words = train(*TRAIN, "--policy", "dense", *arguments)
    assert code == 2
    assert message in words
    assert not (tmp_path / "out").exists()


def test_scaling_is_said(train, tmp_path, capsys):
    arrays = {"x_train": np.full((8, 4, 4), 9, np.uint8), "y_train": np.arange(8) % 2}
    np.savez(tmp_path / "bytes.npz", **arrays, x_test=arrays["x_train"], y_test=arrays["y_train"])
    assert cli.main(["train", *SMALL, "--data", "bytes.npz", "--epochs", "1", "--policy", "dense", "--out", "out"]) == 0
    assert capsys.readouterr().out.startswith("x_train: uint8, divided by 255\n")


# ---- logs -----------------------------------------------------------------------------------------------------------


class Writer:
    """Stands for TensorBoard's."""

    made: list["Writer"] = []  # noqa: RUF012

    def __init__(self, folder, purge_step=None):
        self.folder, self.purge_step, self.scalars, self.closed = folder, purge_step, [], False
        self.made.append(self)

    def add_scalar(self, name, value, step):
        self.scalars.append((name, value, step))

    def flush(self):
        pass

    def close(self):
        self.closed = True


@pytest.fixture
def writers(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    monkeypatch.setattr(Writer, "made", [])
    return Writer.made


def test_tensorboard_gets_epochs_and_steps_and_goes_on(train, writers):
    small = (*SMALL, "--data", "images.npz", "--policy", "dense", "--log", "csv,tensorboard", "--epochs", "3", "--out", "out")
    with killed_after(3):  # the first one before any epoch
        train(*small, "--checkpoint", "c.pt")
    assert train("--resume", "c.pt") == (0, "")
    first, second = writers
    assert first.folder == second.folder == "out/tensorboard/dense-seed-0-epochs-3"
    assert (first.purge_step, second.purge_step, second.closed) == (None, 3, True)
    steps = [[step for name, _, step in writer.scalars if name == "step_loss"] for writer in writers]
    assert steps == [list(range(1, 11)), list(range(11, 16))]  # 40 samples, 8 in a step
    epochs = [[step for name, _, step in writer.scalars if name == "test_accuracy"] for writer in writers]
    assert epochs == [[1, 2], [3]]
    losses = {name: value for name, value, step in second.scalars if (name, step) == ("loss", 3)}
    mean = sum(value for name, value, _ in second.scalars if name == "step_loss") / 5
    assert losses["loss"] == pytest.approx(mean)  # of steps of one size


def test_without_its_package_tensorboard_is_refused(train, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    message = "wuskern: --log: tensorboard needs its package, which is not here (pip install tensorboard)"
    assert train(*TRAIN, "--policy", "dense", "--log", "tensorboard") == (2, message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("kind", "name"), [("csv", "log.csv"), ("tensorboard", "tensorboard")])
def test_logs_are_not_overwritten_unasked(train, tmp_path, writers, kind, name):
    there = tmp_path / "out" / name
    events = there / "wus-seed-0" / "events.out.tfevents.1.old"
    (events if kind == "tensorboard" else there).parent.mkdir(parents=True)
    (events if kind == "tensorboard" else there).write_text("theirs")
    (there.parent / "mine.txt").write_text("mine")
    code, words = train(*TRAIN, "--policy", "dense", "--log", kind)
    assert (code, f"expected a directory without {name} (or --overwrite)" in words) == (2, True)
    assert train(*TRAIN, "--policy", "dense", "--log", kind, "--overwrite", "--epochs", "1") == (0, "")
    assert not events.exists()
    assert (there.parent / "mine.txt").read_text() == "mine"
    if kind == "csv":
        assert there.read_text().startswith(",".join(log.COLUMNS))


@pytest.mark.parametrize("first", [True, pytest.param(False, marks=pytest.mark.more)])
def test_the_guide_s_file_trains(train, tmp_path, first, capsys):
    guide = ROOT / "docs" / "guides" / "own.md"
    if not guide.exists():
        pytest.skip("there is no documentation beside the tests")
    if not first:
        pytest.importorskip("transformers", reason="transformers is not installed: it is in .ci/requirements.txt")
    blocks = pages.blocks(guide, "python")[: 1 if first else None]
    (tmp_path / f"mine{first}.py").write_text("".join(block.code for block in blocks))
    wanted = [command for command in pages.commands(guide) if command.startswith("wuskern train --model")][0 if first else 1]
    words = wanted.replace("mine.py", f"mine{first}.py").split()[2:]
    assert train(*words, "--epochs", "2", "--seeds", "1", "--out", "runs/own", "--policy", "dense") == (0, "")
    assert cli.main(["report", "runs/own"]) == 0


@pytest.mark.more
def test_tensorboard_itself_reads_what_is_written(train, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    small = (*SMALL, "--data", "images.npz", "--policy", "dense", "--log", "tensorboard", "--epochs", "3", "--out", "out")
    assert train(*small) == (0, "")
    (folder,) = (tmp_path / "out" / "tensorboard").iterdir()
    found = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in found.Scalars("test_loss")] == [1, 2, 3]
    assert len(found.Scalars("step_loss")) == 15


@pytest.mark.more
def test_a_model_of_the_package_transformers_trains(train, tmp_path):
    """Several inputs as a BatchEncoding, an output with logits; every part that asks for an example."""
    pytest.importorskip("transformers", reason="transformers is not installed: it is in .ci/requirements.txt")
    (tmp_path / "own_bert.py").write_text(
        "import torch\nfrom transformers import BatchEncoding, BertConfig, BertForSequenceClassification\n"
        "def make(classes):\n    return BertForSequenceClassification(BertConfig(vocab_size=50, hidden_size=16, "
        "num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, max_position_embeddings=16, num_labels=classes))\n"
        "def load():\n    ids = torch.arange(64 * 8).view(64, 8) % 50\n"
        "    def inputs(x):\n        return BatchEncoding({'input_ids': x, 'attention_mask': torch.ones_like(x)})\n"
        "    y = (ids[:, 0] > 24).long()\n    return inputs(ids[:48]), y[:48], inputs(ids[48:]), y[48:]\n"
    )
    parts = "dense,freeze:start=0:end=2:saving=.2,spfde:saving=.1,mesimp:ratio=.3:per=batch:prune=.5:cycle=1:simplify=true"
    own = ("--model", "own_bert.py:make", "--data", "own_bert.py:load", "--policy", parts, "--optimizer", "adamw")
    assert train(*own, "--batch", "16", "--epochs", "2", "--out", "out") == (0, "")
