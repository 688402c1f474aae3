"""Score memory and the adaptive ratio: choices worked by hand, what is observed, and that they resume."""

import copy
import itertools

import pytest
import torch
import torch.nn as nn

import wuskern as wk
from wuskern.policies import WUS, Compose, ScoreMemory, TinyProp


def network(*widths: int) -> nn.Module:
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
    return wk.convert(nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))[:-1])


def set_norms(layer: nn.Linear, norms: list[float]) -> None:
    with torch.no_grad():
        layer.weight.zero_()[:, 0] = torch.tensor(norms)


def observe(policy, **scores: list[float]) -> None:
    """One optimizer step whose backwards gave these scores, by the layer's name with an underscore in front."""
    for name, values in scores.items():
        policy.observers[name[1:]].saw(torch.tensor(values, dtype=torch.float32), None)
    policy.after_step()


def rows(layer: nn.Module) -> list[int]:
    return layer.rows.index.tolist()


# ---- score memory ---------------------------------------------------------------------------------------------------


def test_a_memory_worked_by_hand():
    net = network(2, 4, 1)
    set_norms(net[0], [1, 5, 2, 4])
    policy = ScoreMemory(net, k=2, eta=0.5)
    assert (rows(net[0]), net[2].rows) == ([1, 3], None)
    observe(policy, _0=[3, 10, 8, 2])  # memory 0: rows 1 and 2; 0 keeps 3, 3 keeps 2
    assert rows(net[0]) == [1, 2]
    assert policy.memory["0"].tolist() == [3, 0, 0, 2]
    observe(policy, _0=[3, 4, 4, 3.5])  # 4.5, 4, 4, 4.5
    assert rows(net[0]) == [0, 3]
    assert policy.memory["0"].tolist() == [0, 4, 4, 0]
    observe(policy, _0=[5, 4, 3, 5])  # 5, 6, 5, 5: of equals the lower one
    assert rows(net[0]) == [0, 1]
    assert policy.memory["0"].tolist() == [0, 0, 5, 5]


