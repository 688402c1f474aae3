"""WUS against histories worked by hand, and attach against what torch's optimizers do."""

import itertools
import math

import pytest
import torch
import torch.nn as nn
from hypothesis import given, settings
from hypothesis import strategies as st

import wuskern as wk
from wuskern.policies import WUS


def model() -> nn.Module:
    return wk.convert(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))


def modes(policy: WUS, metrics: list[float]) -> str:
    """F or S per period: the mode of the period that follows each evaluation."""
    return "".join("FS"[policy.step(m)] for m in metrics)


# Each line: arguments, metrics, the mode after each of them.
HISTORIES = {
    "skips two periods once three metrics stand still": (
        dict(warmup=0, window=2, threshold=0.01, patience=2, cooldown=1),
        [0.1, 0.5, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8],
        # changes .4 .3 .0 .0: the mean of two is under .01 after the fifth metric
        "FFFFSSFSS",
    ),
    "warmup delays the first look": (
        dict(warmup=5, window=1, threshold=0.01, patience=1, cooldown=1),
        [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5],
        "FFFFFSF",
    ),
    "cooldown counts full periods": (
        dict(warmup=0, window=1, threshold=0.01, patience=1, cooldown=3),
        [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5],
        "FSFFFSF",
    ),
    "guard ends a window early": (
        dict(warmup=0, window=1, threshold=0.01, patience=9, cooldown=1, guard=0.05),
        [0.5, 0.5, 0.46, 0.44, 0.44, 0.44],
        # .46 has fallen by .04 since the window began, .44 by .06
        "FSSFSS",
    ),
    "a gain never ends a window": (
        dict(warmup=0, window=1, threshold=0.01, patience=3, cooldown=1, guard=0.05),
        [0.5, 0.5, 0.9, 0.9, 0.9],
        "FSSSF",
    ),
    "a loss is worse when it grows": (
        dict(mode="min", warmup=0, window=1, threshold=0.01, patience=9, cooldown=1, guard=0.05),
        [0.5, 0.5, 0.3, 0.56],
        "FSSF",
    ),
    "std of the metrics": (
        # pstdev(.0 .1) = .05, pstdev(.1 .12) = .01
        dict(statistic="std", warmup=0, window=1, threshold=0.02, patience=1, cooldown=1),
        [0.0, 0.1, 0.12],
        "FFS",
    ),
    "slope over a window": (
        # a zigzag of .4 0 .4 has slope 0 although its mean change is .4
        dict(statistic="slope", warmup=0, window=2, threshold=0.01, patience=1, cooldown=1),
        [0.4, 0.0, 0.4],
        "FFS",
    ),
    "range over a window": (
        dict(statistic="range", warmup=0, window=2, threshold=0.05, patience=1, cooldown=1),
        [0.40, 0.44, 0.40, 0.42],
        "FFSF",
    ),
    "the threshold itself is not under the threshold": (
        dict(warmup=0, window=1, threshold=0.25, patience=1, cooldown=1),
        [0.5, 0.75, 0.875],
        "FFS",
    ),
}


@pytest.mark.parametrize("name", HISTORIES)
def test_histories_worked_by_hand(name):
    arguments, metrics, expected = HISTORIES[name]
    assert modes(WUS(model(), **arguments), metrics) == expected


def test_it_sets_every_layer():
    net = model()
    policy = WUS(net, warmup=0, window=1)
    for metric in (0.5, 0.5):
        policy.step(metric)
    assert [m.skip for m in (net[0], net[2])] == [True, True]
    assert all(p.requires_grad for p in net.parameters())


ARGUMENTS = st.fixed_dictionaries(
    {
        "window": st.integers(1, 4),
        "patience": st.integers(1, 4),
        "cooldown": st.integers(1, 4),
        "warmup": st.integers(0, 6),
        "threshold": st.floats(0.001, 0.3),
        "guard": st.floats(0.01, 0.5),
    }
)


