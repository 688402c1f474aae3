"""Every policy's ``load_state_dict``: the state of something else is refused, and nothing has changed then."""

import copy
import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor

import wuskern as wk
from tests.policies.resumable import IMAGES, METHODS, MICRO, MIDDLE, Run, mlp
from tests.policies.test_resume import same
from wuskern.policies import WUS, Compose, SingleShotFreezing

# Of the methods with the same class those that any state of the other fits: they remember nothing of the model, or the same.
FITTING = [
    {"MeProp", "MeProp, compact", "MeProp, random", "MeProp, per example"},
    {"SsProp, bars of steps", "SsProp, cosine of epochs"},
    {"MeSimp", "MeSimp, each"},
]
HALF = ("RigL", "RigL, 2:4")  # into the first: a mask of two of each four is one of the half


@pytest.fixture(scope="module")
def runs() -> dict[str, Run]:
    """All methods, in the middle. No test changes them."""
    found = {name: Run(name) for name in METHODS}
    for run in found.values():
        run.until(MIDDLE)
    return found


def holder(run: Run) -> Any:
    """What has a state: the policy, or the sampler alone."""
    return run.own if run.policy is None else run.policy


def everything(run: Run) -> dict[str, Any]:
    """What a refused state must not change."""
    plans = {} if run.policy is None else {name: layer.plan for name, layer in run.policy.layers.items()}
    frozen = [] if run.policy is None else [id(p) for p in run.policy.frozen_parameters()]
    state = run.state()
    grads = {name: grad.to_dense() for name, grad in state["sparse_grads"].items()}
    return state | {"sparse_grads": grads, "plans": plans, "frozen": frozen}


def refused(run: Run, state: Any) -> bool:
    """Whether it is; then with the right error, and without a trace."""
    before, words = copy.deepcopy(everything(run)), ""
    try:
        holder(run).load_state_dict(state)
    except ValueError as error:
        words = str(error)
    else:
        return False
    after = everything(run)
    assert words.startswith("state: expected ")
    assert [key for key in before if not same(before[key], after[key])] == [], words
    return True


def started(name: str, run: Run) -> Run:
    """A run that goes on from where that one is."""
    other = Run(name)
    other.load(copy.deepcopy(run.state()))
    return other


def fits(name: str, other: str) -> bool:
    """Whether the state of that other one is one that it may have had itself."""
    return name == other or (name, other) == HALF or any({name, other} <= names for names in FITTING)


@pytest.mark.parametrize("name", METHODS)
def test_only_states_of_its_own_kind_are_loaded(name, runs):
    for other, its in runs.items():
        state = copy.deepcopy(holder(its).state_dict())
        if fits(name, other):
            assert not refused(started(name, runs[name]), state), other
        else:
            assert refused(runs[name], state), other


# ---- by hand --------------------------------------------------------------------------------------------------------


def put(value: Any, *path: Any) -> Any:
    """A change: of the value there, by a function of it, or to another value."""

    def change(state: Any) -> None:
        for key in path[:-1]:
            state = state[key]
        state[path[-1]] = value(state[path[-1]]) if callable(value) else value

    return change


def in_record(place: int, value: Any) -> Any:
    return put(lambda record: (*record[:place], value(record[place]), *record[place + 1 :]), "records", "1")


def swapped(mask: Tensor) -> Tensor:
    """One more weight trains."""
    mask.view(-1)[mask.view(-1).logical_not().nonzero()[0]] = True
    return mask


