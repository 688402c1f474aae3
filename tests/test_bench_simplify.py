"""The measurement of meSimp, on a network and data too small to say anything."""

from dataclasses import replace

import pytest
import torch

from bench import simplify
from wuskern.train.data import Data


@pytest.fixture
def samples():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 1, 6, 6, generator=generator), torch.randint(3, (40,), generator=generator)
    return Data("made up", x[:30], y[:30], x[30:], y[30:], 3)


CASE = "tiny", replace(simplify.MLP, width=0.1, epochs=2), "mesimp:k=5:prune=.3:cycle=1"


@pytest.fixture(autouse=True)
def small(monkeypatch, one_thread):
    monkeypatch.setattr(simplify, "BATCHES", (1, 4))
    monkeypatch.setattr(simplify, "ROUNDS", 1)


def test_what_is_left_is_counted_and_rendered(samples):
    row = simplify.measured(*CASE, 2, samples)
    for seed in row["seeds"]:
        assert [before for before, _ in seed["rows"]] == [50, 50, 3]
        (_, first), (_, second), _ = seed["rows"]
        assert first + second < 100
        assert seed["parameters"] == [36 * 50 + 50 + 50 * 50 + 50 + 153, 37 * first + (first + 1) * second + 3 * (second + 1)]
        assert seed["flops"] == [2 * (36 * 50 + 50 * 50 + 150), 2 * (36 * first + first * second + 3 * second)]
    assert row["against_dense"]["low"] <= row["against_dense"]["points"] <= row["against_dense"]["high"]
    for seed in row["seeds"]:
        seed["times_faster"] = {str(batch): 2.0 for batch in simplify.BATCHES}  # as read from JSON
    line = simplify.render({"rows": [row], "environment": {"processor": "P", "threads": 1, "torch": "2"}}).splitlines()[2]
    hidden = sum(rows[1] for seed in row["seeds"] for rows in seed["rows"][:2]) / 200
    assert line.startswith(f"| tiny | `mesimp:k=5:prune=.3:cycle=1` | {hidden:.0%} | ")
    assert line.endswith("| 2.00x | 2.00x |")


def test_a_smaller_model_that_is_another_is_not_timed(samples, monkeypatch):
    right = simplify.wk.simplify

    def wrong(model, example):
        smaller, report = right(model, example)
        with torch.no_grad():
            smaller[1].weight += 1
        return smaller, report

    monkeypatch.setattr(simplify.wk, "simplify", wrong)
    with pytest.raises(AssertionError):
        simplify.measured(*CASE, 1, samples)
