"""What a policy says, once, of calls that it needs and never gets, and how its events are told apart."""

import copy
import gc
import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel

import wuskern as wk
from wuskern.policies import METHODS, WUS, Compose, MeProp, Policy, ProgressiveFreezing, RigL, ScoreMemory, SsProp
from wuskern.policies.base import CLAIMS, KEEPS
from wuskern.policies.calls import CALLS
from wuskern.train import pairs
from wuskern.train.methods import REQUIRED, Given, build, defaults, parse

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def alone() -> None:
    """No policies of other tests."""
    gc.collect()


def network() -> nn.Module:
    return wk.convert(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)))


def attached(policy: Policy) -> Policy:
    policy.attach(torch.optim.SGD(policy.model.parameters(), 0.1))
    return policy


def memory() -> Policy:
    return ScoreMemory(network(), ratio=0.25)


def rigl() -> Policy:
    return RigL(network(), epochs=5, interval=2, sparsity=0.5)


def freezing() -> Policy:
    return ProgressiveFreezing(network(), X, start=0, end=2)


def wus() -> Policy:
    return WUS(network(), window=1, warmup=0)


def bars(unit: str) -> Policy:
    return SsProp(wk.convert(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 2))), unit=unit)


# A policy, the calls that it gets, and what it then says it misses.
OMISSIONS = {
    "no step is counted": (memory, ["step", "step", "step"], "after_step"),
    "no step is counted, by epochs": (memory, ["after_epoch", "after_epoch"], "after_step"),
    "no step is announced": (
        lambda: attached(wk.policies.MEST(network(), epochs=5)), ["after_step", "after_epoch"] * 2, "before_step"
    ),
    "no optimizer": (rigl, ["before_step", "after_step"], "attach"),
    "no epoch, but evaluations": (lambda: attached(freezing()), ["step", "step", "step"], "after_epoch"),
    "frozen without an optimizer": (freezing, ["after_epoch"] * 2, "attach"),
    "no evaluation": (wus, ["after_epoch", "after_epoch", "after_epoch"], "step"),
    "skips without an optimizer": (wus, ["step", "step", "step"], "attach"),
    "bars of epochs": (lambda: bars("epoch"), ["step", "step", "step"], "after_epoch"),
    "bars of steps": (lambda: bars("step"), ["after_epoch", "after_epoch"], "after_step"),
    "part of a whole": (lambda: Compose([memory()]), ["after_epoch", "after_epoch"], "after_step"),
}  # fmt: skip


def call(policy: Policy, names: list[str]) -> None:
    for name in names:
        policy.step(0.5) if name == "step" else getattr(policy, name)()


