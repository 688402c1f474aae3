"""Column-row sampling as a policy: which layers get which tokens, and steps against plain PyTorch."""

import itertools

import pytest
import torch
import torch.nn as nn

import wuskern as wk
from wuskern.policies import WUS, ColumnRowSampling, Compose, MeProp


def mlp(*widths: int) -> nn.Module:
    """Linear layers of these widths with Tanhs in between, in float64. Names: 0, 2, 4, ..."""
    layers = [nn.Linear(a, b, dtype=torch.float64) for a, b in itertools.pairwise(widths)]
    return wk.convert(nn.Sequential(*(part for layer in layers for part in (layer, nn.Tanh())))[:-1])


def flags(net: nn.Module) -> dict[str, tuple[object, ...]]:
    return {name: (m.skip, m.rows, m.tokens) for name, m in net.named_modules() if hasattr(m, "tokens")}


def test_all_but_the_last_layer_share_one_choice_and_releasing_takes_it_back():
    net = wk.convert(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 8), nn.Linear(8, 4)))
    policy = ColumnRowSampling(net, ratio=0.3)
    chosen = wk.Tokens(ratio=0.3, pick="wta")
    expected = {"0": (False, None, chosen), "2": (False, None, chosen), "3": (False, None, None)}
    assert flags(net) == expected
    assert (policy.tokens, policy.dense) == (chosen, ("3",))
    assert set(policy.claims["tokens"]) == {"0", "2"}
    assert policy.step(0.5) is False
    policy.release()
    assert {tokens for *_, tokens in flags(net).values()} == {None}
    policy.load_state_dict(policy.state_dict())
    assert flags(net) == expected


def test_arguments_arrive():
    net = mlp(3, 4, 4, 2)
    ColumnRowSampling(net, k=5, pick="crs", dense=["0"])
    chosen = wk.Tokens(k=5, pick="crs")
    assert [tokens for *_, tokens in flags(net).values()] == [None, chosen, chosen]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "ratio, k: expected one of the two"),
        ({"ratio": 2}, ValueError, "ratio: expected a number over 0 and up to 1, got 2"),
        ({"k": 2, "pick": "all"}, ValueError, "pick: expected one of top, crs, wta, got 'all'"),
        (
            {"k": 2, "dense": ["1"]},
            ValueError,
            r"dense: expected names of converted layers \(0, 2\) or of modules with some, got '1'",
        ),
        ({"k": 2, "dense": ["0", "2"]}, ValueError, "dense: expected some converted layer not to be dense, got all 2"),
    ],
    ids=str,
)
def test_bad_arguments_change_nothing(arguments, error, message):
    net = mlp(3, 4, 2)
    with pytest.raises(error, match=message):
        ColumnRowSampling(net, **arguments)
    assert {tokens for *_, tokens in flags(net).values()} == {None}


def test_a_state_of_another_policy_is_refused():
    with pytest.raises(ValueError, match=r"state: expected the keys \['policy'\], got \['t'\]"):
        ColumnRowSampling(mlp(3, 4, 2), k=1).load_state_dict({"t": 0})


@pytest.mark.parametrize("order", [0, 1])
def test_beside_a_method_of_rows_and_one_that_skips(order):
    net = mlp(3, 4, 4, 2)
    parts = [
        ColumnRowSampling(net, ratio=0.5, dense=["0"]),
        MeProp(net, k=2),
        ColumnRowSampling(net, k=3, dense=["2", "4"]),
        WUS(net, window=1, warmup=0, patience=2, threshold=0.01),
    ]
    together = Compose(parts[::-1] if order else parts)
    rows, half, three = wk.TopK(k=2, scope="both"), wk.Tokens(ratio=0.5, pick="wta"), wk.Tokens(k=3, pick="wta")
    assert flags(net) == {"0": (False, rows, three), "2": (False, rows, half), "4": (False, None, half)}
    together.step(0.5)
    assert together.step(0.5)
    assert flags(net) == {"0": (True, rows, three), "2": (True, rows, half), "4": (True, None, half)}
    together.release()
    assert set(flags(net).values()) == {(False, None, None)}


def test_two_that_choose_tokens_of_one_layer_are_refused():
    net = mlp(3, 4, 2)
    message = (
        "policies: expected one to decide of layer 0 which tokens its weight gradient sums over, got ColumnRowSampling and"
    )
    with pytest.raises(ValueError, match=message):
        Compose([ColumnRowSampling(net, k=2), ColumnRowSampling(net, k=3)])


def test_steps_are_those_of_plain_pytorch():
    """Ten steps of SGD; the hidden layer's gradient from the 3 of 8 tokens with the largest |X| |dY|, the others' whole."""
    net, plain = mlp(5, 6, 3), mlp(5, 6, 3)
    plain.load_state_dict(net.state_dict())
    ColumnRowSampling(net, k=3, pick="top")
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) for model in (net, plain)]
    for _ in range(10):
        x, y = torch.randn(8, 5, dtype=torch.float64), torch.randn(8, 3, dtype=torch.float64)
        net.zero_grad()
        (net(x) - y).square().mean().backward()
        plain.zero_grad()
        hidden = plain[0](x)
        hidden.retain_grad()
        (plain[1:](hidden) - y).square().mean().backward()
        best = (x.norm(dim=1) * hidden.grad.norm(dim=1)).topk(3).indices
        plain[0].weight.grad = hidden.grad[best].T @ x[best]
        for optimizer in optimizers:
            optimizer.step()
    for ours, expected in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, expected)
