"""Views that merge the dimensions behind a convolution, as most tutorials' networks have them."""

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import wuskern as wk
from tests.simplify.networks import equal, kill
from wuskern.simplify import norms_of_rows

X = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
KEPT = "view has sizes of its own"


class LeNet(nn.Module):
    """A convolution of 8 channels of 6 x 6, the head of a test, and a Linear. Four channels are dead."""

    def __init__(self, head, features: int = 8 * 36) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.norm, self.fc, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(features, 4), head
        self.se = nn.Linear(8, 8)
        self.double().eval()
        kill(self.conv, [0, 2, 3, 7])

    def forward(self, x):
        return self.fc(self.head(self, F.relu(self.norm(self.conv(x)))))


def flat_features(y) -> int:
    """As the tutorial computes it."""
    found = 1
    for size in y.size()[1:]:
        found *= size
    return found


HEADS = {
    "view(size(0), -1)": lambda net, y: y.view(y.size(0), -1),
    "view(len, -1)": lambda net, y: y.view(len(y), -1),
    "view(2, -1)": lambda net, y: y.view(2, -1),
    "view(shape[:1] + (-1,))": lambda net, y: y.view(*y.shape[:1], -1),
    "view(-1, the tutorial's)": lambda net, y: y.view(-1, flat_features(y)),
    "view(size(0), a product)": lambda net, y: y.view(y.shape[0], y.shape[1] * y.shape[2] * y.shape[3]),
    "view(size(0), numel)": lambda net, y: y.view(y.size(0), y[0].numel()),
    "view(-1, out_channels)": lambda net, y: y.view(-1, net.conv.out_channels * 36),
    "reshape(size(0), -1)": lambda net, y: y.reshape(y.size(0), -1),
    "reshape(size(0), a product)": lambda net, y: y.reshape(y.size(0), y.size(1) * 36),
    "flatten(1)": lambda net, y: y.flatten(1),
    "flatten(start_dim=-3)": lambda net, y: torch.flatten(y, start_dim=-3),
    "flatten(2).flatten(1)": lambda net, y: y.flatten(2).flatten(1),
    "view in two steps": lambda net, y: y.view(y.size(0), y.size(1), -1).view(y.size(0), -1),
    "view of a copy": lambda net, y: y.permute(0, 2, 3, 1).contiguous().view(y.size(0), -1),
    "gates": lambda net, y: (y * net.se(y.mean((2, 3))).sigmoid().view(y.size(0), y.size(1), 1, 1)).flatten(1),
}


@pytest.mark.parametrize("name", HEADS)
def test_dead_channels_go_through_a_view(name):
    model = LeNet(HEADS[name])
    smaller, report = wk.simplify(model, X)
    assert smaller.conv.out_channels == 4
    assert smaller.fc.in_features == 4 * 36
    assert report.kept["conv"].tolist() == [1, 4, 5, 6]
    assert equal(smaller(X), model(X))
    if name != "view(2, -1)":
        more = torch.randn(5, 3, 8, 8, dtype=torch.float64)
        assert equal(smaller(more), model(more))


FIXED = {
    "view(-1, 288)": (lambda net, y: y.view(-1, 288), KEPT),
    "view(size(0), 288)": (lambda net, y: y.view(y.size(0), 288), KEPT),
    "view(size(0), 8, 36)": (lambda net, y: y.view(y.size(0), 8, 36).flatten(1), KEPT),
    "reshape(-1, 288)": (lambda net, y: y.reshape(-1, 288), "reshape has sizes of its own"),
    "split again": (lambda net, y: y.view(y.size(0), 2, -1, 36).transpose(1, 2).flatten(1), KEPT),
    "split by unflatten": (lambda net, y: y.unflatten(1, (2, 4)).transpose(1, 2).flatten(1), "unflatten has sizes of its own"),
    "merged and split": (lambda net, y: y.flatten(1).view(y.size(0), -1, 6, 6).flatten(1), KEPT),
    "another dtype": (
        lambda net, y: y.view(torch.int64).view(torch.float64).flatten(1),
        "view is not known to keep units apart",
    ),
    "expand": (lambda net, y: y.expand(y.size(0), 8, 6, 6).flatten(1), "expand is not known to keep units apart"),
}


@pytest.mark.parametrize("name", FIXED)
def test_a_view_with_sizes_of_its_own_keeps_the_channels(name):
    head, reason = FIXED[name]
    model = LeNet(head)
    before = model(X)
    smaller, report = wk.simplify(model, X)
    assert smaller.conv.out_channels == 8
    assert report.layers["conv"].reasons == {reason: 4}
    assert equal(smaller(X), before)
    assert torch.equal(model(X), before)


def test_a_view_that_is_fixed_leaves_the_other_layers_to_be_cut():
    """The first try, in which the sizes were taken for computed ones, leaves no trace; optimizer and gradients go along."""

    class Two(LeNet):
        def __init__(self) -> None:
            super().__init__(None)
            self.first = nn.Conv2d(3, 3, 1).double()
            kill(self.first, [1])

        def forward(self, x):
            return self.fc(F.relu(self.norm(self.conv(self.first(x)))).view(-1, 288))

    model = Two()
    optimizer = torch.optim.SGD(model.parameters(), 0.0, momentum=0.9)
    model(X).sum().backward()
    optimizer.step()
    expected, momentum = model(X), optimizer.state[model.conv.weight]["momentum_buffer"].clone()
    report = wk.simplify_(model, X, optimizer)
    assert {name: (rows.before, rows.after) for name, rows in report.layers.items()} == {
        "first": (3, 2),
        "conv": (8, 8),
        "fc": (4, 4),
        "se": (8, 8),
    }
    assert equal(model(X), expected)
    assert torch.equal(optimizer.state[model.conv.weight]["momentum_buffer"], momentum[:, [0, 2]])
    assert model.conv.weight.grad.shape == (8, 2, 3, 3)


@pytest.mark.parametrize("head", [HEADS["view(size(0), -1)"], FIXED["view(-1, 288)"][0]])
def test_the_norm_in_front_of_a_view_is_found(head):
    assert norms_of_rows(LeNet(head), X) == {"conv": ("norm",), "fc": ()}


def test_a_batch_norm_of_several_processes_counts_as_one():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(LeNet(HEADS["flatten(1)"]))
    assert norms_of_rows(model, X)["conv"] == ("norm",)
    smaller, _ = wk.simplify(model, X)
    assert (smaller.conv.out_channels, smaller.norm.num_features) == (4, 4)
    assert equal(smaller(X), model(X))
    fresh = nn.SyncBatchNorm.convert_sync_batchnorm(LeNet(HEADS["flatten(1)"]))
    wk.fit_(fresh, smaller.state_dict()).load_state_dict(smaller.state_dict())
    assert equal(fresh(X), model(X))
