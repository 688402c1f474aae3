"""Methods that write zeros into weights, on weights that are computed from other parameters, or shared."""

import copy

import pytest
import torch
import torch.nn as nn
from torch.nn.utils import parametrizations, parametrize, prune

import wuskern as wk
from tests.policies.mesimp_models import X, adam, cnn, mlp, train
from wuskern.policies import MEST, MeSimp, RigL, SpFDE

IMAGES = torch.randn(24, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


class Softplus(nn.Module):
    """Zero of it is not zero."""

    def forward(self, x):
        return nn.functional.softplus(x)


def old_weight_norm(layer: nn.Module) -> None:
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(layer)


COMPUTED = {
    "weight_norm": parametrizations.weight_norm,
    "the old weight_norm": old_weight_norm,
    "orthogonal": parametrizations.orthogonal,
    "spectral_norm": parametrizations.spectral_norm,
    "the old spectral_norm": nn.utils.spectral_norm,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "softplus": lambda layer: parametrize.register_parametrization(layer, "weight", Softplus()),
}
ZEROING = {
    "MeSimp": lambda net, **also: MeSimp(net, X, k=2, **also),
    "MEST": lambda net, **also: MEST(net, epochs=4, sparsity=0.5, **also),
    "RigL": lambda net, **also: RigL(net, epochs=4, sparsity=0.5, **also),
    "SpFDE": lambda net, **also: SpFDE(net, X, epochs=4, samples=24, sparsity=0.5, **also),
}


def values(net: nn.Module) -> list[torch.Tensor]:
    return [value.clone() for value in net.state_dict().values()]


@pytest.mark.parametrize("method", ZEROING)
@pytest.mark.parametrize("kind", COMPUTED)
def test_a_computed_weight_is_refused_by_name_and_stays(kind, method):
    net = wk.convert(mlp())
    COMPUTED[kind](net[2])
    before = values(net)
    with pytest.raises(ValueError, match="dense: expected 2 in it, whose weight is "):
        ZEROING[method](net)
    assert all(map(torch.equal, values(net), before))
    ZEROING[method](net, dense=["2", "4"])


@pytest.mark.parametrize("method", ZEROING)
def test_a_shared_weight_is_refused_by_name(method):
    net = wk.convert(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 3)).double())
    net[2].weight = net[0].weight
    with pytest.raises(ValueError, match="dense: expected 0 in it, whose weight is shared"):
        ZEROING[method](net)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda net: parametrize.register_parametrization(net[0], "bias", Softplus()), "whose bias is computed"),
        (lambda net: prune.l1_unstructured(net[0], "bias", 0.5), "whose bias is computed"),
        (lambda net: setattr(net[0], "bias", net[1].bias), "whose bias is shared"),
        (lambda net: parametrize.register_parametrization(net[1], "weight", Softplus()), "does not say which norm"),
        (lambda net: parametrize.register_parametrization(net[1], "bias", Softplus()), "does not say which norm"),
        (lambda net: prune.l1_unstructured(net[1], "bias", 0.5), "does not say which norm"),
        (lambda net: setattr(net[4], "weight", net[1].weight), "does not say which norm"),
        (lambda net: setattr(net[4], "bias", net[1].bias), "does not say which norm"),
    ],
)
def test_what_else_of_a_pruned_row_cannot_be_zero_is_refused_by_name(change, reason):
    """A bias, or the norm behind: its shift would go on through a row that is said to be pruned."""
    net = cnn()
    net[3] = nn.Conv2d(6, 6, 3, bias=False).double()
    net[4], net[6] = nn.BatchNorm2d(6).double(), nn.Linear(6, 3).double()
    wk.convert(net)
    change(net)
    before = values(net)
    with pytest.raises(ValueError, match=f"dense: expected 0 in it.*{reason}"):
        MeSimp(net, IMAGES, ratio=0.5, per="batch")
    assert all(map(torch.equal, values(net), before))


