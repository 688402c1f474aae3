"""bench.memory on small networks: what its rows say, and that a way that trains something else is found."""

import pytest
import torch
import torch.nn as nn

from bench.memory import networks, step, tables, times
from wuskern.memory.layers import Lean

pytestmark = pytest.mark.usefixtures("one_thread")
ENVIRONMENT = {"processor": "P", "threads": 2, "torch": "T"}


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 2),
    )


@pytest.fixture
def network(monkeypatch):
    def loss(model: nn.Module) -> torch.Tensor:
        return model(torch.ones(5, 3, 8, 8)).square().sum()

    found = networks.Network(small, loss, ("Conv2d",))
    monkeypatch.setitem(networks.NETWORKS, "small", found)
    return found


def kept(network: networks.Network, way: str, mode: str = "batch statistics") -> int:
    return step.kept_bytes(network, networks.NETWORKS_BY_MODE[mode]["ways"](network)[way](network.make()))


def test_kept_bytes_by_hand(network):
    """In float32: the images, what BatchNorm and each ReLU keep, and the statistics of a batch."""
    images, first, second = 5 * 3 * 64 * 4, 5 * 4 * 36 * 4, 5 * 4 * 16 * 4
    loss, statistics = 5 * 2 * 4, 2 * 4 * 4
    assert kept(network, "dense") == images + 2 * first + second + loss + statistics
    memory = first + first // 32 + second // 32 + loss + statistics
    assert kept(network, "biases, skip, memory=True") == memory
    assert kept(network, "biases, skip, memory=True", "evaluation") == memory - first - statistics + 4 * 4


def test_what_functions_of_python_keep_as_attributes_counts(network):
    class Hidden(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.mask = x > 0
            return x * 2

        @staticmethod
        def backward(ctx, dy):
            return dy * 2

    hidden = networks.Network(network.make, lambda model: Hidden.apply(model[0](torch.ones(5, 3, 8, 8))).sum(), ())
    plain = networks.Network(network.make, lambda model: model[0](torch.ones(5, 3, 8, 8)).mul(2).sum(), ())
    assert step.kept_bytes(hidden, network.make()) == step.kept_bytes(plain, network.make()) + 5 * 4 * 36


@pytest.mark.parametrize("way", ["dense", "biases, stock", "biases, skip, memory=True", "biases, stock, blocks checkpointed"])
def test_a_row(network, way):
    row = step.measure("small", "evaluation", way)
    assert row["way"] == way
    assert row["moved"] == {"dense": 8}.get(way, 4)
    assert row["peak_bytes"] >= 0


def test_a_way_that_trains_weights_is_found(network, monkeypatch):
    monkeypatch.setattr(networks, "_bias_only", lambda model: model)
    wrong = {"networks": ("small",), "ways": lambda _: {"biases, stock": lambda model: model}}
    monkeypatch.setitem(networks.NETWORKS_BY_MODE, "wrong", wrong)
    with pytest.raises(AssertionError, match="biases, stock: expected biases alone to move, got"):
        step.measure("small", "wrong", "biases, stock")


def test_times_and_tables(monkeypatch):
    small_shapes = {name: (make, (2, 256, 3, 3)[: len(shape)]) for name, (make, shape) in times.LAYERS.items()}
    monkeypatch.setattr(times, "LAYERS", small_shapes)
    rows = times.measure(rounds=2)
    assert len(rows) == 6 * 4 + 2
    assert isinstance(networks._skip(small(), memory=True)[2], Lean)
    rows = [rows[0] | {"stock_ms": 2.0, "ours_ms": 2.1, "over_stock": 1.05}]
    part = {"network": "N", "mode": "batch statistics", "kept_bytes": 2**20, "peak_bytes": 2**21}
    part_of = {"environment": ENVIRONMENT, "rows": [part | {"way": "dense"}, part | {"way": "biases", "kept_bytes": 2**19}]}
    text = tables.render({"bytes": part_of, "times": {"environment": ENVIRONMENT, "rounds": 2, "rows": rows}})
    assert "| N | biases | 0 | 0.50x | 2 | 1.00x |" in text
    assert "| 2.00 | 2.10 | 1.05x **slower** |" in text
    assert text.endswith("P, 2 threads, torch T, 2 rounds.")
