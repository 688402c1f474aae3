"""AutoFreeze by gradients worked by hand, what it reads, and that it resumes; freezing beside other methods."""

import itertools

import pytest
import torch
import torch.nn as nn

import wuskern as wk
from wuskern.policies import WUS, AutoFreeze, Compose, MeProp, ProgressiveFreezing, ScoreMemory, SingleShotFreezing


def network(*widths: int) -> nn.Module:
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
    return wk.convert(nn.Sequential(*(part for layer in layers for part in (layer, nn.Tanh())))[:-1])


def five() -> nn.Module:
    return network(2, 2, 2, 2, 2, 2)


def observing(net: nn.Module, **arguments) -> tuple[AutoFreeze, torch.optim.Optimizer]:
    policy = AutoFreeze(net, torch.randn(1, 2), **arguments)
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    policy.attach(optimizer)
    return policy, optimizer


def step(net: nn.Module, policy: AutoFreeze, optimizer: torch.optim.Optimizer, *norms: float | None) -> int:
    """An optimizer step with weight gradients of these L1 norms; the depth after it."""
    for layer, norm in zip(policy.layers.values(), norms, strict=True):
        layer.weight.grad = None if norm is None else torch.tensor([[-0.25, 0.25], [0.25, -0.25]]) * norm
    optimizer.step()
    policy.after_step()
    return policy.depth


def test_a_history_worked_by_hand():
    net = five()
    policy, optimizer = observing(net, interval=1)
    # first interval: nothing to compare with
    assert step(net, policy, optimizer, 8, 8, 8, 8, 8) == 0
    # eta 1/8 1/4 1/2 1/2 1/16: of the median, 1/4, the second layer is the first that is not under it
    assert step(net, policy, optimizer, 7, 6, 4, 12, 7.5) == 1
    # the other four: 0 1/4 1/6 2/15: median (2/15 + 1/6) / 2 = .15
    assert step(net, policy, optimizer, None, 6, 5, 10, 8.5) == 2
    # 1/5 0 0: the first of the three changes most, and what is frozen stays
    assert step(net, policy, optimizer, None, None, 6, 10, 8.5) == 2
    # 0 1/10 0: median 0 is not over 0
    assert step(net, policy, optimizer, None, None, 6, 11, 8.5) == 2
    # 1/6 5/11 1: 5/11 is the median
    assert step(net, policy, optimizer, None, None, 5, 6, 17) == 3


def test_norms_are_means_over_the_steps_that_had_a_gradient():
    net = five()
    policy, optimizer = observing(net, interval=2)
    step(net, policy, optimizer, 8, 8, 8, 8, 8)
    step(net, policy, optimizer, 8, 4, None, 8, 8)
    assert policy.norms == {"0": 8, "2": 6, "4": 8, "6": 8, "8": 8}
    step(net, policy, optimizer, 8, 6, 4, 4, 4)
    assert policy.depth == 0
    step(net, policy, optimizer, 8, 6, 4, 4, 4)  # eta 0 0 1/2 1/2 1/2
    assert policy.depth == 2


def test_a_layer_without_a_gradient_in_an_interval_stops_the_prefix():
    net = five()
    policy, optimizer = observing(net, interval=1)
    step(net, policy, optimizer, 8, None, 8, 8, 8)
    assert step(net, policy, optimizer, 8, 8, 8, 4, 4) == 1  # eta 0 ? 0 1/2 1/2, median 1/4


def test_compact_gradients_count_like_dense_ones():
    torch.manual_seed(0)
    norms = []
    x = torch.randn(4, 2)
    for compact in (False, True):
        torch.manual_seed(1)
        net = network(2, 6, 6, 2)
        make = wk.optim.SGD if compact else torch.optim.SGD
        policy, optimizer = AutoFreeze(net, x, interval=2), make(net.parameters(), 0.01)
        policy.attach(optimizer)
        for _ in range(2):
            wk.set_rows(net, wk.Rows(torch.tensor([0, 1])))
            optimizer.zero_grad()
            net(x).square().sum().backward()
            assert net[0].weight.grad.is_sparse == compact
            optimizer.step()
            policy.after_step()
        norms.append(policy.norms)
    assert norms[0] == pytest.approx(norms[1])
    assert all(norms[0].values())


# ---- a saved one goes on --------------------------------------------------------------------------------------------

