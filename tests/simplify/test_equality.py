"""The smaller model gives what the masked one gives; sizes worked out by hand."""

import copy

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from hypothesis import given, settings

import wuskern as wk
from tests.simplify.networks import chains, equal, kill, layers, shapes, shuffle_norms


@settings(deadline=None, max_examples=30)
@given(chains())
def test_a_chain_of_layers_gives_what_it_gave(case):
    model, x = case
    before = copy.deepcopy(model.state_dict())
    smaller, report = wk.simplify(model, x)
    assert equal(smaller(x), model(x))
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    for name, layer in layers(model).items():
        dead = (layer.weight == 0).flatten(1).all(1) & (True if layer.bias is None else layer.bias == 0)
        rows, left = report.layers[name], layers(smaller)[name]
        assert (rows.before, rows.after) == (len(layer.weight), len(left.weight))
        assert rows.after >= 1
        kept = report.kept.get(name, torch.arange(rows.before))
        assert len(kept) == rows.after
        assert sum(rows.reasons.values()) == int(dead[kept].sum())
    assert report.parameters_before == sum(p.numel() for p in model.parameters())
    assert report.parameters_after == sum(p.numel() for p in smaller.parameters())


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 6, 3),
        nn.BatchNorm2d(6),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(6 * 2 * 2, 10),
        nn.Tanh(),
        nn.Dropout(),
        nn.Linear(10, 4),
    )


def test_sizes_worked_out_by_hand():
    model = network()
    shuffle_norms(model)
    kill(model[0], [1, 4, 7])
    kill(model[3], [0, 5])
    kill(model[7], [2, 3, 4, 9])
    kill(model[10], [1])
    smaller, report = wk.simplify(wk.convert(model), torch.randn(2, 3, 8, 8))
    assert shapes(smaller) == [(5, 3, 3, 3), (5,), (4, 5, 3, 3), (4,), (4,), (4,), (6, 16), (6,), (4, 6), (4,)]
    assert {name: index.tolist() for name, index in report.kept.items()} == {
        "0": [0, 2, 3, 5, 6],
        "3": [1, 2, 3, 4],
        "7": [0, 1, 5, 6, 7, 8],
    }
    assert report.layers["10"].reasons == {"it is the model's output": 1}
    assert (smaller[0].out_channels, smaller[3].in_channels, smaller[3].out_channels) == (5, 5, 4)
    assert (smaller[4].num_features, len(smaller[4].running_mean), len(smaller[4].running_var)) == (4, 4, 4)
    assert (smaller[7].in_features, smaller[7].out_features, smaller[10].in_features) == (16, 6, 6)
    weights = (3 * 8 * 9 + 8, 8 * 6 * 9 + 6, 6 + 6, 24 * 10 + 10, 10 * 4 + 4)
    assert report.parameters_before == sum(weights)
    assert report.parameters_after == 5 * 27 + 5 + 4 * 45 + 4 + 8 + 16 * 6 + 6 + 6 * 4 + 4
    assert {type(layer) for layer in layers(smaller).values()} == {nn.Linear, nn.Conv2d}
    assert {type(layer) for layer in layers(model).values()} == {wk.SkippableLinear, wk.SkippableConv2d}


def test_a_constant_goes_into_the_bias_of_the_layer_behind():
    """A dead unit behind a sigmoid gives 0.5."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Sigmoid(), nn.Linear(3, 2)).double()
    kill(model[0], [1])
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[1.0, 4.0, 2.0], [3.0, -6.0, 5.0]]))
        model[2].bias.copy_(torch.tensor([10.0, 20.0]))
    smaller, _ = wk.simplify(model, torch.zeros(1, 2, dtype=torch.float64))
    assert smaller[2].weight.tolist() == [[1.0, 2.0], [3.0, 5.0]]
    assert smaller[2].bias.tolist() == [12.0, 17.0]


def test_the_shift_of_a_batch_norm_goes_into_the_bias():
    """shift 3 - scale 2 * mean 4 / sqrt(variance 4) = -1, through LeakyReLU(0.5) -0.5, on 2 x 2 pixels of weight 6 each."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, eps=0.0), nn.LeakyReLU(0.5), nn.Conv2d(2, 1, 2)).double().eval()
    kill(model[0], [0])
    with torch.no_grad():
        for tensor, value in ((model[1].weight, 2), (model[1].bias, 3), (model[1].running_mean, 4), (model[1].running_var, 4)):
            tensor[0] = value
        model[3].weight[0, 0] = 6.0
        model[3].bias.zero_()
    smaller, _ = wk.simplify(model, torch.randn(1, 1, 4, 4, dtype=torch.float64))
    assert smaller[3].weight.shape == (1, 1, 2, 2)
    assert smaller[3].bias.item() == -12.0


