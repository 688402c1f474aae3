"""The rule that chooses between native, triton and library on a GPU, against counts by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wuskern.kernels.cuda import rule
from wuskern.kernels.cuda.gpus import ARCHITECTURES, GPUS
from wuskern.kernels.problem import OPS, Problem

LINEAR = Problem("rowsparse_dgrad", torch.bfloat16, batch=2048, channels=4096, out=4096, k=204)
SIDES = (10, 10), (3, 3), (1, 1), (1, 1)
CONV = Problem("rowsparse_wgrad_conv2d", torch.bfloat16, 10, 16, 24, 24, *SIDES)  # NHWC, gathered, in eights


def work(p, way="native", architecture="sm_80"):
    return rule.work(way, p, GPUS[architecture])


def test_work_by_hand():
    """2048 tokens, 204 of 4096 rows, 4096 features, 2 bytes: a token has 256 sectors of 16 rows. 204 rows are 13 instructions
    of 16 terms in CUDA C++, 7 steps of 32 in Triton."""
    read, compact = int(2048 * 4096 * 2 * (1 - (1 - 204 / 4096) ** 16)), 2048 * 204 * 2
    rest = (2048 * 4096 + 204 * 4096) * 2  # dx, the weight's rows
    native, triton, library = (work(LINEAR, way) for way in rule.WAYS)
    assert native[:3] == (read + 2 * compact + rest, 2 * 2048 * 4096 * 208, 2)  # packed
    assert triton[:3] == (native.moved, 2 * 2048 * 4096 * 224, 2)  # gathered first: 32 tiles would read it again
    assert library[:3] == (native.moved + 2 * 204 * 4096 * 2, native.operations, 3)  # two gathers and a product
    assert native.seconds == pytest.approx(max(native.moved / 2.04e12, native.operations / (0.6 * 312e12)) + 2 * 3e-6)


def test_the_floor_by_hand():
    moved = (2048 * 204 + 2048 * 4096 + 204 * 4096) * 2
    assert rule.floor(LINEAR, "9.0") == pytest.approx(moved / 4.8e12 + 3e-6)
    large = LINEAR._replace(batch=32768, out=2048, k=2048)
    assert rule.floor(large, "8.0") == pytest.approx(2 * 32768 * 4096 * 2048 / 312e12 + 3e-6)


def test_a_compact_dy_in_eights_is_read_once():
    assert work(LINEAR._replace(out=208, k=208)).moved == (2048 * 208 + 2048 * 4096 + 208 * 4096) * 2


def test_what_does_not_lie_in_eights_is_packed_by_the_cuda_kernels():
    least = work(CONV)
    assert work(CONV._replace(planes=True)).moved == least.moved + 2 * (CONV.chosen_bytes + CONV.input_bytes)
    odd = CONV._replace(out=20, k=20)
    assert work(odd).launches == least.launches + 1
    assert work(odd._replace(dtype=torch.float32)).launches == 2  # not packed, and its parts are added in a launch
    assert work(CONV._replace(channels=12)).launches == least.launches + 1
    dgrad = CONV._replace(op="rowsparse_dgrad_conv2d")
    assert work(dgrad).launches == 2  # the weight's rows by tap
    assert work(dgrad._replace(kernel_size=(1, 1), padding=(0, 0))).launches == 1  # where they lie


def test_a_library_copies_halves_in_planes():
    planes, last = (work(CONV._replace(planes=planes), "library") for planes in (True, False))
    assert planes.moved == last.moved + 2 * (CONV.chosen_bytes + CONV.input_bytes)
    assert planes.launches == last.launches + 2


def test_partial_sums_are_written_and_read():
    """512 tokens of 128 features and 16 rows are one tile of Triton's, in four parts of 128 tokens, each in fp32; of CUDA C++,
    eight steps of 64 tokens, which two blocks share."""
    p = Problem("rowsparse_wgrad", torch.bfloat16, batch=512, channels=128, out=16, k=16)
    once, partial = (512 * 16 + 512 * 128 + 16 * 128) * 2, 2 * 16 * 128 * 4
    assert work(p, "triton")[:3] == (once + 4 * partial, p.operations, 2)
    assert work(p, "native")[:3] == (once + 2 * partial, 2 * p.operations, 1)  # a tile of 32 rows, whose last block adds


def test_tf32_is_for_triton_and_the_library():
    p = LINEAR._replace(dtype=torch.float32, batch=32768, out=2048, k=2048)
    exact, allowed = (rule.choose(p._replace(tf32=tf32), "9.0").works for tf32 in (False, True))
    assert exact["native"] == allowed["native"]
    assert allowed["library"].seconds < exact["library"].seconds / 5
    assert allowed["triton"].seconds < exact["triton"].seconds / 5


def test_memory_bound_problems_stay_with_our_kernel_and_large_products_go_to_the_library():
    assert rule.choose(LINEAR, "9.0").way == "native"
    assert work(LINEAR, architecture="sm_90").bound == "memory"
    assert work(CONV).bound == "launches"
    large = LINEAR._replace(batch=32768, out=2048, k=2048)
    assert rule.choose(large, "9.0").way == "library"
    told = "the least time, most of it arithmetic, counted with the rates of H200, not measured"
    assert rule.choose(large, "9.0").reason == told


@pytest.mark.parametrize("empty", ["batch", "channels", "k"])
@pytest.mark.parametrize("p", [LINEAR, CONV, CONV._replace(op="rowsparse_dgrad_conv2d", planes=True)], ids=lambda p: p.op)
def test_without_rows_tokens_or_features_the_first_way_is_taken(p, empty):
    decision = rule.choose(p._replace(**{empty: 0}), "9.0", ("triton", "library"))
    assert decision == ("triton", "nothing to multiply, any way does that", {})


problems = st.builds(
    lambda op, channels, k, more, kernel, stride, groups, **rest: Problem(
        op, channels=channels * groups, out=k * groups + more, k=k * groups,
        **(dict(size=(9, 12), kernel_size=kernel, stride=stride, padding=(1, 2), groups=groups) if "conv2d" in op else {}),
        **rest,
    ),
    op=st.sampled_from(OPS),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64]),
    batch=st.integers(1, 10**5),
    channels=st.integers(1, 10**4),
    k=st.integers(1, 10**3),
    more=st.integers(0, 10**4),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    groups=st.sampled_from([1, 2, 8]),
    planes=st.booleans(),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(problems, st.sampled_from(ARCHITECTURES), st.sets(st.sampled_from(rule.WAYS), min_size=1))
def test_any_problem_has_a_way_among_those_there_are(p, capability, ways):
    decision = rule.choose(p, capability, tuple(sorted(ways)))
    assert decision.way in ways
    assert set(decision.works) == ways
    least = min(work.seconds for work in decision.works.values())
    assert decision.works[decision.way].seconds == least
    assert rule.floor(p, capability) <= least * (1 + 1e-9)
    assert decision == rule.choose(p, capability, tuple(sorted(ways)))


def test_the_padded_rows_of_a_gathered_linear_are_read_where_they_lie():
    odd = LINEAR._replace(out=204)
    assert work(odd).moved == (2048 * 204 + 2048 * 4096 + 204 * 4096) * 2
    assert work(odd).launches == 1


def test_the_share_of_the_peak_that_native_reaches():
    """By hand: half precision on tensor cores, all but tcgen05, and what takes ordinary arithmetic."""
    p = LINEAR._replace(batch=32768, out=2048, k=2048)
    for architecture, dtype, rate in [
        ("sm_90", torch.bfloat16, 0.6 * 989e12), ("sm_100", torch.bfloat16, 340e12), ("sm_90", torch.float32, 0.25 * 67e12),
        ("sm_100", torch.float64, 0.25 * 37e12),
    ]:  # fmt: skip
        found = work(p._replace(dtype=dtype), architecture=architecture)
        assert found.bound == "arithmetic"
        assert found.seconds == pytest.approx(found.operations / rate + found.launches * 3e-6, rel=0.01)
