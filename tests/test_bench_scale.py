"""bench.scale: the alpha-beta model by hand, and what the page says of it."""

import pytest

from bench import scale
from bench.results import FOLDER

LINK = scale.Link("a link", 1e-5, 1e9)
SMALL = scale.Assumed(width=4, blocks=3, vocabulary=10, tokens=100, rate=1e6, ratio=0.25, rank=2, trained_blocks=1 / 3)
COSTS = scale.Costs(0.6, {"dense": 1.0, "LoRA": 0.9, "skip": 0.7, "rows": 0.75, "columns": 0.75, "prefix+cache": 1 / 3})


def test_a_ring():
    assert scale.all_reduce(1e9, 2, LINK) == pytest.approx(2e-5 + 1)  # each sends half of it, twice
    assert scale.all_reduce(0, 5, LINK) == pytest.approx(8e-5)


def test_what_is_sent():
    block = 12 * 16 + 9 * 4 + 4 * 4  # weights, biases of all layers, two norms
    assert scale.trained(SMALL) == {
        "dense": 3 * block + 40,
        "LoRA": 3 * 2 * (8 * 4 + 10 * 4),
        "skip": 3 * (9 * 4 + 4 * 4),
        "rows": 3 * (48 + 36),
        "columns": 3 * 48,
        "prefix+cache": block,
    }


def test_a_step_waits_for_what_backward_does_not_hide():
    slow = scale.Link("slow", 0.0, 1.0)
    dense = 6 * 12 * 16 * 3 * 100 / 1e6
    found = scale.step("dense", 2, slow, SMALL, COSTS)
    assert found["compute"] == pytest.approx(dense)
    assert found["seconds"] == pytest.approx(dense + max(found["bytes"] - 0.6 * dense, found["bytes"]))
    skip = scale.step("skip", 3, scale.Link("far", 1.0, 1e30), SMALL, COSTS)
    assert skip["seconds"] == pytest.approx(0.7 * dense + 4 + 2)  # one message, and the comparison of plans


def test_where_it_stops_to_pay():
    content = scale.computed(FOLDER)
    row = {"link": "x", "method": "skip"}
    content["rows"] = [row | {"gpus": n, "faster": f} for n, f in ((8, 1.0), (16, 2.0), (64, 1.05), (256, 1.0))]
    assert scale.first_not_worth(content, "x", "skip") == 64
    content["rows"][-1]["faster"] = 1.2
    assert scale.first_not_worth(content, "x", "skip") is None