def test_a_padded_convolution_takes_up_zeros_only():
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Sigmoid(), nn.Conv2d(3, 1, 3, padding=1)).double()
    kill(model[0], [0, 2])
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    smaller, report = wk.simplify(model, x)
    assert smaller[0].out_channels == 3
    assert report.layers["0"].reasons == {"its constant meets the zero padding of conv2d in 2": 2}
    model[1] = nn.Tanh()
    smaller, report = wk.simplify(model, x)
    assert smaller[0].out_channels == 1
    assert equal(smaller(x), model(x))


def test_an_average_over_padding_takes_up_zeros_only():
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    for pool, left in ((nn.AvgPool2d(2, padding=1), 3), (nn.AvgPool2d(2, padding=1, count_include_pad=False), 2)):
        model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Sigmoid(), pool, nn.Conv2d(3, 2, 1)).double()
        kill(model[0], [1])
        smaller, report = wk.simplify(model, x)
        assert smaller[0].out_channels == left
        assert equal(smaller(x), model(x))
    model[2] = nn.AvgPool2d(2, padding=1)
    _, report = wk.simplify(model, x)
    assert report.layers["0"].reasons == {"its constant meets the padding of avg_pool2d in 2": 1}


class PixelsFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 1), nn.Linear(4 * 6, 2)

    def forward(self, x):
        return self.b(self.a(x).permute(0, 2, 3, 1).flatten(1))


def test_columns_go_where_the_units_are_after_a_permutation():
    model = PixelsFirst().double()
    kill(model.a, [1])
    x = torch.randn(2, 1, 2, 3, dtype=torch.float64)
    smaller, _ = wk.simplify(model, x)
    assert torch.equal(smaller.b.weight, model.b.weight[:, [c for c in range(24) if c % 4 != 1]])
    assert equal(smaller(x), model(x))


def test_a_layer_of_dead_rows_alone_keeps_one():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    kill(model[0], slice(None))
    smaller, report = wk.simplify(model, x := torch.randn(2, 3))
    assert shapes(smaller) == [(1, 3), (1,), (2, 1), (2,)]
    assert report.layers["0"].reasons == {"a layer keeps at least one row": 1}
    assert torch.allclose(smaller(x), model(x))


