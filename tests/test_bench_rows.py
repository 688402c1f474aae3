"""The races of row-sparse layers: their peer, their ideal, what they call right, and how they are rendered."""

import dataclasses
import json
import math

import pytest
import torch
import torch.nn as nn
from matplotlib.figure import Figure

import wuskern as wk
from bench import picture, render, render_rows, rowsparse, tables
from tests.bench_rows import rowsparse_rows
from tests.cases import MEMORY_FORMATS
from wuskern.bench import plain

CONTENT = {"rows": rowsparse_rows(), "environment": {"processor": "P", "threads": 2, "torch": "2"}}

# ---- plain top-k ----------------------------------------------------------------------------------------------------


def test_the_plain_peer_takes_the_largest_sums_of_each_group_in_ascending_order():
    dy = torch.tensor([[1.0, -9.0, 3.0, 0.5, -2.0, 8.0]])
    assert plain.top_rows(dy, -1, 3).tolist() == [1, 2, 5]
    assert plain.top_rows(dy, 1, 4, groups=2).tolist() == [1, 2, 4, 5]
    assert plain.top_rows(torch.stack((dy, dy), -1), 1, 2, groups=2).tolist() == [1, 5]


def plain_gradients(stock, x, dy, k):
    layer, x = plain.PlainTopK(stock, k), x.clone().requires_grad_()
    layer(x).backward(dy)
    return x.grad, layer.weight.grad, layer.bias.grad


@pytest.mark.parametrize(("stock", "shape"), [
    (nn.Linear(3, 4), (5, 3)), (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 7, 7)),
])  # fmt: skip
def test_the_plain_peer_is_stock_on_a_gradient_without_the_other_rows(stock, shape):
    x = torch.randn(shape, requires_grad=True)
    y = stock(x)
    dy = torch.randn_like(y)
    kept = torch.zeros_like(dy).index_copy_(1, rows := torch.tensor([0, 3]), 9 * dy.index_select(1, rows))
    expected = torch.autograd.grad(y, (x, stock.weight), kept, retain_graph=True)
    dx, dw, db = plain_gradients(stock, x.detach(), dy + 8 * kept / 9, 2)  # rows 0 and 3 are the largest by far
    torch.testing.assert_close((dx, dw), expected)
    torch.testing.assert_close(db, (dy + 8 * kept / 9).sum([d for d in range(dy.ndim) if d != 1]))


# ---- the race -------------------------------------------------------------------------------------------------------


def convolution(layout):
    return nn.Conv2d(4, 8, 3, padding=1).to(memory_format=MEMORY_FORMATS[layout])


@pytest.mark.parametrize("layout", MEMORY_FORMATS)
def test_the_ideal_gathers_in_the_layout_of_dy(layout):
    problem = rowsparse.Problem(convolution(layout), 0.5)
    dy = torch.randn(2, 8, 5, 6).contiguous(memory_format=MEMORY_FORMATS[layout])
    operands = problem.compact(dy, torch.tensor([1, 2, 4, 7]))
    assert torch.equal(operands.dy, dy[:, [1, 2, 4, 7]])
    assert operands.dy.is_contiguous(memory_format=MEMORY_FORMATS[layout])
    assert operands.weight.is_contiguous(memory_format=MEMORY_FORMATS[layout])


@pytest.mark.parametrize("stock", [nn.Linear(3, 4), convolution("NHWC")])
def test_the_ideal_of_all_rows_is_the_backward_of_stock(stock):
    x = torch.randn((5, 3) if isinstance(stock, nn.Linear) else (2, 4, 5, 5), requires_grad=True)
    y = stock(x)
    dy = torch.randn_like(y)
    expected = torch.autograd.grad(y, (x, stock.weight), dy)
    torch.testing.assert_close(rowsparse.Problem(stock, 1.0).products(dy, x.detach(), stock.weight.detach()), expected)


def test_every_variant_runs_again_and_again_and_leaves_no_gradient_behind():
    results, _, layers = one_set(rowsparse.Problem(nn.Linear(8, 40), 0.1))
    assert set(results) == {"ours", "compact", "dense", "frozen", "plain"}
    for name, layer in layers.items():
        assert layer.weight.grad is None
        assert layer.bias.grad is None
        assert (results[name][1] is None) == (name == "frozen")
    assert [name for name, found in results.items() if found[1] is not None and found[1].is_sparse] == ["compact"]


