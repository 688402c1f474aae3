"""How many layers each freezing method freezes, epoch by epoch, worked by hand."""

import functools
import itertools

import pytest
import torch
import torch.nn as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import wuskern as wk
from wuskern.policies import (
    ComposerFreezing,
    DelayedFreezing,
    Freezing,
    PeriodicFreezing,
    PipeTransformerFreezing,
    ProgressiveFreezing,
    SingleShotFreezing,
)

EXAMPLE = torch.randn(2, 4)


def network(layers: int = 8) -> nn.Module:
    return wk.convert(nn.Sequential(*(nn.Linear(4, 4) for _ in range(layers))))


def depths(policy: Freezing, epochs: int) -> list[int]:
    """In each epoch."""
    found = []
    for _ in range(epochs):
        found.append(policy.depth)
        assert not policy.step(0.5)
        policy.after_epoch()
    return found


# Each line: method, arguments, frozen layers of eight in each epoch.
HISTORIES = {
    "progressive": (ProgressiveFreezing, dict(start=2, end=6, share=0.5), [0, 0, 0, 1, 2, 3, 4, 4, 4]),
    "progressive, slow at first": (ProgressiveFreezing, dict(start=0, end=4, share=1.0, power=2.0), [0, 0, 2, 4, 7, 7]),
    # .75 * 8 = 6 layers, times 0 1/3 2/3 1
    "progressive in thirds": (ProgressiveFreezing, dict(start=1, end=4, share=0.75), [0, 0, 2, 4, 6]),
    "single-shot": (SingleShotFreezing, dict(at=3, share=0.3), [0, 0, 0, 2, 2, 2]),
    "single-shot from the beginning": (SingleShotFreezing, dict(at=0, share=0.5), [4, 4]),
    "single-shot and resume": (SingleShotFreezing, dict(at=1, share=0.5, until=3), [0, 4, 4, 0, 0]),
    "periodic": (PeriodicFreezing, dict(start=2, freeze=2, train=1, share=0.5), [0, 0, 4, 4, 0, 4, 4, 0, 4]),
    "delayed": (
        DelayedFreezing,
        dict(start=1, freeze=1, train=2, share=0.75, turns=3),
        [0, 2, 0, 0, 4, 0, 0, 6, 0, 0, 6],
    ),
    # (t - .25) / .75 * 7 after 0, 1/8, ... of the training
    "composer": (ComposerFreezing, dict(epochs=8, start=0.25), [0, 0, 0, 1, 2, 3, 4, 5]),
    "composer, half the layers": (ComposerFreezing, dict(epochs=4, start=0.0, level=0.5), [0, 0, 1, 2, 3]),
    # 8 / 3 = 2.67, then a third of the other 5.33 = 1.78, of 3.56 = 1.19, ...: 2.67 4.44 5.63 6.42 6.95 7.30
    "pipetransformer": (PipeTransformerFreezing, dict(), [0, 2, 4, 5, 6, 6, 7]),
    "pipetransformer, every other epoch": (PipeTransformerFreezing, dict(alpha=0.5, interval=2), [0, 0, 4, 4, 6, 6, 7]),
}


@pytest.mark.parametrize("name", HISTORIES)
def test_depths_worked_by_hand(name):
    method, arguments, expected = HISTORIES[name]
    assert depths(method(network(), EXAMPLE, **arguments), len(expected)) == expected


@given(alpha=st.floats(0.05, 0.95), steps=st.integers(1, 12))
def test_pipetransformer_is_the_papers_sum(alpha, steps):
    paper = (1 - alpha) ** steps * (8 * alpha / (1 - alpha) + sum(8 * alpha / (1 - alpha) ** e for e in range(2, steps + 1)))
    policy = PIPE
    policy.alpha = alpha
    assert policy.wanted(steps) in (int(paper - 1e-6), int(paper + 1e-6))


PIPE = PipeTransformerFreezing(network(), EXAMPLE)


def test_what_is_frozen_is_wanted_by_name():
    policy = SingleShotFreezing(network(4), EXAMPLE, at=0, share=0.5)
    assert {name: policy.wants(name) for name in policy.layers} == {
        "0": {"frozen": True},
        "1": {"frozen": True},
        "2": {"frozen": False},
        "3": {"frozen": False},
    }


def test_the_order_is_that_of_execution():
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.unused, self.first = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(x))

    policy = SingleShotFreezing(wk.convert(Backwards()), EXAMPLE, at=0, share=0.5)
    assert [name for name in policy.layers if policy.wants(name)["frozen"]] == ["first"]
    assert policy.count == 2


# ---- a wanted saving ------------------------------------------------------------------------------------------------


def test_a_saving_worked_by_hand():
    """Eight equal layers cost 8 * 3 - 1 = 23 parts: the first has no input gradient. Of depth d a step saves 2 d parts: its
    layers' both gradients, without the first one's, and the input gradient of the next. Epochs 0 to 3 freeze 0, 1/3, 2/3 and
    all of 8 share layers: of depths 0 2 4 6 it saves 24 of 92 parts, .261; the next smaller share gives 0 1 3 5 or 0 1 3 6."""
    policy = ProgressiveFreezing(network(), EXAMPLE, start=0, end=3, saving=24 / 92, epochs=4)
    assert policy.share == pytest.approx(0.75)
    assert depths(policy, 4) == [0, 2, 4, 6]
    policy = ProgressiveFreezing(network(), EXAMPLE, start=0, end=3, saving=18 / 92, epochs=4)
    assert depths(policy, 4) == [0, 1, 3, 5]


