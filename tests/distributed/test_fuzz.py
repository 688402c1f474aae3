"""Some random trainings in two processes, and a fault that they find. make fuzz has many more."""

import random
import subprocess
import sys
from unittest import mock

import pytest

from tests.conftest import ROOT
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


LOST, DEAF = (
    "from tests.fuzz import lost",
    """
import time

from tests.fuzz import lost

lost.TIMEOUT, lost.PATIENCE = 3, 1
lost.train = lambda rank, *_: time.sleep(60) if rank else 0  # as if they did not hear of the one that is lost
""",
)


def losing(program, count):
    """In a process of its own: forks have to have one thread."""
    command = [sys.executable, "-W", "ignore", "-c", f"{program}\nraise SystemExit(lost.main())", "--count", str(count)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.more
def test_processes_end_where_one_is_lost():
    done = losing(LOST, 8)
    assert done.returncode == 0, done.stderr


@pytest.mark.more
def test_a_process_that_waits_for_ever_is_found():
    done = losing(DEAF, 1)
    assert done.returncode == 1
    assert "the processes ended with [0, None, None]" in done.stderr
