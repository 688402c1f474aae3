"""What stays, and the reason; what raises, and that everything is as it was."""

import copy
import re

import pytest
import torch
import torch.nn as nn

import wuskern as wk
from tests.simplify.networks import equal, kill, shapes


class Net(nn.Module):
    """Two layers of four units with a function between them."""

    def __init__(self, between, hidden: int = 4, columns: int = 4) -> None:
        super().__init__()
        self.a, self.b, self.between = nn.Linear(4, hidden), nn.Linear(columns, 2), between

    def forward(self, x):
        return self.b(self.between(self, self.a(x)))


def branch(net, y):
    return y if y.sum() > 0 else -y


def later_read(net, y):
    z = y.view(y.shape[0], -1)
    return y.relu_() + z.sigmoid()


def reasons_of(model: nn.Module, x: torch.Tensor, layer: str = "a") -> str:
    smaller, report = wk.simplify(model, x)
    assert shapes(smaller) == shapes(model)
    assert torch.equal(smaller(x), model(x))
    (reason,) = report.layers[layer].reasons
    assert report.layers[layer].reasons[reason] == 1
    return reason


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (lambda net, y: y.softmax(-1), "softmax is not known to keep units apart"),
        (lambda net, y: y / y.norm(), "is not known to keep units apart"),
        (lambda net, y: y.view(-1, 2, 2).transpose(1, 2).reshape(-1, 4), "view has sizes of its own"),
        (lambda net, y: y.unflatten(1, (2, 2)).transpose(1, 2).flatten(1), "unflatten has sizes of its own"),
        (lambda net, y: y.view(-1, 4), "view has sizes of its own"),
        (lambda net, y: y.flip(1), "flip is not known to keep units apart"),
        (lambda net, y: torch.cat(y.chunk(2, 1)[::-1], 1), "chunk is not known to keep units apart"),
        (lambda net, y: y[:, [1, 0, 2, 3]], "index is not known to keep units apart"),
        (lambda net, y: net.a(y), "its weight is used 2 times"),
        (lambda net, y: y @ net.a.weight, "its weight is used 2 times"),
        (lambda net, y: y + torch.arange(4.0), "combines it with what is no layer's output"),
        (lambda net, y: torch.dropout(y, 0.0, True), "dropout is random in evaluation too"),
        (branch, "torch.export cannot follow the model"),
        (later_read, "relu writes to memory that others read"),
    ],
)
def test_a_row_stays_with_its_reason(between, reason):
    torch.manual_seed(0)
    net = Net(between)
    kill(net.a, [1])
    assert reason in reasons_of(net, torch.randn(3, 4))


def test_statistics_over_several_rows():
    net = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    kill(net[0], [1])
    assert reasons_of(net, torch.randn(3, 4), "0") == "layer_norm in 1 is not known to keep units apart"
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.GroupNorm(2, 4), nn.Conv2d(4, 2, 1))
    kill(net[0], [1])
    assert reasons_of(net, torch.randn(3, 1, 4, 4), "0") == "group_norm in 1 has statistics over several rows"


def test_padding_between_the_units():
    """As the shortcut of some residual networks has it."""
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ZeroPad3d((0, 0, 0, 0, 1, 1)), nn.Conv2d(6, 2, 1))
    kill(model[0], [1])
    assert reasons_of(model, torch.randn(2, 1, 3, 3), "0") == "pad in 1 is not known to keep units apart"


def test_shared_weights():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    net[2].weight = net[0].weight
    kill(net[0], [1])
    assert reasons_of(net, torch.randn(3, 4), "0") == "its weight is shared: 0.weight, 2.weight"


def test_a_call_in_place_whose_result_is_not_taken_counts():
    def between(net, y):
        y.sigmoid_()
        return y

    net = Net(between)
    kill(net.a, [1])
    x = torch.randn(3, 4)
    smaller, _ = wk.simplify(net, x)
    assert smaller.a.out_features == 3
    assert torch.allclose(smaller(x), net(x), atol=1e-6)


def test_a_sum_with_a_part_that_no_layer_gave_keeps_its_rows():
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(2, 2), nn.Linear(2, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.c(torch.cat((0.0 * x, self.a(x)), 1) * self.b(x))

    net = Sum()
    kill(net.a, [0])  # gives zero times whatever b does in row 2
    kill(net.b, [1])  # which meets what no layer gave
    smaller, report = wk.simplify(net, x := torch.randn(3, 2))
    assert report.kept["a"].tolist() == [1]
    assert report.kept["b"].tolist() == [0, 1, 3]
    assert report.layers["b"].reasons == {"mul combines it with what is no layer's output": 1}
    assert torch.allclose(smaller(x), net(x))


def test_groups_stay_equal():
    net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 1, groups=2), nn.ReLU(), nn.Conv2d(6, 2, 1))
    kill(net[0], [1])
    kill(net[2], [5])
    for layer in ("0", "2"):
        assert reasons_of(net, torch.randn(2, 4, 3, 3), layer) == "conv2d in 2 has 2 groups, which stay equal"


