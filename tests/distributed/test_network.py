"""bench.network: each of its methods trains for a moment, and both processes agree on what the first one found."""

import importlib.util

import pytest

from bench.network import training
from bench.network.methods import METHODS, NOT_FROM_SCRATCH
from bench.network.training import Run, run

pytestmark = pytest.mark.more


class ThreeRounds:
    """A clock that a slow machine does not change: a third of the budget of 0.6 s passes from one look to the next."""

    def __init__(self):
        self.looks = -1

    def tell(self):
        self.looks += 1
        return 0.2 * self.looks

    def stand(self, since):
        pass


def trained(rank, task, methods):
    training.Clock = ThreeRounds
    return {method: run(Run(task, method, "loopback", 0.6, 3e-3, 0), rank, None) for method in methods}


@pytest.mark.parametrize("task", ["tiny", "small vgg11"])
def test_every_method_trains(ranks, task):
    peft = importlib.util.find_spec("peft") is not None
    methods = [m for m in METHODS if (task == "tiny" or m not in NOT_FROM_SCRATCH) and (peft or "LoRA" not in m)]
    first, second = ranks.run(trained, task, methods)
    assert list(first) == methods
    for method in methods:
        assert first[method]["steps"] == 3 * 8, method
        assert first[method] == second[method]
        assert first[method]["tests"][-1][0] == 0.6
