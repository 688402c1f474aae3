"""SpFDE: three methods that run as one, in stages."""

import itertools

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import wuskern as wk
from wuskern.policies import MEST, WUS, Compose, ProgressiveFreezing, SievingSampler, SpFDE

EPOCHS, SAMPLES = 8, 20
X = torch.randn(SAMPLES, 6, generator=torch.Generator().manual_seed(0))
Y = torch.randint(3, (SAMPLES,), generator=torch.Generator().manual_seed(1))


def network() -> nn.Module:
    torch.manual_seed(2)
    parts = nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 3)
    return wk.convert(nn.Sequential(*parts))


def spfde(net: nn.Module, **other) -> SpFDE:
    arguments = dict(
        epochs=EPOCHS, samples=SAMPLES, sparsity=0.5, interval=1, keep=0.6, rate=0.25, sieve_interval=2, share=0.75
    )
    return SpFDE(net, X[:2], **arguments | other)


def train(net, policy, sampler, look, step_sampler=False):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    policy.attach(optimizer)
    for _ in range(EPOCHS):
        for index in torch.tensor(list(sampler)).split(6):
            policy.before_step()
            optimizer.zero_grad()
            logits = net(X[index])
            F.cross_entropy(logits, Y[index]).backward()
            sampler.record(index, logits.argmax(1) == Y[index])
            optimizer.step()
            policy.after_step()
        policy.step()
        if step_sampler:
            sampler.step()
        look()


def test_it_is_its_parts_composed_bit_for_bit():
    one, other = network(), network()
    whole = spfde(one, seed=3)
    sampler = SievingSampler(SAMPLES, keep=0.6, rate=0.25, interval=2, seed=3)
    freezing = ProgressiveFreezing(other, X[:2], start=2, end=6, share=0.75)
    parts = Compose([MEST(other, epochs=EPOCHS, sparsity=0.5, interval=1, seed=3), freezing])
    train(one, whole, whole.sampler, lambda: None)
    train(other, parts, sampler, lambda: None, step_sampler=True)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_the_stages_follow_each_other():
    """Of four layers the first three freeze by and by; data and masks of the others go on."""
    net = network()
    policy = spfde(net)
    depths, parts, first, last, zeros = [], [], [], [], []

    def look():
        depths.append(policy.freezing.depth)
        parts.append(tuple(policy.sampler.training.tolist()))
        first.append((policy.trainer.masks["0"].clone(), net[0].weight.detach().clone()))
        last.append(policy.trainer.masks["4"].clone())
        zeros.append([int((~mask).sum()) for mask in policy.trainer.masks.values()])
        assert not any(net.get_submodule(name).weight[~mask].any() for name, mask in policy.trainer.masks.items())

    look()
    train(net, policy, policy.sampler, look)
    assert depths == [0, 0, 0, 0, 1, 2, 3, 3, 3]  # 3 * clip((t - 2) / 4), cut down
    assert {len(part) for part in parts} == {12}
    assert [a == b for a, b in itertools.pairwise(parts)] == [True, False] * 4  # anew every second epoch
    assert not any(torch.equal(a[0], b[0]) for a, b in itertools.pairwise(first[1:5]))
    assert all(torch.equal(mask, first[4][0]) and torch.equal(weight, first[4][1]) for mask, weight in first[5:])
    assert not torch.equal(last[4], last[5])  # while the first two were frozen
    assert all(torch.equal(mask, last[6]) for mask in last[7:])
    assert all(counts == [30, 50, 50] for counts in zeros)


def test_it_can_be_a_part_itself():
    net = network()
    whole = spfde(net)
    policy = Compose([whole, WUS(net, window=1, warmup=0)])
    assert whole.trainer.whole is policy
    with pytest.raises(ValueError, match="which weights are zero, got SpFDE and MEST"):
        Compose([whole, MEST(net, epochs=EPOCHS)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep": 0}, "keep: expected a number over 0"),
        ({"share": 2}, "share: expected a number over 0 and up to 1, got 2"),
        ({"share": None, "saving": 0.9}, "saving: expected a number over 0 and up to"),
        ({"sparsity": 1.5}, "sparsity: expected"),
        ({"start": 3, "end": 3}, "end: expected at least 4, got 3"),
    ],
)
def test_bad_arguments_are_refused_before_any_weight_changes(arguments, message):
    net = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        spfde(net, **arguments)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_state_of_something_else_is_refused():
    policy = spfde(network())
    with pytest.raises(ValueError, match="state: expected the keys"):
        policy.load_state_dict({"policies": policy.state_dict()["policies"]})