def test_a_layer_without_a_bias_takes_up_zeros_only():
    net = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 2, bias=False))
    kill(net[0], [1])
    assert reasons_of(net, torch.randn(3, 4), "0") == "its constant needs a bias, which linear in 2 has not"


def test_computed_weights_and_layers_that_are_not_called():
    net = Net(lambda net, y: y)
    net.unused = nn.Linear(4, 4)
    kill(net.a, [1])
    kill(net.unused, [2])
    nn.utils.parametrizations.weight_norm(net.b)
    assert reasons_of(net, torch.randn(3, 4)) == "linear in b: its weight is computed"
    assert reasons_of(net, torch.randn(3, 4), "unused") == "the model's forward, in evaluation, does not use its weight"


def test_attention_inside_a_module_stays():
    net = nn.Sequential(nn.Linear(4, 4), nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), nn.Linear(4, 2)).eval()
    kill(net[0], [1])
    kill(net[1].self_attn.out_proj, [2])
    kill(net[1].linear1, [0, 3])
    smaller, report = wk.simplify(net, x := torch.randn(2, 3, 4))
    assert report.layers["0"].after == report.layers["1.self_attn.out_proj"].after == 4
    assert report.layers["0"].reasons
    assert report.layers["1.self_attn.out_proj"].reasons
    assert torch.allclose(smaller(x), net(x), atol=1e-6)
    assert torch.allclose(smaller.train().eval()(x), net(x), atol=1e-6)


def test_in_place_sums_hold_what_was_written():
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            y = self.a(x)
            y += self.b(x)
            return self.c(y)

    net = Sum().double()
    kill(net.a, [0, 1])
    kill(net.b, [1, 2])
    smaller, report = wk.simplify(net, x := torch.randn(3, 4, dtype=torch.float64))
    assert report.kept["a"].tolist() == report.kept["b"].tolist() == [0, 2, 3]
    assert report.layers["a"].reasons == {"add combines it with rows that are not dead": 1}
    assert equal(smaller(x), net(x))


def test_code_that_computes_with_sizes_is_noticed_and_undone():
    net = Net(lambda net, y: y.sigmoid() * y.shape[1])  # a constant, which goes into the bias first
    kill(net.a, [1])
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    net(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    kill(net.a, [1])
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(RuntimeError, match="the smaller model does not give what the model gives: the model's code computes"):
        wk.simplify_(net, torch.randn(3, 4), optimizer)
    assert all(torch.equal(a, before[name]) for name, a in net.state_dict().items())
    assert (net.a.out_features, net.b.in_features, net.a.weight.grad.shape) == (4, 4, (4, 4))
    assert optimizer.state[net.a.weight]["momentum_buffer"].shape == (4, 4)
    net(torch.ones(1, 4)).sum().backward()


def test_a_layer_that_runs_in_training_only_is_noticed_and_all_is_undone():
    net = Net(lambda net, y: y + net.aux(y) if net.training else y).train()
    net.aux = nn.Linear(4, 4)
    kill(net.a, [1])
    before = shapes(net)
    with pytest.raises(RuntimeError, match="the smaller model does not run in training, where aux may run, and only there"):
        wk.simplify_(net, torch.randn(3, 4))
    assert shapes(net) == before
    assert all(m.training for m in net.modules())
    net(torch.randn(3, 4)).sum().backward()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda net, x: wk.simplify("net", x), TypeError, "model: expected a torch.nn.Module, got str"),
        (lambda net, x: wk.simplify_(net, x, "sgd"), TypeError, "optimizer: expected a torch.optim.Optimizer, got str"),
        (
            lambda net, x: wk.simplify_(net, x, torch.optim.SGD([nn.Parameter(x)], 0.1)),
            ValueError,
            "optimizer: expected one of the model's parameters, got SGD of others",
        ),
        (lambda net, x: wk.simplify(net, x[:, :2]), RuntimeError, "shapes cannot be multiplied"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call(Net(lambda net, y: y), torch.randn(3, 4))


def test_a_table_of_what_was_done():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    kill(net[0], [1, 2])
    kill(net[2], [0])
    _, report = wk.simplify(net, torch.randn(3, 4))
    assert str(report).splitlines() == [
        "layer  rows  left  dead rows that stay",
        "0         4     2",
        "2         2     2  1: it is the model's output",
        "parameters: 30 -> 16 (53%)",
    ]