def one_set(problem, choice=None):
    """The results of every variant's second run, ``(dy, x)``, and the layers; with a ``choice``, ours has that instead."""
    layers = problem.layers(compiled=False)
    if choice is not None:
        layers["ours"].rows, layers["compact"].rows = choice, dataclasses.replace(choice, sparse=True)
    graphs, dy, x, _ = rowsparse._inputs(problem, layers, torch.randn(16, 8))
    runs = {name: rowsparse.backward(name, layer) for name, layer in layers.items()}
    first = {name: run(graphs, dy) for name, run in runs.items()}
    if choice is None:
        second = {name: run(graphs, dy) for name, run in runs.items()}
        assert all(torch.equal(first[name][0], second[name][0]) for name in runs)
    return first, (dy, x), layers


@pytest.mark.parametrize(("name", "spoil"), [
    ("ours", lambda dx, dw, db: dx.mul_(1.1)),
    ("ours", lambda dx, dw, db: dw.mul_(1.1)),
    ("ours", lambda dx, dw, db: db.mul_(1.1)),
    ("compact", lambda dx, dw, db: dx.mul_(1.1)),
    ("compact", lambda dx, dw, db: dw._values().mul_(1.1)),
    ("compact", lambda dx, dw, db: dw._indices().add_(1)),
    ("compact", lambda dx, dw, db: db.mul_(1.1)),
    ("plain", lambda dx, dw, db: dx.mul_(1.1)),
    ("plain", lambda dx, dw, db: dw.mul_(1.1)),
])  # fmt: skip
def test_a_wrong_result_is_found(name, spoil):
    problem = rowsparse.Problem(nn.Linear(8, 40), 0.1)
    results, (dy, x), _ = one_set(problem)
    if name == "ours":
        del results["compact"]  # which would be found to differ
    rowsparse.verify(problem, results, dy, x)
    spoil(*results[name])
    with pytest.raises(AssertionError):
        rowsparse.verify(problem, results, dy, x)


@pytest.mark.parametrize("wrong", [wk.TopK(ratio=0.2, scope="both"), wk.TopK(ratio=0.1, scope="both", score="random")])
def test_other_rows_than_the_largest_k_are_found_though_their_gradients_are_right(wrong):
    problem = rowsparse.Problem(nn.Linear(8, 40), 0.1)
    results, (dy, x), _ = one_set(problem, wrong)
    del results["compact"]  # with "random", its rows are others
    with pytest.raises(AssertionError):
        rowsparse.verify(problem, results, dy, x)


def test_the_ideal_is_products_gather_and_one_read():
    problem = rowsparse.Problem(nn.Linear(8, 40), 0.1)
    seconds = {"ours": 12.0, "compact": 6.0, "dense": 24.0, "products": 2.0, "gather": 1.0}
    found = rowsparse.against_the_ideal(problem, 3.0, compact=True)
    assert {name: function(seconds) for name, function in found.items()} == {"of_ideal": 2, "compact_of_ideal": 1}
    found = rowsparse.against_the_ideal(rowsparse.Problem(nn.Linear(8, 40), 1.0), 4.0, compact=False)  # nothing to gather
    assert {name: function(seconds) for name, function in found.items()} == {"of_ideal": 2, "ideal_of_dense": 0.25}


# ---- tables and picture ---------------------------------------------------------------------------------------------


def test_means_are_held_against_the_aims():
    text = render_rows.linear(CONTENT)
    # sqrt(1.1 * 4.4) = 2.2; without 1024's 4.4, 1.1; sqrt(1.5 * 1.2) = 1.34; sqrt(1.4 * 1.1) = 1.24
    expected = (
        "2.20x | 1.10x | 1.10x | 1.50x | 2.00x | 4.90x | 4.00x **under 5x** | 1.34x **over 1.25** | 1.24x **over 1.15** |"
    )
    assert f"| 5% | float32 | {expected}" in text
    assert "| 20% | both | 1.35x | 1.35x | 1.35x | 1.50x | 2.00x | 1.10x | 1.10x | 1.25x | 1.15x |" in text
    assert "under their aim over dense: 512 float32 5%; P, 2 threads" in text


def test_of_a_convolution_the_mean_without_the_best_layer_is_held_against_the_aim():
    text = render_rows.conv2d(CONTENT)
    assert "| 20% | bfloat16 | 2.00x | 1.34x **under 1.35** | 1.34x | 1.50x | 2.00x | 1.34x | 0.90x **slower** | 1.00x" in text
    assert "| 20% | both | 2.00x | 1.34x | " in text


