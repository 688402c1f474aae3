"""Two prepared processes train as stock PyTorch does in one process on the joint batch, in float64."""

import pytest

import wuskern as wk
from tests.distributed.training import assert_equal

SKIPS = [(None,) * 3, (True,) * 3, (True,) * 3, (None,) * 3, (None, True, None), (True, None, True)]
ROWS = [([0, 3], [1, 2, 9], None), ([3], [4], [0, 5]), (True, [0, 1], [2]), (None, None, None), ([1, 2], True, [3])]
TOPK = [(wk.TopK(k=2), wk.TopK(k=3), wk.TopK(k=2, score="l2"))] * 3 + [
    (True, wk.TopK(k=3), None),
    (wk.TopK(k=3), wk.TopK(k=3), wk.TopK(k=1)),
]
COLUMNS = [
    (wk.Columns([1]), wk.Columns([3, 40, 71]), ([1, 5], wk.Columns([0, 9]))),
    (([2, 7], wk.Columns([0])), wk.Columns([3, 40, 71]), None),
    (None, ([1, 2, 9], wk.Columns([5])), wk.Columns([4, 5, 6])),
    (True, (True, wk.Columns([5])), wk.Columns([4])),
]
BY_INPUT, BY_WEIGHT = wk.TopColumns(k=20), wk.TopColumns(k=3, score="weight")
TOP_COLUMNS = [
    (wk.TopColumns(k=1), BY_INPUT, BY_WEIGHT),
    (wk.TopColumns(k=1), (wk.TopK(k=3), BY_INPUT), BY_WEIGHT),
    (wk.Columns([1]), ([2, 3], BY_INPUT), ([0, 5], BY_WEIGHT)),
    (True, (True, BY_INPUT), True),
    (wk.TopColumns(k=1), BY_INPUT, (wk.TopK(k=2, score="l2"), BY_WEIGHT)),
    (wk.TopColumns(k=1, score="weight"), wk.TopColumns(k=20, score="weight"), wk.TopColumns(k=3)),
]
MIXED = SKIPS[:2] + ROWS + TOPK + COLUMNS + TOP_COLUMNS
TINY = dict(bucket_cap_mb=1e-4)  # a parameter or two in each bucket


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(
    "plan", [SKIPS, ROWS, TOPK, COLUMNS, TOP_COLUMNS], ids=["skip", "Rows", "TopK", "Columns", "TopColumns"]
)
def test_two_ranks_equal_one_process(ranks, plan, optimizer):
    assert_equal(ranks, plan, optimizer=optimizer, ddp=TINY)


@pytest.mark.parametrize(
    "ddp",
    [
        {},
        dict(find_unused_parameters=True),
        dict(gradient_as_bucket_view=True),
        TINY | dict(gradient_as_bucket_view=True, find_unused_parameters=True),
        dict(static_graph=True),
        TINY | dict(static_graph=True, gradient_as_bucket_view=True),
    ],
    ids=lambda ddp: " ".join(ddp) or "plain",
)
@pytest.mark.parametrize("compact", [False, True], ids=["dense", "compact"])
def test_ddp_arguments(ranks, ddp, compact):
    assert_equal(ranks, MIXED, ddp=ddp, compact=compact)


@pytest.mark.parametrize("compact", [False, True], ids=["dense", "compact"])
def test_micro_batches_without_sync(ranks, compact):
    assert_equal(ranks, MIXED, micro=3, compact=compact, ddp=TINY)


def test_an_attached_policy_and_a_prepared_model_agree(ranks):
    assert_equal(ranks, SKIPS, attach=True)


def test_flags_need_not_be_compared(ranks):
    assert_equal(ranks, MIXED, prepare=dict(check_flags=False))
