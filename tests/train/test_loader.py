"""Batches from workers and host memory are those of plain indexing."""

import multiprocessing

import pytest
import torch

from wuskern.train.loader import Batches

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # Python 3.12's

IMAGES = torch.randn(50, 3, 4, 5, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(256, (50, 7), generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(50)


def orders():
    """Two epochs' batches, of which the last ones are short."""
    generator = torch.Generator().manual_seed(2)
    return [torch.randperm(50, generator=generator).split(8) for _ in range(2)]


def check(loaded, batches, x, y):
    loaded = list(loaded)
    assert len(loaded) == len(batches)
    for index, (got, x_batch, y_batch) in zip(batches, loaded, strict=True):
        assert torch.equal(got, index)
        assert torch.equal(x_batch, x[index])
        assert torch.equal(y_batch, y[index])


@pytest.fixture
def started():
    """The processes that the test started and that run: other tests' may run beside them."""
    others = set(multiprocessing.active_children())
    return lambda: set(multiprocessing.active_children()) - others


@pytest.mark.parametrize("workers", [None, 0, 1, 2])  # None: data on the device
def test_two_epochs_are_those_of_plain_indexing(workers, started):
    arguments = {} if workers is None else {"host": True, "workers": workers}
    before = torch.get_rng_state()
    with Batches(IMAGES, LABELS, "cpu", memory_format=torch.channels_last, **arguments) as data:
        first, second = orders()
        check(data.epoch(first), first, IMAGES, LABELS)
        processes = started()
        assert len(processes) == (workers or 0)
        assert all(x.is_contiguous(memory_format=torch.channels_last) for _, x, _ in data.epoch(second))
        next(iter(data.epoch(first)))  # left early, with batches on their way
        check(data.epoch(second), second, IMAGES, LABELS)
        check(data.epoch([]), [], IMAGES, LABELS)
        assert started() == processes
    assert not started()
    assert torch.equal(torch.get_rng_state(), before)


def test_text_keeps_its_form():
    with Batches(TOKENS, TOKENS + 1, "cpu", host=True, memory_format=torch.channels_last) as data:
        batches = orders()[0]
        check(data.epoch(batches), batches, TOKENS, TOKENS + 1)


def test_a_batch_is_fetched_while_the_one_before_is_in_use():
    class Asked(list):
        asked = 0

        def __iter__(self):
            for item in list.__iter__(self):
                self.asked += 1
                yield item

    batches = Asked(orders()[0])
    data = Batches(IMAGES, LABELS, "cpu", host=True)
    epoch = data.epoch(batches)
    next(epoch)
    assert batches.asked == 2 * 2  # by the loader and beside it
    next(epoch)
    assert batches.asked == 2 * 3


def test_an_error_in_training_leaves_no_worker_and_another_epoch_starts_new_ones(started):
    data = Batches(IMAGES, LABELS, "cpu", host=True, workers=1)
    batches = orders()[0]

    def train():
        with data:
            for _ in data.epoch(batches):
                assert started()
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as held:  # its traceback holds the epoch
        train()
    assert held.value
    assert not started()
    with data:
        check(data.epoch(batches), batches, IMAGES, LABELS)
    data.close()


def test_an_error_in_a_worker_is_raised_and_leaves_none_behind(started):
    with pytest.raises(IndexError, match="out of bounds"), Batches(IMAGES, LABELS, "cpu", host=True, workers=1) as data:
        list(data.epoch([torch.tensor([50])]))
    assert not started()


def test_workers_are_for_data_in_host_memory():
    with pytest.raises(ValueError, match="workers: expected 0 with data on the device, got 2"):
        Batches(IMAGES, LABELS, "cpu", workers=2)
    with pytest.raises(ValueError, match="workers: expected at least 0, got -1"):
        Batches(IMAGES, LABELS, "cpu", host=True, workers=-1)
    with pytest.raises(ValueError, match="x: expected in host memory, got on meta"):
        Batches(IMAGES.to("meta"), LABELS, "cpu", host=True)
