"""The tiles that the rule prices are those that run: CUDA C++'s against csrc/common/gemm.h, Triton's against its launchers."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wuskern.kernels.cuda import tiles
from wuskern.kernels.cuda.gpus import GPUS
from wuskern.kernels.problem import Problem

CAPABILITIES = {"sm_80": 80, "sm_90": 90, "sm_100": 100, "sm_120": 120}
gpus = st.sampled_from(list(CAPABILITIES)).map(GPUS.__getitem__)


def compiled(common, gpu):
    return common.Gpu(CAPABILITIES[gpu.architecture], gpu.processors, gpu.wgmma)


@given(gpu=gpus, k=st.integers(1, 20000))
def test_a_tile_of_dw_is_the_compiled_one(common, gpu, k):
    assert tiles.wgrad_tile(k, gpu) == common.wgrad_tile(k, compiled(common, gpu))


@given(gpu=gpus, k=st.integers(1, 600))
def test_as_many_columns_of_it_are_multiplied(common, gpu, k):
    columns = tiles.wgrad_columns(k, gpu)
    assert columns == common.wgrad_columns(k, compiled(common, gpu))
    assert common.tile_of_columns(columns) == tiles.wgrad_tile(k, gpu)


@given(gpu=gpus, m=st.integers(1, 10**6), columns=st.integers(1, 20000), terms=st.integers(0, 2000), others=st.integers(1, 64))
def test_a_tile_of_dx_is_the_compiled_one(common, gpu, m, columns, terms, others):
    assert tiles.dgrad_tile(m, columns, terms, others, gpu) == common.dgrad_tile(
        m, columns, terms, others, compiled(common, gpu)
    )


@pytest.mark.parametrize("architecture", CAPABILITIES)
def test_as_many_blocks_run_at_once(common, architecture):
    gpu = GPUS[architecture]
    for n in (32, 64, 128, *([tiles.WIDEST] if gpu.wgmma else [])):
        assert tiles.blocks(n, gpu) == compiled(common, gpu).blocks(n)


@example(features=2510, k=134, tokens=15615, n=32, slots=46)  # where a step more or less of a start decides
@example(features=1352, k=122, tokens=27530, n=64, slots=127)
@settings(max_examples=300)
@given(
    features=st.integers(1, 3000), k=st.integers(1, 300), tokens=st.integers(1, 30000),
    n=st.sampled_from([32, 64, 128, 256]), slots=st.integers(1, 400),
)  # fmt: skip
def test_a_sum_is_split_into_as_many_parts(common, features, k, tokens, n, slots):
    schedule = common.wgrad_schedule(1, features, k, tokens, common.TileShape(tiles.M, n, tiles.DEPTH), slots)
    blocks = tiles.ceil_div(features, tiles.M) * tiles.ceil_div(k, n)
    assert tiles.wgrad_parts(blocks, tiles.ceil_div(tokens, tiles.DEPTH), tiles.M, n, slots) == schedule.splits


@given(parts=st.integers(1, 256), k=st.integers(1, 3000), n=st.sampled_from([32, 64, 128, 256]))
def test_the_last_block_adds_as_many_parts(common, parts, k, n):
    assert tiles.blocks_join(parts, k, n) == common.blocks_join(parts, k, n)


def test_tiles_without_tensor_cores_are_filled_both_ways():
    """65 features and 5 rows of float64: two tiles of 64 by one of 64, 16 tokens at a time."""
    p = Problem("rowsparse_wgrad", torch.float64, batch=16, channels=65, out=5, k=5)
    assert tiles.native(p, GPUS["sm_80"]).filled == pytest.approx(128 / 65 * 64 / 5)


def test_pixels_a_stride_apart_are_one_product():
    sides = (5, 7), (3, 3), (2, 3), (1, 1)
    p = Problem("rowsparse_dgrad_conv2d", torch.float16, 4, 12, 6, 6, *sides, groups=2)
    assert tiles.sides_of(p) == (4 * 3 * 3, 6, 3)


def test_the_products_of_a_strided_convolution_share_a_gpu():
    """Four products of 14 x 2 tiles of 128 keep the 108 processors of an A100 busy; one alone takes tiles of 64."""
    sides = (16, 16), (3, 3), (2, 2), (1, 1)
    p = Problem("rowsparse_dgrad_conv2d", torch.float16, 28, 130, 16, 16, *sides)
    assert tiles.native(p, GPUS["sm_80"]).filled == pytest.approx(256 / 130)
    alone = p._replace(size=(8, 8), stride=(1, 1))
    assert tiles.native(alone, GPUS["sm_80"]).filled == pytest.approx(192 / 130)


@pytest.mark.parametrize("planes", [False, True])
def test_a_convolution_that_triton_cannot_read_as_vectors_takes_its_smaller_tiles(planes):
    """64 channels, 3 x 3: 576 features fill 4.5 tiles of 128, or 9 of 64."""
    sides = (8, 8), (3, 3), (1, 1), (1, 1)
    p = Problem("rowsparse_wgrad_conv2d", torch.bfloat16, 64, 64, 16, 16, *sides, planes=planes)
    assert tiles.triton(p, GPUS["sm_80"]).filled == pytest.approx(1 if planes else 640 / 576)
