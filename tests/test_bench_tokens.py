"""The benchmark of column-row sampling, on cases too small to say anything: what it verifies and how it is shown."""

import pytest
import torch

from bench import tokens


@pytest.mark.parametrize("kind", ["linear", "conv2d"])
def test_each_ratio_of_a_case_has_all_picks_and_a_floor(kind, monkeypatch):
    monkeypatch.setattr(tokens, "ROUNDS", 1)
    monkeypatch.setattr(tokens, "LEAST", 0)
    size = (10, 4) if kind == "linear" else (10, 4, 5, 5)
    rows = tokens.race(getattr(tokens, kind), torch.randn(size), torch.randn(size))
    assert [row["ratio"] for row in rows] == list(tokens.RATIOS)
    assert all(row.keys() == {"ratio", "dense_ms", "floor", *tokens.PICKS} for row in rows)


def test_a_gradient_that_is_wrong_is_not_timed():
    with pytest.raises(AssertionError):
        tokens.race(lambda dy, x, some: dy.T @ x if some is None else x.T @ dy, torch.randn(10, 4), torch.randn(10, 4))


def test_losses_are_marked():
    row = {"case": "linear 8x4x2", "ratio": 0.3, "dense_ms": 0.0364, "floor": 0.3, "top": 0.5, "crs": 1.25, "wta": 1.0}
    environment = {"processor": "P", "threads": 2, "torch": "2"}
    lines = tokens.render({"environment": environment, "rows": [row]}).splitlines()
    assert lines[2] == "| linear 8x4x2 | 30% | 0.0364 | 0.30 | 0.50 | 1.25 **loss** | 1.00 |"
