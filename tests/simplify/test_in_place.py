"""In place, training goes on: as the masked model's would, optimizer and all."""

import copy

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import wuskern as wk
from tests.simplify.networks import equal, kill, shapes

DEAD = {"0": [1, 4], "3": [0, 2, 5], "7": [3, 4, 6]}
LEFT = {"0": [0, 2, 3, 5], "3": [1, 3, 4], "7": [0, 1, 2, 5, 7, 8, 9]}


def network() -> nn.Module:
    torch.manual_seed(0)
    convolutions = nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 6, 3), nn.ReLU(inplace=True)
    model = nn.Sequential(*convolutions, nn.Flatten(), nn.Dropout(0.0), nn.Linear(24, 10), nn.ReLU(), nn.Linear(10, 4))
    return wk.convert(model.double())


def cut(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """The part of the masked model's tensor that is left, by hand."""
    layer, _, kind = name.partition(".")
    if layer in LEFT:
        tensor = tensor[LEFT[layer]]
    if kind == "weight" and layer == "3":
        tensor = tensor[:, LEFT["0"]]
    if kind == "weight" and layer == "7":
        tensor = tensor.unflatten(1, (6, 4))[:, LEFT["3"]].flatten(1)
    if kind == "weight" and layer == "9":
        tensor = tensor[:, LEFT["7"]]
    return tensor


def mask(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    for name, rows in DEAD.items():
        kill(model[int(name)], rows)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, amsgrad=True),
    "adam, foreach": lambda p: torch.optim.Adam(p, 0.01, foreach=True),
    "row-sgd": lambda p: wk.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
    "row-adamw": lambda p: wk.optim.AdamW(p, 0.01, amsgrad=True),
}


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 2, 8, 8, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 4, (8,), generator=generator)


def train(model, optimizer, steps, after=lambda: None) -> torch.Tensor:
    for step in steps:
        x, y = batch(step)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        after()
    return loss  # whose graph still knows the parameters


@pytest.mark.parametrize("rows", [None, wk.Rows(torch.tensor([0, 1]))], ids=["all rows", "two rows"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_as_the_masked_models_would(name, rows):
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    before = list(model.parameters())
    loss = train(model, optimizer, range(3))
    mask(model)
    masked = copy.deepcopy(model)
    its_optimizer = OPTIMIZERS[name](masked.parameters())
    its_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    report = wk.simplify_(model, batch(0)[0], optimizer)
    assert {name: index.tolist() for name, index in report.kept.items()} == LEFT
    assert all(a is b for a, b in zip(model.parameters(), before, strict=True))
    assert all(isinstance(model[int(layer)], wk.SkippableLinear | wk.SkippableConv2d) for layer in DEAD)
    for (key, mine), its in zip(model.named_parameters(), masked.parameters(), strict=True):
        assert torch.equal(mine, cut(its, key))  # bit for bit
        for kind, value in optimizer.state[mine].items():
            wanted = its_optimizer.state[its][kind]
            assert torch.equal(value, cut(wanted, key) if wanted.ndim else wanted)
        assert mine.grad is None or mine.grad.shape == mine.shape

    if rows is not None:
        model[9].rows = masked[9].rows = rows
    train(model, optimizer, range(3, 7))
    train(masked, its_optimizer, range(3, 7), after=lambda: mask(masked))
    for (key, mine), its in zip(model.named_parameters(), masked.parameters(), strict=True):
        assert equal(mine, cut(its, key))
        for kind, value in optimizer.state[mine].items():
            wanted = its_optimizer.state[its][kind]
            assert equal(value, cut(wanted, key) if wanted.ndim else wanted)
    assert loss.requires_grad


def test_gradients_in_both_forms_are_cut_alike():
    model = network()
    mask(model)
    x, y = batch(0)
    model[7].rows = wk.Rows(torch.tensor([0, 3, 5, 9]), sparse=True)
    F.cross_entropy(model(x), y).backward()
    held, dense = model[7].weight.grad, model[3].weight.grad
    wanted = cut(held.to_dense(), "7.weight")
    wk.simplify_(model, x)
    assert torch.equal(model[3].weight.grad, cut(dense, "3.weight"))
    assert model[7].weight.grad._indices().tolist() == [[0, 3, 6]]
    assert torch.equal(model[7].weight.grad.to_dense(), wanted)
    assert model[7].rows is None  # they meant other rows


def test_hooks_on_parameters_go_on():
    model, seen = network(), []
    model[7].weight.register_post_accumulate_grad_hook(lambda p: seen.append(tuple(p.grad.shape)))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loss = train(model, optimizer, range(1))
    mask(model)
    wk.simplify_(model, batch(0)[0], optimizer)
    train(model, optimizer, range(1))
    assert seen == [(10, 24), (7, 12)]
    assert loss.grad_fn is not None


@pytest.mark.parametrize("flag", ["skip", "rows"])
def test_flags_make_no_difference(flag):
    model = network()
    mask(model)
    if flag == "skip":
        wk.set_skip(model, True)
    else:
        wk.set_rows(model, wk.TopK(k=2))
    state = torch.get_rng_state()
    wk.simplify_(model, batch(0)[0])
    assert torch.equal(torch.get_rng_state(), state)
    assert shapes(model)[0] == (4, 2, 3, 3)
    assert model[0].skip is (flag == "skip")
    assert all(m.training for m in model.modules())


def test_a_second_call_finds_nothing():
    model = network()
    mask(model)
    wk.simplify_(model, batch(0)[0])
    report = wk.simplify_(model, batch(0)[0])
    assert not report.kept
    assert report.parameters_before == report.parameters_after


def test_state_of_another_shape_is_refused_by_name():
    model = network()
    mask(model)
    optimizer = torch.optim.Adafactor(model.parameters())
    train(model, optimizer, range(1), after=lambda: mask(model))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"optimizer: expected state of the parameter's shape, got row_var of 0.weight"):
        wk.simplify_(model, batch(0)[0], optimizer)
    assert all(torch.equal(a, before[key]) for key, a in model.state_dict().items())