@settings(max_examples=200, deadline=None)
@given(arguments=ARGUMENTS, metrics=st.lists(st.floats(0, 1), max_size=40))
def test_windows_keep_their_bounds(arguments, metrics):
    """No window before warmup, none longer than patience, never less than cooldown full periods between two."""
    runs = [(mode, len(list(group))) for mode, group in itertools.groupby(modes(WUS(model(), **arguments), metrics))]
    assert all(length <= arguments["patience"] for mode, length in runs if mode == "S")
    assert all(length >= arguments["cooldown"] for mode, length in runs[1:-1] if mode == "F")
    if runs and runs[0][0] == "F" and len(runs) > 1:
        assert runs[0][1] >= max(arguments["warmup"], arguments["window"])


@settings(max_examples=50, deadline=None)
@given(arguments=ARGUMENTS, metrics=st.lists(st.floats(0, 1), min_size=1, max_size=30), data=st.data())
def test_it_continues_where_its_state_was_taken(arguments, metrics, data):
    whole = WUS(model(), **arguments)
    expected = modes(whole, metrics)
    cut = data.draw(st.integers(0, len(metrics)))
    first, net = WUS(model(), **arguments), model()
    before = modes(first, metrics[:cut])
    second = WUS(net, **arguments)
    second.load_state_dict(first.state_dict())
    assert net[0].skip == first.skipping
    assert before + modes(second, metrics[cut:]) == expected


def test_state_is_plain_data(tmp_path):
    policy = WUS(model())
    policy.step(0.5)
    torch.save(policy.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    policy.load_state_dict(state)
    assert policy.history == [0.5]


@pytest.mark.parametrize(
    ("arguments", "metrics", "warned"),
    [
        ({}, [98.0, 98.1, 98.2], True),
        ({}, [0.98, 0.981, 1.0], False),
        ({"mode": "min"}, [2.3, 2.2], False),
        ({"threshold": 0.5, "guard": 5.0}, [98.0, 98.1], False),
    ],
)
def test_a_metric_in_percent_under_thresholds_for_shares_is_said_once(arguments, metrics, warned, caplog):
    policy = WUS(model(), **arguments)
    for metric in metrics:
        policy.step(metric)
    said = "metric: expected a share, as threshold 0.005 and guard 0.05 are for, got 98: give accuracies from 0 to 1, or both"
    assert [message.startswith(said) for message in caplog.messages] == [True] * warned


# ---- attach ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1), torch.optim.AdamW])
def test_a_skip_is_a_skip_even_where_gradients_become_zeros(make):
    """Without attach, zeros still let momentum and decay move the weight; the test sees both."""
    moved = {}
    for attached in (False, True):
        torch.manual_seed(0)
        net = model()
        optimizer = make(net.parameters())
        policy = WUS(net)
        if attached:
            policy.attach(optimizer)
        for skip in (False, True):
            wk.set_skip(net, skip)
            before = [p.detach().clone() for p in net.parameters()]
            optimizer.zero_grad(set_to_none=False)
            net(torch.randn(8, 3)).pow(2).sum().backward()
            optimizer.step()
        moved[attached] = {n: not torch.equal(p, b) for (n, p), b in zip(net.named_parameters(), before, strict=True)}
    weights = ["0.weight", "2.weight"]
    assert all(moved[False][n] for n in weights)
    assert not any(moved[True][n] for n in weights)
    assert all(moved[True][n] for n in moved[True] if n not in weights)


def test_what_a_parametrized_weight_is_computed_from_stays_too():
    net = model()
    nn.utils.parametrizations.weight_norm(net[0])
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    WUS(net).attach(optimizer)
    parts = [p for name, p in net.named_parameters() if name.startswith("0.parametrizations.weight.original")]
    assert len(parts) == 2
    for skip in (False, True):
        wk.set_skip(net, skip)
        before = [p.detach().clone() for p in parts]
        optimizer.zero_grad(set_to_none=False)
        net(torch.randn(8, 3)).pow(2).sum().backward()
        optimizer.step()
        assert [torch.equal(p, b) for p, b in zip(parts, before, strict=True)] == [skip, skip]


def test_a_shared_weight_keeps_its_other_owners_gradient():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.body, self.head = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(self.embedding(tokens)))

    net = wk.convert(Tied())
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    WUS(net).attach(optimizer)
    wk.set_skip(net, True)
    before = net.embedding.weight.detach().clone(), net.body.weight.detach().clone()
    net(torch.tensor([1, 2])).pow(2).sum().backward()
    optimizer.step()
    assert not torch.equal(net.embedding.weight, before[0])  # the embedding trains
    assert torch.equal(net.body.weight, before[1])


