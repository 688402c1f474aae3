"""What is composed of layers is what whole steps save, in seconds of the processor, which other programs do not have."""

import statistics
import time

import pytest
import torch
import torch.nn as nn

import wuskern as wk
from wuskern.profile import step

pytestmark = [pytest.mark.more, pytest.mark.usefixtures("one_thread")]
CLOSE = 0.15  # bench/profile.py has the networks that people train, and a stricter bound


def linears() -> tuple[nn.Module, torch.Tensor]:
    return nn.Sequential(*(m for _ in range(4) for m in (nn.Linear(768, 768), nn.GELU()))), torch.randn(256, 768)


def convolutions() -> tuple[nn.Module, torch.Tensor]:
    net = [m for _ in range(4) for m in (nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU())]
    return nn.Sequential(*net), torch.randn(4, 64, 28, 28)


@pytest.mark.parametrize("make", [linears, convolutions])
def test_composed_is_measured(make, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(step, "CLOCK", time.process_time)
    found = wk.profile(*make(), seconds=30)
    model, x = make()
    wk.convert(model)
    ratios = []
    for turn in range(32):
        taken = {}
        for skip in (False, True):
            wk.set_skip(model, skip)
            model.zero_grad()
            begin = time.process_time()
            model(x).square().mean().backward()
            taken[skip] = time.process_time() - begin
        ratios += [taken[True] / taken[False]] if turn >= 2 else []
    assert found.composed == pytest.approx(1 - statistics.median(ratios), rel=CLOSE)
    assert found.measured == pytest.approx(1 - statistics.median(ratios), rel=CLOSE)
