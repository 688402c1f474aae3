"""The race of new tokens: that its variants train the same, and how it is rendered."""

import torch

from bench import render_embedding, test_embedding
from tests.bench_rows import row


def test_every_variant_trains_the_new_rows_alike():
    torch.manual_seed(0)
    problem = test_embedding.problem((200, 6), (4, 16), "cpu")
    for name in problem.cases:
        problem.step(name)
    test_embedding.verify({}, problem)
    ours, optimizer = problem.cases["ours"]
    ours(problem.tokens).backward(problem.dy)
    assert ours.weight.grad._values().shape == (test_embedding.NEW, 6)
    assert type(optimizer).__module__ == "wuskern.optim.adam"


def test_the_table():
    rows = [
        row("embedding", "10x4", "dense", ("ours", "dense"), faster=3.0, over_sparse=0.9, over_plain=2.0),
        row("embedding", "20x4", "dense", ("ours", "dense"), faster=0.5, over_sparse=1.1, over_plain=2.0),
    ]
    content = {
        "rows": [r | {"new": 64, "tokens": 2048} for r in rows],
        "environment": {"processor": "P", "threads": 2, "torch": "2"},
    }
    lines = render_embedding.render(content).splitlines()
    assert lines[0].startswith("| table | ours, ms | over torch's dense AdamW | over SparseAdam | over rows of their own")
    assert lines[2] == "| 10x4 | 1.50 | 3.00x | 0.90x | 2.00x | 1 | 1 |"
    assert lines[3] == "| 20x4 | 1.50 | 0.50x **slower** | 1.10x | 2.00x | 1 | 1 |"
    assert lines[-1] == "64 new tokens train, of a batch of 2048; P, 2 threads, torch 2, 21 rounds."