@settings(max_examples=20, deadline=None)
@given(wanted=st.floats(0.01, 0.12), power=st.sampled_from([0.5, 1.0, 2.0]), start=st.integers(0, 2))
def test_a_wanted_saving_is_what_torch_counts(wanted, power, start):
    """FLOPs of all steps of a run, forward and backward, by torch's counter; and no smaller share would do."""
    epochs = 8
    policy = ProgressiveFreezing(network(5), EXAMPLE, start=start, end=6, power=power, saving=wanted, epochs=epochs)
    assert saved_in_a_run(depths(policy, epochs)) >= wanted
    less = ProgressiveFreezing(network(5), EXAMPLE, start=start, end=6, power=power, share=policy.share - 1e-6)
    assert saved_in_a_run(depths(less, epochs)) < wanted


def saved_in_a_run(depths: list[int]) -> float:
    flops = {depth: flops_of_a_step(depth) for depth in {0, *depths}}
    return 1 - sum(flops[depth] for depth in depths) / (len(depths) * flops[0])


@functools.cache
def flops_of_a_step(depth: int) -> int:
    net = network(5)
    SingleShotFreezing(net, EXAMPLE, at=99).prefix.set(depth)
    with FlopCounterMode(display=False) as counter:
        net(EXAMPLE).square().sum().backward()
    return counter.get_total_flops()


def test_a_saving_out_of_reach_names_the_largest():
    """Seven of eight layers in three of four epochs: 3 * 14 of 92 parts."""
    with pytest.raises(ValueError, match=r"expected a number over 0 and up to 0\.4565, the largest reachable, got 0\.5"):
        ProgressiveFreezing(network(), EXAMPLE, start=0, end=1, saving=0.5, epochs=4)
    with pytest.raises(ValueError, match=r"up to 0\.0000"):
        ProgressiveFreezing(network(), EXAMPLE, start=4, end=5, saving=0.1, epochs=4)


# ---- state ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HISTORIES)
def test_a_saved_policy_goes_on_as_it_would_have(name):
    method, arguments, expected = HISTORIES[name]
    for cut in range(len(expected)):
        first = method(network(), EXAMPLE, **arguments)
        before = depths(first, cut)
        second = method(network(), EXAMPLE, **arguments)
        second.load_state_dict(first.state_dict())
        assert before + depths(second, len(expected) - cut) == expected


def test_a_state_of_others_is_refused():
    with pytest.raises(ValueError, match=r"state: expected the keys \['epoch', 'policy'\], got \['step'\]"):
        SingleShotFreezing(network(), EXAMPLE, at=1).load_state_dict({"step": 1})


# ---- bad arguments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "arguments", "error", "message"),
    [
        (SingleShotFreezing, dict(at=-1), ValueError, "at: expected at least 0, got -1"),
        (SingleShotFreezing, dict(at=1, share=0.0), ValueError, "share: expected a number over 0 and up to 1, got 0.0"),
        (SingleShotFreezing, dict(at=3, until=3), ValueError, "until: expected at least 4, got 3"),
        (PeriodicFreezing, dict(start=1.5), TypeError, "start: expected a whole number, got 1.5"),
        (PeriodicFreezing, dict(start=1, freeze=0), ValueError, "freeze: expected at least 1, got 0"),
        (PeriodicFreezing, dict(start=1, train=0), ValueError, "train: expected at least 1, got 0"),
        (DelayedFreezing, dict(start=1, turns=0), ValueError, "turns: expected at least 1, got 0"),
        (ProgressiveFreezing, dict(start=3, end=3), ValueError, "end: expected at least 4, got 3"),
        (ProgressiveFreezing, dict(start=0, end=1, power=0), ValueError, "power: expected a positive number, got 0"),
        (ProgressiveFreezing, dict(start=0, end=1, share=1.5), ValueError, "share: expected a number over 0 and up to 1"),
        (ProgressiveFreezing, dict(start=0, end=1, share=0.5, saving=0.1), ValueError, "saving: expected None beside share"),
        (ProgressiveFreezing, dict(start=0, end=1, saving=0.1), TypeError, "epochs: expected a whole number, got None"),
        (ProgressiveFreezing, dict(start=0, end=1, epochs=3), ValueError, "epochs: expected None without saving, got 3"),
        (ComposerFreezing, dict(epochs=0), ValueError, "epochs: expected at least 1, got 0"),
        (ComposerFreezing, dict(epochs=4, start=1.0), ValueError, "start: expected a number from 0 and under 1, got 1.0"),
        (ComposerFreezing, dict(epochs=4, level=0.0), ValueError, "level: expected a number over 0 and up to 1, got 0.0"),
        (PipeTransformerFreezing, dict(alpha=1.0), ValueError, "alpha: expected a number between 0 and 1, got 1.0"),
        (PipeTransformerFreezing, dict(interval=0), ValueError, "interval: expected at least 1, got 0"),
    ],
)
def test_bad_arguments(method, arguments, error, message):
    net = network(3)
    with pytest.raises(error, match=message):
        method(net, EXAMPLE, **arguments)
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_every_layer_frozen_leaves_one():
    for layers, share in itertools.product((2, 5), (0.99, 1.0)):
        assert SingleShotFreezing(network(layers), EXAMPLE, at=0, share=share).depth == layers - 1
    assert SingleShotFreezing(network(1), EXAMPLE, at=0, share=1.0).depth == 0
