"""RigL: the share that it drops, changes worked by hand, and what waits."""

import math
import re

import pytest
import torch
import torch.nn as nn

import wuskern as wk
from wuskern.policies import WUS, Compose, RigL


def network(out: int = 2, features: int = 5) -> nn.Module:
    """The first layer has a mask."""
    torch.manual_seed(0)
    return wk.convert(nn.Sequential(nn.Linear(features, out), nn.Linear(out, 2)))


def set_values(policy: RigL, values: torch.Tensor) -> None:
    policy.masks["0"] = values != 0
    policy.apply()
    with torch.no_grad():
        policy.weights["0"].copy_(values)


def take_step(policy: RigL, grad: torch.Tensor | None = None) -> None:
    policy.before_step()
    policy.weights["0"].grad = grad
    policy.observe()
    policy.after_step()


def test_the_share_that_is_dropped_is_the_papers_from_the_second_epoch_on():
    """alpha / 2 * (1 + cos(pi * t / end)), of 32 epochs of 1000 steps, up to 24,000."""
    policy = RigL(network(), epochs=32)
    found = {}
    for step in range(32_000):
        if step % 100 == 0:
            found[step] = policy.drop_share
        policy.steps += 1
        if policy.steps % 1000 == 0:
            policy.step()
    assert all(found[step] == 0.3 for step in range(0, 1001, 100) if step < 1000)
    for step in range(1000, 24_000, 100):
        assert found[step] == pytest.approx(0.3 / 2 * (1 + math.cos(math.pi * step / 24_000)))
    assert all(found[step] == 0 for step in range(24_000, 32_000, 100))


VALUES = torch.tensor([[0.0, 0.5, 0.0, -2.0, 0.0], [3.0, 0.0, -0.1, 0.0, 4.0]])
GRAD = torch.tensor([[1.0, 0.1, 9.0, 0.0, -8.0], [50.0, 2.0, 0.2, 3.0, 60.0]])


def test_a_change_worked_by_hand():
    """.4 of five is two: -.1 and .5 go, 9 and -8 are the largest gradients of what does not stay."""
    net = network()
    policy = RigL(net, epochs=9, sparsity=0.5, alpha=0.4, interval=2)
    set_values(policy, VALUES)
    take_step(policy, GRAD.clone())
    assert torch.equal(net[0].weight, VALUES)
    take_step(policy, GRAD.clone())
    assert net[0].weight.tolist() == [[0, 0, 0, -2, 0], [3, 0, 0, 0, 4]]
    assert policy.masks["0"].int().tolist() == [[0, 0, 1, 1, 1], [1, 0, 0, 0, 1]]


def test_a_weight_that_is_dropped_and_grows_again_keeps_its_value():
    """-.1 has the largest gradient of what does not stay."""
    net = network()
    policy = RigL(net, epochs=9, sparsity=0.5, alpha=0.4, interval=1)
    set_values(policy, VALUES)
    grad = GRAD.clone()
    grad[1, 2] = 70
    take_step(policy, grad)
    assert net[0].weight.tolist() == [[0, 0, 0, -2, 0], [3, 0, VALUES[1, 2], 0, 4]]
    assert policy.masks["0"].int().tolist() == [[0, 0, 1, 1, 0], [1, 0, 1, 0, 1]]


def test_in_groups_each_grows_what_it_lost():
    """2 of 4. -.1 and .2 are the layer's smallest, of one group each; in each the largest gradient grows."""
    net = network(2, 4)
    policy = RigL(net, epochs=9, pattern="2:4", alpha=0.5, interval=1)
    set_values(policy, torch.tensor([[0.0, -0.1, 5.0, 0.0], [0.2, 0.0, 0.0, 3.0]]))
    take_step(policy, torch.tensor([[1.0, 0.0, 0.0, 2.0], [0.0, 9.0, 8.0, 0.0]]))
    assert policy.masks["0"].int().tolist() == [[0, 0, 1, 1], [0, 1, 0, 1]]
    assert net[0].weight.tolist() == [[0, 0, 5, 0], [0, 0, 0, 3]]


