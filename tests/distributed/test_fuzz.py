"""Some random trainings in two processes, and a fault that they find. make fuzz has many more."""

import random
from unittest import mock

from tests.fuzz import distributed
from wuskern.distributed import hook


def in_two_that_add_up(rank, key):
    """Where they should take the average."""

    def reduce(bucket):
        flat = bucket.buffer()
        return hook.dist.all_reduce(flat, async_op=True).get_future().then(hook._value)

    with mock.patch.object(hook, "average", return_value=reduce):
        return distributed.in_two(rank, key)


def test_random_trainings(ranks):
    attempt = distributed.Distributed(ranks)
    assert [fault for i in range(4) if (fault := attempt(random.Random(f"here {i}")))] == []


def test_a_wrong_average_is_found(ranks):
    key = next(key for key in map(str, range(99)) if distributed.Scenario(key).prepared)
    fault = distributed.Distributed(ranks, in_two_that_add_up).compare(key)
    assert fault is not None
    assert "step 0" in fault
