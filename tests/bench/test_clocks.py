"""The clock of a GPU, on a GPU and a host that keep time by themselves: neither is there, and both are exact."""

import pytest
import torch

from wuskern.bench import clocks


class Machine:
    """A host and a GPU. The host launches a kernel in ``launching`` seconds and goes on; the GPU takes ``kernel`` seconds for
    it once it is launched and what was launched before is done."""

    def __init__(self, launching: float, kernel: float) -> None:
        self.launching, self.kernel = launching, kernel
        self.host = self.gpu = 0.0  # the host's time, and when the GPU will be done

    def call(self) -> None:
        self.host += self.launching
        self.gpu = max(self.gpu, self.host) + self.kernel

    def sleep(self, cycles: int) -> None:
        self.gpu = max(self.gpu, self.host) + cycles / clocks.CYCLES_PER_SECOND

    def synchronize(self) -> None:
        self.host = max(self.host, self.gpu)

    def event(self, enable_timing: bool) -> "Event":
        return Event(self)


class Event:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def record(self) -> None:
        self.at = max(self.machine.gpu, self.machine.host)

    def synchronize(self) -> None:
        self.machine.synchronize()

    def elapsed_time(self, end: "Event") -> float:
        return 1e3 * (end.at - self.at)


def timed(monkeypatch, launching: float, kernel: float, calls: int) -> tuple[float, int]:
    machine, run = Machine(launching, kernel), []
    monkeypatch.setattr(torch.cuda, "Event", machine.event)
    monkeypatch.setattr(torch.cuda, "_sleep", machine.sleep)
    monkeypatch.setattr(torch.cuda, "synchronize", machine.synchronize)
    monkeypatch.setattr(clocks.time, "perf_counter", lambda: machine.host)
    monkeypatch.setattr(clocks.torch, "empty", lambda *_, **__: torch.zeros(1))
    seconds = clocks.on_gpu(lambda: run.append(machine.call()), [()] * calls)
    return seconds, len(run)


@pytest.mark.parametrize(("launching", "kernel"), [(2e-5, 5e-6), (1e-4, 2e-5), (1e-6, 1e-3)])
@pytest.mark.parametrize("calls", [1, 4])
def test_what_the_host_takes_is_not_counted(launching, kernel, calls, monkeypatch):
    """Two events around the calls alone would measure the launching, which takes longer than most kernels."""
    seconds, run = timed(monkeypatch, launching, kernel, calls)
    assert seconds == pytest.approx(kernel)
    assert run == calls


def test_long_launching_is_hidden_by_a_longer_sleep(monkeypatch):
    seconds, run = timed(monkeypatch, 3e-3, 1e-5, 4)
    assert seconds == pytest.approx(1e-5)
    assert run == 8  # again, once it is known how long the host takes


def test_launching_that_is_too_long_is_timed_as_it_is(monkeypatch):
    seconds, _ = timed(monkeypatch, 1.0, 1e-5, 2)
    assert seconds > 0.5