class Shared(nn.Module):
    """One norm behind two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm, self.fc = nn.Conv2d(2, 4, 3), nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x):
        return self.fc((self.norm(self.a(x)) + self.norm(self.b(x))).flatten(1))


class Branching(nn.Module):
    """No graph shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.norm(self.conv(x)).flatten(1)) if x.sum() < 1e9 else x


@pytest.mark.parametrize(("make", "name"), [(Shared, "a"), (Branching, "conv")])
def test_a_norm_that_is_not_the_layers_own_is_refused_by_name(make, name):
    with pytest.raises(ValueError, match=f"dense: expected {name} in it: the graph of the model does not say which norm"):
        MeSimp(wk.convert(make().double()), IMAGES, ratio=0.5, per="batch")


def test_norms_without_parameters_and_grouped_convolutions_are_no_reason():
    """Of a norm that adds nothing, and one behind a convolution with groups, which is pruned with it."""
    first, second = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 4, 3, groups=2)
    norms = nn.BatchNorm2d(6, affine=False, track_running_stats=False), nn.BatchNorm2d(4)
    net = wk.convert(nn.Sequential(first, norms[0], nn.ReLU(), second, norms[1], nn.Flatten(), nn.Linear(4, 3)).double())
    policy = MeSimp(net, IMAGES, ratio=0.5, per="batch", prune=0.9, cycle=9)
    train(net, policy, adam(net), 2, IMAGES)
    nn.init.ones_(net[4].bias)
    policy.after_step()
    dead = ~policy.alive["3"]
    assert dead.any()
    assert not net[:5](IMAGES)[:, dead].any()


@pytest.mark.parametrize("method", ZEROING)
def test_a_weight_that_becomes_a_computed_one_later_raises(method):
    """What it is computed from is no longer the layer's weight: with zeros in it, a weight_norm gives NaN."""
    net = wk.convert(mlp())
    policy = ZEROING[method](net)
    parametrizations.weight_norm(net[0])
    before = values(net)
    with pytest.raises(ValueError, match="model: expected weight of 0 to stay a parameter"):
        policy.after_step()
    assert all(map(torch.equal, values(net), before))


@pytest.mark.parametrize("method", ZEROING)
def test_a_weight_that_another_parameter_replaces_is_zeroed_as_well(method):
    """As ``load_state_dict(assign=True)`` does it; also what the next gradient gives."""
    net = wk.convert(mlp())
    policy = ZEROING[method](net)
    if method == "MeSimp":
        policy.records["0"].alive[:3] = False
        policy.after_step()
    zeros = net[0].weight == 0
    net.load_state_dict({name: value + 1 for name, value in net.state_dict().items()}, assign=True)
    policy.attach(optimizer := torch.optim.SGD(net.parameters(), 0.1))
    policy.before_step()
    net(X).square().sum().backward()
    optimizer.step()
    policy.after_step()
    assert zeros.any()
    assert torch.equal(net[0].weight == 0, zeros)


@pytest.mark.parametrize("kind", COMPUTED)
def test_a_smaller_model_keeps_what_is_computed(kind):
    """``simplify_`` and ``fit_`` leave it as it is: by a reason, or by an error that names it."""
    net = mlp().eval()
    COMPUTED[kind](net[2])
    with torch.no_grad():
        net[0].weight[:4], net[0].bias[:4] = 0, 0
    expected, before = net(X), copy.deepcopy(net.state_dict())
    report = wk.simplify_(net, X)
    assert report.layers["0"].after == 8
    assert list(report.layers["0"].reasons) == ["linear in 2: its weight is computed"]
    assert torch.equal(net(X), expected)
    name = next(name for name, value in before.items() if name.startswith("2.") and value.ndim == 2)
    with pytest.raises(ValueError, match="state_dict: expected 2"):
        wk.fit_(net, before | {name: before[name][:4]})
    assert torch.equal(net(X), expected)
