"""What a callback does whatever the trainer: it makes a policy, passes events on, and keeps a state until it can be loaded."""

import copy
import random

import numpy
import pytest
import torch
import torch.nn as nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import wuskern as wk
from wuskern.integrations.data import first_samples, samplers_of
from wuskern.integrations.events import Events, Training

DATA = TensorDataset(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6))


def net():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))


def training(model, optimizer=None, **given):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    return Training(model, optimizer, lambda: torch.ones(2, 4), **{"epochs": 3, "metric": "accuracy", **given})


def test_a_method_by_its_name_converts_the_model_and_has_what_it_asks_for():
    model, events = net(), Events("wus+lr:warmup=1+freeze-once:at=1")
    events.begin(training(model))
    lr, freezing = events.policy.policies
    assert isinstance(model[0], wk.SkippableLinear)
    assert (lr.warmup, freezing.at, freezing.count) == (1, 1, 3)
    assert isinstance(lr.optimizer, torch.optim.SGD)


def test_a_function_has_the_arguments_that_it_names():
    asked = []

    def make(model, example, optimizer=None):
        asked.extend([model, example.shape, type(optimizer)])
        return wk.policies.WUS(wk.convert(model))

    model, events = net(), Events(make)
    events.begin(training(model))
    assert asked == [model, (2, 4), torch.optim.SGD]
    first = events.policy
    events.begin(training(model))
    assert events.policy is first  # trained on
    events.begin(training(net()))
    assert events.policy is not first


def test_events_reach_the_policy_and_an_epoch_counts_once():
    model = wk.convert(net())
    policy = wk.policies.WUS(model, warmup=0, window=1, patience=2)
    events = Events(policy)
    events.begin(training(model))
    for epoch in range(1, 4):
        events.before_step()
        events.after_step()
        events.after_epochs(epoch)
        events.after_epochs(epoch)
        events.evaluated({"accuracy": torch.tensor(0.5), "loss": 1.0})
    assert policy.history == [0.5] * 3
    assert events.epochs == 3
    assert model[0].skip


def test_dense_is_no_policy():
    model, events = net(), Events("dense")
    events.begin(training(model))
    events.before_step(), events.after_step(), events.after_epochs(1), events.evaluated({})
    assert type(model[0]) is nn.Linear
    assert events.state_dict() == {"epochs": 1, "policy": None}


@pytest.mark.parametrize("first", ["load", "begin"])
def test_a_state_may_come_before_or_after_training_begins(first):
    model = wk.convert(net())
    events = Events("rigl:epochs=4:interval=1:sparsity=.5:growth=random")
    events.begin(training(model))
    for _ in range(3):
        events.before_step()
        model(torch.randn(3, 4)).square().sum().backward()
        events.after_step()
    events.after_epochs(2)
    saved = copy.deepcopy(events.state_dict())

    other = Events("rigl:epochs=4:interval=1:sparsity=.5:growth=random")
    steps = [lambda: other.load_state_dict(copy.deepcopy(saved)), lambda: other.begin(training(net()))]
    for step in steps if first == "load" else reversed(steps):
        step()
    assert other.epochs == 2
    assert str(other.state_dict()) == str(saved)
    other.begin(training(other.policy.model))  # it goes on from its beginning, and loads nothing again
    assert other.epochs == 0


def test_the_optimizer_is_attached_once():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    events = Events(lambda model: wk.policies.WUS(wk.convert(model)))
    for _ in range(2):
        events.begin(training(model, optimizer))
        assert len(optimizer._optimizer_step_pre_hooks) == 1
    wk.set_skip(model, True)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert model[0].weight.grad is None
    events.detach()
    assert len(optimizer._optimizer_step_pre_hooks) == 0


@pytest.mark.parametrize(
    ("recipe", "error", "said"),
    [
        (5, TypeError, "policy: expected a policy, a function that makes one, or a method's name, got 5"),
        ("wis", ValueError, "policy: expected one of dense, wus"),
        ("wus,rigl", ValueError, "policy: expected one method, with . between its parts, got 2"),
        ("sieve", ValueError, "got 'sieve', which chooses the data"),
        ("frozen", ValueError, "got 'frozen', which is a control of wuskern train"),
    ],
)
def test_no_recipe(recipe, error, said):
    with pytest.raises(error, match=said):
        Events(recipe)


@pytest.mark.parametrize(
    ("recipe", "given", "error", "said"),
    [
        (lambda model: 5, {}, TypeError, "policy: expected the function to return a policy, got int"),
        (wk.policies.WUS, {}, ValueError, "model: expected at least one converted layer"),
        ("wus", {"metric": None}, ValueError, "metric: expected the name of one, which WUS looks at, got none"),
        ("wus", {"more_is_better": False}, ValueError, "mode: expected 'min' of WUS for 'accuracy', of which less is better"),
        ("wus:mode=min+meprop:ratio=.5", {"more_is_better": True}, ValueError, "mode: expected 'max' of WUS"),
        (wk.policies.WUS(wk.convert(net())), {}, ValueError, "policy: expected one of the model that is trained"),
    ],
)
def test_what_does_not_fit_the_training(recipe, given, error, said):
    with pytest.raises(error, match=said):
        Events(recipe).begin(training(net(), **given))


def test_a_metric_that_is_not_there():
    events = Events("wus")
    events.begin(training(net()))
    with pytest.raises(ValueError, match="metric: expected one of f1, loss, got 'accuracy'"):
        events.evaluated({"loss": 1.0, "f1": 0.5})


def test_a_sampler_that_the_data_are_not_drawn_by():
    model = wk.convert(net())
    policy = wk.policies.SpFDE(model, torch.ones(2, 4), epochs=3, samples=6)
    with pytest.raises(ValueError, match="policy: expected a data loader with the sampler of SpFDE"):
        Events(policy).begin(training(model))
    loader = DataLoader(DATA, batch_size=2, sampler=policy.sampler)
    Events(policy).begin(training(model, samplers=samplers_of(loader)))


def test_a_state_of_another_kind():
    events = Events("wus")
    events.begin(training(net()))
    for state in ({}, {"epochs": 1, "policy": None}, {"epochs": -1, "policy": {}}, {"epochs": 0, "policy": {"policy": "RigL"}}):
        with pytest.raises(ValueError, match="state: expected"):
            events.load_state_dict(state)


class Drawing(TensorDataset):
    def __getitem__(self, index):
        return {
            "x": super().__getitem__(index)[0] + torch.rand(()) + random.random() + numpy.random.rand(),  # noqa: NPY002
            "n": (index, "a"),
        }


def test_an_example_moves_no_random_state():
    torch.manual_seed(0), random.seed(0), numpy.random.seed(0)  # noqa: NPY002
    loader, model = DataLoader(Drawing(*DATA.tensors), batch_size=3, shuffle=True), net()
    before = torch.get_rng_state(), random.getstate(), str(numpy.random.get_state())  # noqa: NPY002
    example = first_samples(loader, model)
    assert example["x"].shape == (2, 4)
    assert (example["n"][0].tolist(), list(example["n"][1])) == ([0, 1], ["a", "a"])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), str(numpy.random.get_state())) == before[1:]  # noqa: NPY002


def test_data_without_an_index():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(DATA)

    with pytest.raises(ValueError, match="example: expected training data with an index, got Stream"):
        first_samples(DataLoader(Stream()), net())
    with pytest.raises(ValueError, match="example: expected training data, got none"):
        first_samples(DataLoader(TensorDataset(torch.empty(0, 4))), net())
