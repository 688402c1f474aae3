"""PaCA: fixed columns, by chance, by weight or by the input, against a mask by hand."""

import copy
import itertools

import pytest
import torch
import torch.nn as nn
from torch.optim import SGD

import wuskern as wk
from wuskern.policies import PaCA, Savings


def network() -> nn.Module:
    torch.manual_seed(0)
    parts = nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(32, 12), nn.Linear(12, 3)
    return wk.convert(nn.Sequential(*parts)).double()


X = torch.randn(5, 4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("score", ["random", "weight"])
def test_the_chosen_columns_alone_move(score):
    stock, net = network(), network()
    policy = PaCA(net, ratio=0.5, score=score)
    assert policy.chosen == ["0", "3"]  # neither the depthwise one nor the last
    masks = {}
    for name in policy.chosen:
        layer, columns = policy.layers[name], policy.columns[name].numbers
        inputs, groups, out = layer.units.inputs, layer.units.groups, layer.units.out
        assert len(columns) == inputs // 2
        if score == "weight":
            sizes = layer.weight.unflatten(0, (groups, -1)).square().sum(1).flatten(2 if layer.weight.ndim == 4 else 1)
            sizes = sizes.sum(-1).flatten() if layer.weight.ndim == 4 else sizes.flatten()
            best = sizes.view(groups, -1).topk(inputs // 2 // groups).indices.sort().values
            assert list(columns) == (best + torch.arange(groups)[:, None] * (inputs // groups)).flatten().tolist()
        mask = torch.zeros(groups, inputs // groups, dtype=torch.bool)
        mask.view(-1)[list(columns)] = True
        masks[name] = mask.repeat_interleave(out // groups, 0).view(out, -1, *[1] * (layer.weight.ndim - 2))
    for model in (stock, net):
        update = SGD(model.parameters(), 0.1)
        for step in range(3):
            model(X.roll(step, 0)).square().mean().backward()
            if model is stock:
                for name, mask in masks.items():
                    stock.get_submodule(name).weight.grad.mul_(mask)
            update.step()
            update.zero_grad()
    for ours, theirs in zip(net.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_columns_change_after_so_many_steps_and_repeat_by_seed():
    policies = [PaCA(network(), k=4, steps=2, seed=seed) for seed in (0, 0, 1)]
    seen = [[] for _ in policies]
    for _ in range(6):
        for policy, own in zip(policies, seen, strict=True):
            own.append(policy.columns["3"].numbers)
            policy.after_step()
    first, again, other = seen
    assert first == again != other
    assert [a == b for a, b in itertools.pairwise(first)] == [True, False, True, False, True]
    assert policies[0].layers["3"].columns == policies[0].columns["3"]


def test_by_the_input_of_the_steps_before():
    """Over micro-batches and steps; first by the weights. A layer without a backward keeps its columns."""
    net = wk.convert(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3), nn.Linear(3, 2)))
    policy = PaCA(net, k=2, score="input", steps=2)
    first = net[0].weight.square().sum(0).topk(2).indices.sort().values.tolist()
    sizes = torch.tensor([[1.0, 2, 3, 0, 0, 0], [0, 0, 0, 2, 2, 4], [3, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]])
    seen = []
    for step in range(4):
        seen.append(list(policy.columns["0"].numbers))
        for x in sizes[:2] if step < 2 else sizes[2:]:
            net(x[None]).sum().backward()
        with torch.no_grad():
            net(100 * torch.eye(6))  # what has no backward is not seen
        policy.after_step()
    assert seen == [first, first, [2, 5], [2, 5]]  # sums of two steps are 2, 8, 18, 8, 8, 32
    assert list(policy.columns["0"].numbers) == [0, 2]
    before = dict(policy.columns)
    net[1].skip = True
    for _ in range(2):
        policy.after_step()
    assert policy.columns == before


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by torch's compiler
def test_another_choice_does_not_compile_again():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    net = network()
    policy, call = PaCA(net, ratio=0.5, score="input", steps=1), torch.compile(net, backend="aot_eager", fullgraph=True)
    seen, x = set(), X.clone()
    for step in range(4):
        seen.add(policy.columns["3"].numbers)
        net.zero_grad()
        call(x * (1 + step)).square().mean().backward()
        chosen = net[3].weight.grad.any(0).nonzero().flatten().tolist()
        assert chosen == list(policy.columns["3"].numbers)
        x = x.roll(step + 1, 2) + 3 * torch.eye(6) * step
        policy.after_step()
    assert len(seen) > 1
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_without_steps_the_columns_stay():
    policy = PaCA(network(), ratio=0.25, block=2)
    before = dict(policy.columns)
    for _ in range(5):
        policy.after_step()
        policy.after_epoch()
    assert policy.columns == before
    assert all(a + 1 == b for a, b in zip(*[iter(policy.columns["3"].numbers)] * 2, strict=True))


def test_what_is_saved_is_the_other_columns_part_of_wgrad():
    net = wk.convert(nn.Sequential(nn.Linear(10, 6), nn.Linear(6, 4)))
    savings = Savings(PaCA(net, k=2), torch.randn(1, 10))
    savings.count(3)
    saved = savings.report()
    assert saved.wgrad == pytest.approx(60 * 0.8 / (60 + 24))
    assert (saved.fprop, saved.dgrad, saved.rows) == (0, 0, 0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "ratio, k: expected one of the two"),
        ({"k": 33}, ValueError, "0: k: expected a multiple of block [*] groups = 2 up to 4, got 33"),
        ({"ratio": 0.5, "score": "l1"}, ValueError, "score: expected one of random, weight, input, got 'l1'"),
        ({"ratio": 0.5, "score": "input"}, ValueError, "steps: expected a number with score='input'"),
        ({"ratio": 0.5, "steps": 0}, ValueError, "steps: expected at least 1, got 0"),
        ({"ratio": 0.5, "seed": -1}, ValueError, "seed: expected at least 0, got -1"),
        ({"ratio": 0.5, "dense": ["9"]}, ValueError, "dense: expected names of converted layers"),
    ],
)
def test_bad_arguments_are_named_and_change_nothing(arguments, error, message):
    net = network()
    with pytest.raises(error, match=message):
        PaCA(net, **arguments)
    assert all(layer.columns is None for layer in net.modules() if hasattr(layer, "columns"))


@pytest.mark.parametrize("index", [[0, 1], [0, 1, 2, 2], [3, 2, 1, 0], [0, 1, 2, 32], "0"])
def test_columns_of_something_else_are_refused_and_nothing_changes(index):
    policy = PaCA(network(), k=4)
    state = copy.deepcopy(policy.state_dict())
    state["columns"]["3"] = torch.tensor(index) if isinstance(index, list) else index
    before = dict(policy.columns)
    with pytest.raises(ValueError, match="state: expected columns of '3'"):
        policy.load_state_dict(state)
    assert policy.columns == before