def test_scores_add_up_over_micro_batches_and_the_steps_of_a_choice():
    net = network(2, 3, 1)
    policy = ScoreMemory(net, k=1, eta=0.0, reuse=2)
    first = rows(net[0])
    policy.observers["0"].saw(torch.tensor([2.0, 0, 0]), None)
    observe(policy, _0=[2.0, 3.0, 0])  # 4, 3, 0
    assert rows(net[0]) == first
    observe(policy, _0=[0.0, 2.0, 0])  # 4, 5, 0
    assert rows(net[0]) == [1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("make", [lambda net: ScoreMemory(net, k=2), lambda net: TinyProp(net, s_min=0.5, s_max=0.5, zeta=1)])
def test_the_rows_with_the_largest_gradients_are_next(make, dtype):
    """Whose scores are float64 in a float64 model, and float32 in others."""
    net = network(2, 4, 1).to(dtype)
    with torch.no_grad():
        net[0].bias.fill_(9)  # ReLU lets all through
        net[2].weight.copy_(torch.tensor([[1.0, 2.0, 8.0, 4.0]]))  # dY of each row
    set_norms(net[0], [4, 3, 2, 1])
    policy = make(net)
    assert rows(net[0]) == [0, 1]
    net(torch.ones(3, 2, dtype=dtype)).sum().backward()
    policy.after_step()
    assert rows(net[0]) == [2, 3]


def test_a_layer_without_a_backward_keeps_its_choice_and_its_memory():
    net = network(2, 4, 4, 1)
    policy = ScoreMemory(net, k=1)
    observe(policy, _0=[1, 2, 3, 4], _2=[4, 3, 2, 1])
    before = policy.memory["0"].clone()
    observe(policy, _2=[0, 9, 0, 0])
    assert (rows(net[0]), rows(net[2])) == ([3], [1])
    assert torch.equal(policy.memory["0"], before)


def test_every_row_is_trained_in_time():
    """Gradients of one size: with a memory the rows take turns, without it the first ones stay."""
    for eta, expected in ((1.0, {0, 1, 2, 3, 4, 5}), (0.0, {0, 1})):
        net, seen = network(2, 6, 1), set()
        policy = ScoreMemory(net, k=2, eta=eta)
        for _ in range(4):
            observe(policy, _0=[1.0] * 6)
            seen |= set(rows(net[0]))
        assert seen == expected


# ---- adaptive ratio -------------------------------------------------------------------------------------------------


def test_ratios_worked_by_hand():
    """Levels of s_min .1 to s_max .7 are .1, .3, .5, .7; of the layer one further from the output, half of that."""
    net = network(2, 20, 20, 1)
    policy = TinyProp(net, s_min=0.1, s_max=0.7, zeta=0.5)
    assert (len(rows(net[0])), len(rows(net[2]))) == (3, 7)  # zeta ** 2, zeta ** 1
    scores = torch.arange(20.0).tolist()
    observe(policy, _0=scores, _2=scores)  # the maximum of both
    assert (rows(net[0]), len(rows(net[2]))) == ([17, 18, 19], 7)
    observe(policy, _0=[s * 0.65 for s in scores], _2=[s * 0.34 for s in scores])  # levels 2 and 1 of 3
    assert (len(rows(net[0])), len(rows(net[2]))) == (2, 3)
    observe(policy, _0=[s * 0.1 for s in scores], _2=[s * 2 for s in scores])
    assert (len(rows(net[0])), len(rows(net[2]))) == (1, 7)
    assert policy.largest == {"0": 190.0, "2": 380.0}


@pytest.mark.parametrize("overflown", [float("inf"), float("nan")])
def test_a_gradient_that_overflows_is_no_maximum(overflown):
    """As a GradScaler leaves it out of a step: the next choice has the largest ratio, and the one after that is as ever."""
    net = network(2, 20, 1)
    policy = TinyProp(net, s_min=0.1, s_max=0.7, zeta=1.0)
    observe(policy, _0=[1.0] * 20)
    observe(policy, _0=[overflown] * 20)
    assert len(rows(net[0])) == 14
    assert policy.largest["0"] == 20.0
    observe(policy, _0=[0.0] * 19 + [1.0])  # a twentieth of the largest
    assert len(rows(net[0])) == 2


# ---- both -----------------------------------------------------------------------------------------------------------

MAKE = {
    "memory": lambda net: ScoreMemory(net, ratio=0.3, reuse=2),
    "adaptive": lambda net: TinyProp(net, s_max=0.6),
    "with a skip": lambda net: Compose([WUS(net, window=1, warmup=0, threshold=1.0), ScoreMemory(net, ratio=0.3)]),
}


def train(net, policy, optimizer, steps, start=0):
    for i in range(start, start + steps):
        torch.manual_seed(i)
        policy.before_step()
        for _ in range(2):
            net(torch.randn(8, 6)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        policy.after_step()
        if i % 3 == 2:
            policy.after_epoch()
            policy.step(i / 100)


def test_what_a_layer_observes_is_what_stock_sees():
    net = network(6, 10, 8, 3)
    stock = wk.revert(copy.deepcopy(net))
    policy = ScoreMemory(net, k=3, scope="weight")
    seen = {}
    for name in ("0", "2"):
        stock.get_submodule(name).register_full_backward_hook(
            lambda _, __, grad, name=name: seen.update({name: grad[0].abs().sum(0)})
        )
    x = torch.randn(8, 6, requires_grad=True)
    for model in (net, stock):
        model(x).square().sum().backward()
    for name, total in policy._observed().items():
        torch.testing.assert_close(total, seen[name].double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cut", [1, 3, 4, 7])
@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_a_saved_policy_goes_on_as_it_would_have(make, cut, tmp_path):
    torch.manual_seed(5)
    start = network(6, 10, 8, 3)
    whole, first = copy.deepcopy(start), copy.deepcopy(start)
    for net, steps in ((whole, 10), (first, cut)):
        policy, optimizer = make(net), torch.optim.SGD(net.parameters(), 0.01)
        policy.attach(optimizer)
        train(net, policy, optimizer, steps)
    torch.save({"policy": policy.state_dict(), "model": first.state_dict()}, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    second = copy.deepcopy(start)
    second.load_state_dict(state["model"])
    policy, optimizer = make(second), torch.optim.SGD(second.parameters(), 0.01)
    policy.load_state_dict(state["policy"])
    policy.attach(optimizer)
    train(second, policy, optimizer, 10 - cut, cut)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda net: ScoreMemory(net), ValueError, "ratio, k: expected one of the two"),
        (lambda net: ScoreMemory(net, k=20), ValueError, "0: k: expected at most 10, got 20"),
        (lambda net: ScoreMemory(net, k=2, eta=1.5), ValueError, "eta: expected a number from 0 to 1, got 1.5"),
        (lambda net: ScoreMemory(net, k=2, reuse=0), ValueError, "reuse: expected at least 1, got 0"),
        (lambda net: ScoreMemory(net, k=2, score="random"), ValueError, "score: expected one of l1, l2, got 'random'"),
        (lambda net: ScoreMemory(net, k=2, dense=["1"]), ValueError, "dense: expected names of converted layers"),
        (lambda net: TinyProp(net, s_min=0.5, s_max=0.2), ValueError, "s_min: expected at most s_max = 0.2, got 0.5"),
        (lambda net: TinyProp(net, s_max=1), ValueError, "s_max: expected a number under 1, got 1"),
        (lambda net: TinyProp(net, zeta=0), ValueError, "zeta: expected a number over 0 and up to 1, got 0"),
    ],
)
def test_bad_arguments(make, error, message):
    net = network(6, 10, 8, 3)
    with pytest.raises(error, match=message):
        make(net)
    assert net[0].rows is None


def test_a_state_of_another_model_is_refused():
    policy = ScoreMemory(network(6, 10, 8, 3), k=2)
    with pytest.raises(ValueError, match="state: expected the keys"):
        policy.load_state_dict({"steps": 0})
    with pytest.raises(ValueError, match="state: expected rows of"):
        policy.load_state_dict(ScoreMemory(network(6, 10, 3), k=2).state_dict())
    with pytest.raises(ValueError, match=r"state: expected rows of '0', 2 of them, ascending, got \[0, 1, 2, 3\]"):
        policy.load_state_dict(policy.state_dict() | {"rows": {"0": torch.arange(4), "2": torch.arange(2)}})


@pytest.mark.parametrize(
    ("index", "fits"), [([0, 1, 4, 5], True), ([2, 3, 6, 7], True), ([0, 1, 2, 3], False), ([0, 2, 4, 6], False)]
)
def test_rows_of_a_state_lie_in_blocks_and_groups(index, fits):
    """Of a convolution with two groups of four rows, in blocks of two."""
    net = wk.convert(nn.Sequential(nn.Conv2d(2, 8, 1, groups=2), nn.Conv2d(8, 2, 1)))
    policy = ScoreMemory(net, ratio=0.5, block=2)
    before = rows(net[0])
    state = policy.state_dict() | {"rows": {"0": torch.tensor(index)}}
    if fits:
        policy.load_state_dict(state)
        assert rows(net[0]) == index
    else:
        with pytest.raises(ValueError, match="state: expected rows of '0' in blocks of 2, as many of each group, got"):
            policy.load_state_dict(state)
        assert rows(net[0]) == before
