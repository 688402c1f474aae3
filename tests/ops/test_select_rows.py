"""The op select_rows, on every backend that runs here, against a sort in plain Python."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import backends_that_run, obstacle_to, on_backend
from wuskern import ops

pytestmark = [
    pytest.mark.op("select_rows"),
    pytest.mark.filterwarnings("ignore:invalid value encountered in add"),  # inf - inf, in the NumPy of Triton's interpreter
]
DTYPES = list(ops.DTYPES)
NAN, INF = float("nan"), float("inf")


def sorted_choice(scores: list[float], k: int, block: int = 1, groups: int = 1) -> list[int]:
    """NaN first, then the largest; of equal ones the lowest index. Sums of a block in order."""
    per_group, wanted, rows = len(scores) // groups, k // (block * groups), []
    for first in range(0, len(scores), per_group):
        sums = []
        for start in range(first, first + per_group, block):
            total = 0.0
            for value in scores[start : start + block]:
                total += value
            sums.append((not math.isnan(total), 0.0 if math.isnan(total) else -total, start))
        for *_, start in sorted(sums)[:wanted]:
            rows += range(start, start + block)
    return sorted(rows)


@pytest.mark.pairs
@pytest.mark.parametrize(
    ("scores", "k", "block", "groups", "expected"),
    [
        ([1, 5, 3, 4], 2, 1, 1, [1, 3]),
        ([2, 2, 2, 2], 2, 1, 1, [0, 1]),  # ties: the lowest index
        ([1, 3, 2, 3, 3], 2, 1, 1, [1, 3]),
        ([1, 3, 2, 3, 2], 4, 1, 1, [1, 2, 3, 4]),
        ([0.0, -0.0, -1.0, -0.0], 2, 1, 1, [0, 1]),  # zeros are equal
        ([-0.0, 0.0, -1.0], 1, 1, 1, [0]),
        ([1, INF, NAN, 2], 1, 1, 1, [2]),  # a NaN before +inf
        ([1, INF, NAN, 2], 2, 1, 1, [1, 2]),
        ([INF, 1, -NAN, NAN], 2, 1, 1, [2, 3]),  # whatever its sign
        ([-INF, -1, -INF], 2, 1, 1, [0, 1]),
        ([7], 1, 1, 1, [0]),
        ([3, 1, 2], 3, 1, 1, [0, 1, 2]),
        ([9, 0, 4, 4, 5, 5, 1, 1], 4, 2, 1, [0, 1, 4, 5]),  # sums 9, 8, 10, 2
        ([0, 9, 8, 7, 1, 2, 3, 4], 2, 1, 2, [1, 7]),  # one of each half
        ([1, 1, 2, 2, 5, 5, 5, 5], 4, 2, 2, [2, 3, 4, 5]),
        ([9, -INF, INF, -INF, 3, 3], 2, 2, 1, [2, 3]),  # inf - inf is a NaN
    ],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hand_worked(scores, k, block, groups, expected, dtype, backend):
    assert sorted_choice(scores, k, block, groups) == expected
    rows = ops.select_rows(torch.tensor(scores, dtype=dtype), k, block, groups)
    assert rows.dtype == torch.int64
    assert rows.tolist() == expected


values = st.one_of(st.integers(-4, 4).map(float), st.sampled_from([NAN, -NAN, INF, -INF, -0.0, 0.5]))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_number_of_rows_in_blocks_and_groups(data):
    """Few different scores, so that most are tied; their sums are exact in every dtype."""
    block, groups = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4))
    blocks = data.draw(st.integers(1, 12))
    n = block * groups * blocks
    k = data.draw(st.integers(1, blocks)) * block * groups
    scores = data.draw(st.lists(values, min_size=n, max_size=n))
    tensor = torch.tensor(scores, dtype=data.draw(st.sampled_from(DTYPES)))
    if data.draw(st.booleans()):  # strided
        tensor = torch.stack((tensor, torch.full_like(tensor, 9)), dim=1)[:, 0]
    for name in backends_that_run("select_rows"):
        with on_backend(name):
            assert ops.select_rows(tensor, k, block, groups).tolist() == sorted_choice(scores, k, block, groups)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_any_scores(data):
    dtype = data.draw(st.sampled_from(DTYPES))
    scores = data.draw(st.lists(st.floats(width=16 if dtype == torch.float16 else 32), min_size=1, max_size=50))
    tensor = torch.tensor(scores, dtype=torch.float64).to(dtype)
    k = data.draw(st.integers(1, len(scores)))
    for name in backends_that_run("select_rows"):
        with on_backend(name):
            assert ops.select_rows(tensor, k).tolist() == sorted_choice(tensor.tolist(), k)


@pytest.mark.pairs
@pytest.mark.parametrize("n", [4096, 10007])
@pytest.mark.parametrize("share", [0.01, 0.2, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_many_rows_as_layers_have(n, share, dtype, backend, device):
    """float16 and bfloat16 have many ties among so many, and some scores stand far from the others."""
    scores = torch.rand(n, dtype=torch.float64).to(dtype)
    scores[:: n // 7] = torch.tensor([0.0, 1e-30, 1e4, NAN, INF, -1.0, 3.0, 1e-7], dtype=dtype)[: len(scores[:: n // 7])]
    k = int(share * n)
    assert ops.select_rows(scores.to(device), k).tolist() == sorted_choice(scores.tolist(), k)


@pytest.mark.gpu
@pytest.mark.parametrize("n", [3000, 262144])
def test_a_cuda_graph_chooses_again_at_each_replay(n):
    scores = torch.rand(n, device="cuda")
    with on_backend("native"):
        ops.select_rows(scores, n // 20)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            rows = ops.select_rows(scores, n // 20)
    for _ in range(2):
        scores.copy_(torch.rand(n))
        graph.replay()
        assert rows.tolist() == sorted_choice(scores.tolist(), n // 20)


@pytest.mark.parametrize("name", ["native", "emulated"])
@pytest.mark.parametrize(("n", "k", "block", "groups"), [(20000, 999, 1, 1), (262144, 13107, 1, 1), (70000, 4200, 2, 2)])
def test_more_rows_than_a_block_of_threads_remembers(n, k, block, groups, name):
    if obstacle := obstacle_to("select_rows", name):
        pytest.skip(obstacle)
    scores = torch.rand(n, dtype=torch.float64).mul(1000).round().float()  # ties everywhere, across warps too
    with on_backend(name):
        assert ops.select_rows(scores, k, block, groups).tolist() == sorted_choice(scores.tolist(), k, block, groups)


def test_random_scores_choose_at_random_and_again_the_same(backend):
    draws = [ops.select_rows(torch.rand(100, generator=torch.Generator().manual_seed(s)), 10).tolist() for s in (1, 2, 1)]
    assert draws[0] == draws[2] != draws[1]


# ---- what PyTorch asks of an op --------------------------------------------------------------------------------------


def test_opcheck(backend):
    torch.library.opcheck(torch.ops.wuskern.select_rows.default, (torch.randn(24), 8, 2, 2))


def test_opcheck_of_the_compiled_op():
    if obstacle := obstacle_to("select_rows", "native"):
        pytest.skip(obstacle)
    for arguments in ((24, 1, 1, 1), (24, 24, 1, 1), (24, 12, 3, 4)):
        torch.library.opcheck(torch.ops.wuskern_native.select_rows.default, (torch.randn(arguments[0]), *arguments[1:]))


def test_flops():
    with FlopCounterMode(display=False) as counter:
        ops.select_rows(torch.randn(24), 8, 2, 2)
    assert counter.get_total_flops() == 24


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "k", "block", "groups", "message"),
    [
        ((4, 2), 1, 1, 1, "scores: expected one dimension, got 2"),
        ((8,), 0, 1, 1, "k: expected a multiple of block . groups = 1 from 1 to 8, got 0"),
        ((8,), 9, 1, 1, "k: expected a multiple of block . groups = 1 from 1 to 8, got 9"),
        ((0,), 1, 1, 1, "k: expected a multiple of block . groups = 1 from 1 to 0, got 1"),
        ((8,), 3, 2, 1, "k: expected a multiple of block . groups = 2 from 1 to 8, got 3"),
        ((9,), 2, 2, 1, "scores: expected a multiple of block . groups = 2 of them, got 9"),
        ((8,), 2, 0, 1, "block: expected at least 1, got 0"),
        ((8,), 2, 1, -1, "groups: expected at least 1, got -1"),
    ],
)
def test_numbers_that_do_not_fit(shape, k, block, groups, message):
    with pytest.raises(ValueError, match=message):
        ops.select_rows(torch.zeros(shape), k, block, groups)
    if obstacle_to("select_rows", "native") is None:
        with pytest.raises(RuntimeError, match=r"(scores|k|block|groups): expected"):
            torch.ops.wuskern_native.select_rows(torch.zeros(shape), k, block, groups)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool], ids=str)
def test_wrong_dtype(dtype):
    with pytest.raises(TypeError, match=f"scores: expected float64, float32, float16 or bfloat16, got {dtype}"):
        ops.select_rows(torch.zeros(4, dtype=dtype), 1)
