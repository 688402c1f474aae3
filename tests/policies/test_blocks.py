"""Blocks of layers in turn: against stock loops with an optimizer for each period, and orders worked by hand."""

import copy
import itertools
from collections import Counter

import pytest
import torch
import torch.nn as nn
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import SGD, AdamW

import wuskern as wk
from wuskern.policies import Blocks
from wuskern.policies.blocks import block_of

X = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Four blocks of two layers and a norm, and a head that always trains."""

    def __init__(self) -> None:
        super().__init__()
        parts = (nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8), nn.LayerNorm(8))
        self.layer = nn.ModuleList(nn.Sequential(*copy.deepcopy(parts)) for _ in range(4))
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layer:
            x = x + layer(x)
        return self.head(x)


def network() -> Net:
    torch.manual_seed(1)
    return Net()


def loss_of(net: nn.Module, step: int) -> torch.Tensor:
    return net(X.roll(step, 0)[:6]).square().mean()


def values(net: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_badam_is_an_optimizer_for_each_period(order):
    """A stock model: one AdamW for the head, and a new one for the block of each period; nothing else has gradients."""
    stock, net = network(), wk.convert(network())
    policy, update = Blocks(net, steps=3, order=order, others="still"), AdamW(net.parameters(), 0.01)
    policy.attach(update)
    head = AdamW(stock.head.parameters(), 0.01)
    places = range(4) if order == "ascending" else range(3, -1, -1)
    for step in range(14):
        if step % 3 == 0:
            block = stock.layer[places[step // 3 % 4]]
            own = AdamW(block.parameters(), 0.01)
            stock.layer.requires_grad_(False)
            block.requires_grad_(True)
        for model, optimizers in ((stock, (head, own)), (net, (update,))):
            if model is net:
                policy.before_step()
            loss_of(model, step).backward()
            for optimizer in optimizers:
                optimizer.step()
            model.zero_grad()
        policy.after_step()
        assert same(values(stock), values(net)), step


@pytest.mark.parametrize("set_to_none", [True, False])
def test_state_that_is_kept_is_that_of_one_optimizer(set_to_none):
    """LISA with two blocks: a stock AdamW that sees gradients of those alone; its momenta rest meanwhile."""
    stock, net = network(), wk.convert(network())
    policy = Blocks(net, steps=2, train=2, order="sampled", state="keep", others="still", seed=3)
    updates = {stock: AdamW(stock.parameters(), 0.01), net: AdamW(net.parameters(), 0.01)}
    policy.attach(updates[net])
    for step in range(12):
        training = {f"layer.{i}" for i in range(4)} & set(policy.training)
        for model, update in updates.items():
            loss_of(model, step).backward()
            if model is stock:
                for name, parameter in stock.named_parameters():
                    if name.startswith("layer") and ".".join(name.split(".")[:2]) not in training:
                        parameter.grad = None
            update.step()
            update.zero_grad(set_to_none=set_to_none)
        policy.after_step()
        assert same(values(stock), values(net)), step


def test_biases_and_norms_of_the_others_train_unless_they_are_still():
    for others, moves in (("skip", {"bias", "norm"}), ("still", set())):
        net = wk.convert(network())
        policy, update = Blocks(net, order="ascending", others=others), SGD(net.parameters(), 0.1)
        policy.attach(update)
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        loss_of(net, 0).backward()
        update.step()
        moved = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
        assert {name for name in moved if name.startswith(("layer.0", "head"))} == {
            name for name in before if name.startswith(("layer.0", "head"))
        }
        rest = {name for name in moved if not name.startswith(("layer.0", "head"))}
        assert {("norm" if ".3." in name else name.split(".")[-1]) for name in rest} == moves


def periods(policy: Blocks, count: int) -> list[tuple[str, ...]]:
    seen = []
    for _ in range(count):
        seen.append(policy.training)
        policy.after_step()
    return seen


@given(blocks=st.integers(2, 6), train=st.integers(1, 5), seed=st.integers(0, 99))
def test_in_rounds_every_block_trains_as_often(blocks, train, seed):
    if train >= blocks:
        return
    net = wk.convert(nn.Sequential(*(nn.Linear(2, 2) for _ in range(blocks))))
    for order in ("shuffled", "ascending"):
        seen = periods(Blocks(net, steps=1, train=train, order=order, seed=seed), blocks)
        assert set(Counter(itertools.chain(*seen)).values()) == {train}
        assert all(len(set(period)) == train for period in seen)


def test_orders_worked_by_hand():
    net = wk.convert(nn.Sequential(*(nn.Linear(2, 2) for _ in range(3))))
    assert periods(Blocks(net, steps=1, order="ascending"), 4) == [("0",), ("1",), ("2",), ("0",)]
    assert periods(Blocks(net, steps=1, order="descending", train=2), 3) == [("2", "1"), ("0", "2"), ("1", "0")]
    assert [len(set(period)) for period in periods(Blocks(net, steps=1, order="sampled", train=2), 9)] == [2] * 9
    first, again, other = (periods(Blocks(net, steps=1, seed=seed), 9) for seed in (0, 0, 1))
    assert first == again != other


def test_names_of_blocks():
    assert [block_of(name) for name in ("encoder.layer.3.attention.0.query", "h.11.mlp", "0", "classifier", "")] == [
        "encoder.layer.3", "h.11", "0", "", "",
    ]  # fmt: skip


def test_what_a_block_shares_with_the_rest_is_not_held_still():
    net = network()
    net.layer[1][2].bias = net.head_bias = nn.Parameter(torch.zeros(8))
    policy = Blocks(wk.convert(net), order="descending", others="still")
    assert not any(p is net.head_bias for p in policy.frozen_parameters())
    assert any(p is net.layer[1][0].bias for p in policy.frozen_parameters())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"train": 4}, ValueError, "train: expected fewer than the 4 blocks of the model, got 4"),
        ({"steps": 0}, ValueError, "steps: expected at least 1, got 0"),
        ({"order": "random"}, ValueError, "order: expected one of shuffled, sampled, ascending, descending, got 'random'"),
        ({"others": "frozen"}, ValueError, "others: expected one of skip, still, got 'frozen'"),
        ({"state": None}, ValueError, "state: expected one of drop, keep, got None"),
        ({"dense": ["body"]}, ValueError, "dense: expected names of converted layers"),
        ({"seed": 1.5}, TypeError, "seed: expected a whole number, got 1.5"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        Blocks(wk.convert(network()), **arguments)


@pytest.mark.parametrize(
    "change",
    [
        {"training": ["layer.9"]}, {"training": []}, {"training": "layer.1"}, {"waiting": ["layer.0", "layer.0"]}, {"done": 3},
        {"generator": torch.zeros(3)}, {"policy": "WUS"},
    ],
)  # fmt: skip
def test_a_state_of_something_else_is_refused_and_changes_nothing(change):
    policy = Blocks(wk.convert(network()), steps=3)
    before = repr(policy.state_dict()), [layer.plan for layer in policy.layers.values()]
    with pytest.raises(ValueError, match="state: expected "):
        policy.load_state_dict(policy.state_dict() | change)
    assert (repr(policy.state_dict()), [layer.plan for layer in policy.layers.values()]) == before