BAD = {
    "another policy": ("SingleShotFreezing", put("PeriodicFreezing", "policy")),
    "no policy": ("WUS", put(None, "policy")),
    "epochs under 0": ("ProgressiveFreezing", put(-1, "epoch")),
    "half an epoch": ("ProgressiveFreezing", put(1.5, "epoch")),
    "True for an epoch": ("ComposerFreezing", put(True, "epoch")),
    "epochs that no float holds": ("PipeTransformerFreezing", put(10**400, "epoch")),
    "steps past the interval": ("AutoFreeze", put(1, "steps")),
    "more layers than there are": ("AutoFreeze", put(4, "frozen")),
    "a norm under 0": ("AutoFreeze", put(-1.0, "norms", "8")),
    "a norm of another layer": ("AutoFreeze", put(1.0, "norms", "9")),
    "sums of another layer": ("AutoFreeze", lambda state: state["sums"].update({"1": state["sums"].pop("0")})),
    "sums of another dtype": ("AutoFreeze", put(Tensor.float, "sums", "0")),
    "a metric that is none": ("WUS", put([math.nan], "history")),
    "metrics as a word": ("WUS", put("12", "history")),
    "more periods than patience": ("WUS", put(3, "left")),
    "no entry in a window": ("WUS", put(math.nan, "entry")),
    "a rate for another group": ("WUSLR", put([0.1, 0.1], "rates")),
    "a rate that is NaN": ("WUSLR", put([math.nan], "rates")),
    "a rate under 0": ("WUSLR", put([-0.1], "rates")),
    "another factor": ("WUSLR", put(0.25, "scheduler", "gamma")),
    "a method of the scheduler": ("WUSLR", put(5, "scheduler", "step")),
    "a scheduler of other words": ("WUSLR", put({"gamma": 0.5}, "scheduler")),
    "steps of bars under 0": ("SsProp, bars of steps", put(-1, "t")),
    "a row twice": ("ScoreMemory", put(lambda rows: rows[:1].repeat(len(rows)), "rows", "1")),
    "rows in another order": ("ScoreMemory", put(lambda rows: rows.flip(0), "rows", "1")),
    "a row less": ("ScoreMemory", put(lambda rows: rows[1:], "rows", "1")),
    "a row out of range": ("ScoreMemory", put(lambda rows: rows + 16, "rows", "1")),
    "a row under 0": ("ScoreMemory", put(lambda rows: rows - 16, "rows", "1")),
    "rows of another dtype": ("ScoreMemory", put(Tensor.int, "rows", "1")),
    "memory of another width": ("ScoreMemory", put(lambda memory: memory[:-1], "memory", "1")),
    "memory under 0": ("ScoreMemory", put(lambda memory: memory - 1e9, "memory", "1")),
    "memory on no device": ("ScoreMemory", put(lambda memory: memory.to("meta"), "memory", "1")),
    "scores of another width": ("ScoreMemory, reused", put(lambda scores: scores[:-1], "scores", "0")),
    "steps past the reuse": ("ScoreMemory, reused", put(3, "steps")),
    "as many rows as at no level": ("TinyProp", put(torch.arange(8), "rows", "0")),
    "a maximum that is NaN": ("TinyProp", put(math.nan, "largest", "0")),
    "a mask with a weight more": ("MEST", put(swapped, "masks", "0")),
    "a mask of another shape": ("MEST", put(lambda mask: mask.transpose(0, 1), "masks", "0")),
    "a mask of numbers": ("MEST", put(Tensor.float, "masks", "0")),
    "a layer due that there is not": ("MEST", put(["1"], "due")),
    "no generator": ("MEST", put(torch.zeros(5, dtype=torch.uint8), "generator")),
    "a generator that is none": ("MEST", put(lambda state: torch.zeros_like(state), "generator")),
    "three of four": ("RigL, 2:4", put(swapped, "masks", "1")),
    "an epoch that began later": ("RigL", put(99, "begun")),
    "no row alive": ("MeSimp", in_record(0, torch.zeros_like)),
    "fewer rows": ("MeSimp", in_record(0, lambda alive: alive[1:])),
    "more counts than choices": ("MeSimp", in_record(1, lambda counts: counts.index_fill(0, torch.tensor([0]), 10**6))),
    "counts under 0": ("MeSimp", in_record(1, lambda counts: counts - 10**6)),
    "hits without choices": ("MeSimp", in_record(3, lambda seen: None)),
    "a record less": ("MeSimp", lambda state: state["records"].pop("1")),
    "a sample twice": ("SievingSampler", put(lambda samples: samples[:1].repeat(len(samples)), "training")),
    "a sample that both have": ("SievingSampler", put(lambda samples: samples.fill_(3), "waiting")),
    "another share of samples": ("SievingSampler", put(lambda samples: samples[1:], "training")),
    "samples of another data set": ("SievingSampler", put(lambda events: events[1:], "forgotten")),
    "an answer that there is not": ("SievingSampler", put(lambda last: last + 5, "last")),
    "a policy less": ("WUS + MEST + ScoreMemory", lambda state: state["policies"].pop()),
    "its last policy's rows": ("WUS + MEST + ScoreMemory", put(lambda rows: rows + 16, "policies", 2, "rows", "1")),
    "policies in another order": ("WUS + MEST + ScoreMemory", lambda state: state["policies"].reverse()),
    "the sampler's epochs": ("SpFDE", put(-1, "sampler", "epoch")),
    "no mapping": ("MeProp", None),
}


