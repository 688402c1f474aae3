"""meProp: which layers get which rows, and steps against plain PyTorch, plain Python and numbers worked by hand."""

import itertools

import pytest
import torch
import torch.nn as nn

import wuskern as wk
from wuskern.policies import MeProp


def mlp(*widths: int) -> nn.Module:
    """Linear layers of these widths with ReLUs in between, in float64. Names: 0, 2, 4, ..."""
    layers = [nn.Linear(a, b, dtype=torch.float64) for a, b in itertools.pairwise(widths)]
    return wk.convert(nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))[:-1])


def convnet() -> nn.Module:
    return wk.convert(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3, groups=2), nn.Flatten(), nn.Linear(6, 4)))


def choices(net: nn.Module) -> dict[str, object]:
    return {name: layer.rows for name, layer in net.named_modules() if hasattr(layer, "rows")}


# ---- which layers ----------------------------------------------------------------------------------------------------


def test_all_but_the_last_layer_share_one_choice():
    net = convnet()
    policy = MeProp(net, ratio=0.5)
    chosen = wk.TopK(ratio=0.5, scope="both", score="l1", block=1, bias="dense")
    assert choices(net) == {"0": chosen, "1": chosen, "3": None}
    assert (policy.rows, policy.dense) == (chosen, ("3",))


def test_every_argument_of_the_choice_arrives():
    net = mlp(3, 8, 8, 2)
    MeProp(net, k=4, scope="weight", score="random", block=2, bias="rows")
    chosen = wk.TopK(k=4, scope="weight", score="random", block=2, bias="rows")
    assert choices(net) == {"0": chosen, "2": chosen, "4": None}


@pytest.mark.parametrize(("dense", "left"), [((), ()), (["2"], ("2",)), (("4", "0"), ("0", "4")), ({"0", "2"}, ("0", "2"))])
def test_layers_that_stay_dense_can_be_named(dense, left):
    net = mlp(3, 4, 4, 4)
    assert MeProp(net, k=2, dense=dense).dense == left
    assert {name for name, rows in choices(net).items() if rows is None} == set(left)


def test_per_example_of_a_network_with_convolutions_needs_them_dense():
    net = wk.convert(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 4), nn.Linear(4, 2)))
    with pytest.raises(TypeError, match="0: rows: expected TopK or Rows for a Conv2d, got PerExample"):
        MeProp(net, k=2, per="example")
    MeProp(net, k=2, per="example", dense=["0", "3"])
    assert choices(net) == {"0": None, "2": wk.PerExample(k=2), "3": None}


def test_step_apply_and_state_leave_the_choices_and_skip_alone(tmp_path):
    net = mlp(3, 4, 4, 2)
    policy = MeProp(net, k=2)
    expected = choices(net)
    net[0].skip = True
    torch.save(policy.state_dict(), tmp_path / "state.pt")
    for act in (
        lambda: policy.step(0.5),
        policy.apply,
        lambda: policy.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True)),
    ):
        assert not act()
        assert choices(net) == expected
        assert (net[0].skip, net[2].skip) == (True, False)


@pytest.mark.parametrize("restore", [lambda p: p.apply(), lambda p: p.load_state_dict(p.state_dict())])
def test_choices_that_were_changed_come_back(restore):
    net = mlp(3, 4, 4, 2)
    policy = MeProp(net, k=2)
    expected = choices(net)
    wk.set_rows(net, wk.TopK(k=1))
    restore(policy)
    assert choices(net) == expected


def test_attach_keeps_a_skipped_weight_where_it_is():
    net = mlp(3, 4, 4, 2)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, weight_decay=0.1)
    MeProp(net, k=2).attach(optimizer)
    net[0].skip = True
    before = [layer.weight.detach().clone() for layer in (net[0], net[2])]
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert [torch.equal(layer.weight, b) for layer, b in zip((net[0], net[2]), before, strict=True)] == [True, False]


# ---- what a step does ------------------------------------------------------------------------------------------------


def test_a_step_worked_by_hand():
    """No ReLU: dY of the first layer is the second's weight, (1, -3, 2) for each of two images; the middle row wins."""
    net = wk.convert(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
        net[1].weight.copy_(torch.tensor([[1.0, -3.0, 2.0]]))
    MeProp(net, k=1)
    x = torch.tensor([[1.0, 10.0], [2.0, 20.0]], requires_grad=True)
    net(x).sum().backward()
    assert net[0].weight.grad.tolist() == [[0, 0], [-9, -90], [0, 0]]
    assert net[0].bias.grad.tolist() == [2, -6, 4]  # dense
    assert x.grad.tolist() == [[-9, -12], [-9, -12]]  # -3 times the middle row


def topk_gradients(net: nn.Module, x: torch.Tensor, dy: torch.Tensor, k: int, scope: str) -> list[torch.Tensor]:
    """meProp's equations in plain PyTorch: the gradients of weights and biases in the order of ``parameters()``."""
    layers, inputs = list(net[::2]), [x]
    for layer in layers[:-1]:
        inputs.append((inputs[-1] @ layer.weight.T + layer.bias).clamp(min=0))
    found: list[torch.Tensor] = []
    for layer, h in reversed(list(zip(layers, inputs, strict=True))):
        out = dy.shape[1]
        rows = range(out) if layer is layers[-1] else sorted(dy.abs().sum(0).sort(descending=True)[1][:k].tolist())
        mask = torch.tensor([row in rows for row in range(out)])
        found = [(dy * mask).T @ h, dy.sum(0), *found]
        dy = (dy * mask if scope == "both" else dy) @ layer.weight * (h > 0)
    return found


@pytest.mark.parametrize("scope", ["both", "weight"])
def test_an_optimizer_step_is_that_of_the_papers_equations(scope):
    net = mlp(5, 9, 7, 4)
    x, target = torch.randn(6, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0, 1])
    dy = (net(x).softmax(1) - nn.functional.one_hot(target, 4)) / 6  # of the mean cross-entropy
    gradients = topk_gradients(net, x, dy, 3, scope)
    expected = [(p - 0.1 * g).detach() for p, g in zip(net.parameters(), gradients, strict=True)]

    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    MeProp(net, k=3, scope=scope).attach(optimizer)
    nn.functional.cross_entropy(net(x), target).backward()
    optimizer.step()
    for ours, theirs in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(ours.detach(), theirs, rtol=1e-12, atol=1e-14)
    assert (net[0].weight.grad.abs().sum(1) > 0).sum() == 3


