"""The emulation of CUDA that the CUDA kernels are tested on: that it gives what a GPU gives, and shows what a GPU may hide."""

import math

import pytest
import torch
from torch import Tensor

from tests import emulation
from tests.accuracy import assert_as_right_as_stock
from wuskern import ops


@pytest.fixture(autouse=True)
def _emulation():
    if obstacle := emulation.obstacle():
        pytest.skip(obstacle)
    yield
    emulation.configure()


def probe(name: str, threads: int = 64, per_thread: int = 1) -> Tensor:
    out = torch.full((threads, per_thread), -1.0)
    emulation.op("probe")(name, out, threads)
    return out.squeeze(1)


@pytest.mark.parametrize("threads", [8, 64, 1024])
def test_a_barrier_shows_each_thread_what_the_others_wrote(threads):
    assert probe("reverse", threads).tolist() == list(reversed(range(threads)))


def test_a_missing_barrier_shows_with_every_order_of_threads():
    for seed in range(20):
        emulation.configure(seed=seed)
        assert probe("reverse without a barrier").isnan().any()


def test_the_order_of_threads_is_drawn_by_the_seed():
    def order(seed: int) -> list[float]:
        emulation.configure(seed=seed)
        return probe("order").tolist()

    assert order(1) == order(1) != order(2)
    assert sorted(order(1)) == list(range(64))


def test_shared_memory_holds_nothing_before_it_is_written():
    """In the second block neither, to which the first one left its own."""
    assert probe("unwritten").isnan().all()


def test_a_barrier_does_not_wait_for_threads_that_have_returned():
    assert probe("some return").tolist() == [1.0, -1.0] * 32


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("diverge", r"threads of one block went to different barriers: probes.cu:\d+ and probes.cu:\d+"),
        ("wait for ever", "32 threads have returned; 31 threads wait in __shfl_sync at probes.*; 1 threads wait in a barrier"),
        ("read past", r"thread \(63, 0, 0\) of block \(0, 0, 0\) reads or writes memory out of range"),
        ("write past a workspace", r"thread \(6[0-3], 0, 0\) of block \(0, 0, 0\) reads or writes memory out of range"),
        ("write past", "a block wrote past its 256 bytes of shared memory"),
        ("too many threads", "a launch that no GPU takes: 1 x 1 x 1 blocks of 1025 x 1 x 1 threads"),
        ("no blocks", "a launch that no GPU takes: 0 x 1 x 1 blocks"),
    ],
)
def test_what_a_gpu_refuses_or_hangs_on_is_an_error(name, message):
    for _ in range(2):  # the emulation itself comes out of it whole
        with pytest.raises(RuntimeError, match=message):
            probe(name)
        assert probe("reverse", 64).tolist() == list(reversed(range(64)))


@pytest.mark.parametrize("shape", [(64,), (5, 3), (0, 4), ()])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.int64])
def test_a_fenced_tensor_is_the_tensor(shape, dtype):
    base = torch.randn(*shape, 2).mul(50).to(dtype)
    for original in (base, base.transpose(0, -1), base[..., 1], base[..., :1].expand(base.shape), base.flatten()[1:]):
        fenced = emulation.Fenced(original)
        assert torch.equal(fenced.tensor, original)
        assert fenced.tensor.stride() == original.stride()
        assert fenced.tensor.data_ptr() % 16 == original.data_ptr() % 16 or original.numel() == 0
        fenced.tensor.zero_()
        fenced.give_back()
        assert not original.any()


def test_shuffles_and_votes():
    """As the CUDA programming guide defines them, worked by hand."""
    for number, row in enumerate(probe("shuffles", 64, 8).tolist()):
        lane = number % 32
        down, up = lane + 4 if lane < 28 else lane, lane - 4 if lane >= 4 else lane
        odd = lane ^ 2 if lane % 2 else 0
        assert row == [5, down, up, lane ^ 3, lane // 8 * 8 + 3, lane + 4 if lane % 8 < 4 else lane, 7, odd]


def test_a_lane_that_does_not_take_part_has_no_value():
    out = probe("missing lane", 32).tolist()
    assert out.pop(3) == -1
    assert all(map(math.isnan, out))


def test_votes_of_a_block():
    assert probe("votes").tolist() == [22 + 1000] * 64  # multiples of three; one thread says yes, one says no


def test_every_thread_of_a_grid_runs_once():
    out = torch.zeros(12 * 64)
    emulation.op("probe")("where am i", out, 64)
    assert out.view(12, 64).tolist() == [[block + 1.0] * 64 for block in range(12)]


@pytest.mark.parametrize("processors", [1, 8, 132])
@pytest.mark.parametrize("shape", [(3000, 40), (700, 33), (2, 3, 60, 61), (2, 3, 64, 64), (40, 6, 7, 7)], ids=str)
def test_sums_are_right_for_any_number_of_processors(shape, processors):
    """Which says how many chunks have a sum of their own: one, or many, added by a launch or two more."""
    dy = torch.randn(20, *shape)
    others = [d for d in range(len(shape)) if d != 1]
    with emulation.emulated():
        emulation.configure(processors)
        ours = [(ops.bias_grad(one, 1), *ops.row_stats(one, 1, "l2")) for one in dy]
    biases, sums, scores = (torch.stack(results) for results in zip(*ours, strict=True))
    assert torch.equal(biases, sums)
    for result, wide in ((biases, dy.double()), (scores, dy.double().square())):
        stock, exact, magnitudes = (
            torch.stack([one.sum(others) for one in every]) for every in (wide.float(), wide, wide.abs())
        )
        assert_as_right_as_stock(result, stock, exact, magnitudes)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_same_bits_in_any_order_of_threads(seed):
    scores = torch.randint(5, (3000,)).float()
    for shape in ((3000, 40), (40, 6, 7, 7)):
        dy = torch.randn(shape)
        with emulation.emulated():
            first = *ops.row_stats(dy, 1), ops.bias_grad(dy, 1), ops.select_rows(scores, 700)
            emulation.configure(seed=seed)
            again = *ops.row_stats(dy, 1), ops.bias_grad(dy, 1), ops.select_rows(scores, 700)
            assert all(map(torch.equal, first, again))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_counted_on_the_gpu_is_the_step_counted_on_the_cpu(dtype):
    results = []
    for on_gpu in (False, True):
        torch.manual_seed(0)
        param, first, second, values = torch.randn(6, 50), torch.randn(6, 50), torch.rand(6, 50), torch.randn(2, 50)
        step = torch.tensor(6.0, dtype=dtype)
        with emulation.emulated():
            emulation.configure(tensors_on_gpu=on_gpu)
            numbers = 0.01, 0.8, 0.95, 1e-3, 0.1
            ops.rowsparse_adam_(param, first, second, None, step, torch.tensor([0, 3]), values, *numbers)
        assert step.item() == 7
        results.append(param)
    assert torch.equal(*results)
