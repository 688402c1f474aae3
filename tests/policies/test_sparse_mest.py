"""MEST: its counts against the arithmetic of the public code, and masks worked by hand."""

import math
import re

import numpy as np
import pytest
import torch
import torch.nn as nn

import wuskern as wk
from wuskern.policies import MEST

# Weights of layers of ResNet-32: (out, in * kh * kw).
SHAPES = ((16, 27), (16, 144), (32, 288), (64, 576))


def network(*shapes: tuple[int, int]) -> nn.Module:
    """Layers that do not fit one another: none runs. The last one is dense."""
    torch.manual_seed(0)
    return wk.convert(nn.ModuleList([*(nn.Linear(b, a) for a, b in shapes), nn.Linear(2, 2)]))


def counts(policy: MEST) -> list[int]:
    return [int(mask.sum()) for mask in policy.masks.values()]


def epochs(policy: MEST, count: int) -> list[list[int]]:
    """Of each epoch what trains, with the first step's decision."""
    found = []
    for _ in range(count):
        policy.before_step()
        found.append(counts(policy))
        with torch.no_grad():  # what grew is zero no more
            for name, mask in policy.masks.items():
                policy.weights[name].add_(torch.randn_like(policy.weights[name]) * mask)
        policy.after_step()
        policy.step()
    return found


def of_the_public_code(shape: tuple[int, int], lower: str, upper: str, run: int) -> list[int]:
    """What trains in each epoch, by the arithmetic of boone891214/MEST, prune_utils: the bounds in text, the percentile, the
    growth. It begins with the first 90 % pruned."""
    random = np.random.RandomState(0)
    weight = random.randn(*shape).astype(np.float32)
    weight *= np.abs(weight) > np.percentile(np.abs(weight), 90)
    mask, found = weight != 0, []
    for epoch in range(run):
        index = sum(epoch >= int(decay) for decay in ["90", "120"])
        low, high = float(lower.split("-")[index]), float(upper.split("-")[index])
        if epoch % 5 == 0:
            weight = weight * (np.abs(weight) > np.percentile(np.abs(weight), low * 100))
            mask = weight != 0
            if low != high:
                zeros = np.where(weight.reshape(-1) == 0)[0]
                mask.reshape(-1)[random.choice(zeros, max(0, int(zeros.size - high * weight.size)), replace=False)] = True
        found.append(int(mask.sum()))
        weight = weight + random.randn(*shape).astype(np.float32) * mask
    return found


@pytest.mark.parametrize(
    ("variant", "lower", "upper"), [("em", "0.92-0.91-0.9", "0.9-0.9-0.9"), ("ems", "0.9-0.9-0.9", "0.85-0.875-0.9")]
)
def test_160_epochs_train_as_many_weights_as_in_the_public_code(variant, lower, upper):
    """But for one weight, where a share is not whole."""
    ours = epochs(MEST(network(*SHAPES), epochs=160, variant=variant), 160)
    for layer, shape in enumerate(SHAPES):
        theirs = of_the_public_code(shape, lower, upper, 160)
        assert all(abs(mine[layer] - count) <= 1 for mine, count in zip(ours, theirs, strict=True))
    large = [row[3] for row in ours]
    assert large[0] == math.ceil({"em": 0.1, "ems": 0.15}[variant] * 36864)
    changes = [epoch for epoch in range(1, 160) if large[epoch] != large[epoch - 1]]
    assert changes == ([] if variant == "em" else [90, 120])


@pytest.mark.parametrize(
    ("sparsity", "variant", "lower", "upper"),
    [
        (0.95, "em", (0.96, 0.955, 0.95), (0.95,) * 3),
        (0.95, "ems", (0.95,) * 3, (0.9, 0.925, 0.95)),
        (0.02, "ems", (0.02,) * 3, (0, 0, 0.02)),
    ],
)
def test_bounds_of_other_sparsities(sparsity, variant, lower, upper):
    policy = MEST(network((10, 10)), epochs=160, sparsity=sparsity, variant=variant)
    assert (policy.lower, policy.upper) == (pytest.approx(lower), pytest.approx(upper))
    assert policy.switches == (90, 120)


def test_bounds_in_layers_that_differ_are_in_proportion_to_what_trains():
    """.5 of all weights train; twice as many at first in both layers, but no more than there are."""
    net = network((10, 10), (10, 10))
    policy = MEST(net, epochs=8, sparsity={"0": 0.2, "1": 0.8}, lower=0.5, upper=(0.0, 0.5), switches=(4,), interval=2)
    assert policy.sparsity == pytest.approx(0.5)
    assert epochs(policy, 8) == [[100, 40]] * 4 + [[80, 20]] * 4


