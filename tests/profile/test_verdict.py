"""The line that a profile comes to."""

import pytest

from wuskern.profile.result import Measured
from wuskern.profile.verdict import verdict

METHODS = {"skip": "wus, blocks", "columns 5%": "paca", "rows 5%": "meprop", "3 of 6 layers frozen": "freeze, autofreeze"}


def way(name: str, of_dense: float, kept: int = 100) -> Measured:
    return Measured(name, METHODS.get(name, ""), of_dense, of_dense, of_dense, of_dense, kept, 0, 0)


DENSE = way("dense", 1.0)
CASES = {
    "a skip": ([way("skip", 0.7, 80), way("rows 5%", 0.9)], "use skip (wus, blocks): it saves 30% of each step that skips and"
    " 20% of what forward keeps"),
    "a part that saves nearly as much": (
        [way("skip", 0.7), way("rows 5%", 0.85), way("columns 5%", 0.74, 50)],
        "use columns 5% (paca): it saves 26% of each step and 50% of what forward keeps",
    ),
    "frozen layers on top": (
        [way("skip", 0.7), way("3 of 6 layers frozen", 0.5)],
        "use skip (wus, blocks): it saves 30% of each step that skips; 3 of 6 layers frozen (freeze, autofreeze) 50%",
    ),
    "frozen layers alone": (
        [way("skip", 0.99), way("rows 5%", 1.2), way("3 of 6 layers frozen", 0.8)],
        "use 3 of 6 layers frozen (freeze, autofreeze): it saves 20% of each step",
    ),
    "nothing": (
        [way("skip", 0.97), way("rows 5%", 1.3)],
        "do not bother: the best of these, skip, saves 3% of a step; 60% of a step is outside of the layers",
    ),
    "slower": (
        [way("skip", 1.1)],
        "do not bother: the best of these, skip, saves 0% of a step; 60% of a step is outside of the layers",
    ),
    "memory": (
        [way("skip", 0.98, 90), way("columns 5%", 1.01, 60)],
        "for memory alone: columns 5% (paca) keeps 40% less for backward, in 101% of the time",
    ),
    "no time": ([], "no verdict: there was time for dense steps alone"),
}  # fmt: skip


@pytest.mark.parametrize(("others", "expected"), CASES.values(), ids=CASES)
def test_the_verdict(others, expected):
    assert verdict([DENSE, *others], 0.6, None) == expected


def test_what_cannot_be_converted_is_said():
    assert verdict([DENSE], None, "no layer") == "do not bother: no layer"