class Functions(nn.Module):
    """Spelt without modules, with numbers and methods in between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(1, 4, 3), nn.Linear(16, 5), nn.Linear(5, 2)

    def forward(self, x):
        x = F.pad(F.max_pool2d(self.first(x).relu(), 2), (1, 1, 0, 0), mode="replicate")
        x = F.avg_pool2d(x, 2, padding=(0, 0)).permute(0, 2, 3, 1).contiguous()
        x = x.permute(0, 3, 1, 2).reshape(x.size(0), -1)
        return self.third(F.softplus(2 * self.second(x).sigmoid() - 0.25).clamp(0.1, 3.0))


def test_functions_and_methods_count_as_modules_do():
    model = Functions().double()
    kill(model.first, [0, 3])
    kill(model.second, [1, 2])
    x = torch.randn(2, 1, 10, 10, dtype=torch.float64)
    features = F.avg_pool2d(F.pad(F.max_pool2d(model.first(x), 2), (1, 1, 0, 0)), 2).flatten(1).shape[1]
    model.second = nn.Linear(features, 5).double()
    kill(model.second, [1, 2])
    smaller, _ = wk.simplify(model, x)
    assert (smaller.first.out_channels, smaller.second.in_features, smaller.second.out_features) == (2, features // 2, 3)
    assert equal(smaller(x), model(x))


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.last = nn.Conv2d(1, 3, 3), nn.Conv2d(1, 4, 3), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        return self.last(torch.cat((self.left(x), x[..., 1:-1, 1:-1], self.right(x).relu()), 1))


def test_a_concatenation_keeps_its_parts_apart():
    model = Joined().double()
    kill(model.left, [1])
    kill(model.right, [0, 3])
    x = torch.randn(2, 1, 6, 6, dtype=torch.float64)
    smaller, _ = wk.simplify(model, x)
    assert (smaller.left.out_channels, smaller.right.out_channels, smaller.last.in_channels) == (2, 2, 5)
    assert torch.equal(smaller.last.weight, model.last.weight[:, [0, 2, 3, 5, 6]])
    assert equal(smaller(x), model(x))


def test_depthwise_rows_go_with_those_in_front():
    """Unit 0 is dead in front, unit 2 in the depthwise layer itself, unit 3 in both."""
    parts = nn.Conv2d(2, 5, 1), nn.ReLU(), nn.Conv2d(5, 5, 3, padding=1, groups=5), nn.SiLU(), nn.Conv2d(5, 3, 1)
    model = nn.Sequential(*parts).double()
    kill(model[0], [0, 3])
    kill(model[2], [2, 3])
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    smaller, report = wk.simplify(model, x)
    assert [tuple(layer.weight.shape[:2]) for layer in layers(smaller).values()] == [(2, 2), (2, 1), (3, 2)]
    assert (smaller[2].groups, smaller[2].in_channels, smaller[2].out_channels) == (2, 2, 2)
    assert report.kept["0"].tolist() == report.kept["2"].tolist() == [1, 4]
    assert equal(smaller(x), model(x))


def test_a_constant_goes_through_a_depthwise_layer_that_does_not_pad():
    """0.5 times the sum of the kernel, 8, plus the bias, 1, times the weight behind, 3."""
    parts = nn.Conv2d(1, 2, 1), nn.Sigmoid(), nn.Conv2d(2, 2, 2, groups=2), nn.Conv2d(2, 1, 1)
    model = nn.Sequential(*parts).double()
    kill(model[0], [0])
    with torch.no_grad():
        model[2].weight[0], model[2].bias[0], model[3].weight[:, 0], model[3].bias[0] = 2.0, 1.0, 3.0, 0.0
    smaller, _ = wk.simplify(model, torch.zeros(1, 1, 3, 3, dtype=torch.float64))
    assert smaller[3].bias.item() == 15.0
    model[2] = nn.Conv2d(2, 2, 3, groups=2, padding=1).double()
    smaller, report = wk.simplify(model, torch.zeros(1, 1, 3, 3, dtype=torch.float64))
    assert smaller[0].out_channels == 2
    assert report.layers["0"].reasons == {"its constant meets the zero padding of conv2d in 2": 1}


def test_in_training_too_where_dead_units_give_zero():
    torch.manual_seed(0)
    parts = nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 3, 3, padding=1)
    model = nn.Sequential(*parts).double()
    kill(model[0], [1, 2])
    kill(model[1], [1, 2])
    x = torch.randn(4, 2, 5, 5, dtype=torch.float64)
    smaller, _ = wk.simplify(model, x)
    assert smaller.training
    assert smaller[0].out_channels == 4
    assert equal(smaller(x), model(x))
    assert equal(smaller[1].running_var, model[1].running_var[[0, 3, 4, 5]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes_within_their_rounding(dtype):
    model = network().to(dtype).eval()
    kill(model[3], [0, 5])
    x = torch.randn(2, 3, 8, 8, dtype=dtype)
    smaller, _ = wk.simplify(model, x)
    exact = copy.deepcopy(model).double()(x.double())
    error = lambda y: (y.double() - exact).abs().max()  # noqa: E731
    assert error(smaller(x)) <= 2 * error(model(x)) + torch.finfo(dtype).eps * exact.abs().max()


def test_channels_last_stays():
    model = network().to(memory_format=torch.channels_last)
    kill(model[0], [1])
    smaller, _ = wk.simplify(model, torch.randn(2, 3, 8, 8))
    assert smaller[3].weight.is_contiguous(memory_format=torch.channels_last)
