"""The generators of tests/fuzz: some inputs of each, and a planted fault that each of them finds. make fuzz has many more."""

import argparse
import random
import subprocess
import sys
from unittest import mock

import pytest
import torch

from tests.conftest import ROOT
from tests.fuzz import convolutions, hostile, layers, soak
from tests.rowsparse import need_library
from wuskern import columns, ops
from wuskern.kernels.cpu import conv2d
from wuskern.sparse_grad import RowGrad

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore::UserWarning")]  # of slow layouts


def faults(attempt, count):
    found = [attempt(random.Random(f"here {number}")) for number in range(count)]
    return [fault for fault in found if fault is not None]


def steps(count):
    return soak.soak(argparse.Namespace(seed=1, count=count, seconds=0))


def one_too_few(rows, values):
    return RowGrad(rows[:-1], values[:-1])


def test_layers():
    need_library()
    assert faults(layers.attempt, 400) == []


def test_soak():
    need_library()
    assert steps(100) == 0


def test_layers_find_a_row_that_is_missing(monkeypatch):
    need_library()
    monkeypatch.setattr(columns, "RowGrad", one_too_few)
    assert any("gradient of weight" in fault or "indices" in fault for fault in faults(layers.attempt, 100))


def test_layers_find_a_gradient_that_changes_later(monkeypatch):
    """As if the memory of the dense form were used again while somebody has it."""
    need_library()
    monkeypatch.setattr("torch._lazy_clone", lambda t: t.view_as(t))
    monkeypatch.setattr("wuskern.delivery.dense_grad.StorageWeakRef", mock.MagicMock())
    assert any("has changed" in fault for fault in faults(layers.attempt, 800))


def test_the_soak_finds_a_row_that_is_missing(monkeypatch, capsys):
    need_library()
    monkeypatch.setattr(columns, "RowGrad", one_too_few)
    assert steps(150) == 1
    assert "away from the plain loop's" in capsys.readouterr().err


def test_the_soak_finds_memory_that_grows(monkeypatch, capsys):
    need_library()
    kept, write = [], soak.Soak.step
    monkeypatch.setattr(soak.Soak, "step", lambda run: (kept.extend(torch.zeros(30, 1)), write(run))[1])
    assert steps(60) == 1
    assert "tensors: from" in capsys.readouterr().err


def test_convolutions_find_a_row_that_is_missing(monkeypatch):
    need_library()
    whole = conv2d.WGRAD["library"]
    monkeypatch.setitem(conv2d.WGRAD, "library", lambda *a: whole(*a).index_fill_(0, torch.tensor([0]), 0))
    assert any("dW by library" in fault for fault in faults(convolutions.attempt, 20))


def test_hostile_calls_find_a_wrong_sum(monkeypatch):
    need_library()
    right = ops.bias_grad
    monkeypatch.setattr(ops, "bias_grad", lambda dy, dim: 2 * right(dy, dim))
    assert any("public bias_grad" in fault for fault in faults(hostile.Hostile(emulated=False), 600))


# ---- trainings that are killed: in processes of their own, since a process with threads is not to be forked ----------

LOSSY = """
from tests.fuzz import kills
from wuskern.train.loop import Run

whole = Run.load_state_dict

def lossy(run, state):
    whole(run, state)
    run.order.manual_seed(9)

Run.load_state_dict = lossy
raise SystemExit(kills.main())
"""


@pytest.mark.more
def test_kills_find_a_state_that_is_lost():
    need_library()
    done = subprocess.run([sys.executable, "-c", LOSSY, "--count", "6"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "results.json has other numbers" in done.stderr
