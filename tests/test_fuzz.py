"""The generators of tests/fuzz: some inputs of each, and a planted fault that each of them finds. make fuzz has many more."""

import argparse
import contextlib
import random
import subprocess
import sys
from unittest import mock

import pytest

from tests.conftest import ROOT
from tests.fuzz import convolutions, hostile, layers, soak
from tests.rowsparse import need_library
from wuskern import checks, deliver, gradients, native, sparse_grad
from wuskern.sparse_grad import RowGrad

pytestmark = pytest.mark.usefixtures("one_thread")


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
    assert steps(150) == 0


def test_layers_find_a_row_that_is_missing(monkeypatch):
    need_library()
    monkeypatch.setattr(gradients, "RowGrad", one_too_few)
    assert any("gradient of weight" in fault or "indices" in fault for fault in faults(layers.attempt, 100))


def test_layers_find_a_gradient_that_changes_later(monkeypatch):
    """As if the memory of the dense form were used again while somebody has it."""
    need_library()
    monkeypatch.setattr("torch._lazy_clone", lambda t: t.view_as(t))
    monkeypatch.setattr("wuskern.dense_grad.StorageWeakRef", mock.MagicMock())
    assert any("has changed" in fault for fault in faults(layers.attempt, 1500))


def test_the_soak_finds_a_row_that_is_missing(monkeypatch, capsys):
    need_library()
    monkeypatch.setattr(gradients, "RowGrad", one_too_few)
    assert steps(150) == 1
    assert "away from the plain loop's" in capsys.readouterr().err


def test_the_soak_finds_memory_that_grows(monkeypatch, capsys):
    need_library()
    kept, write = [], soak.Soak.step
    monkeypatch.setattr(soak.Soak, "step", lambda run: (kept.append(run._draw(3)), write(run))[1])
    assert steps(150) == 1
    assert "tensors: from" in capsys.readouterr().err


def test_convolutions_find_a_product_of_one_row_too_few(monkeypatch):
    need_library()
    wgrad = native.rowsparse_wgrad_conv2d
    monkeypatch.setattr(native, "rowsparse_wgrad_conv2d", lambda *a: wgrad(*a).index_fill(0, a[2].new_zeros(1), 0))
    from wuskern import backends

    backends._choose.cache_clear()
    try:
        assert any("dW by op" in fault for fault in faults(convolutions.attempt, 20))
    finally:
        backends._choose.cache_clear()


def test_hostile_calls_find_a_check_that_is_missing(monkeypatch):
    need_library()
    monkeypatch.setattr(checks, "same_device", lambda *_, **__: None)
    assert faults(hostile.Hostile(emulated=False), 2000)


# ---- those that start processes --------------------------------------------------------------------------------------


def ended(code):
    """Of Python, with that code."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.more
def test_kills_find_a_state_that_is_lost(one_thread_of_children):
    lost = "from wuskern.train import loop; loop.Run._lost = loop.Run.load_state_dict; "
    done = ended("import sys; from tests.fuzz import kills; sys.argv[1:] = ['--count', '4']; " + lost)
    assert done.returncode
