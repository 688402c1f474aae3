"""WUS+LR: rates worked by hand, beside an outer scheduler, and continued at any point of a history."""

import math
import weakref

import pytest
import torch
import torch.nn as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LRScheduler, MultiStepLR, ReduceLROnPlateau

import wuskern as wk
from wuskern.policies import WUS, WUSLR

# A window of two periods after each standstill, then one full period.
EAGER = dict(warmup=0, window=1, threshold=0.01, patience=2, cooldown=1)


def model() -> nn.Module:
    return wk.convert(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))


def sgd(net: nn.Module, *rates: float) -> SGD:
    """One group per rate; its first step is done, as torch's schedulers want it to be before theirs."""
    groups = [{"params": layer.parameters(), "lr": rate} for layer, rate in zip(net, rates, strict=True)]
    return stepped(SGD(groups))


def stepped(optimizer: SGD) -> SGD:
    optimizer._opt_called = True
    return optimizer


def rates(optimizer: SGD) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


LIVING: "weakref.WeakSet[LRScheduler]" = weakref.WeakSet()


def living(optimizer: Optimizer) -> list[LRScheduler]:
    """What the policy finds out of the garbage collector, which takes as long as a thousand of these steps."""
    return [scheduler for scheduler in LIVING if scheduler.optimizer is optimizer]


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr("wuskern.policies.wus_lr.schedulers_of", living)


# Metrics, then mode and first group's rate (from 1) after each of them, with factor .5.
HISTORIES = {
    "each window halves the rate once, on entering": (
        EAGER,
        [0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1],
        # enters after the 2nd, leaves after the 4th, enters again after the 5th
        "FSSFSSF",
        [1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25],
    ),
    "a window that the guard ends keeps its new rate": (
        EAGER | dict(patience=9, guard=0.05),
        [0.5, 0.5, 0.44, 0.6, 0.6],
        "FSFFS",
        [1, 0.5, 0.5, 0.5, 0.25],
    ),
    "no window, no change": (EAGER, [0.1, 0.2, 0.3, 0.4], "FFFF", [1, 1, 1, 1]),
    "min_lr stops the fall": (
        EAGER | dict(patience=1, min_lr=0.2),
        [0.1] * 7,
        "FSFSFSF",
        [1, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2],
    ),
}


@pytest.mark.parametrize("name", HISTORIES)
def test_histories_worked_by_hand(name):
    arguments, metrics, modes, expected = HISTORIES[name]
    net = model()
    optimizer = sgd(net, 1.0, 1.0)
    policy = WUSLR(net, optimizer, **arguments)
    seen = [("FS"[policy.step(metric)], rates(optimizer)[0]) for metric in metrics]
    assert seen == list(zip(modes, expected, strict=True))


def test_every_group_is_reduced_and_none_is_raised_to_min_lr():
    net = model()
    optimizer = sgd(net, 0.8, 0.01)
    policy = WUSLR(net, optimizer, factor=0.1, min_lr=0.1, **EAGER)
    policy.step(0.5)
    policy.step(0.5)
    assert rates(optimizer) == [0.1, 0.01]
    assert net[0].skip


def test_weights_train_at_the_new_rate_after_a_window():
    """A gradient of ones and plain SGD: the step is the rate."""
    net = model()
    optimizer = SGD(net.parameters(), 0.5)
    policy = WUSLR(net, optimizer, factor=0.25, **EAGER)
    policy.attach(optimizer)
    moved = []
    for metric in (0.5, 0.5, 0.5, 0.5):
        before = [p.detach().clone() for p in (net[0].weight, net[0].bias)]
        for p in net.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        moved.append(tuple((b - p).max().item() for b, p in zip(before, (net[0].weight, net[0].bias), strict=True)))
        policy.step(metric)
    full, skipped = (pytest.approx(0.5), pytest.approx(0.5)), (0, pytest.approx(0.125))
    assert moved[:3] == [full, full, skipped]
    assert not policy.skipping
    assert rates(optimizer) == [0.125]


def test_a_rate_held_in_a_tensor_stays_that_tensor():
    net = model()
    rate = torch.tensor(0.5)
    optimizer = stepped(SGD(net.parameters(), rate))
    policy = WUSLR(net, optimizer, min_lr=0.375, **EAGER)
    policy.step(0.5)
    policy.step(0.5)
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == 0.375
    rate.fill_(0.0)
    policy.load_state_dict(policy.state_dict() | {"rates": [0.25]})
    assert rate.item() == 0.25


def test_a_scheduler_of_ones_own_is_stepped_on_entering():
    net = model()
    optimizer = sgd(net, 1.0, 1.0)
    policy = WUSLR(net, optimizer, scheduler=MultiStepLR(optimizer, [2], gamma=0.1), **(EAGER | dict(patience=1)))
    seen = []
    for _ in range(6):
        policy.step(0.5)
        seen.append(rates(optimizer)[0])
    assert seen == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1])  # its second step is the second window's


EPOCHS = 12


def cosine(epoch: int) -> float:
    """What an annealed rate is by its formula, from 1 to 0."""
    return (1 + math.cos(math.pi * epoch / EPOCHS)) / 2


