"""What a policy says of itself, in one line: its arguments, and what is on now; never the model."""

import dataclasses

import pytest
import torch
import torch.nn as nn

import wuskern as wk
from wuskern.policies import METHODS, ActivationCache, Compose, MeProp, Policy, ProgressiveFreezing, SievingSampler

X = torch.randn(4, 6)


def network():
    return wk.convert(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)))


def test_a_policy_says_its_arguments_and_what_is_on_now():
    net = network()
    policy = MeProp(net, k=2)
    assert repr(policy) == "MeProp(k=2, dense=('4',)): 3 layers: rows in 2, dense in 1"
    policy.release()
    assert repr(policy) == "MeProp(k=2, dense=('4',)): off"
    wus = wk.policies.WUS(network(), warmup=0, window=1, threshold=0.5)
    assert repr(wus) == "WUS(threshold=0.5, window=1, warmup=0): 3 layers: dense in 3"
    while not wus.step(0.5):
        pass
    assert repr(wus).endswith(": 3 layers: skip in 3")


def test_several_policies_say_so_together():
    net = network()
    freezing = ProgressiveFreezing(net, X, start=0, end=1, share=0.5)
    policy = Compose([freezing, MeProp(net, ratio=0.5, dense=["2", "4"])])
    given = "Compose([ProgressiveFreezing(start=0, end=1, share=0.5), MeProp(ratio=0.5, dense=('2', '4'))])"
    assert repr(policy) == f"{given}: 3 layers: rows in 1, dense in 2"
    policy.after_epoch()
    assert repr(policy) == f"{given}: 3 layers: frozen in 1, dense in 2"
    savings = wk.policies.Savings(policy, X, samples=8)
    savings.count(4)
    assert repr(savings) == f"Savings({given}, samples=8): 3 layers, 4 samples since the last report"
    cache = ActivationCache(freezing, X)
    assert repr(cache) == "ActivationCache(ProgressiveFreezing(start=0, end=1, share=0.5)): 0 MB are kept"


def test_a_sampler_says_how_many_train():
    sampler = SievingSampler(10, keep=0.7, interval=1)
    sampler.step()
    assert repr(sampler) == "SievingSampler(size=10, keep=0.7, interval=1): 7 samples train, 3 wait, after 1 epochs"


def test_a_policy_of_ones_own_has_it_too_and_may_have_another():
    @dataclasses.dataclass(eq=False, kw_only=True)
    class Mine(MeProp):
        times: int = 3

    @dataclasses.dataclass(eq=False, kw_only=True)
    class Other(Mine):
        def __repr__(self):
            return "other"

    assert repr(Mine(network(), k=1)) == "Mine(k=1, dense=('4',)): 3 layers: rows in 2, dense in 1"
    assert repr(Mine(network(), k=1, times=4)).startswith("Mine(k=1, dense=('4',), times=4): ")
    assert repr(Other(network(), k=1)) == "other"


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if issubclass(method, Policy)])
def test_every_policy_fits_a_line_without_the_model(name):
    assert METHODS[name].__repr__ is Policy.__repr__


def test_what_is_long_is_cut():
    net = wk.convert(nn.Sequential(*[nn.Linear(4, 4) for _ in range(40)]))
    assert len(repr(MeProp(net, k=1, dense=[str(i) for i in range(30)]))) < 120