def test_a_change_worked_by_hand():
    """Of ten weights five train; the smallest two of them go, and two others, or the same again, start from zero."""
    net = network((2, 5))
    policy = MEST(net, epochs=4, sparsity=0.5, lower=0.7, upper=0.5, switches=(), interval=1)
    values = torch.tensor([[0.0, 0.5, 0.0, -2.0, 0.0], [3.0, 0.0, -0.1, 0.0, 4.0]])
    policy.masks["0"] = values != 0
    with torch.no_grad():
        net[0].weight.copy_(values)
    policy.step()
    assert torch.equal(net[0].weight, values)
    policy.before_step()
    assert net[0].weight.tolist() == [[0, 0, 0, -2, 0], [3, 0, 0, 0, 4]]
    assert int(policy.masks["0"].sum()) == 5
    assert policy.masks["0"][net[0].weight != 0].all()


def test_growth_is_at_random_among_all_zeros():
    """Each of the seven zeros, those just pruned among them, is as likely: 2 of 7."""
    net = network((2, 5))
    policy = MEST(net, epochs=10**6, sparsity=0.5, lower=0.7, upper=0.5, switches=(), interval=1)
    values = torch.tensor([[0.0, 0.5, 0.0, -2.0, 0.0], [3.0, 0.0, -0.1, 0.0, 4.0]])
    times, trials = torch.zeros(2, 5), 2000
    for _ in range(trials):
        policy.masks["0"] = values != 0
        with torch.no_grad():
            net[0].weight.copy_(values)
        policy.step()
        policy.before_step()
        times += policy.masks["0"]
    stay = torch.tensor([[0, 0, 0, 1, 0], [1, 0, 0, 0, 1]]).bool()
    assert (times[stay] == trials).all()
    sigma = (trials * 2 / 7 * 5 / 7) ** 0.5  # over five of it: once in 250,000 runs
    assert ((times[~stay] - trials * 2 / 7).abs() < 5 * sigma).all()


def test_a_short_run_still_ends_at_its_sparsity():
    """No epoch is a multiple of five; the bounds switch at 2.25 and 3."""
    assert epochs(MEST(network((10, 10)), epochs=4, variant="ems"), 4) == [[15], [15], [15], [10]]
    policy = MEST(network((10, 10)), epochs=3, interval=3)
    epochs(policy, 3)
    assert not policy.due  # nothing changes after the last epoch


def test_of_each_four_inputs_two_stay_after_every_change():
    policy = MEST(network((8, 12)), epochs=20, pattern="2:4", interval=1)
    assert policy.sparsity == 0.5
    before = policy.masks["0"]
    for _ in range(20):
        epochs(policy, 1)
        assert (policy.masks["0"].reshape(-1, 4).sum(1) == 2).all()
    assert not torch.equal(before, policy.masks["0"])


def test_blocks_come_and_go_whole():
    policy = MEST(network((16, 12)), epochs=20, sparsity=0.5, pattern="block", block=4, interval=1)
    seen = set()
    for _ in range(10):
        assert epochs(policy, 1) == [[96]]
        blocks = policy.masks["0"].reshape(4, 4, 3, 4).sum((1, 3))
        assert set(blocks.flatten().tolist()) == {0, 16}
        seen.add(tuple(blocks.flatten().tolist()))
    assert len(seen) > 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(variant="em&s"), "variant: expected one of em, ems, got 'em&s'"),
        (dict(lower=(0.9, 0.9)), "lower: expected one for each of 3 phases, got 2"),
        (dict(upper=1.0), "upper: expected a number from 0 and under 1, got 1.0"),
        (dict(upper=0.95), "upper: expected no more than lower = 0.92, got 0.95"),
        (dict(switches=(120, 90)), "switches: expected them in their order, got (120, 90)"),
        (dict(switches=(0, 90)), "switches: expected numbers over 0, got 0"),
        (dict(interval=0), "interval: expected at least 1, got 0"),
        (dict(epochs=0), "epochs: expected at least 1, got 0"),
        (dict(seed=-1), "seed: expected at least 0, got -1"),
        (dict(sparsity=1), "sparsity: expected a number from 0 and under 1, got 1"),
        (dict(dense=["1", "2"]), "dense: expected names of converted layers (0, 1) or of modules with some, got '2'"),
        (dict(pattern="1:5", variant="ems"), "pattern: expected variant em without lower and upper for n:m"),
        (dict(pattern="1:5", sparsity=0.9), "sparsity: expected None, as 1:5 says it, got 0.9"),
        (dict(pattern="1:5", distribution="erk"), "distribution: expected uniform with 1:5, got 'erk'"),
        (dict(pattern="1:3"), "0: pattern: expected m to divide 10 inputs, got 1:3"),
        (dict(pattern="block"), "0: block: expected a divisor of 10 and 10, got 16"),
    ],
)
def test_bad_arguments_are_refused_and_change_nothing(given, message):
    net = network((10, 10))
    before = net[0].weight.clone()
    with pytest.raises(ValueError, match=re.escape(message)):
        MEST(net, **{"epochs": 160} | given)
    assert torch.equal(net[0].weight, before)
