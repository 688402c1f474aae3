"""The race of columns: its peers against each other, and how it is rendered."""

import pytest
import torch
import torch.nn as nn

from bench import render_columns, test_columns
from tests.bench_rows import row
from wuskern import Columns, convert
from wuskern.bench.slices import Slice, draw_columns


@pytest.mark.parametrize(
    ("stock", "shape", "columns"),
    [
        (nn.Linear(6, 4), (5, 6), [1, 4]),
        (nn.Conv2d(6, 4, 3, padding=1), (2, 6, 5, 5), [0, 2, 5]),
        (nn.Conv2d(6, 4, 3, groups=2), (2, 6, 5, 5), [1, 4]),
    ],
)
def test_a_slice_in_plain_pytorch_has_the_gradients_of_the_columns(stock, shape, columns):
    torch.manual_seed(0)
    stock, x = stock.double(), torch.randn(shape, dtype=torch.float64)
    plain, ours = Slice(stock, torch.tensor(columns)), convert(stock)
    ours.columns = Columns(columns)
    dy = torch.randn_like(ours(x))
    of_plain, of_ours = (test_columns.step(layer)(x, dy, x) for layer in (plain, ours))
    within = torch.tensor(columns)[: plain.weight.shape[1]]
    torch.testing.assert_close(of_plain[1], of_ours[1].index_select(1, within))
    torch.testing.assert_close((of_plain[0], of_plain[2]), (of_ours[0], of_ours[2]))
    torch.testing.assert_close(plain(x), ours(x))


def test_columns_of_each_group_are_the_same_in_all():
    torch.manual_seed(0)
    chosen = draw_columns(nn.Conv2d(12, 6, 1, groups=3), 0.5)
    assert chosen.view(3, 2).sub(torch.arange(3)[:, None] * 4).unique(dim=0).shape == (1, 2)


def test_means_and_worst_cases():
    def layer(dtype, ratio, dense, ideal, group="columns linear"):
        derived = dict(over_dense=dense, over_frozen=0.9, faster=2 * dense, of_ideal=ideal)
        found = row(group, f"a {dtype} {ratio}", "plain", ("ours", "plain"), **derived)
        return found | {"use": "a", "dtype_name": dtype, "ratio": ratio, "least_over_dense": 1}

    rows = [layer("float32", 0.05, 1.0, 1.0), layer("float32", 0.05, 4.0, 1.21), layer("bfloat16", 0.2, 0.5, 1.26)]
    rows.append(layer("float32", 0.05, 2.0, 1.0, "columns conv2d"))
    content = {"rows": rows, "environment": {"processor": "P", "threads": 2, "torch": "2"}}
    lines = render_columns.columns(content).splitlines()
    assert lines[2] == "| 5% | float32 | 2.00x | 1.00x | 0.90x | 4.00x | 2.00x | 1.10x | 1.21x |"
    assert lines[3] == "| 20% | bfloat16 | 0.50x | 0.50x **slower** | 0.90x | 1.00x | 1.00x | 1.26x | 1.26x **over 1.25** |"
    assert lines[5] == "3 cases of Linears; P, 2 threads, torch 2, 21 rounds."
    assert lines[-1] == "1 cases of Conv2ds, in both memory formats; P, 2 threads, torch 2, 21 rounds."
