"""WUS+LR beside every kind of scheduler: the rate is that of the schedule alone, from a twin, times the policy's factor."""

import copy
import warnings
import weakref

import pytest
import torch
import torch.nn as nn
from torch.optim import SGD, Optimizer
from torch.optim import lr_scheduler as torchs

import wuskern as wk
from wuskern.policies import WUSLR
from wuskern.policies.schedulers import inside

EAGER = dict(warmup=0, window=1, threshold=0.01, patience=2, cooldown=1, factor=0.5)  # of three steps, the first enters
STEPS, RATES = 12, (0.8, 0.2)
SCHEDULES = {
    "lambda": lambda o: torchs.LambdaLR(o, lambda step: 1 - step / 20),
    "lambda from zero": lambda o: torchs.LambdaLR(o, lambda step: step / 20),
    "multiplicative": lambda o: torchs.MultiplicativeLR(o, lambda step: 0.9),
    "one cycle": lambda o: torchs.OneCycleLR(o, [0.8, 0.2], total_steps=20),
    "cyclic": lambda o: torchs.CyclicLR(o, [0.1, 0.1], [0.8, 0.4], step_size_up=3),
    "warm restarts": lambda o: torchs.CosineAnnealingWarmRestarts(o, 5, eta_min=0.05),
    "cosine": lambda o: torchs.CosineAnnealingLR(o, 20, eta_min=0.05),
    "warm-up": lambda o: torchs.LinearLR(o, 0.5, total_iters=20),
    "exponential": lambda o: torchs.ExponentialLR(o, 0.97),
    "sequential": lambda o: torchs.SequentialLR(
        o, [torchs.LinearLR(o, 0.5, total_iters=3), torchs.CosineAnnealingLR(o, 9), torchs.StepLR(o, 2)], [3, 6]
    ),
    "chained": lambda o: torchs.ChainedScheduler([torchs.ConstantLR(o, 0.5, 4), torchs.ExponentialLR(o, 0.9)]),
}
each_schedule = pytest.mark.parametrize("name", SCHEDULES)


def model() -> nn.Module:
    return wk.convert(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))


def sgd(net: nn.Module) -> SGD:
    """A first step is done, as torch's schedulers want it to be before theirs."""
    optimizer = SGD([{"params": layer.parameters(), "lr": rate} for layer, rate in zip(net, RATES, strict=True)])
    optimizer._opt_called = True
    return optimizer


def rates(optimizer: Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def alone(name: str) -> list[list[float]]:
    optimizer = sgd(model())
    schedule, seen = SCHEDULES[name](optimizer), []
    for _ in range(STEPS):
        optimizer.step()
        schedule.step()
        seen.append(rates(optimizer))
    return seen


LIVING: "weakref.WeakSet[torchs.LRScheduler]" = weakref.WeakSet()


@pytest.fixture
def quickly(monkeypatch):
    """The policy looks for schedulers among those of the runs: the garbage collector takes a tenth of a second."""

    def found(optimizer: Optimizer) -> list[torchs.LRScheduler]:
        return [one for one in LIVING if one.optimizer is optimizer]

    monkeypatch.setattr("wuskern.policies.wus_lr.schedulers_of", found)


class Run:
    def __init__(self, name: str, policy_first: bool) -> None:
        net = model()
        self.optimizer = sgd(net)
        if policy_first:
            self.policy = WUSLR(net, self.optimizer, **EAGER)
        self.schedule = SCHEDULES[name](self.optimizer)
        if not policy_first:
            self.policy = WUSLR(net, self.optimizer, **EAGER)
        self.policy.attach(self.optimizer)
        LIVING.update([*inside(self.schedule), self.policy.scheduler])
        self.factor = 1.0

    def step(self) -> list[float]:
        """The rates by the factor, as they were without it."""
        entered = not self.policy.skipping
        entered &= self.policy.step(0.5)
        self.factor *= 0.5 if entered else 1.0
        self.optimizer.step()
        self.schedule.step()
        return [rate / self.factor for rate in rates(self.optimizer)]

    def state(self):
        return copy.deepcopy([self.optimizer.state_dict(), self.schedule.state_dict(), self.policy.state_dict()])


@each_schedule
@pytest.mark.parametrize("policy_first", [True, False])
def test_the_rate_is_the_product_of_both(name, policy_first, quickly):
    run = Run(name, policy_first)
    found = [run.step() for _ in range(STEPS)]
    assert run.factor == 0.5**4
    for step, (rates_found, expected) in enumerate(zip(found, alone(name), strict=True)):
        assert rates_found == pytest.approx(expected, abs=1e-12), f"step {step}"


@each_schedule
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)], ids=str)
def test_it_goes_on_from_a_state_whatever_is_loaded_first(name, order, quickly):
    whole = Run(name, policy_first=False)
    for _ in range(5):
        whole.step()
    state, factor = whole.state(), whole.factor
    expected = [whole.step() for _ in range(5, STEPS)]

    run = Run(name, policy_first=False)
    for i in order:
        (run.optimizer, run.schedule, run.policy)[i].load_state_dict(copy.deepcopy(state[i]))
    run.factor = factor
    assert [run.step() for _ in range(5, STEPS)] == expected


def test_a_schedule_that_is_made_in_a_window_has_the_factor():
    net = model()
    optimizer = sgd(net)
    policy = WUSLR(net, optimizer, **EAGER)
    policy.step(0.5), policy.step(0.5)
    schedule = torchs.LambdaLR(optimizer, lambda step: 1 - step / 20)
    optimizer.step()
    schedule.step()
    assert rates(optimizer) == pytest.approx([0.4 * 0.95, 0.1 * 0.95])


def test_min_lr_counts_as_the_factor_that_it_leaves():
    net = model()
    optimizer = sgd(net)
    policy = WUSLR(net, optimizer, min_lr=0.15, **EAGER)
    schedule = torchs.LambdaLR(optimizer, lambda step: 1 - step / 20)
    policy.step(0.5), policy.step(0.5)
    assert rates(optimizer) == [0.4, 0.15]
    optimizer.step()
    schedule.step()
    assert rates(optimizer) == pytest.approx([0.4 * 0.95, 0.15 * 0.95])
    assert schedule.get_last_lr() == rates(optimizer)


def test_a_schedule_of_another_optimizer_is_left_alone():
    net = model()
    optimizer, other = sgd(net), sgd(model())
    schedule = torchs.LambdaLR(other, lambda step: 1.0)
    policy = WUSLR(net, optimizer, **EAGER)
    policy.step(0.5), policy.step(0.5)
    assert policy.skipping
    assert schedule.base_lrs == list(RATES)
    assert other.param_groups[0]["initial_lr"] == RATES[0]


@pytest.mark.parametrize("patience", [1, 3])
def test_a_scheduler_of_another_library_that_undoes_the_factor_is_warned_of_once(patience):
    net = model()
    optimizer = sgd(net)
    policy = WUSLR(net, optimizer, **(EAGER | dict(patience=patience)))
    policy.attach(optimizer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(12):
            optimizer.step()
            optimizer.param_groups[0]["lr"] = 0.8 - step / 100
            policy.step(0.5)
    assert [str(w.message).split(":")[0] for w in caught] == ["WUSLR"]


def test_a_rate_in_a_tensor_stays_one():
    net, rate = model(), torch.tensor(0.5)
    optimizer = SGD(net.parameters(), rate)
    optimizer._opt_called = True
    policy = WUSLR(net, optimizer, **EAGER)
    schedule = torchs.LambdaLR(optimizer, lambda step: 1 - step / 20)
    policy.step(0.5), policy.step(0.5)
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(0.25 * 0.95)
