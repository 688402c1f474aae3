"""Several policies on one model: who wins, what is refused, and that together they resume as they would have gone on."""

import pytest
import torch
import torch.nn as nn
from hypothesis import given, settings
from hypothesis import strategies as st

import wuskern as wk
from wuskern.policies import WUS, WUSLR, Compose, MeProp, SsProp

WINDOWS = dict(window=1, warmup=0, patience=2, threshold=0.01)


def network() -> nn.Module:
    parts = nn.Conv2d(3, 10, 3), nn.ReLU(), nn.Conv2d(10, 20, 3), nn.Flatten(), nn.Linear(20, 8), nn.Linear(8, 4)
    return wk.convert(nn.Sequential(*parts))


def flags(model: nn.Module) -> dict[str, tuple[bool, object]]:
    return {name: (layer.skip, layer.rows) for name, layer in wk.modules.skippable_layers(model).items()}


def test_a_skip_and_rows_are_set_side_by_side():
    net = network()
    together = Compose([WUS(net, **WINDOWS), SsProp(net, ratio=0.5, schedule="constant")])
    rows = wk.TopK(ratio=0.5, scope="both", bias="rows")
    assert flags(net) == {"0": (False, rows), "2": (False, rows), "4": (False, None), "5": (False, None)}
    together.step(0.5)
    assert together.step(0.501)
    assert flags(net) == {"0": (True, rows), "2": (True, rows), "4": (True, None), "5": (True, None)}
    together.step(0.502)
    assert not together.step(0.503)
    assert flags(net)["0"] == (False, rows)


def test_one_that_skips_is_enough():
    net = network()
    early, late = WUS(net, **WINDOWS), WUS(net, **WINDOWS | dict(warmup=2))
    together = Compose([early, late])
    skipping = []
    for metric in (0.5, 0.5, 0.5, 0.5, 0.5):
        together.step(metric)
        skipping.append((early.skipping, late.skipping, net[0].skip))
    assert skipping == [(False,) * 3, (True, False, True), (True, True, True), (False, True, True), (True, False, True)]


@pytest.mark.parametrize("order", [0, 1])
def test_rows_of_different_layers_by_different_policies(order):
    """MeProp wants "dense" of the convolutions; ssProp chooses their rows: it is the one with something to say."""
    net = network()
    policies = [MeProp(net, k=2, dense=["0", "2", "5"]), SsProp(net, ratio=0.5, schedule="constant")]
    Compose(policies[::-1] if order else policies)
    convolution, linear = wk.TopK(ratio=0.5, scope="both", bias="rows"), wk.TopK(k=2, scope="both")
    assert [rows for _, rows in flags(net).values()] == [convolution, convolution, linear, None]


def test_two_that_choose_rows_of_one_layer_are_refused():
    net = network()
    with pytest.raises(
        ValueError, match="policies: expected one to decide of layer 0 which rows have gradients, got MeProp and SsProp"
    ):
        Compose([MeProp(net, k=2), SsProp(net)])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda a, b: [], ValueError, "policies: expected at least one, got none"),
        (lambda a, b: a, TypeError, "policies: expected a list of policies, got WUS"),
        (lambda a, b: [a, "wus"], TypeError, "policies: expected policies, got str"),
        (lambda a, b: [a, a], ValueError, "policies: expected each once, got WUS twice"),
        (lambda a, b: [a, b], ValueError, "policies: expected all on one model, got WUS on another"),
    ],
)
def test_what_cannot_be_composed(make, error, message):
    with pytest.raises(error, match=message):
        Compose(make(WUS(network()), WUS(network())))


def test_attach_takes_a_skip_of_any_of_them_for_a_skip():
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, weight_decay=0.1)
    together = Compose([WUS(net, **WINDOWS), SsProp(net)])
    together.attach(optimizer)
    together.step(0.5)
    together.step(0.5)
    before = net[0].weight.detach().clone()
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.equal(net[0].weight, before)


def composed(net: nn.Module) -> Compose:
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    wus = WUSLR(net, optimizer, **WINDOWS)
    return Compose([wus, SsProp(net, schedule="bar", unit="step", length=2), MeProp(net, k=2, dense=["0", "2", "5"])])


@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler.step")  # nothing is trained here
@settings(max_examples=15, deadline=None)
@given(metrics=st.lists(st.sampled_from([0.5, 0.505, 0.6]), min_size=2, max_size=12), data=st.data())
def test_a_saved_composition_goes_on_as_it_would_have(metrics, data):
    """Cut anywhere, also between the steps of a bar, by a state that went through weights_only loading."""
    cut = data.draw(st.integers(0, 3 * len(metrics) - 1))
    whole, first, second = network(), network(), network()
    policies = composed(whole), composed(first), composed(second)
    for i in range(3 * len(metrics)):
        if i == cut:
            policies[2].load_state_dict(policies[1].state_dict())
        going = policies[:2] if i < cut else (policies[0], policies[2])
        for policy in going:
            policy.before_step()
            policy.after_step()
            if i % 3 == 2:
                policy.after_epoch()
                policy.step(metrics[i // 3])
        assert flags(whole) == flags(first if i < cut else second)
    assert repr(policies[0].state_dict()) == repr(policies[2].state_dict())  # a NaN is itself


def test_a_state_of_others_is_refused():
    net = network()
    together = Compose([WUS(net)])
    with pytest.raises(ValueError, match="state: expected policies, a list of 1"):
        together.load_state_dict(together.state_dict() | {"policies": [{}, {}]})
    with pytest.raises(ValueError, match="state: expected the keys"):
        together.load_state_dict({})