@pytest.mark.parametrize("case", OMISSIONS)
def test_what_never_comes_is_said_once(case: str, caplog: pytest.LogCaptureFixture) -> None:
    make, calls, missing = OMISSIONS[case]
    policy = make()
    call(policy, calls)
    said = [record.getMessage() for record in caplog.records if record.name == "wuskern"]
    assert len(said) == 1, said
    assert f"expected {missing} to be called {CALLS[missing]}" in said[0]
    call(policy, calls)
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("make", "calls"),
    [
        (memory, ["after_step", "step", "after_epoch"]),
        (rigl, ["after_step", "after_step", "after_epoch"]),
        (freezing, ["after_epoch", "step", "step", "step", "step"]),
        (freezing, ["step", "step", "after_epoch"]),
        (wus, ["step", "after_epoch"]),
        (lambda: MeProp(network(), ratio=0.5), ["step", "after_epoch"]),
        (lambda: bars("step"), ["after_step", "step"]),
    ],
)
def test_who_calls_what_is_needed_hears_nothing(
    make: Callable[[], Policy], calls: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    call(attached(make()), calls * 5)
    assert caplog.records == []


# ---- two policies on one model --------------------------------------------------------------------------------------


def two(*makes: Callable[[nn.Module], Policy]) -> list[Policy]:
    net = network()
    return [make(net) for make in makes]


PAIRS = {
    "two that skip": (lambda net: attached(WUS(net)), lambda net: attached(WUS(net))),
    "rows and rows": (lambda net: MeProp(net, ratio=0.5), lambda net: ScoreMemory(net, ratio=0.5)),
    "a skip and rows": (lambda net: attached(WUS(net)), lambda net: MeProp(net, ratio=0.5)),
}


@pytest.mark.parametrize("case", PAIRS)
def test_two_policies_on_one_model_are_said_once(case: str, caplog: pytest.LogCaptureFixture) -> None:
    policies = two(*PAIRS[case])
    for _ in range(3):
        for policy in policies:
            policy.after_step()
            policy.after_epoch()
            policy.step(0.5)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [type(policies[0]).__name__]
    assert "wuskern.policies.Compose" in caplog.text


def test_two_in_one_compose_one_that_is_released_and_one_that_is_gone_are_none(caplog: pytest.LogCaptureFixture) -> None:
    first, second = two(*PAIRS["a skip and rows"])
    call(attached(Compose([first, second])), ["after_step", "after_epoch", "step"])
    first, second = two(*PAIRS["rows and rows"])
    first.release()
    call(second, ["after_step", "after_epoch", "step"])
    first, second = two(*PAIRS["rows and rows"])
    del first
    gc.collect()
    call(second, ["after_step", "after_epoch", "step"])
    assert caplog.records == []


def test_one_that_could_not_be_made_is_none(caplog: pytest.LogCaptureFixture) -> None:
    net = network()
    with pytest.raises(ValueError, match="eta") as kept:
        ScoreMemory(net, ratio=0.5, eta=2.0)
    call(MeProp(net, ratio=0.5), ["after_step"])
    assert caplog.records == []
    assert kept.traceback


# ---- events ---------------------------------------------------------------------------------------------------------


def test_evaluations_and_epochs_are_counted_apart() -> None:
    """Two evaluations in each epoch open the window twice as early, and freeze no layer sooner."""
    net = network()
    watching, depth = WUS(net, window=1, warmup=0, patience=1), ProgressiveFreezing(net, X, start=0, end=4, share=0.9)
    both = attached(Compose([watching, depth]))
    assert not both.step(0.5)
    assert both.step(0.5)
    assert depth.epoch == 0
    both.after_epoch()
    assert (depth.epoch, len(watching.history)) == (1, 2)


def test_a_step_without_a_metric_is_an_epoch_where_nobody_evaluates() -> None:
    policy = attached(freezing())
    assert policy.step() is False
    assert policy.epoch == 1
    for evaluating in (attached(wus()), attached(Compose([wus()]))):
        with pytest.raises(TypeError, match="metric: expected a number, got None"):
            evaluating.step()


# ---- what each method declares --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_a_method_declares_all_that_others_derive(name: str) -> None:
    kind = METHODS[name]
    assert kind.name == name
    assert kind.source
    assert set(kind.needs) <= set(CALLS)
    assert set(kind.decides) <= {*CLAIMS, KEEPS, "data"}
    assert kind.__hash__ is object.__hash__  # an eq of fields would compare models, and take the hash
    documented = inspect.getdoc(kind) or ""
    missing = [f.name for f in fields(kind) if f.name not in documented]
    assert missing == []


@pytest.mark.parametrize("name", [name for name in METHODS if name != "sieve"])
def test_a_policy_claims_what_its_method_says(name: str) -> None:
    model = pairs.network()
    given = Given(model, torch.optim.SGD(model.parameters(), 0.1), torch.zeros(2, *pairs.IMAGES), samples=12, seed=0)
    made = build(parse(pairs.trial(name))[0], given, epochs=3)
    claimed = {kind for kind, layers in made.policy.claims.items() if layers}
    assert claimed == set(METHODS[name].decides) - {"data"} - ({"shape"} if name == "mesimp" else set())


@pytest.mark.parametrize("name", METHODS)
def test_a_trial_gives_what_has_no_default(name: str) -> None:
    given = {part.partition("=")[0] for part in METHODS[name].trial.split(":") if part}
    needed = {key for key, value in defaults(name).items() if value is REQUIRED and key != "epochs"}
    assert needed <= given <= set(defaults(name))


@pytest.mark.parametrize("call", [lambda p: p.before_step(), lambda p: p.after_epoch(), lambda p: p.step(0.5)])
def test_a_layer_that_was_replaced_is_named_once(call, caplog: pytest.LogCaptureFixture) -> None:
    policy = attached(wus())
    policy.after_step()
    policy.model[4] = nn.Linear(16, 7)
    for _ in range(3):
        call(policy)
    assert [message for message in caplog.messages if "replaced" in message] == [
        "WUS: expected the layers that the policy was made for, got a model in which 4 was replaced: convert the model again "
        "and make the policy anew"
    ]


# ---- names ----------------------------------------------------------------------------------------------------------


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


def in_part(model: nn.Module) -> nn.Module:
    model[2] = torch.compile(model[2], backend="eager")
    return model


def under_ddp(model: nn.Module) -> nn.Module:
    wrapped: Any = DistributedDataParallel.__new__(DistributedDataParallel)
    nn.Module.__init__(wrapped)
    wrapped.module = model
    return wrapped


@pytest.mark.parametrize("wrap", [compiled, in_part, under_ddp, lambda model: compiled(under_ddp(model))])
def test_states_know_the_same_names_wrapped_or_not(wrap: Callable[[nn.Module], nn.Module]) -> None:
    plain, wrapped = (wk.policies.MEST(net, epochs=3, sparsity=0.5) for net in (network(), wrap(network())))
    assert list(wrapped.layers) == ["0", "2", "4"]
    for saved, loaded in ((plain, wrapped), (wrapped, plain)):
        state = copy.deepcopy(saved.state_dict())
        state["masks"]["0"].logical_not_()
        loaded.load_state_dict(state)
        assert torch.equal(loaded.masks["0"], state["masks"]["0"])