def test_blocks_go_by_their_sums():
    net = network(2, 6)
    policy = RigL(net, epochs=9, sparsity=1 / 3, alpha=0.5, interval=1, pattern="block", block=2)
    set_values(policy, torch.tensor([[3.0, -3, 1, 1, 0, 0], [3, 3, -1, 1, 0, 0]]))
    take_step(policy, torch.tensor([[0.0, 0, 4, 0, 1, 2], [0, 0, 0, 0, 1, 2.0]]))
    assert policy.masks["0"].int().tolist() == [[1, 1, 0, 0, 1, 1]] * 2


def test_a_layer_without_a_gradient_waits_for_the_next_step_that_has_one():
    net = network()
    policy = RigL(net, epochs=9, sparsity=0.5, alpha=0.4, interval=3)
    set_values(policy, VALUES)
    changed = []
    for grad in (GRAD, GRAD, None, None, torch.full_like(GRAD, torch.inf), GRAD, GRAD, None):
        before = policy.masks["0"]
        take_step(policy, None if grad is None else grad.clone())
        changed.append(not torch.equal(before, policy.masks["0"]))
    assert changed == [False] * 5 + [True, False, False]  # the sixth is due itself, too


def test_an_old_gradient_does_not_count():
    policy = RigL(network(), epochs=9, sparsity=0.5, alpha=0.4, interval=1)
    set_values(policy, VALUES)
    take_step(policy, GRAD.clone())
    set_values(policy, VALUES)
    take_step(policy, None)
    assert torch.equal(policy.masks["0"], VALUES != 0)
    take_step(policy, GRAD.clone())
    assert not torch.equal(policy.masks["0"], VALUES != 0)


def test_without_an_optimizer_attached_the_gradient_that_is_there_counts():
    net = network()
    policy = RigL(net, epochs=9, sparsity=0.5, alpha=0.4, interval=1)
    set_values(policy, VALUES)
    net[0].weight.grad = GRAD.clone()
    policy.after_step()
    assert policy.masks["0"].int().tolist() == [[0, 0, 1, 1, 1], [1, 0, 0, 0, 1]]


def test_a_layer_that_skips_waits_for_the_end_of_the_window():
    net = network()
    wus = WUS(net)
    policy = RigL(net, epochs=9, sparsity=0.5, alpha=0.4, interval=2)
    together = Compose([policy, wus])
    set_values(policy, VALUES)
    wus.skipping = True
    for _ in range(3):
        take_step(policy, GRAD.clone())  # of a micro-batch before the window, say
        assert torch.equal(net[0].weight, VALUES)
    wus.skipping = False
    together.apply()
    take_step(policy, GRAD.clone())
    assert policy.masks["0"].int().tolist() == [[0, 0, 1, 1, 1], [1, 0, 0, 0, 1]]


def test_set_grows_at_random_and_leaves_rows_to_others():
    net = network(20, 20)
    policy = RigL(net, epochs=9, sparsity=0.5, interval=1, growth="random")
    assert set(policy.claims) == {"zeros"}
    assert set(RigL(network(), epochs=9).claims) == {"zeros", "rows"}
    before, kept = policy.masks["0"], policy.weights["0"].detach().clone()
    take_step(policy)
    after = policy.masks["0"]
    assert int(after.sum()) == 200
    lost = before & ~after
    assert 0 < int(lost.sum()) <= 60  # .3 of 200, but for those that grow again
    smallest = kept[before].abs().sort().values[59]
    assert (kept[lost].abs() <= smallest).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(alpha=0.0), "alpha: expected a number over 0 and up to 1, got 0.0"),
        (dict(until=1.5), "until: expected a number over 0 and up to 1, got 1.5"),
        (dict(interval=0), "interval: expected at least 1, got 0"),
        (dict(growth="momentum"), "growth: expected one of gradient, random, got 'momentum'"),
    ],
)
def test_bad_arguments_are_refused(given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        RigL(network(), **{"epochs": 9} | given)
