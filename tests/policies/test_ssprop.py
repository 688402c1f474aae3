"""ssProp: schedules worked by hand, its layers, and a convolution's backward in plain PyTorch."""

import math

import pytest
import torch
import torch.nn as nn

import wuskern as wk
from wuskern.policies import SsProp


def network(**conv) -> nn.Module:
    parts = nn.Conv2d(4, 10, 3, **conv), nn.ReLU(), nn.Flatten(), nn.LazyLinear(8), nn.Linear(8, 4)
    net = nn.Sequential(*parts)
    net(torch.zeros(1, 4, 8, 8))
    return wk.convert(net)


def history(policy: SsProp, epochs: int, steps: int = 3) -> list[float]:
    """The ratio of each epoch's first step, or of each step."""
    seen = []
    for _ in range(epochs):
        for _ in range(steps):
            policy.before_step()
            seen.append(policy.current_ratio)
            policy.after_step()
        policy.after_epoch()
    return seen if policy.unit == "step" else seen[::steps]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (dict(schedule="constant"), [0.2, 0.2, 0.2, 0.2, 0.2]),
        (dict(schedule="bar"), [1, 0.2, 1, 0.2, 1]),
        (dict(schedule="bar", length=2), [1, 1, 0.2, 0.2, 1]),
        (dict(schedule="linear", length=5), [1, 0.8, 0.6, 0.4, 0.2]),
        (dict(schedule="linear", length=3), [1, 0.6, 0.2, 0.2, 0.2]),
        (dict(schedule="cosine", length=5), [1, 0.2 + 0.4 * (1 + math.sqrt(0.5)), 0.6, 0.2 + 0.4 * (1 - math.sqrt(0.5)), 0.2]),
    ],
    ids=str,
)
def test_epochs_worked_by_hand(arguments, expected):
    assert history(SsProp(network(), **arguments), 5) == pytest.approx(expected)


def test_a_bar_of_iterations():
    policy = SsProp(network(), schedule="bar", unit="step", length=2)
    assert history(policy, 2, steps=5) == [1, 1, 0.2, 0.2, 1, 1, 0.2, 0.2, 1, 1]


def test_convolutions_take_part_and_linear_layers_on_request():
    net = network()
    SsProp(net, schedule="constant")
    rows = wk.TopK(ratio=0.2, scope="both", bias="rows")
    assert [layer.rows for layer in wk.modules.skippable_layers(net).values()] == [rows, None, None]
    net = network()
    SsProp(net, schedule="constant", linear=True, bias="dense", scope="weight", score="l2")
    rows = wk.TopK(ratio=0.2, score="l2")
    assert [layer.rows for layer in wk.modules.skippable_layers(net).values()] == [rows, rows, None]


def test_a_dense_epoch_is_stocks():
    net = network()
    policy = SsProp(net)
    assert net[0].rows is None
    policy.step()
    assert net[0].rows is not None
    policy.step()
    assert net[0].rows is None


@pytest.mark.parametrize("conv", [dict(), dict(groups=2), dict(dilation=2), dict(stride=2, padding=1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_backward_in_plain_pytorch(conv, dtype):
    """Groups: as many channels of each, where the paper's code has no answer."""
    net = network(**conv).to(dtype)
    stock = wk.revert(network(**conv)).to(dtype)
    stock.load_state_dict(net.state_dict())
    SsProp(net, ratio=0.4, schedule="constant")
    x = torch.randn(3, 4, 8, 8).to(dtype).requires_grad_()
    kept = []
    groups = conv.get("groups", 1)

    def keep_top(_, grad):
        scores = grad[0].double().abs().sum((0, 2, 3)).view(groups, -1)
        each = int(0.4 * 10) // groups
        rows = torch.cat([g * scores.shape[1] + scores[g].topk(each).indices for g in range(groups)])
        kept.append(rows.sort()[0])
        return (torch.zeros_like(grad[0]).index_copy(1, rows, grad[0].index_select(1, rows)),)

    stock[0].register_full_backward_pre_hook(keep_top)
    for model in (net, stock):
        model(x).float().square().sum().backward()
    tolerance = dict(rtol=1e-2, atol=1e-2) if dtype is torch.bfloat16 else {}
    torch.testing.assert_close(net[0].weight.grad, stock[0].weight.grad, **tolerance)
    torch.testing.assert_close(net[0].bias.grad, stock[0].bias.grad, **tolerance)
    assert net[0].weight.grad.flatten(1).any(1).nonzero().flatten().tolist() == kept[0].tolist()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(ratio=0), ValueError, "ratio: expected a number over 0 and up to 1, got 0"),
        (dict(schedule="step"), ValueError, "schedule: expected one of bar, constant, linear, cosine, got 'step'"),
        (dict(unit="batch"), ValueError, "unit: expected one of epoch, step, got 'batch'"),
        (dict(length=0), ValueError, "length: expected at least 1, got 0"),
        (dict(schedule="linear"), ValueError, "length: expected the epochs that a linear schedule takes, got None"),
        (dict(schedule="cosine", length=1), ValueError, "length: expected at least 2, got 1"),
        (dict(block=4), ValueError, "0: block: expected a divisor of 10 rows"),
        (dict(bias="none"), ValueError, "bias: expected one of dense, rows, got 'none'"),
    ],
    ids=str,
)
def test_bad_arguments(arguments, error, message):
    net = network()
    with pytest.raises(error, match=message):
        SsProp(net, **arguments)
    assert net[0].rows is None


def test_a_model_without_convolutions_is_refused():
    with pytest.raises(ValueError, match="model: expected a converted Conv2d, or linear=True"):
        SsProp(wk.convert(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))))


def test_a_saved_schedule_goes_on():
    policy, other = (SsProp(network(), schedule="linear", length=4) for _ in range(2))
    policy.step()
    policy.step()
    other.load_state_dict(policy.state_dict())
    assert other.current_ratio == policy.current_ratio == pytest.approx(1 - 0.8 * 2 / 3)
    with pytest.raises(ValueError, match="state: expected the keys"):
        other.load_state_dict({"epoch": 1})