@pytest.mark.parametrize("what", BAD)
def test_what_no_such_policy_can_have_is_refused(what, runs):
    name, change = BAD[what]
    state = copy.deepcopy(holder(runs[name]).state_dict())
    if change is not None:
        change(state)
    assert refused(runs[name], [1] if change is None else state)


# ---- at random ------------------------------------------------------------------------------------------------------


def places(state: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values, mappings and lists among them."""
    inner = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list | tuple) else ()
    return [path, *(place for key, value in inner for place in places(value, (*path, key)))]


def replaced(state: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value there."""
    if not path:
        return value
    if isinstance(state, dict):
        return {key: replaced(inner, path[1:], value) if key == path[0] else inner for key, inner in state.items()}
    return type(state)(replaced(inner, path[1:], value) if i == path[0] else inner for i, inner in enumerate(state))


ANYTHING = [None, True, False, -1, 0, 1, 7, 2**70, 0.5, math.nan, math.inf, -math.inf, "x", [], {}, [1], {"0": 1}, ()]


def spoiled(value: Any, draw: random.Random) -> Any:
    """Something else, mostly of the same kind."""
    if draw.random() < 0.25:
        return draw.choice([*ANYTHING, torch.zeros(2), torch.ones(3, dtype=torch.int64)])
    if isinstance(value, Tensor):
        numbers, line = value.to(torch.int64) if value.dtype is torch.bool else value, value.reshape(-1)
        odd = [line[:-1], value[None], line.flip(0).reshape(value.shape), torch.zeros_like(value), torch.ones_like(value)]
        odd += [
            numbers + 1,
            numbers * 0 - 1,
            numbers * math.nan,
            value.double(),
            value.int(),
            value.to("meta"),
            value.to_sparse(),
        ]
        return draw.choice(odd)
    if isinstance(value, dict):
        some = dict(draw.sample(list(value.items()), max(0, len(value) - 1)))
        return draw.choice([some, value | {"more": 1}, value | {3: None}])
    if isinstance(value, list | tuple):
        return draw.choice([type(value)(value[1:]), type(value)([*value, *value[:1]]), type(value)(value[::-1]), list(value)])
    return draw.choice([-1, 2**70, math.nan, math.inf, value + 1 if isinstance(value, int | float) else "x", str(value)])


@pytest.mark.parametrize("name", METHODS)
def test_a_spoiled_state_is_refused_or_goes_on(name, runs):
    """One that fits all the same, such as another epoch, is taken, and training goes on from it."""
    draw, run, taken = random.Random(name), runs[name], 0
    state = holder(run).state_dict()
    for _ in range(30):
        path = draw.choice(places(state))
        spoilt = copy.deepcopy(replaced(state, path, spoiled(at(state, path), draw)))
        try:
            holder(run).check_state(spoilt)
        except ValueError:
            assert refused(run, spoilt), path
            continue
        taken += 1
        if taken <= 2:
            other = started(name, run)
            holder(other).load_state_dict(spoilt)
            other.until(other.done + 2 * MICRO)
            holder(other).check_state(holder(other).state_dict())


def at(state: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        state = state[key]
    return state


# ---- whose memory it is ---------------------------------------------------------------------------------------------


def spoil_in_place(state: Any) -> None:
    for path in reversed(places(state)):  # what is inside first
        value = at(state, path)
        if isinstance(value, Tensor):
            value.zero_()
        elif isinstance(value, list):
            value.clear()


@pytest.mark.parametrize("name", METHODS)
def test_a_state_is_a_copy(name, runs):
    """What is written to it, the policy that gave it does not see, nor the one that took it."""
    run, other = runs[name], started(name, runs[name])
    taken = holder(run).state_dict()
    before = copy.deepcopy(taken)
    holder(other).load_state_dict(taken)
    spoil_in_place(taken)
    assert same(holder(run).state_dict(), before)
    assert same(holder(other).state_dict(), before)


def test_what_another_policy_freezes_is_found_before_anything_is_loaded():
    """A second freezing policy on the same model, whose state would freeze layers, too."""
    model = wk.convert(mlp())
    first, second = (SingleShotFreezing(model, IMAGES[:2], at=1) for _ in range(2))
    wus = WUS(model)
    both = Compose([wus, second])
    state = both.state_dict()
    state["policies"][0]["history"], state["policies"][1]["epoch"] = [0.5], 3
    first.step()
    with pytest.raises(ValueError, match="model: expected one without frozen layers"):
        both.load_state_dict(state)
    assert wus.history == []
    assert second.epoch == 0
