"""What the last block of a launch does on the emulation: repeated, in streams, in captured graphs, in any order of blocks."""

import pytest
import torch

from tests import emulation
from tests.rowsparse import assert_exact, integers, some_rows
from wuskern.kernels import reference

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _emulation():
    if obstacle := emulation.obstacle():
        pytest.skip(obstacle)
    yield
    emulation.configure()


def op(name):
    return emulation.op(name)


def stats(shape, dim, dtype=torch.bfloat16):
    """That they are right, and the kernels of row_stats and of top_rows."""
    dy = integers(*shape, dtype=dtype)
    k = max(1, shape[dim] // 3)
    with emulation.traced() as one:
        db, scores = op("row_stats")(dy, dim, "l1")
    with emulation.traced() as both:
        results = op("top_rows")(dy, dim, "l1", k, 1, 1)
    exact = reference.row_stats(dy.double(), dim, "l1")
    for found in ((db, scores), results[:2]):
        assert_exact(found[0], exact[0])
        assert_exact(found[1], exact[1])
    assert results[2].tolist() == reference.select_rows(exact[1], k, 1, 1).tolist()
    return one.kernels, both.kernels


@pytest.mark.parametrize("shape", [(900, 136), (900, 33), (70, 600)], ids=str)
def test_sums_scores_and_choice_are_one_launch(shape):
    emulation.configure(processors=6)
    stats(shape, -1)  # the stream's counters are there now
    one, both = stats(shape, -1)
    assert one == both == ["sum_rows"]


@pytest.mark.parametrize(("side", "kernels"), [(32, ["sum_planes"]), (5, ["sum_planes"]), (6, ["sum_planes"])])
def test_planes_are_one_launch(side, kernels):
    emulation.configure(processors=8)
    stats((9, 6, side, side), 1)
    assert stats((9, 6, side, side), 1) == (kernels, kernels)


def test_more_rows_than_shared_memory_holds_take_a_launch_more():
    emulation.configure(processors=3)
    assert stats((70, 16384), -1)[1][-1] == "sum_rows"
    assert stats((70, 16385), -1)[1][-2:] == ["sum_rows", "select_rows_of_group"]


@pytest.mark.parametrize("channels", [1, 3, 8, 17, 24, 64, 96, 100, 128, 129])
@pytest.mark.parametrize("pixels", [1, 2, 5, 701])
def test_few_channels_are_read_several_rows_at_a_time(channels, pixels):
    for dtype, processors in ((torch.bfloat16, 1), (torch.float32, 16), (torch.float64, 3)):
        emulation.configure(processors=processors)
        stats((pixels, channels), -1, dtype)
    dy = torch.full((pixels, channels + 8), torch.nan)
    dy[:, :channels] = 1
    assert op("bias_grad")(dy[:, :channels], -1).tolist() == [pixels] * channels  # a gap between rows


def wgrad(tokens: int, k: int, features: int = 136) -> list[str]:
    dy, x, rows = integers(tokens, k, dtype=torch.bfloat16), integers(tokens, features, dtype=torch.bfloat16), some_rows(k, k)
    with emulation.traced() as trace:
        found = op("rowsparse_wgrad")(dy, x, rows)
    assert_exact(found, dy.double().t() @ x.double())
    return trace.kernels


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("k", [8, 40, 72, 136, 264])
def test_the_parts_of_a_product_are_added_by_its_last_block(k, capability):
    emulation.configure(processors=10, capability=capability)
    wgrad(1500, k)
    assert wgrad(1500, k) == ["wgrad"]


def test_many_parts_are_added_by_a_launch_of_their_own():
    """More than half a MiB of a tile: 72 rows of 128 features in fp32, 24 times."""
    emulation.configure(processors=40)
    assert wgrad(6500, 72, 64) == ["wgrad", "add_parts"]
    assert wgrad(6500, 8, 64)[-1] == "wgrad"


def test_partial_sums_have_the_same_bits_in_any_order_and_by_any_launch(monkeypatch):
    dy, x, rows = torch.randn(1500, 40).bfloat16(), torch.randn(1500, 136).bfloat16(), some_rows(40, 40)
    results = []
    for seed in range(4):
        emulation.configure(processors=10, seed=seed, capturing=seed % 2 == 1)
        results.append((op("rowsparse_wgrad")(dy, x, rows), *op("top_rows")(dy, -1, "l2", 7, 1, 1)))
    for others in results[1:]:
        assert all(map(torch.equal, results[0], others))


def test_a_stream_zeroes_its_counters_once_and_a_graph_in_each_call():
    dy = integers(900, 136, dtype=torch.bfloat16)

    def launched(**machine):
        emulation.configure(processors=6, **machine)
        with emulation.traced() as trace:
            found = op("top_rows")(dy, -1, "l1", 9, 1, 1)
        assert_exact(found[0], dy.double().sum(0))
        return trace.kernels

    assert launched(stream=71) == ["zeros", "sum_rows"]
    assert launched(stream=72) == ["zeros", "sum_rows"]
    assert launched(stream=71) == launched(stream=72) == ["sum_rows"]
    for _ in range(3):
        assert launched(stream=71, capturing=True) == ["zeros", "sum_rows"]
    assert launched(stream=71) == ["sum_rows"]


def test_launches_of_any_size_find_the_counters_as_they_were():
    """Each one with fewer or more blocks than the one before."""
    for turn in range(3):
        emulation.configure(processors=3 + 5 * turn, seed=turn, stream=80)
        for tokens, n in ((900, 136), (70, 600), (2000, 40), (500, 1100)):
            stats((tokens, n), -1)
        stats((9, 6, 32, 32), 1)
        wgrad(1500, 40)
        wgrad(700, 264)
