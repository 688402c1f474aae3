"""csrc/common: the index maths and reductions that the kernels on a GPU run, checked on the CPU."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

sizes = st.integers(1, 5000)
huge = st.integers(1, 2**40)


# ---- the 16-bit formats ----------------------------------------------------------------------------------------------


def test_every_half_widens_exactly(common):
    bits = np.arange(2**16, dtype=np.uint16)
    ours = np.array([common.widen_half(int(b)) for b in bits], dtype=np.float32)
    np.testing.assert_array_equal(ours, bits.view(np.float16).astype(np.float32))


def test_every_bfloat16_widens_exactly(common):
    bits = np.arange(2**16, dtype=np.uint32)
    ours = np.array([common.widen_bfloat16(int(b)) for b in bits], dtype=np.float32)
    np.testing.assert_array_equal(ours, (bits << 16).view(np.float32))


@settings(max_examples=3000)
@given(x=st.floats(width=32))
@example(x=65519.99609375)
@example(x=65520.0)
@example(x=2.0**-24)
@example(x=2.0**-25)
@example(x=1.5 * 2.0**-25)
@example(x=2.0**-14 * (1 - 2.0**-11))
def test_narrow_half_rounds_as_numpy_does(common, x):
    with np.errstate(over="ignore"):
        expected = np.float32(x).astype(np.float16)
    ours = np.uint16(common.narrow_half(x)).view(np.float16)
    assert np.isnan(ours) if math.isnan(x) else ours.view(np.uint16) == expected.view(np.uint16)


@settings(max_examples=3000)
@given(x=st.floats(width=32))
def test_narrow_bfloat16_picks_the_nearest_even(common, x):
    bits = common.narrow_bfloat16(x)
    value = float(np.uint32(bits << 16).view(np.float32))
    if math.isnan(x):
        assert math.isnan(value)
        return
    below = int(np.float32(x).view(np.uint32)) >> 16  # towards zero
    if math.isinf(x):
        assert bits == below
        return
    lower, upper = (float(np.uint32(b << 16).view(np.float32)) for b in (below, below + 1))
    if math.isinf(upper):  # the largest bfloat16: compare with where the next one would be
        upper = math.copysign(2.0**128, x)
    low, high = abs(x - lower), abs(upper - x)
    expected = below if low < high or (low == high and below % 2 == 0) else below + 1
    assert bits == expected


# ---- layouts ---------------------------------------------------------------------------------------------------------


@settings(max_examples=500)
@given(data=st.data())
def test_fold_keeps_every_address(common, data):
    """A folded layout reaches the same addresses for each channel as the sizes and strides that it came from."""
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    order = data.draw(st.permutations(range(len(shape))))
    strides, step = [0] * len(shape), 1
    for d in order:
        strides[d] = step
        step *= shape[d] + data.draw(st.integers(0, 1))  # a gap makes some foldings impossible
    if data.draw(st.booleans()):
        strides[data.draw(st.integers(0, len(shape) - 1))] = 0  # expanded
    dim = data.draw(st.integers(0, len(shape) - 1))
    folded = common.fold(shape, strides, dim)
    grid = np.indices(shape).reshape(len(shape), -1)
    if folded is None:
        assert len([s for d, s in enumerate(shape) if d != dim and s > 1]) > 2
        return
    for c in range(shape[dim]):
        chosen = grid[:, grid[dim] == c]
        expected = sorted((chosen * np.array(strides)[:, None]).sum(0).tolist())
        got = sorted(
            o * folded.outer_stride + c * folded.channel_stride + i * folded.inner_stride
            for o in range(folded.outer)
            for i in range(folded.inner)
        )
        assert got == expected


@pytest.mark.parametrize(
    ("shape", "strides", "dim", "kind"),
    [
        ((8, 16), (16, 1), 1, "is_rows"),  # Linear
        ((2, 4, 16), (64, 16, 1), 2, "is_rows"),  # tokens fold into one dimension
        ((2, 16, 5, 5), (400, 1, 80, 16), 1, "is_rows"),  # channels_last
        ((2, 16, 5, 5), (400, 25, 5, 1), 1, "is_dense_planes"),  # contiguous
        ((2, 8, 5, 5), (400, 25, 5, 1), 1, "is_dense_planes"),  # half of the channels
        ((4, 8, 5, 5), (800, 50, 5, 1), 1, "is_planes"),  # every second channel
    ],
)
def test_layouts_of_gradients(common, shape, strides, dim, kind):
    assert getattr(common.fold(shape, strides, dim), kind)()


@settings(max_examples=500)
@given(data=st.data())
def test_fold_in_order_keeps_every_address_in_its_place(common, data):
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    strides = data.draw(st.lists(st.integers(0, 12), min_size=len(shape), max_size=len(shape)))
    dim = data.draw(st.integers(0, len(shape) - 1))
    if data.draw(st.booleans()):  # dense, so that it folds
        strides = [math.prod(shape[d + 1 :]) for d in range(len(shape))]
    folded = common.fold_in_order(shape, strides, dim)
    outer, inner = ([d for d in r if shape[d] > 1] for r in (range(dim), range(dim + 1, len(shape))))
    folds = all(strides[a] == shape[b] * strides[b] for part in (outer, inner) for a, b in itertools.pairwise(part))
    assert (folded is not None) == folds
    if folded is None:
        return
    assert (folded.outer, folded.channels) == (math.prod(shape[:dim]), shape[dim])
    assert folded.inner == math.prod(shape[dim + 1 :])
    expected = [sum(i * s for i, s in zip(index, strides, strict=True)) for index in np.ndindex(*shape)]
    assert expected == [
        o * folded.outer_stride + c * folded.channel_stride + i * folded.inner_stride
        for o in range(folded.outer)
        for c in range(folded.channels)
        for i in range(folded.inner)
    ]


@given(st.lists(st.integers(1, 3), min_size=4, max_size=4), st.permutations(range(4)), st.integers(1, 2))
def test_channels_last_is_what_pytorch_calls_so(common, sizes, order, step):
    tensor = torch.empty([sizes[d] for d in order] + [step]).permute(*(order.index(d) for d in range(4)), 4)[..., 0]
    expected = tensor.is_contiguous(memory_format=torch.channels_last)
    assert common.is_channels_last(list(tensor.shape), list(tensor.stride())) == expected


# ---- choosing rows ---------------------------------------------------------------------------------------------------


@given(st.floats(width=32), st.floats(width=32))
def test_order_keys_ascend_where_scores_fall(common, a, b):
    for key in (common.order_key_float, common.order_key_double):
        if math.isnan(a):
            assert key(a) == 0
        elif not math.isnan(b):
            assert (key(a) < key(b), key(a) == key(b)) == (a > b, a == b)
            assert key(a) > 0


@given(data=st.data(), bits=st.sampled_from([32, 64]))
def test_the_threshold_is_the_kth_key(common, data, bits):
    some = st.integers(0, 2**bits - 1)
    near = some.flatmap(lambda x: st.integers(x, min(x + 4000, 2**bits - 1)))
    keys = data.draw(st.one_of(st.lists(k, min_size=1, max_size=60) for k in (some, near, st.integers(0, 3))))
    k = data.draw(st.integers(1, len(keys)))
    expected = sorted(keys)[k - 1]
    found = getattr(common, f"threshold_{bits}")(keys, k)
    assert found == (expected, sorted(keys)[:k].count(expected))


@given(data=st.data(), bits=st.sampled_from([32, 64]))
def test_every_key_of_a_range_has_its_bucket(common, data, bits):
    low = data.draw(st.integers(0, 2**bits - 1))
    high = data.draw(st.one_of(st.integers(low, 2**bits - 1), st.integers(low, min(low + 9000, 2**bits - 1))))
    buckets = getattr(common, f"Buckets{bits}")(low, high)
    assert common.most_buckets / 2 < buckets.count() <= common.most_buckets or buckets.of_one_key()
    assert (buckets.of(low), buckets.of(high)) == (0, buckets.count() - 1)
    assert (buckets.first(0), buckets.last(buckets.count() - 1)) == (low, high)
    key = data.draw(st.integers(low, high))
    bucket = buckets.of(key)
    assert buckets.first(bucket) <= key <= buckets.last(bucket)
    assert buckets.of_one_key() == (buckets.last(0) == low and buckets.count() == high - low + 1)
    if bucket > 0:
        assert buckets.last(bucket - 1) + 1 == buckets.first(bucket)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=12), st.sampled_from([1, 2, 4, 8]), st.integers(1, 33))
def test_run_length_is_the_longest_power_of_two_that_fits(common, starts, block, most):
    rows = [start * block + i for start in starts for i in range(block)]

    def fits(length):
        runs = [rows[i : i + length] for i in range(0, len(rows), length)]
        return all(run == list(range(run[0], run[0] + length)) for run in runs)

    assert common.run_length(rows, most) == max(n for n in (1, 2, 4, 8, 16, 32) if n <= most and fits(n))


# ---- schedules -------------------------------------------------------------------------------------------------------


def covers(chunks, total) -> bool:
    """The chunks are [0, total) in order, without gap or overlap, and none is empty."""
    edges = [chunks.begin(i) for i in range(chunks.count())] + [total]
    return edges[0] == 0 and all(
        chunks.end(i) == edges[i + 1] and chunks.begin(i) < chunks.end(i) for i in range(chunks.count())
    )


@given(rows=sizes, columns=sizes, vec=st.sampled_from([1, 2, 4, 8]), processors=st.integers(1, 160))
def test_rows_grid_takes_every_element_once(common, rows, columns, vec, processors):
    column_blocks, chunks = common.rows_grid(rows, columns, vec, processors)
    assert covers(chunks, rows)
    width = common.lanes * vec
    assert (column_blocks - 1) * width < columns <= column_blocks * width


@given(outer=sizes, channels=sizes, vectors=st.integers(1, 900), vec=st.sampled_from([1, 2, 4, 8]))
def test_planes_grid_takes_every_vector_once(common, outer, channels, vectors, vec):
    assert covers(common.planes_grid(outer, channels, vectors * vec, vec, 132), outer * vectors)


@given(total=huge, columns=huge, processors=st.integers(1, 200))
def test_grids_of_huge_problems_fit_the_launch_limits(common, total, columns, processors):
    _, chunks = common.rows_grid(total, columns, 8, processors)
    assert 1 <= chunks.count() <= common.max_chunks
    assert 1 <= common.planes_grid(total, columns, 8, 8, processors).count() <= common.max_chunks


@given(vectors=st.integers(1, 700), start=st.integers(0, 3000), step=st.integers(1, 600), steps=st.integers(0, 60))
def test_plane_walk_divides_without_dividing(common, vectors, start, step, steps):
    visited = common.walk(vectors, start, step, steps)
    assert visited == [divmod(start + i * step, vectors) for i in range(steps)]


def test_threads_of_a_block_visit_every_vector_once(common):
    """What sum_planes' threads do together, played through for one chunk."""
    outer, vectors = 13, 49
    visited = []
    for thread in range(common.threads):
        steps = max(0, -(-(outer * vectors - thread) // common.threads))
        visited += common.walk(vectors, thread, common.threads, steps)
    assert sorted(visited) == [(o, p) for o in range(outer) for p in range(vectors)]


def test_fold_tree_adds_in_its_order(common):
    values = [1.0, 2.0**-53, 2.0**-53, 4.0, 2.0**-53, 8.0, -1.0, 2.0**-52]
    a, b, c, d = (values[i] + values[i + 4] for i in range(4))
    assert common.fold_tree(values) == (a + c) + (b + d)
