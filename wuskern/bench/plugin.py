"""The plugin that pytest runs wuskern/bench/cases.py with: it has what was asked, measures it once, and prints the table."""

from typing import Any

import pytest

from wuskern.bench import table
from wuskern.bench.asked import Asked
from wuskern.bench.measure import Measured
from wuskern.bench.variants import names

PARAMETERS = ("kind", "shape", "dtype", "ratio", "device", "variant")
PLUGIN: "pytest.StashKey[Plugin]" = pytest.StashKey()


class Plugin:
    """What was asked, as pytest and pytest-benchmark see it: parameters, all strings and numbers, and what is measured."""

    def __init__(self, asked: Asked, rounds: int | None) -> None:
        self.asked, self.rounds = asked, rounds
        self.result: Measured | None = None

    def pytest_configure(self, config: Any) -> None:
        config.stash[PLUGIN] = self

    def pytest_generate_tests(self, metafunc: Any) -> None:
        a = self.asked
        dtype = str(a.dtype).removeprefix("torch.")
        cases = [(a.kind, a.shape, dtype, a.ratio, a.device, name) for name in names(a)]
        metafunc.parametrize(PARAMETERS, cases, ids=names(a))

    def measure(self, config: Any) -> Measured:
        """What was measured, at the first call."""
        if self.result is None:
            is_timed = not config.getoption("benchmark_disable")
            self.result = Measured(self.asked, self.rounds, is_timed)
        return self.result

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.result is not None:
            for line in table.lines(self.result):
                terminalreporter.write_line(line)
