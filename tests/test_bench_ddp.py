"""bench.ddp: what it makes of the numbers of two processes, and what it refuses."""

import sys

import torch

from bench import ddp, link


def found(slower):
    """Of one process: seconds of three rounds, bytes of each step."""
    return {
        "seconds": {"dense": [4.0, 6.0, 5.0], "prepared": [4.0, 6.0, 5.0], "skip": [1.0, slower, 1.0], "rows": [2.0, 2.0, 2.5]},
        "wire": {name: [200, 100, 300] for name in ddp.VARIANTS},
        "counted": {
            "dense": [{}] * 3,
            "prepared": [{"all_reduce": 1000}] * 3,
            "skip": [{"all_reduce": 100, "all_gather": 10}] * 3,
            "rows": [{"all_reduce": 150}] * 3,
        },
        "trained": {
            "dense": {"parameters": 1000, "scores": 0},
            "prepared": {"parameters": 1000, "scores": 0},
            "skip": {"parameters": 100, "scores": 0},
            "rows": {"parameters": 140, "scores": 10},
        },
    }


def test_a_row_for_each_variant():
    dense, prepared, skip, rows = ddp.summary([found(1.0), found(3.0)])
    assert (dense["seconds"], dense["faster"], dense["payload_share"]) == (5.0, 1.0, None)
    assert (skip["seconds"], skip["faster"]) == (1.0, 4.0)  # of rounds 4 to 1, 6 to 3, 5 to 1
    assert (skip["payload_bytes"], skip["payload_share"], skip["wire_bytes"]) == (110, 1.1, 200)
    assert (rows["trained_bytes"], rows["payload_share"]) == (140, 1.0)
    text = ddp.table([dense, prepared, skip, rows])
    assert "| dense, prepared | 5000 | 1.00x | 1,000 | 1,000 | 1.000x | 200 |" in text
    assert "| skip | 1000 | 4.00x | 100 | 110 | 1.100x **over 1.05** | 200 |" in text
    assert "| 5% of the rows | 2000 | 2.00x | 150 | 150 | 1.000x | 200 |" in text


def test_a_machine_without_the_tools_is_refused(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(link, "PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["bench.ddp", "--out", str(tmp_path / "ddp.json")])
    assert ddp.main() == 2
    assert "expected Linux with root's rights and iproute2, got: ip and tc (iproute2) not found" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_counted_are_the_bytes_of_tensors(monkeypatch):
    monkeypatch.setattr(ddp.dist, "all_reduce", lambda tensor, **_: tensor)
    monkeypatch.setattr(ddp.dist, "all_gather", lambda everyone, mine, *_: mine)
    counter = ddp.Counter()
    ddp.dist.all_reduce(torch.zeros(5), group=None)
    ddp.dist.all_gather([], torch.zeros(2, dtype=torch.int64), None)
    assert counter.take() == {"all_reduce": 20, "all_gather": 16}
    assert counter.take() == {}
