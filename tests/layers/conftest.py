"""What all tests of Conv1D need: the stand-in in the place of transformers' module."""

import sys

import pytest

from tests.layers import stand_in
from wuskern.layers import conv1d


@pytest.fixture(autouse=True)
def _without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, conv1d.HOME, stand_in.module())
