"""The file that ``wuskern bench`` gives to pytest: a test for each variant of the layer that it is asked about.

All variants are verified and timed together, in turn, as wuskern/bench/measure.py has it. A test hands what
was measured of its variant to pytest-benchmark, by a clock that is moved on by hand.
"""

from typing import Any

import pytest

from wuskern.bench.measure import Measured
from wuskern.bench.plugin import PLUGIN
from wuskern.bench.turns import HandClock

hand_clock = HandClock()


@pytest.fixture(scope="module")
def measured(request: Any) -> Measured:
    try:
        return request.config.stash[PLUGIN].measure(request.config)
    except AssertionError as error:
        reason = f"not timed, since a result is wrong: {error}"
    except RuntimeError as error:  # such as too little memory
        reason = f"PyTorch could not run it: {str(error).splitlines()[0]}"
    pytest.fail(reason, pytrace=False)


@pytest.mark.benchmark(timer=hand_clock, disable_gc=True)
def test_layer(
    kind: str, shape: str, dtype: str, ratio: float, device: str, variant: str, measured: Measured, benchmark: Any
) -> None:
    benchmark.group = f"{kind} {shape} {dtype} {ratio:g}"
    seconds = iter([of_round[variant] for of_round in measured.seconds])

    def one_round() -> None:
        hand_clock.seconds += next(seconds, 0.0)  # none where nothing is timed

    benchmark.pedantic(one_round, rounds=max(1, len(measured.seconds)))
    benchmark.extra_info.update(measured.facts.get(variant, {}))
