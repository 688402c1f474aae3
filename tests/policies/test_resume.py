"""Every method, killed and resumed in another process, ends as the run that was not, bit for bit."""

import copy
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import ROOT
from tests.policies.resumable import CUTS, END, METHODS, MIDDLE, Run, resumed

pytestmark = pytest.mark.usefixtures("one_thread")


def in_a_process(part: str, folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tests.policies.resumable", part, str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder that the first process left."""
    folder = tmp_path_factory.mktemp("killed")
    done = in_a_process("first", folder)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return folder


@pytest.fixture(scope="module")
def ends(killed):
    """Of the second process, by method and cut."""
    done = in_a_process("second", killed)
    assert done.returncode == 0, done.stderr
    return torch.load(killed / "ends.pt", weights_only=True)


def whole(name: str) -> Run:
    run = Run(name)
    run.until(END)
    return run


def same(a: Any, b: Any) -> bool:
    """All bits of all tensors, all numbers, and nothing besides."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    return repr(a) == repr(b)  # a NaN is itself


@pytest.mark.parametrize("name", METHODS)
def test_killed_and_resumed_it_ends_as_it_would_have(name, ends):
    expected = whole(name).state()
    for cut in CUTS:
        found = ends[name, cut]
        assert [key for key in expected if not same(expected[key], found[key])] == [], f"cut after {cut} micro-batches"


@pytest.mark.parametrize("name", METHODS)
def test_the_cut_in_the_middle_is_an_awkward_one(name):
    """Half a step's gradients are there, and layers skip, have rows or columns, or are frozen, where the method does so."""
    run = Run(name)
    run.until(MIDDLE)
    state = run.state()
    assert state["grads"]
    layers = run.policy.layers if run.policy else {}
    wants = [run.policy.wants(layer) for layer in layers]
    assert any(w.get("skip") for w in wants) or "WUS" not in name
    assert any(w.get("frozen") for w in wants) == any(kind in name for kind in ("Freez", "SpFDE"))
    assert any(w.get("rows") is not None for w in wants) == any(kind in name for kind in ("Prop", "Memory", "MeSimp"))
    assert any(w.get("tokens") is not None for w in wants) == ("ColumnRow" in name)
    assert any(w.get("columns") is not None for w in wants) == ("PaCA" in name)
    assert bool(state["sparse_grads"]) == any(kind in name for kind in ("compact", "reused", "MeProp + C"))
    assert any(0 < w.get("density", 1) < 1 for w in wants) == any(kind in name for kind in ("MEST", "RigL", "SpFDE"))


@pytest.mark.parametrize(
    ("name", "part", "lost"),
    [
        ("WUS", ("policy", "left"), 0),
        ("WUSLR", ("policy", "history"), []),
        ("SsProp, bars of steps", ("policy", "t"), 0),
        ("TinyProp", ("policy", "largest"), None),
        ("ScoreMemory", ("policy", "memory"), None),
        ("ScoreMemory, reused", ("policy", "scores"), None),
        ("SingleShotFreezing", ("policy", "epoch"), 0),
        ("AutoFreeze", ("policy", "norms"), {}),
        ("MEST", ("policy", "generator"), torch.Generator().manual_seed(9).get_state()),
        ("RigL", ("policy", "steps"), 4),
        ("RigL", ("policy", "masks"), None),
        ("MeSimp", ("policy", "epoch"), 0),
        ("MeSimp, each", ("policy", "steps"), 0),
        ("SpFDE", ("policy", "sampler"), None),
        ("SievingSampler", ("sieve", "forgotten"), torch.zeros(24, dtype=torch.int64)),
        ("PaCA", ("policy", "done"), 0),
        ("PaCA", ("policy", "generator"), torch.Generator().manual_seed(9).get_state()),
        ("PaCA, by the input", ("policy", "scores"), None),
        ("ColumnRowSampling", ("random",), torch.Generator().get_state()),
        ("MeProp, random", ("random",), torch.Generator().get_state()),
        ("MeProp, compact", ("sparse_grads",), {}),
        ("MeProp", ("grads",), {}),
    ],
    ids=str,
)
def test_a_part_of_the_state_that_is_lost_shows(name, part, lost, killed):
    """``lost`` instead of it; of None, what a run that has just begun has."""
    state = torch.load(killed / f"{name} {MIDDLE}.pt", weights_only=True)
    inner, begun = state, copy.deepcopy(Run(name).state())
    for key in part[:-1]:
        inner, begun = inner[key], begun[key]
    inner[part[-1]] = begun[part[-1]] if lost is None else lost
    assert not same(resumed(name, state), whole(name).state())
