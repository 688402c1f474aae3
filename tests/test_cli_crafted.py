"""Checkpoints that somebody made: whole files of safe types, with the right layout and checksums, and nonsense inside."""

import sys

import pytest
import torch

from tests.small_trainings import SMALL, killed_after, said, write_images
from wuskern import cli
from wuskern.train import checkpoint, results

pytestmark = pytest.mark.usefixtures("one_thread")
METHODS = "dense,wus:warmup=0:window=1:threshold=1+memory:ratio=.5+sieve:keep=.5:interval=1"


@pytest.fixture(scope="module")
def genuine(tmp_path_factory):
    """Of an experiment in its second seed, at the second of four epochs."""
    folder = tmp_path_factory.mktemp("genuine")
    write_images(folder / "images.npz")
    what = [*SMALL, "--data", str(folder / "images.npz"), "--epochs", "4", "--seeds", "2", "--schedule", "constant"]
    where = ["--out", str(folder / "out"), "--checkpoint", str(folder / "c.pt")]
    with killed_after(7):
        cli.main(["train", *what, "--policy", METHODS, *where])
    return folder / "c.pt"


def at(content, *path):
    for key in path:
        content = content[key]
    return content


def put(value, *path):
    return lambda content: at(content, *path[:-1]).__setitem__(path[-1], value)


def deep(levels):
    found = []
    for _ in range(levels):
        found = [found]
    return found


def drop(*path):
    return lambda content: at(content, *path[:-1]).__delitem__(path[-1])


RUN = ("runs", 1)
EPOCH = ("record", "epochs", 1)
CRAFTED = {
    "a command": put("x", "arguments", "command"),
    "overwriting": put(True, "arguments", "overwrite"),
    "another checkpoint": put("victim", "arguments", "checkpoint"),
    "an argument less": drop("arguments", "lr"),
    "epochs as text": put("4", "arguments", "epochs"),
    "epochs that are no number": put("many", "arguments", "epochs"),
    "half an epoch": put(2.5, "arguments", "epochs"),
    "a tensor as an argument": put(torch.zeros(2), "arguments", "host"),
    "no model": put(5, "arguments", "model"),
    "the CPU as text": put("no", "arguments", "host"),
    "a rate that is none": put(float("nan"), "arguments", "lr"),
    "another seed than trained": put(7, "finished", 0, "seed"),
    "an unfinished finished run": drop("finished", 0, "epochs", 3),
    "a method less": drop("finished", 0),
    "an epoch that is none": put(3, "finished", 0, "epochs", 0),
    "an epoch without its phases": put({}, "finished", 0, "epochs", 0, "phase_seconds"),
    "no time": put(0.0, "finished", 0, "epochs", 3, "total_seconds"),
    "an accuracy over 1": put(2.0, "finished", 0, "epochs", 3, "test_accuracy"),
    "a saving that is none": put({}, *RUN, *EPOCH, "saved"),
    "a mode that is none": put("x", *RUN, *EPOCH, "mode"),
    "an epoch less": drop(*RUN, *EPOCH),
    "a run less": drop(*RUN),
    "a run that is none": put(True, *RUN),
    "no runs where some are due": put([], "runs", 0),
    "a weight of another shape": put(torch.zeros(3), *RUN, "model", "1.weight"),
    "momenta of another shape": put(torch.zeros(3), *RUN, "optimizer", "state", 0, "momentum_buffer"),
    "momenta that are none": put((1,), *RUN, "optimizer", "state", 0, "momentum_buffer"),
    "momenta of another weight": put([1, 0, 2, 3, 4, 5], *RUN, "optimizer", "param_groups", 0, "params"),
    "another momentum": put(0.5, *RUN, "optimizer", "param_groups", 0, "momentum"),
    "a negative rate": put(-1.0, *RUN, "optimizer", "param_groups", 0, "lr"),
    "a method in the schedule's place": put(5, *RUN, "schedule", "step"),
    "another epoch of the schedule": put(9, *RUN, "schedule", "last_epoch"),
    "other rates of the schedule": put([9.0], *RUN, "schedule", "base_lrs"),
    "no policy": put(None, *RUN, "policy"),
    "a history of words": put("x", *RUN, "policy", "policies", 0, "history"),
    "a skip that is none": put(None, *RUN, "policy", "policies", 0, "left"),
    "a sampler of other samples": put(torch.arange(3), *RUN, "sampler", "forgotten"),
    "no random state": put([], *RUN, "random"),
    "a random state that is none": put(torch.zeros(3), *RUN, "order"),
    "a tensor without data": put(torch.empty(3, device="meta"), *RUN, "random", 0),
    "a depth without end": put(deep(3000), *RUN, "policy"),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_checkpoint_is_one_line(genuine, capsys, tmp_path, name):
    content = torch.load(genuine, weights_only=True)
    CRAFTED[name](content)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20 * limit)
    torch.save(content, tmp_path / "crafted.pt")
    sys.setrecursionlimit(limit)
    written = genuine.parent / "out" / "results.json", tmp_path / "crafted.pt"
    before = [path.read_bytes() for path in written]
    code, words = said(capsys, "--resume", tmp_path / "crafted.pt")
    assert code == 2
    assert "expected " in words or "argument --" in words
    assert [path.read_bytes() for path in written] == before
    assert list(tmp_path.iterdir()) == [tmp_path / "crafted.pt"]


def test_the_genuine_one_goes_on(genuine, capsys, tmp_path):
    (tmp_path / "c.pt").write_bytes(genuine.read_bytes())
    assert said(capsys, "--resume", tmp_path / "c.pt") == (0, "")
    assert results.experiment_of(genuine.parent / "out" / "results.json") == checkpoint.load(genuine)["experiment"]
