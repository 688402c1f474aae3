"""wk.part_state_dict and wk.load_part_: the part that trains, in a file of its own."""

import io

import pytest
import torch
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel

import wuskern as wk


def network() -> nn.Sequential:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, groups=2)
    return wk.convert(nn.Sequential(conv, nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(54, 40), nn.Tanh(), nn.Linear(40, 3)))


def planned() -> nn.Sequential:
    model = network()
    model[0].columns = wk.Columns([1, 2])
    model[3].rows = wk.Rows([0, 7])
    model[5].skip = True
    return model


def train(model: nn.Module) -> None:
    optimizer = wk.optim.AdamW(model.parameters(), lr=0.1)
    for seed in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 4, 5, 5, generator=torch.Generator().manual_seed(seed))).square().mean().backward()
        optimizer.step()


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


def in_part(model: nn.Module) -> nn.Module:
    model[3] = compiled(model[3])
    return model


def under_ddp(model: nn.Module) -> nn.Module:
    wrapped = DistributedDataParallel.__new__(DistributedDataParallel)
    nn.Module.__init__(wrapped)
    wrapped.module = model
    return wrapped


@pytest.mark.filterwarnings("ignore:.*torch.jit.script", "ignore:Dynamo:UserWarning")  # of torch's own
@pytest.mark.parametrize("wrap", [lambda m: m, compiled, in_part, under_ddp], ids=["plain", "compiled", "in part", "DDP"])
@pytest.mark.parametrize("convert_back", [False, True])
def test_it_brings_a_fresh_model_to_where_the_trained_one_is(wrap, convert_back):
    model = planned()
    train(model)
    file = io.BytesIO()
    torch.save(wk.part_state_dict(wrap(model)), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert state["0.weight"].shape == (6, 1, 3, 3)
    assert state["3.weight"].shape == (2, 54)
    assert state["3.weight:rows"].tolist() == [0, 7]
    assert "5.weight" not in state
    fresh = wk.revert(network()) if convert_back else network()
    wk.load_part_(wrap(fresh), state)
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), model.state_dict().values(), strict=True))


def test_it_leaves_out_what_is_frozen_and_holds_tied_weights_once():
    model = wk.convert(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)))
    model[1].weight = model[0].weight
    model[2].requires_grad_(False)
    wk.set_rows(model, wk.Rows([1]))
    assert list(wk.part_state_dict(model)) == ["0.weight", "0.weight:rows", "0.bias", "1.bias"]
    model[1].rows = wk.Rows([2])  # so that all of the tied weight may have moved
    assert wk.part_state_dict(model)["0.weight"].shape == (3, 3)


def test_a_frozen_front_is_left_out():
    model = network()
    policy = wk.policies.SingleShotFreezing(model, torch.randn(2, 4, 5, 5), at=0, share=0.4)
    state = wk.part_state_dict(model, frozen=policy.frozen_parameters())
    assert [name for name in state if not name.startswith("1.")] == ["3.weight", "3.bias", "5.weight", "5.bias"]
    assert [name for name in state if name.startswith("1.")] == ["1.running_mean", "1.running_var", "1.num_batches_tracked"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"6.weight": torch.ones(2)}, "got '6.weight'"),
        ({"3.weight:rows": torch.tensor([0, 40])}, r"3.weight:rows: expected numbers from 0 to 39"),
        ({"3.weight": torch.ones(3, 54)}, r"3.weight: expected \[2, 54\]"),
        ({"0.weight:columns": torch.tensor([1.0, 2.0])}, "0.weight:columns: expected numbers in one dimension"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(change, message):
    model = planned()
    train(model)
    fresh = network()
    before = [t.clone() for t in fresh.state_dict().values()]
    with pytest.raises(ValueError, match=message):
        wk.load_part_(fresh, wk.part_state_dict(model) | change)
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), before, strict=True))


def test_it_needs_a_converted_layer():
    with pytest.raises(ValueError, match="at least one converted layer"):
        wk.part_state_dict(nn.Linear(2, 2))
