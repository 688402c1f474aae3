"""Data sieving: forgetting events and the queue worked by hand, and what holds of any history."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from wuskern.policies import SievingSampler


def present(sampler: SievingSampler, right: set[int]) -> None:
    """One epoch in which these samples are right."""
    index = torch.tensor(list(sampler))
    sampler.record(index, torch.tensor([i in right for i in index.tolist()]))
    sampler.step()


def test_forgetting_events_worked_by_hand():
    sampler = SievingSampler(4, keep=1.0)
    for right in ({0, 1}, {0}, {0, 1, 2}, {0, 2}, {0, 1}):
        present(sampler, right)
    assert sampler.forgotten.tolist() == [0, 2, 1, 0]
    assert sampler.learned.tolist() == [True, True, True, False]


def test_an_exchange_worked_by_hand():
    sampler = SievingSampler(6, keep=4 / 6, rate=0.5, interval=3)
    sampler.training, sampler.waiting = torch.tensor([0, 1, 2, 3]), torch.tensor([5, 4])
    present(sampler, {0, 1, 2})
    present(sampler, {0, 1})  # 2 is forgotten, 3 never learned
    assert sampler.training.tolist() == [0, 1, 2, 3]
    present(sampler, {0, 2})  # 1 is forgotten
    assert (sampler.training.tolist(), sampler.waiting.tolist()) == ([2, 3, 4, 5], [0, 1])
    for _ in range(3):
        present(sampler, {4, 5})  # 2 has another event, 3 is never right: these two stay
    assert (sampler.training.tolist(), sampler.waiting.tolist()) == ([0, 1, 2, 3], [4, 5])


def test_a_removal_for_good_worked_by_hand():
    sampler = SievingSampler(5, keep=0.6, interval=2, once=True)
    assert len(sampler) == 5
    present(sampler, {0, 1, 2, 3})
    present(sampler, {0, 3})
    assert sampler.training.tolist() == [1, 2, 4]
    for _ in range(4):
        present(sampler, {1, 2})
    assert (sampler.training.tolist(), sampler.waiting.tolist()) == ([1, 2, 4], [])


SAMPLERS = st.builds(
    SievingSampler,
    st.integers(1, 40),
    keep=st.floats(0.05, 1),
    rate=st.floats(0, 1),
    interval=st.integers(1, 3),
    seed=st.integers(0, 9),
)


@settings(deadline=None)
@given(sampler=SAMPLERS, data=st.data())
def test_no_sample_is_lost_and_their_number_is_constant(sampler, data):
    kept = len(sampler.training)
    for _ in range(8):
        before, waiting = sampler.training.tolist(), sampler.waiting.tolist()
        present(sampler, set(data.draw(st.lists(st.integers(0, 39)))))
        assert len(sampler.training) == len(set(sampler.training.tolist())) == kept
        assert sorted(sampler.training.tolist() + sampler.waiting.tolist()) == list(range(sampler.size))
        gone = [i for i in before if i not in sampler.training]
        assert set(sampler.waiting.tolist()[len(waiting) - len(gone) :]) == set(gone), "to the tail"
        assert sampler.waiting.tolist()[: len(waiting) - len(gone)] == waiting[len(gone) :], "from the head"


@pytest.mark.parametrize("right", [set(), set(range(12))], ids=["none right", "all right"])
def test_every_sample_returns(right):
    sampler = SievingSampler(12, keep=0.5, rate=0.5, interval=1)
    seen: dict[int, int] = {}
    for _ in range(12):
        for i in sampler.training.tolist():
            seen[i] = seen.get(i, 0) + 1
        present(sampler, right)
    assert set(seen) == set(range(12))


def test_an_order_of_its_own_in_each_epoch_and_the_same_again():
    sampler, again = SievingSampler(30, keep=1.0, seed=4), SievingSampler(30, keep=1.0, seed=4)
    first = list(sampler)
    assert sorted(first) == list(range(30))
    assert first == list(sampler) == list(again)
    sampler.step()
    assert list(sampler) != first
    assert list(SievingSampler(30, keep=1.0, seed=5)) != first


@given(size=st.integers(1, 50), world=st.integers(1, 5), keep=st.floats(0.1, 1))
def test_processes_have_equal_parts_that_make_up_the_whole(size, world, keep):
    samplers = [SievingSampler(size, keep=keep, rank=rank, world=world) for rank in range(world)]
    parts = [list(sampler) for sampler in samplers]
    assert {len(part) for part in parts} == {len(samplers[0])}
    assert {i for part in parts for i in part} == set(samplers[0].training.tolist())


def test_workers_that_persist_see_the_exchange():
    sampler = SievingSampler(8, keep=0.5, rate=1.0, interval=1)
    loader = DataLoader(TensorDataset(torch.arange(8)), 2, sampler=sampler, num_workers=1, persistent_workers=True)
    for _ in range(3):
        expected = set(sampler.training.tolist())
        assert {int(i) for (batch,) in loader for i in batch} == expected
        sampler.step()


@settings(deadline=None)
@given(cut=st.integers(0, 7), once=st.booleans())
def test_a_saved_sieve_goes_on_as_it_would_have(cut, once, tmp_path_factory):
    path = tmp_path_factory.mktemp("sieve") / "state.pt"
    whole, first, second = (SievingSampler(20, keep=0.5, rate=0.4, interval=2, once=once) for _ in range(3))
    for epoch in range(8):
        if epoch == cut:
            torch.save(first.state_dict(), path)
            second.load_state_dict(torch.load(path, weights_only=True))
        going = first if epoch < cut else second
        assert list(whole) == list(going)
        right = {i for i in range(20) if i % (epoch + 2)}
        present(whole, right)
        present(going, right)
    assert torch.equal(whole.training, second.training)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(size=0), ValueError, "size: expected at least 1, got 0"),
        (dict(size=4, keep=0), ValueError, "keep: expected a number over 0 and up to 1, got 0"),
        (dict(size=4, rate=1.5), ValueError, "rate: expected a number from 0 to 1, got 1.5"),
        (dict(size=4, interval=0), ValueError, "interval: expected at least 1, got 0"),
        (dict(size=4, rank=2, world=2), ValueError, "rank: expected a number under world = 2, got 2"),
        (dict(size=4.0), TypeError, "size: expected a whole number, got 4.0"),
    ],
    ids=str,
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        SievingSampler(**arguments)


def test_records_that_do_not_fit_are_refused_and_change_nothing():
    sampler = SievingSampler(4)
    with pytest.raises(ValueError, match=r"correct: expected \[2\], one for each index, got \[3\]"):
        sampler.record(torch.tensor([0, 1]), torch.tensor([True] * 3))
    with pytest.raises(ValueError, match="index: expected numbers from 0 to 3, got 0 to 4"):
        sampler.record(torch.tensor([0, 4]), torch.tensor([True, True]))
    assert not sampler.learned.any()
    with pytest.raises(ValueError, match="state: expected forgetting events of 4 samples"):
        sampler.load_state_dict(SievingSampler(5).state_dict())
    with pytest.raises(ValueError, match="state: expected the keys"):
        sampler.load_state_dict({})
