"""The op top_rows, on every backend that runs here: row_stats and select_rows of the same backend, one behind the other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from tests.cases import GRADIENTS
from tests.conftest import backends_that_run, on_backend
from tests.rowsparse import integers
from tests.strategies import strided_gradients
from wuskern import ops

pytestmark = pytest.mark.op("top_rows")
DTYPES = list(ops.DTYPES)


def check(dy: torch.Tensor, dim: int, score: str, k: int, block: int = 1, groups: int = 1) -> None:
    """The same bits as those of the two ops."""
    db, scores, rows = ops.top_rows(dy, dim, score, k, block, groups)
    of_stats = ops.row_stats(dy, dim, score)
    for ours, other in zip((db, scores), of_stats, strict=True):
        torch.testing.assert_close(ours, other, rtol=0, atol=0, equal_nan=True)
    assert rows.tolist() == ops.select_rows(of_stats[1], k, block, groups).tolist()


def test_hand_worked(backend):
    dy = torch.tensor([[1.0, -2, 3, 0], [-10, 20, -30, 0], [100, -200, 300, 0], [-1, 0, 1, 2]])
    db, scores, rows = ops.top_rows(dy, -1, "l1", 2)
    assert (db.tolist(), scores.tolist(), rows.tolist()) == ([90, -182, 274, 2], [112, 222, 334, 2], [1, 2])
    assert ops.top_rows(dy, -1, "l1", 2, 2)[2].tolist() == [2, 3]  # in blocks of two: 334 against 336
    assert ops.top_rows(dy, -1, "l1", 2, 1, 2)[2].tolist() == [1, 2]  # one of each half
    assert ops.top_rows(torch.tensor([[0.0, 5, float("nan"), 5]]), -1, "l2", 2)[2].tolist() == [1, 2]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", GRADIENTS[::2], ids=str)
def test_cases(case, dtype, backend):
    if backend == "emulated" and case.name == "conv large plane":
        pytest.skip("smaller ones take the same way, in less time")
    n = case.shape[case.dim]
    for i, k in enumerate({1, max(1, n // 20), n} if n else ()):  # of no rows there is no choice
        check(case.make(dtype), case.dim, ops.SCORES[i % 2], k)


@pytest.mark.more
@pytest.mark.parametrize("shape", [(2, 16392), (70, 9000), (20, 24, 7, 7), (300, 24, 3, 3)], ids=str)
def test_more_rows_than_one_launch_takes_and_planes_of_an_odd_size(shape, backend):
    """Whole numbers, so that many scores are equal."""
    dy = integers(*shape, dtype=torch.bfloat16)
    dim = 1 if dy.ndim == 4 else -1
    n = shape[dim]
    check(dy, dim, "l1", n // 20)
    if n % 8 == 0:
        check(dy, dim, "l2", n // 16 * 8, 2, 4)


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_any_gradient_and_choice(data):
    dy, dim = data.draw(strided_gradients(DTYPES))
    n = dy.shape[dim]
    groups = data.draw(st.sampled_from([g for g in range(1, n + 1) if n % g == 0]))
    block = data.draw(st.sampled_from([b for b in range(1, n // groups + 1) if n // groups % b == 0]))
    k = data.draw(st.integers(1, n // groups // block)) * groups * block
    score = data.draw(st.sampled_from(ops.SCORES))
    for name in backends_that_run("top_rows"):
        with on_backend(name):
            check(dy, dim, score, k, block, groups)


def test_of_no_tokens(backend):
    db, scores, rows = ops.top_rows(torch.zeros(0, 6), -1, "l1", 2)
    assert (db.tolist(), scores.tolist(), rows.tolist()) == ([0] * 6, [0] * 6, [0, 1])


# ---- what PyTorch asks of an op --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_opcheck(dtype, backend):
    for case in (c for c in GRADIENTS if c.shape in ((5, 123), (4, 24, 9, 9))):
        torch.library.opcheck(torch.ops.wuskern.top_rows.default, (case.make(dtype), case.dim, "l1", 3, 1, 1))


def test_flops():
    """Two sums of three columns over five tokens, and a comparison for each score."""
    with FlopCounterMode(display=False) as counter:
        ops.top_rows(torch.randn(5, 3), -1, "l1", 1)
    assert counter.get_total_flops() == 2 * 4 * 3 + 3


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2, "l1", 1, 1, 1), "dim: expected a dimension of dy"),
        ((-1, "l3", 1, 1, 1), "score: expected one of l1, l2"),
        ((-1, "l1", 0, 1, 1), "k: expected a multiple of block"),
        ((-1, "l1", 7, 1, 1), "k: expected a multiple of block"),
        ((-1, "l1", 2, 4, 1), "scores: expected a multiple of block"),
        ((-1, "l1", 2, 1, 0), "groups: expected at least 1"),
    ],
)
def test_wrong_choices(arguments, message):
    with pytest.raises(ValueError, match=message):
        ops.top_rows(torch.zeros(3, 6), *arguments)
