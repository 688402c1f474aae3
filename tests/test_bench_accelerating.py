"""The measurement of accumulation, mixed precision and data in host memory, too small to say anything."""

from dataclasses import replace

import pytest
import torch

from bench import accelerating
from wuskern.train.data import Data


@pytest.mark.usefixtures("one_thread")
def test_each_variant_has_its_row(monkeypatch):
    without_workers = {
        name: changes | ({"workers": 0} if "workers" in changes else {}) for name, changes in accelerating.VARIANTS.items()
    }
    monkeypatch.setattr(accelerating, "VARIANTS", without_workers)
    x, y = torch.randn(40, 1, 6, 6), torch.randint(3, (40,))
    settings = replace(accelerating.CASES["ViT"], model="mlp", width=0.1, epochs=2, batch=16)
    case = accelerating.measured("tiny", settings, 2, Data("made up", x[:30], y[:30], x[30:], y[30:], 3))
    assert [row["variant"] for row in case["rows"]] == list(without_workers)
    assert case["rows"][0]["times_faster"] == 1.0
    host = next(row for row in case["rows"] if row["variant"].startswith("host"))
    assert host["accuracy"] == case["rows"][0]["accuracy"]  # the same bits
    environment = {"processor": "P", "threads": 1, "torch": "2"}
    lines = accelerating.render({"cases": [case], "environment": environment}).splitlines()
    assert lines[2].startswith("| tiny | plain | ")
    assert len(lines) == 2 + len(without_workers) + 2
