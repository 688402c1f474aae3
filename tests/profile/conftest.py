"""Profiles that take no time, for tests of all but times."""

import pytest

from wuskern.profile import race
from wuskern.profile.recorded import Recorded


@pytest.fixture
def quick(monkeypatch):
    """One round of each way, without a look at memory, for which torch's profiler takes its time."""
    monkeypatch.setattr(race, "MOST_ROUNDS", 1)
    monkeypatch.setattr(race, "recorded", lambda step: Recorded(1, 1, 1))
    monkeypatch.setattr(race, "peak_bytes", lambda function, device: 0)