def per_example_gradients(net: nn.Module, x: torch.Tensor, k: int) -> list[list[list[float]]]:
    """Weight gradients of the sum of all outputs, entry by entry: of each example's dY the k largest survive."""
    weights = [layer.weight.tolist() for layer in net[::2]]
    biases = [layer.bias.tolist() for layer in net[::2]]
    found = [[[0.0] * len(w[0]) for _ in w] for w in weights]
    for image in x.tolist():
        inputs = [image]
        for w, b in zip(weights[:-1], biases, strict=False):
            sums = [sum(v * h for v, h in zip(row, inputs[-1], strict=True)) + c for row, c in zip(w, b, strict=True)]
            inputs.append([max(0.0, s) for s in sums])
        dy = [1.0] * len(weights[-1])
        for i in reversed(range(len(weights))):
            if i < len(weights) - 1:
                largest = sorted(range(len(dy)), key=lambda j: -abs(dy[j]))[:k]
                dy = [d if j in largest else 0.0 for j, d in enumerate(dy)]
            for j, d in enumerate(dy):
                for c, h in enumerate(inputs[i]):
                    found[i][j][c] += d * h
            dx = [sum(d * row[c] for d, row in zip(dy, weights[i], strict=True)) for c in range(len(inputs[i]))]
            dy = [d if h > 0 else 0.0 for d, h in zip(dx, inputs[i], strict=True)]
    return found


def test_per_example_is_that_of_the_first_paper():
    net = mlp(4, 8, 6, 3)
    x = torch.randn(5, 4, dtype=torch.float64)
    MeProp(net, k=2, per="example")
    net(x).sum().backward()
    for layer, expected in zip(net[::2], per_example_gradients(net, x, 2), strict=True):
        torch.testing.assert_close(layer.weight.grad, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-14)


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(), ValueError, "ratio, k: expected one of the two, got ratio=None, k=None"),
        (dict(ratio=0.1, k=2), ValueError, "ratio, k: expected one of the two"),
        (dict(ratio=2), ValueError, "ratio: expected a number over 0 and up to 1, got 2"),
        (dict(k=5), ValueError, "^2: k: expected at most 4, got 5"),
        (dict(ratio=0.5, block=3), ValueError, "^2: block: expected a divisor of 4 rows"),
        (dict(k=2, scope="input"), ValueError, "scope: expected one of weight, both, got 'input'"),
        (dict(k=2, per="image"), ValueError, "per: expected one of batch, example, got 'image'"),
        (dict(k=2, per="example", scope="weight"), ValueError, "scope: expected 'both' with per='example', got 'weight'"),
        (dict(k=2, per="example", score="l2"), ValueError, "score: expected 'l1' with per='example', got 'l2'"),
        (dict(k=2, per="example", block=2), ValueError, "block: expected 1 with per='example', got 2"),
        (dict(k=2, per="example", bias="rows"), ValueError, "bias: expected 'dense' with per='example', got 'rows'"),
        (dict(k=5, per="example"), ValueError, "^2: k: expected at most 4, got 5"),
        (
            dict(k=2, dense=["4", "fc2"]),
            ValueError,
            r"dense: expected names of converted layers \(0, 2, 4\) or of modules with some, got 'fc2'",
        ),
        (dict(k=2, dense="4"), TypeError, "dense: expected a list of names of layers, got '4'"),
        (dict(k=2, dense=4), TypeError, "dense: expected a list of names of layers, got 4"),
        (dict(k=2, dense=["0", "2", "4"]), ValueError, "dense: expected some converted layer not to be dense, got all 3"),
    ],
)
def test_bad_arguments_change_nothing(arguments, error, message):
    """Layer 0 has six rows, so that what does not fit layer 2 fits the layer before it."""
    net = mlp(3, 6, 4, 2)
    wk.set_rows(net, wk.TopK(k=1))
    before = choices(net)
    with pytest.raises(error, match=message):
        MeProp(net, **arguments)
    assert choices(net) == before


def test_models_and_states_that_do_not_fit():
    with pytest.raises(ValueError, match="model: expected at least one converted layer"):
        MeProp(nn.Linear(2, 2), k=1)
    with pytest.raises(ValueError, match="dense: expected some converted layer not to be dense, got all 1"):
        MeProp(wk.convert(nn.Linear(2, 2)), k=1)
    with pytest.raises(ValueError, match=r"state: expected the keys \['policy'\], got \['left'\]"):
        MeProp(mlp(3, 4, 2), k=1).load_state_dict({"left": 1})