@pytest.mark.parametrize("outer_first", [True, False])
def test_beside_a_cosine_schedule_the_rate_is_the_product(outer_first):
    net = model()
    optimizer = sgd(net, 1.0, 0.5)
    made = [CosineAnnealingLR(optimizer, EPOCHS)] if outer_first else []
    policy = WUSLR(net, optimizer, factor=0.5, **EAGER)
    outer = made[0] if made else CosineAnnealingLR(optimizer, EPOCHS)
    LIVING.update({outer, policy.scheduler})
    windows = 0
    for epoch in range(1, EPOCHS + 1):
        entered = not policy.skipping
        entered &= policy.step(0.5)
        windows += entered
        outer.step()
        expected = cosine(epoch) * 0.5**windows
        assert rates(optimizer) == pytest.approx([expected, expected / 2], abs=1e-12)
    assert windows == 4


# ---- state -----------------------------------------------------------------------------------------------------------


def made(kind: str) -> tuple[WUSLR, CosineAnnealingLR]:
    net = model()
    optimizer = sgd(net, 1.0, 0.1)
    inner = MultiStepLR(optimizer, [1, 3], gamma=0.3) if kind == "scheduler" else None
    policy = WUSLR(net, optimizer, factor=0.7, min_lr=0.001, scheduler=inner, warmup=1, window=1, threshold=0.1)
    outer = CosineAnnealingLR(optimizer, 40)
    LIVING.update({outer, policy.scheduler})
    return policy, outer


def run(policy: WUSLR, outer: CosineAnnealingLR, metrics: list[float]) -> list[tuple[bool, list[float]]]:
    seen = []
    for metric in metrics:
        skips = policy.step(metric)
        outer.step()
        seen.append((skips, rates(policy.optimizer)))
    return seen


@pytest.mark.parametrize("kind", ["factor", "scheduler"])
@pytest.mark.parametrize("restore_optimizer", [True, False])
@settings(max_examples=40, deadline=None)
@given(metrics=st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_it_continues_at_every_point_of_a_history(kind, restore_optimizer, metrics):
    """Bit for bit, whether or not the optimizer's own state came back, and when loaded twice."""
    expected = run(*made(kind), metrics)
    for cut in range(len(metrics) + 1):
        policy, outer = made(kind)
        before = run(policy, outer, metrics[:cut])
        states = policy.state_dict(), outer.state_dict(), policy.optimizer.state_dict()

        policy, outer = made(kind)
        outer.load_state_dict(states[1])
        for _ in range(2):
            policy.load_state_dict(states[0])
        if restore_optimizer:
            policy.optimizer.load_state_dict(states[2])
        assert before + run(policy, outer, metrics[cut:]) == expected


def test_a_state_is_plain_data_and_does_not_change_with_its_policy(tmp_path):
    policy, outer = made("scheduler")
    run(policy, outer, [0.5, 0.5, 0.5])
    assert policy.skipping
    state = policy.state_dict()
    before = str(state)
    torch.save(state, tmp_path / "state.pt")
    run(policy, outer, [0.5] * 9)
    assert str(state) == before
    policy.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert str(policy.state_dict()) == before


def test_a_state_that_does_not_fit_changes_nothing():
    policy, _ = made("factor")
    before = str(policy.state_dict())
    plain = WUS(model()).state_dict() | {"left": 3}
    with pytest.raises(ValueError, match="state: expected that of WUSLR, got that of 'WUS'"):
        policy.load_state_dict(plain)
    with pytest.raises(ValueError, match="state: expected rates, a list of 2, got"):
        policy.load_state_dict(policy.state_dict() | {"left": 1, "rates": [0.1]})
    assert str(policy.state_dict()) == before


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(factor=1.0), ValueError, "factor: expected a number between 0 and 1, got 1.0"),
        (dict(factor=0), ValueError, "factor: expected a number between 0 and 1, got 0"),
        (dict(factor=math.nan), ValueError, "factor: expected a number between 0 and 1, got nan"),
        (dict(factor="half"), TypeError, "factor: expected a number, got 'half'"),
        (dict(min_lr=-1), ValueError, "min_lr: expected a finite number from 0, got -1"),
        (dict(min_lr=math.inf), ValueError, "min_lr: expected a finite number from 0, got inf"),
        (dict(min_lr=[0.1]), TypeError, r"min_lr: expected a number, got \[0.1\]"),
        (dict(scheduler=0.5), TypeError, "scheduler: expected one of torch's that needs no metric, got float"),
        (dict(window=0), ValueError, "window: expected at least 1, got 0"),
        (dict(optimizer="sgd"), TypeError, "optimizer: expected one of torch's, got str"),
    ],
)
def test_bad_arguments_leave_the_optimizer_as_it_was(arguments, error, message):
    net = model()
    optimizer = sgd(net, 1.0, 1.0)
    before = str(optimizer.state_dict())
    with pytest.raises(error, match=message):
        WUSLR(net, **(dict(optimizer=optimizer) | arguments))
    assert str(optimizer.state_dict()) == before


def test_schedulers_that_cannot_be_stepped_on_entering_are_refused():
    net = model()
    optimizer = sgd(net, 1.0, 1.0)
    with pytest.raises(TypeError, match="got ReduceLROnPlateau"):
        WUSLR(net, optimizer, scheduler=ReduceLROnPlateau(optimizer))
    with pytest.raises(ValueError, match="scheduler: expected one that acts on the given optimizer"):
        WUSLR(net, optimizer, scheduler=ExponentialLR(sgd(model(), 1.0, 1.0), 0.5))
