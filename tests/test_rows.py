"""The values that say which rows: TopK, PerExample, Rows, and what comes out, RowGrad."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import wuskern as wk
from wuskern.distributed.exact import Agreed

# ---- how many -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "out", "groups", "expected"),
    [
        (wk.TopK(ratio=0.05), 512, 1, 25),  # int(25.6)
        (wk.TopK(ratio=0.05), 10, 1, 1),  # at least one
        (wk.TopK(ratio=1), 7, 1, 7),
        (wk.TopK(k=64), 128, 1, 64),
        (wk.TopK(ratio=0.5, block=8), 40, 1, 16),  # 20 rows, down to whole blocks
        (wk.TopK(ratio=0.01, block=8), 40, 1, 8),
        (wk.TopK(ratio=0.3), 20, 4, 4),  # 6 rows, down to as many in each group
        (wk.TopK(ratio=0.01), 20, 4, 4),
        (wk.TopK(ratio=0.5, block=2), 32, 4, 16),
        (wk.TopK(k=8, block=2), 32, 4, 8),
        (wk.PerExample(k=3), 5, 1, 3),
        (wk.PerExample(ratio=0.5), 5, 1, 2),
        (wk.Rows([4, 1]), 5, 1, 2),
        (wk.Rows([0, 7, 3, 4]), 8, 2, 4),
    ],
    ids=str,
)
def test_count(choice, out, groups, expected):
    assert choice.count(out, groups) == expected


@pytest.mark.parametrize(
    ("choice", "out", "groups", "message"),
    [
        (wk.TopK(k=11), 10, 1, r"k: expected at most 10, got 11"),
        (wk.TopK(k=6), 16, 4, r"k: expected a multiple of block \* groups = 4 up to 16, got 6"),
        (wk.TopK(k=6, block=4), 16, 1, r"k: expected a multiple of block \* groups = 4 up to 16, got 6"),
        (wk.TopK(ratio=0.5, block=3), 10, 1, r"block: expected a divisor of 10 rows \(of each group\), got 3"),
        (wk.TopK(ratio=0.5, block=8), 16, 4, r"block: expected a divisor of 4 rows \(of each group\), got 8"),
        (wk.PerExample(k=3), 2, 1, "k: expected at most 2, got 3"),
        (wk.Rows([3]), 3, 1, "index: expected rows under 3, got 3"),
        (wk.Rows([0, 1, 4]), 8, 2, r"index: expected as many rows in each of 2 groups, got \[2, 1\]"),
    ],
    ids=str,
)
def test_a_choice_that_does_not_fit(choice, out, groups, message):
    with pytest.raises(ValueError, match=message):
        choice.count(out, groups)


# ---- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [wk.TopK, wk.PerExample])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "ratio, k: expected one of the two, got ratio=None, k=None"),
        ({"ratio": 0.5, "k": 3}, ValueError, "ratio, k: expected one of the two, got ratio=0.5, k=3"),
        ({"ratio": 0}, ValueError, "ratio: expected a number over 0 and up to 1, got 0"),
        ({"ratio": 1.5}, ValueError, "ratio: expected a number over 0 and up to 1, got 1.5"),
        ({"ratio": float("nan")}, ValueError, "ratio: expected a number over 0 and up to 1, got nan"),
        ({"ratio": "half"}, TypeError, "ratio: expected a number, got 'half'"),
        ({"ratio": True}, TypeError, "ratio: expected a number, got True"),
        ({"k": 0}, ValueError, "k: expected at least 1, got 0"),
        ({"k": 2.0}, TypeError, r"k: expected a whole number, got 2\.0"),
    ],
    ids=str,
)
def test_wrong_amounts(cls, arguments, error, message):
    with pytest.raises(error, match=message):
        cls(**arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"scope": "all"}, ValueError, "scope: expected one of weight, both, got 'all'"),
        ({"score": "max"}, ValueError, "score: expected one of l1, l2, random, got 'max'"),
        ({"bias": "none"}, ValueError, "bias: expected one of dense, rows, got 'none'"),
        ({"block": 0}, ValueError, "block: expected at least 1, got 0"),
        ({"block": 1.5}, TypeError, r"block: expected a whole number, got 1\.5"),
    ],
    ids=str,
)
def test_wrong_options(arguments, error, message):
    with pytest.raises(error, match=message):
        wk.TopK(k=1, **arguments)


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        ([], TypeError, "index: expected a list of integers, got 1-d torch.float32"),
        (torch.empty(0, dtype=torch.int64), ValueError, "index: expected at least one row, got none"),
        ([1, 1], ValueError, "index: expected each row once, got one twice"),
        ([-1, 2], ValueError, "index: expected numbers from 0, got -1"),
        ([0.5], TypeError, "index: expected a list of integers, got 1-d torch.float32"),
        ([[1]], TypeError, "index: expected a list of integers, got 2-d torch.int64"),
        (torch.tensor([True, False]), TypeError, "index: expected a list of integers, got 1-d torch.bool"),
    ],
    ids=str,
)
def test_wrong_rows(index, error, message):
    with pytest.raises(error, match=message):
        wk.Rows(index)


# ---- values ---------------------------------------------------------------------------------------------------------


def test_rows_are_sorted_and_do_not_change_with_the_tensor_they_came_from():
    given_rows = torch.tensor([5, 0, 3], dtype=torch.int32)
    rows = wk.Rows(given_rows)
    given_rows.fill_(9)
    assert rows.index.tolist() == [0, 3, 5]
    assert rows.index.dtype == torch.int64


def test_equal_choices_are_equal():
    assert wk.Rows([2, 1]) == wk.Rows(torch.tensor([1, 2]))
    assert hash(wk.Rows([2, 1])) == hash(wk.Rows([1, 2]))
    assert wk.Rows([1]) != wk.Rows([1], scope="both")
    assert wk.Rows([1]) != wk.Rows([2])
    assert wk.TopK(k=2) == wk.TopK(k=2) != wk.TopK(k=2, block=2)
    assert wk.Rows([1]) != 1


@pytest.mark.parametrize(
    "choice", [wk.TopK(ratio=0.5, bias="rows"), wk.PerExample(k=2), wk.Rows([3, 1], scope="both")], ids=str
)
def test_choices_are_frozen_and_survive_copies(choice):
    assert copy.deepcopy(choice) == choice == pickle.loads(pickle.dumps(choice))
    with pytest.raises(AttributeError):
        choice.scope = "weight"


def test_random_rows_are_those_of_their_generator():
    def draw(seed: int) -> list[int]:
        return wk.Rows.random(64, 16, block=4, groups=2, generator=torch.Generator().manual_seed(seed)).index.tolist()

    assert draw(1) == draw(1) != draw(2)
    for seed in range(20):
        rows = draw(seed)
        assert [sum(row < 32 for row in rows), len(rows)] == [8, 16]
        assert all(rows[i : i + 4] == list(range(rows[i], rows[i] + 4)) and rows[i] % 4 == 0 for i in range(0, 16, 4))
    assert {row for seed in range(60) for row in draw(seed)} == set(range(64))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(st.integers(0, 9), st.integers(-9, 9), min_size=1), min_size=1, max_size=4))
def test_row_gradients_add_up_over_the_union_of_their_rows(parts):
    expected = torch.zeros(10, 3)
    total = None
    for part in parts:
        rows = torch.tensor(sorted(part))
        values = torch.tensor([float(part[row]) for row in sorted(part)])[:, None].expand(-1, 3) * torch.tensor([1.0, 2, 3])
        expected.index_put_((rows,), values, accumulate=True)
        grad = wk.RowGrad(rows, values)
        total = grad if total is None else total + grad
    assert total.rows.tolist() == sorted(set().union(*parts))
    assert torch.equal(total.dense(10), expected)


# ---- scores on the way ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("needs_bias", [True, False])
@pytest.mark.parametrize("score", ["l1", "l2"])
@pytest.mark.parametrize("kind", ["linear", "conv2d"])
def test_rows_that_collect_scores_add_those_of_all_rows(kind, score, needs_bias):
    layer = wk.SkippableLinear(3, 5) if kind == "linear" else wk.SkippableConv2d(3, 5, 2)
    layer.bias.requires_grad_(needs_bias)
    observer, expected = wk.Observer(score), torch.zeros(5)
    layer.plan = wk.Plan(rows=wk.Rows([0, 4]), observer=observer)
    for _ in range(2):
        layer.bias.grad = None
        y = layer(torch.randn(6, 3) if kind == "linear" else torch.randn(6, 3, 4, 4))
        dy = torch.randn_like(y)
        y.backward(dy)
        by_row = dy.transpose(0, 1).flatten(1)
        expected += by_row.abs().sum(1) if score == "l1" else by_row.square().sum(1)
        if needs_bias:
            torch.testing.assert_close(layer.bias.grad, by_row.sum(1))
    torch.testing.assert_close(observer.total, expected)
    observer.clear()
    assert not observer.total.any()


def test_a_row_that_is_not_alive_ranks_behind_one_without_a_gradient():
    layer = wk.SkippableLinear(2, 4)
    layer.plan = wk.Plan(rows=wk.TopK(k=2), observer=wk.Observer(alive=torch.tensor([False, True, False, True])))
    layer(torch.ones(1, 2)).backward(torch.tensor([[9.0, 0.0, 0.0, 0.0]]))
    assert layer.plan.observer.hits.tolist() == [0, 1, 0, 1]
    assert not layer.weight.grad.any()


def test_an_observer_is_no_part_of_what_a_plan_is():
    observed = wk.Plan(rows=wk.Rows([1]), observer=wk.Observer("l1"))
    assert observed == wk.Plan(rows=wk.Rows([1]))
    assert observed.replace(tokens=wk.Tokens(k=1)).observer is observed.observer
    assert observed.replace(rows=wk.Rows([1])).observer is None, "it was told of the rows before"
    with pytest.raises(TypeError, match="observer: expected a Observer, or None, got 'l1'"):
        wk.Plan(observer="l1")
    with pytest.raises(ValueError, match="score: expected one of l1, l2, got 'random'"):
        wk.Observer("random")


def test_top_rows_by_scores_that_are_agreed_upon():
    layer = wk.SkippableLinear(3, 4)
    layer.plan = wk.Plan(rows=wk.TopK(k=2), observer=Agreed(None, lambda scores: -scores))
    y = layer(torch.randn(2, 3))
    y.backward(torch.tensor([[1.0, 2.0, 3.0, 4.0]]).expand(2, 4))
    assert layer.weight.grad.abs().sum(1).nonzero().flatten().tolist() == [0, 1]
