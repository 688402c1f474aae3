"""csrc/common/gemm.h: which block of a row-sparse product computes what. Every tile, every token and every tap once."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

few = st.integers(1, 5)
CAPABILITIES = (80, 86, 89, 90, 100, 120)
LIMITS = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB of shared memory that a block can have
gpus = st.tuples(st.sampled_from(CAPABILITIES), st.integers(1, 160)).map(lambda gpu: (*gpu, gpu[0] == 90))


@given(n=st.integers(0, 2**31 - 1), by=st.one_of(st.integers(1, 300), st.integers(1, 2**31 - 1)))
def test_a_divisor_divides(common, n, by):
    assert common.quotient(n, by) == n // by
    near = n // by * by
    assert [common.quotient(i, by) for i in (near, max(0, near - 1))] == [near // by, max(0, near - 1) // by]


@given(height=few, width=few, start=st.integers(0, 99), step=st.integers(0, 60), steps=st.integers(0, 30))
def test_a_walk_over_pixels_divides_without_dividing(common, height, width, start, step, steps):
    pixels = [start + i * step for i in range(steps)]
    expected = [[p // (height * width), p // width % height, p % width] for p in pixels]
    assert common.walk_pixels(height, width, start, step, steps) == expected


# ---- tiles -----------------------------------------------------------------------------------------------------------


@given(gpu=gpus, k=st.integers(1, 20000))
def test_the_tile_of_a_weight_gradient_fits_its_gpu(common, gpu, k):
    n = common.wgrad_tile(k, common.Gpu(*gpu))
    assert n in (32, 64, 128, common.widest_tile)
    assert common.tile_shared_bytes(n) <= 1024 * LIMITS[gpu[0]]
    assert k > 128 or n == max(32, 2 ** math.ceil(math.log2(k)))


@given(gpu=gpus, m=st.integers(1, 10**6), columns=st.integers(1, 20000), terms=st.integers(0, 2000), others=st.integers(1, 64))
def test_the_tile_of_an_input_gradient_fits_its_gpu(common, gpu, m, columns, terms, others):
    n = common.dgrad_tile(m, columns, terms, others, common.Gpu(*gpu))
    assert n in (64, 128, common.widest_tile)
    assert common.tile_shared_bytes(n) <= 1024 * LIMITS[gpu[0]]
    assert n == 64 or columns > n // 2


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_as_many_blocks_run_together_as_shared_memory_holds(common, capability):
    gpu = common.Gpu(capability, 1, False)
    for n in (32, 64, 128):
        assert gpu.blocks(n) * (common.tile_shared_bytes(n) + 1024) <= gpu.shared_bytes()
    assert gpu.shared_bytes() == 1024 * (LIMITS[capability] + 1)


def test_the_widest_tile_is_for_wgmma_alone(common):
    hopper, without = common.Gpu(90, 132, True), common.Gpu(90, 132, False)
    assert common.wgrad_tile(205, hopper) == common.widest_tile > common.wgrad_tile(205, without)
    assert common.dgrad_tile(32768, 16384, 819, 1, hopper) == common.widest_tile
    assert common.dgrad_tile(32768, 16384, 819, 1, without) == common.dgrad_tile(32768, 16384, 102, 1, hopper) == 128
    assert common.dgrad_tile(512, 768, 38, 1, hopper) == 64


def test_wgmma_multiplies_no_more_columns_than_rows_need(common):
    """By hand: 5 % of 4096 rows are 204, and 208 is a width of the instruction; 300 take five tiles of 64."""
    hopper, without = common.Gpu(90, 132, True), common.Gpu(80, 108, False)
    wanted = {1: 32, 33: 64, 65: 96, 96: 96, 97: 128, 129: 160, 161: 192, 204: 208, 209: 256, 300: 64}
    assert {k: common.wgrad_columns(k, hopper) for k in wanted} == wanted
    assert {common.wgrad_columns(k, without) for k in (65, 96, 128)} == {128}


# ---- schedules -------------------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(groups=few, feature_blocks=few, row_blocks=few, steps=st.integers(1, 200), splits=st.integers(1, 20))
def test_every_step_of_every_tile_is_summed_once(common, groups, feature_blocks, row_blocks, steps, splits):
    """And the parts of a tile are as long as each other, to a step."""
    schedule = common.WgradSchedule(groups, feature_blocks, row_blocks, steps, min(splits, steps))
    parts = {}
    for *tile, first, last in common.wgrad_blocks(schedule):
        parts.setdefault(tuple(tile), []).append((first, last))
    assert sorted(parts) == list(itertools.product(range(groups), range(feature_blocks), range(row_blocks)))
    for of_tile in parts.values():
        ends = [0, *(last for _, last in sorted(of_tile))]
        assert [first for first, _ in sorted(of_tile)] == ends[:-1]
        assert ends[-1] == steps
        lengths = {last - first for first, last in of_tile}
        assert max(lengths) - min(lengths) <= 1
        assert min(lengths) >= 1


@given(
    groups=few, features=st.integers(1, 40000), k=st.integers(1, 2000), tokens=st.integers(1, 10**6),
    n=st.sampled_from([32, 64, 128, 256]), slots=st.integers(1, 400),
)  # fmt: skip
def test_a_schedule_covers_its_problem(common, groups, features, k, tokens, n, slots):
    s = common.wgrad_schedule(groups, features, k, tokens, common.TileShape(128, n, 64), slots)
    assert (s.feature_blocks - 1) * 128 < features <= s.feature_blocks * 128
    assert (s.row_blocks - 1) * n < k <= s.row_blocks * n
    assert (s.steps - 1) * 64 < tokens <= s.steps * 64
    assert 1 <= s.splits <= max(1, s.steps // 4)


def test_few_tiles_fill_the_gpu_with_parts_of_their_sum(common):
    gpu = common.Gpu(90, 132, True)
    s = common.wgrad_schedule(1, 4096, 204, 8192, common.TileShape(128, 256, 64), gpu.blocks(256))
    assert 100 <= s.blocks() <= 132
    s = common.wgrad_schedule(1, 768, 38, 32768, common.TileShape(128, 64, 64), gpu.blocks(64))
    assert 200 <= s.blocks() <= 264
    many = common.wgrad_schedule(1, 16384, 819, 2048, common.TileShape(128, 256, 64), gpu.blocks(256))
    assert many.splits <= 2


@given(sides=st.tuples(few, few, few, few))
def test_every_tile_of_an_input_gradient_is_written_once(common, sides):
    pixel_blocks, column_blocks, groups, phases = sides
    blocks = common.dgrad_blocks(pixel_blocks, column_blocks, groups, phases)
    every = itertools.product(range(phases), range(groups), range(pixel_blocks), range(column_blocks))
    assert sorted(map(tuple, blocks)) == list(every)


# ---- taps ------------------------------------------------------------------------------------------------------------

sides = st.tuples(st.integers(1, 7), st.integers(1, 5), st.integers(0, 6), st.integers(1, 5))


@settings(max_examples=300)
@given(side=sides, n=st.integers(0, 30))
def test_an_input_pixel_meets_the_taps_of_its_phase(common, side, n):
    """By the definition of a convolution: tap t of output o reads input o * stride - padding + t * dilation."""
    taps, stride, padding, dilation = side
    ours = common.Side(*side)
    for phase in range(stride):
        first, count, _ = ours.taps_of(phase)
        pixel = phase + n * stride
        meets = {
            t: (pixel + padding - t * dilation) // stride for t in range(taps) if (pixel + padding - t * dilation) % stride == 0
        }
        assert [first + i * ours.step() for i in range(count)] == list(meets)
        assert {t: n + ours.output(t, phase) for t in meets} == meets


@given(h=sides, w=sides)
def test_taps_are_ordered_by_phase(common, h, w):
    side_h, side_w = common.Side(*h), common.Side(*w)
    order = {common.tap_order(side_h, side_w, i, j): (i, j) for i in range(h[0]) for j in range(w[0])}
    assert sorted(order) == list(range(h[0] * w[0]))
    for phase_h, phase_w in itertools.product(range(h[1]), range(w[1])):
        first_h, count_h, before_h = side_h.taps_of(phase_h)
        first_w, count_w, before_w = side_w.taps_of(phase_w)
        start = before_h * w[0] + count_h * before_w
        expected = [(first_h + a * side_h.step(), first_w + b * side_w.step()) for a in range(count_h) for b in range(count_w)]
        assert [order[start + i] for i in range(len(expected))] == expected
