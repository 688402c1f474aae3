"""bench.masks on layers that take no time: its rows, and that it verifies before it times."""

import pytest
import torch
import torch.nn as nn

from bench import masks

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(masks, "LINEARS", ((4, 32, 16),))
    monkeypatch.setattr(masks, "BLOCKS", (1, 16))
    for name, value in {"SPARSITIES": (0.5, 0.75), "TOKENS": 4, "WIDTH": 16, "DEPTH": 1}.items():
        monkeypatch.setattr(masks, name, value)


def test_rows_and_tables(tiny):
    rows = masks.measure(rounds=2)
    assert [row["kind"] for row in rows] == ["inference"] * 4 + ["training"] * 4
    rows[0]["faster"], rows[1]["faster"] = {"median": 0.994, "iqr": 0}, {"median": 0.996, "iqr": 0}
    rows[4] |= {"over_dense": {"median": 1.25}, "change_in_steps": {"median": 3.0}}
    text = masks.render({"environment": {"processor": "P", "threads": 2, "torch": "T"}, "rounds": 2, "rows": rows})
    assert "| 4 x 32 -> 16 | single weights, CSR | 0.99x **slower** | 1.00x |" in text
    assert text.count("| 4 x 32 -> 16 | blocks of 16, BSR |") == 1
    assert "| 1.25x | 3.0 steps |" in text
    assert text.endswith("P, 2 threads, torch T, 2 rounds.")


def test_masks_that_do_not_hold_are_found():
    torch.manual_seed(0)
    run = masks.Training(
        nn.Sequential(masks.wk.convert(nn.Linear(64, 64)), masks.wk.convert(nn.Linear(64, 4))), "AdamW", "mest"
    )
    run.verify(torch.randn(4, 64))
    run.policy.before_step = lambda: None
    with pytest.raises(AssertionError, match="0: its mask did not change"):
        run.verify(torch.randn(4, 64))