def test_a_dtype_that_was_not_measured_at_a_share_has_no_line():
    first, *rest = (row for row in rowsparse_rows() if row["group"] == "rowsparse conv2d")
    text = render_rows.conv2d(CONTENT | {"rows": [first | {"ratio": 0.05}, *(row | {"dtype_name": "float32"} for row in rest)]})
    assert [line[:16] for line in text.splitlines() if "%" in line[:5]] == [
        "| 5% | bfloat16 ", "| 5% | both | 1.", "| 20% | float32 ", "| 20% | both | 3",
    ]  # fmt: skip


def test_the_best_layer_goes_with_all_its_rows():
    rows = [{"use": use, "derived": {"faster": {"median": value}}} for use, value in (("a", 9), ("b", 4), ("b", 5), ("a", 1))]
    assert [row["use"] for row in render_rows.without_best(rows, "faster")] == ["a", "a"]  # sqrt(20) is more than 3
    assert render_rows.without_best(rows[:1], "faster") == rows[:1]


def test_cost_is_a_share_of_dense_and_crosses_it_between_two_measured_shares():
    # a half of dense at 20 %, twice of it at 80 %: halfway, of logarithms
    assert render_rows.cost(CONTENT).endswith("| VGG | 1.50 | 0.50 (0.30) | 2.00 (0.90) | 40% |")


@pytest.mark.parametrize(("faster", "expected"), [
    ([2, 2, 2], None), ([0.5, 2, 1], 0.1), ([4, 1, 1], 0.2), ([4, 2, 0.5], 0.2 * math.sqrt(2)),
])  # fmt: skip
def test_the_crossing_is_where_ours_first_is_as_slow_as_dense(faster, expected):
    shares = zip((0.1, 0.2, 0.4), faster, strict=True)
    rows = [{"ratio": ratio, "derived": {"faster": {"median": value}}} for ratio, value in shares]
    assert render_rows.crossing(rows) == (None if expected is None else pytest.approx(expected))


def test_every_group_is_explained_in_the_results():
    assert {row["group"] for row in rowsparse_rows()} <= set(render.WHAT)
    assert {"rowsparse linear", "rowsparse conv2d", "rowsparse cost"} <= {group for group, _ in tables.RACES.values()}


def test_the_cost_is_drawn(tmp_path, monkeypatch):
    found, write = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: (found.append(figure), write(figure, *a, **k)))
    picture.draw_cost(tmp_path / "cost.png", CONTENT)
    assert (tmp_path / "cost.png").read_bytes().startswith(b"\x89PNG")
    (figure,) = found
    (legend,) = figure.legends
    assert len(legend.get_texts()) == len(picture.LOOKS)
    drawn = list(render_rows.cost_by_problem(CONTENT).values())
    for panel, rows in zip(figure.axes, drawn, strict=False):
        assert not panel.get_tightbbox().overlaps(legend.get_window_extent())
        points = {tuple(point) for line in panel.lines for point in line.get_xydata()}
        for each in rows:
            for cost in (render_rows.ours_of_dense(each), render_rows.ideal_of_dense(each)):
                assert (each["ratio"], cost) in points
                assert panel.bbox.contains(*panel.transData.transform((each["ratio"], cost)))
        labels = [label.get_text() for label in (*panel.get_xticklabels(), *panel.get_yticklabels())]
        assert all(label.endswith(" %") for label in labels if label)
        assert len({panel.get_ylim(), figure.axes[0].get_ylim()}) == 1
    with pytest.raises(ValueError, match="rowsparse cost"):
        picture.draw_cost(tmp_path / "none.png", json.loads('{"rows": []}'))


def test_regret_is_told_by_kind_and_marked_where_it_is_large():
    problems = {"Linear 4x4x4 k=1 dW": 0.0, "Linear 4x4x4 k=1 dX": 0.2, "48px NCHW float32 k=1 dW": 0.3, "7px k=1 dX": 0.04}
    rows = [{"problem": problem, "regret": regret} for problem, regret in problems.items()]
    assert render_rows.regret({"rows": rows}).splitlines()[2:] == [
        "| Linear | 2 | 10.0% | 20.0% |",
        "| Conv2d dW | 1 | 30.0% **over 10%** | 30.0% **over 25%** |",
        "| Conv2d dX | 1 | 4.0% | 4.0% |",
        "| all | 4 | 12.0% **over 10%** | 30.0% **over 25%** |",
    ]