def test_reverting_a_model_leaves_its_optimizer_working():
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    WUS(net).attach(optimizer)
    before = wk.revert(net)[0].weight.detach().clone()
    net(torch.randn(8, 3)).pow(2).sum().backward()
    optimizer.step()
    assert not torch.equal(net[0].weight, before)


def test_the_hook_can_be_taken_away():
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    WUS(net).attach(optimizer).remove()
    wk.set_skip(net, True)
    net[0].weight.grad = torch.ones_like(net[0].weight)
    optimizer.step()
    assert net[0].weight.grad is not None


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(mode="up"), ValueError, "mode: expected one of max, min, got 'up'"),
        (dict(statistic="median"), ValueError, "statistic: expected one of mean_change, std, slope, range, got 'median'"),
        (dict(window=0), ValueError, "window: expected at least 1, got 0"),
        (dict(patience=1.5), TypeError, "patience: expected a whole number, got 1.5"),
        (dict(cooldown=0), ValueError, "cooldown: expected at least 1, got 0"),
        (dict(warmup=-1), ValueError, "warmup: expected at least 0, got -1"),
        (dict(threshold=math.nan), ValueError, "threshold: expected a positive number, got nan"),
        (dict(threshold="high"), TypeError, "threshold: expected a number, got 'high'"),
        (dict(threshold=math.inf), ValueError, "threshold: expected a positive number, got inf"),
        (dict(guard=0), ValueError, "guard: expected a positive number, got 0"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        WUS(model(), **arguments)


@pytest.mark.parametrize(
    ("metric", "error", "message"),
    [
        (math.nan, ValueError, "metric: expected a finite number, got nan"),
        (math.inf, ValueError, "metric: expected a finite number, got inf"),
        ("0.5", TypeError, "metric: expected a number, got '0.5'"),
        (None, TypeError, "metric: expected a number, got None"),
    ],
)
def test_a_bad_metric_changes_nothing(metric, error, message):
    policy = WUS(model(), warmup=0, window=1)
    policy.step(0.5)
    before = policy.state_dict()
    with pytest.raises(error, match=message):
        policy.step(metric)
    assert str(policy.state_dict()) == str(before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"history": "x"}, "state: expected history, a list, got 'x'"),
        ({"history": [math.nan]}, "state: expected history, a finite number, got nan"),
        ({"left": -1}, "state: expected left, a whole number from 0 to 3, got -1"),
        ({"left": None}, "state: expected left, a whole number from 0 to 3, got None"),
        ({"skipping": 1}, "state: expected skipping, True or False, got 1"),
        ({"entry": "x"}, "state: expected entry, a number, got 'x'"),
    ],
)
def test_the_state_of_something_else_changes_nothing(change, message):
    policy = WUS(model(), warmup=0, window=1)
    policy.step(0.5)
    before = policy.state_dict()
    with pytest.raises(ValueError, match=message):
        policy.load_state_dict(before | {"history": [0.1], "skipping": True} | change)
    assert str(policy.state_dict()) == str(before)


def test_a_model_or_optimizer_that_does_not_fit():
    with pytest.raises(ValueError, match="model: expected at least one converted layer"):
        WUS(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="optimizer: expected one that holds weights of the converted layers, got SGD"):
        WUS(model()).attach(torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1))
    with pytest.raises(ValueError, match="state: expected the keys"):
        WUS(model()).load_state_dict({"left": 1})
