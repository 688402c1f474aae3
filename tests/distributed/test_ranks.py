"""The two processes of these tests: one that fails or ends fails its own test, and no other."""

import os

import pytest

from tests.distributed.ranks import Failed


def fails(rank):
    raise ValueError(f"on purpose {rank}")


def ends(rank):
    os._exit(1)


def number(rank):
    return rank


@pytest.mark.parametrize(("function", "told"), [(fails, "rank 1: .*on purpose 1"), (ends, "rank 1: the process has ended")])
def test_a_process_that_fails_or_ends_is_told_and_the_next_test_has_new_ones(ranks, function, told):
    with pytest.raises(Failed, match=f"(?s){told}"):
        ranks.run(function)
    assert ranks.run(number) == [0, 1]