DATA = torch.randn(40, 9, generator=torch.Generator().manual_seed(4))
X, Y = DATA[:, :6], DATA[:, 6:]
MAKE = {
    "autofreeze": lambda net: AutoFreeze(net, X[:1], interval=3),
    "with a skip": lambda net: Compose([windows(net), progressive(net)]),
    "with rows": lambda net: Compose([progressive(net), MeProp(net, ratio=0.5)]),
    "with a memory of scores": lambda net: Compose([AutoFreeze(net, X[:1], interval=3), ScoreMemory(net, ratio=0.5)]),
}


def wanted(policy: wk.policies.Policy) -> list[dict]:
    """Of each layer, without the observers, of which each policy has its own."""
    return [{part: value for part, value in policy.wants(name).items() if part != "observer"} for name in policy.layers]


def windows(net: nn.Module) -> WUS:
    return WUS(net, window=1, warmup=0, threshold=1.0, patience=1)


def progressive(net: nn.Module) -> ProgressiveFreezing:
    return ProgressiveFreezing(net, X[:1], start=0, end=3, share=0.8)


def train(net, policy, optimizer, steps) -> None:
    """Steps of two micro-batches; a period ends after each fourth step."""
    for i in steps:
        torch.manual_seed(i)
        policy.before_step()
        for _ in range(2):
            index = torch.randint(40, (5,))
            (net(X[index]) - Y[index]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        policy.after_step()
        if i % 4 == 3:
            policy.after_epoch()


def made(name: str):
    torch.manual_seed(9)
    net = network(6, 5, 5, 5, 3)
    policy = MAKE[name](net)
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9, weight_decay=0.01)
    policy.attach(optimizer)
    return net, policy, optimizer


@pytest.mark.parametrize("cut", [2, 4, 7, 11])
@pytest.mark.parametrize("name", MAKE)
def test_a_saved_run_goes_on_bit_for_bit(name, cut, tmp_path):
    whole, first, second = made(name), made(name), made(name)
    train(*whole, range(16))
    train(*first, range(cut))
    torch.save([part.state_dict() for part in first], tmp_path / "state.pt")
    for part, state in zip(second, torch.load(tmp_path / "state.pt", weights_only=True), strict=True):
        part.load_state_dict(state)
    assert wanted(second[1]) == wanted(first[1])
    train(*second, range(cut, 16))
    assert all(map(torch.equal, whole[0].parameters(), second[0].parameters()))
    assert any(whole[1].wants(layer)["frozen"] for layer in whole[1].layers)


def test_a_state_in_the_middle_of_an_interval_holds_what_was_seen():
    net, other = five(), five()
    policy, optimizer = observing(net, interval=2)
    step(net, policy, optimizer, 8, 8, 6, None, 2)
    second, its = observing(other, interval=2)
    second.load_state_dict(policy.state_dict())
    step(other, second, its, 4, 8, 10, 6, None)
    assert second.norms == {"0": 6, "2": 8, "4": 8, "6": 6, "8": 2}


# ---- beside others --------------------------------------------------------------------------------------------------


def test_a_frozen_layer_neither_skips_nor_moves():
    """WUS leaves biases training; a frozen layer's biases stay too."""
    net = network(6, 5, 5, 3)
    policy = Compose([WUS(net, window=1, warmup=0, threshold=1.0), SingleShotFreezing(net, X[:1], at=1, share=0.34)])
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9, weight_decay=0.01)
    policy.attach(optimizer)
    moved = []
    for _ in range(3):
        before = [p.detach().clone() for p in net.parameters()]
        train(net, policy, optimizer, range(1))
        policy.after_epoch()
        policy.step(0.5)
        moved.append([not torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True)])
    assert moved[0] == [True] * 6
    assert moved[1] == [False, False, True, True, True, True]
    assert moved[2] == [False, False, False, True, False, True]
    assert policy.wants("0") == {"skip": True, "frozen": True}


def test_two_that_freeze_are_refused():
    net = five()
    policies = [SingleShotFreezing(net, torch.randn(1, 2), at=3), AutoFreeze(net, torch.randn(1, 2))]
    with pytest.raises(ValueError, match="when it is frozen, got SingleShotFreezing and AutoFreeze"):
        Compose(policies)


def test_bad_arguments_and_states():
    with pytest.raises(ValueError, match="interval: expected at least 1, got 0"):
        AutoFreeze(five(), torch.randn(1, 2), interval=0)
    state = AutoFreeze(five(), torch.randn(1, 2)).state_dict()
    with pytest.raises(ValueError, match=r"state: expected .* of \[\'0\', \'2\'\]"):
        AutoFreeze(network(2, 2, 2), torch.randn(1, 2)).load_state_dict(state)
