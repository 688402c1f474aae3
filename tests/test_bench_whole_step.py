"""bench.whole_step on networks that take no time: what it verifies, and that its parts are those of the step."""

import itertools

import pytest
import torch
import torch.nn as nn

from bench import whole_step

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # of torch's own compiler
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning"),
]


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(whole_step.MODELS, "tiny", (lambda: whole_step.gpt(width=48, depth=1, heads=2), (2, 8, 48)))
    monkeypatch.setattr(whole_step, "CALLS", ("eager",))  # tests/test_compile.py compiles


def test_rows_and_their_parts(tiny, monkeypatch):
    clock = itertools.count()  # each part of a step takes a second
    monkeypatch.setattr(whole_step.time, "perf_counter", lambda: float(next(clock)))
    rows = whole_step.measure("tiny", rounds=2)
    assert [row["mode"] for row in rows] == ["dense", "skip", "rows"]
    for row in rows:
        assert sum(row["milliseconds"].values()) == row["step"] == 3000
        assert row["over_eager"] == 1
    assert rows[1]["milliseconds"]["wgrad"] == 0
    content = {"environment": {"processor": "P", "threads": 2, "torch": "T"}, "rounds": 2, "rows": rows}
    assert whole_step.render(content).count("\n| tiny | eager |") == 3


def test_a_step_that_trains_what_it_should_not_is_found(tiny):
    torch.manual_seed(0)
    found = whole_step.variants(nn.Sequential(nn.Linear(64, 64), nn.ReLU()))
    whole_step.verify(found, torch.randn(8, 64))
    found["eager", "skip"].model[0].skip = False
    with pytest.raises(AssertionError, match=r"eager skip: 100\.0% of the rows of 0 moved"):
        whole_step.verify(found, torch.randn(8, 64))
