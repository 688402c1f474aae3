"""wk.optim on weights of which a fixed part trains: what moves, what is kept, and what becomes of it when the part changes."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import Parameter

import wuskern as wk
from wuskern.delivery.part import Part
from wuskern.optim.lines import lines_of

MAKES = {
    "SGD": lambda module, ps: module.SGD(ps, lr=0.1, momentum=0.9, weight_decay=0.1),
    "Adam": lambda module, ps: module.Adam(ps, lr=0.01, weight_decay=0.1),
    "AdamW": lambda module, ps: module.AdamW(ps, lr=0.01, weight_decay=0.1),
    "AMSGrad": lambda module, ps: module.AdamW(ps, lr=0.01, amsgrad=True),
}
each = pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
PLANS = {
    "rows": dict(rows=wk.Rows([1, 4, 5])),
    "columns": dict(columns=wk.Columns([0, 3, 7])),
    "a block of columns": dict(columns=wk.Columns(list(range(4, 8)))),
    "rows x columns": dict(rows=wk.Rows([1, 4, 5]), columns=wk.Columns([0, 3, 7])),
}
plans = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
LAYERS = {
    "Linear": (lambda: nn.Linear(8, 6), (5, 8)),
    "Conv2d": (lambda: nn.Conv2d(8, 6, 3), (2, 8, 5, 5)),
    "channels_last": (lambda: nn.Conv2d(8, 6, 3).to(memory_format=torch.channels_last), (2, 8, 5, 5)),
    "groups": (lambda: nn.Conv2d(16, 6, 3, groups=2), (2, 16, 5, 5)),
}


def layer_of(kind: str, plan: dict) -> nn.Module:
    torch.manual_seed(3)
    layer = wk.convert(LAYERS[kind][0]().double())
    if kind == "groups" and "columns" in plan:
        plan = plan | {"columns": wk.Columns([*plan["columns"].numbers, *(8 + n for n in plan["columns"].numbers)])}
    if kind == "groups" and "rows" in plan:
        plan = plan | {"rows": wk.Rows([1, 4])}
    wk.set_plan(layer, **plan)
    return layer


def backward(layer: nn.Module, kind: str, seed: int) -> None:
    x = torch.randn(LAYERS[kind][1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    layer(x).square().mean().backward()


def mask_of(layer: nn.Module) -> Tensor:
    """Which elements of the weight train, worked out one by one."""
    out, of_group = layer.weight.shape[:2]
    groups = getattr(layer, "groups", 1)
    rows = set(range(out)) if layer.rows is None else set(layer.rows.numbers)
    columns = set(range(of_group * groups)) if layer.columns is None else set(layer.columns.numbers)
    mask = torch.zeros(layer.weight.shape, dtype=torch.bool)
    for r in range(out):
        for c in range(of_group):
            mask[r, c] = r in rows and (r // (out // groups)) * of_group + c in columns
    return mask


@each
@plans
@pytest.mark.parametrize("kind", LAYERS)
def test_it_equals_torchs_optimizer_on_the_elements_that_train(kind, plan, make):
    """The oracle is torch's optimizer on the chosen elements in a flat tensor; the others stay as they were, bit for bit."""
    layer = layer_of(kind, plan)
    mask, start = mask_of(layer), layer.weight.detach().clone()
    ours = make(wk.optim, layer.parameters())
    chosen = Parameter(start[mask].clone())
    theirs = make(torch.optim, [chosen])
    for seed in range(5):
        ours.zero_grad()
        backward(layer, kind, seed)
        grad = layer.weight.grad.to_dense() if layer.weight.grad.is_sparse else layer.weight.grad
        assert not grad[~mask].any()
        chosen.grad = grad[mask].clone()
        ours.step()
        theirs.step()
        torch.testing.assert_close(layer.weight.detach()[mask], chosen.detach(), rtol=1e-12, atol=1e-14)
        assert torch.equal(layer.weight.detach()[~mask], start[~mask])
    moments = [t for t in ours.state[layer.weight].values() if t.is_floating_point() and t.ndim]
    assert moments
    assert {t.numel() for t in moments} == {int(mask.sum())}


@plans
def test_a_weight_in_no_memory_format_has_a_part_too(plan):
    layer, other = layer_of("Linear", plan), layer_of("Linear", plan)
    layer.weight = Parameter(layer.weight.detach().t().contiguous().t())
    assert not layer.weight.is_contiguous()
    for net in (layer, other):
        optimizer = wk.optim.AdamW(net.parameters(), lr=0.01)
        for seed in range(3):
            optimizer.zero_grad()
            backward(net, "Linear", seed)
            optimizer.step()
    torch.testing.assert_close(layer.weight, other.weight, rtol=1e-12, atol=1e-14)


@each
def test_clipping_and_accumulation_leave_the_part_a_part(make):
    layer, stock = layer_of("Linear", PLANS["columns"]), layer_of("Linear", PLANS["columns"])
    mask, start = mask_of(layer), layer.weight.detach().clone()
    ours = make(wk.optim, [layer.weight])
    chosen = Parameter(start[mask].clone())
    theirs = make(torch.optim, [chosen])
    for seed in range(3):
        for net in (layer, stock):
            net.zero_grad()
            for micro in range(2):
                backward(net, "Linear", 2 * seed + micro)
            nn.utils.clip_grad_norm_([net.weight], 0.01)
        chosen.grad = stock.weight.grad[mask].clone()
        ours.step()
        theirs.step()
        with torch.no_grad():
            stock.weight.copy_(layer.weight)
        torch.testing.assert_close(layer.weight.detach()[mask], chosen.detach(), rtol=1e-12, atol=1e-14)
    assert torch.equal(layer.weight.detach()[~mask], start[~mask])


def test_a_gradient_beyond_the_part_takes_torchs_step():
    """Another micro-batch without the plan: all of the weight has a gradient, decays and moves."""
    layer, stock = layer_of("Linear", PLANS["columns"]), layer_of("Linear", {"skip": False})
    ours, theirs = wk.optim.AdamW([layer.weight], lr=0.01), torch.optim.AdamW([stock.weight], lr=0.01)
    backward(layer, "Linear", 0)
    layer.weight.grad.data[0, 1] = 1e-3  # past every counter
    stock.weight.grad = layer.weight.grad.clone()
    ours.step()
    theirs.step()
    assert torch.equal(layer.weight, stock.weight)


def test_large_zeros_that_are_used_again_are_not_looked_through():
    """The gradient lies in memory that nobody has written to since: that is known, and a write through ``.data`` is, too."""
    layer = wk.convert(nn.Linear(1024, 1024))
    layer.columns = wk.Columns(list(range(32)))
    optimizer, start = wk.optim.AdamW([layer.weight], lr=0.1), layer.weight.detach().clone()
    for step in range(3):
        optimizer.zero_grad()
        layer(torch.randn(4, 1024, generator=torch.Generator().manual_seed(step))).sum().backward()
        assert layer._home.recycled.holds(layer.weight.grad, layer.fixed_part)
        optimizer.step()
    assert torch.equal(layer.weight.detach()[:, 32:], start[:, 32:])
    optimizer.zero_grad()
    layer(torch.randn(4, 1024)).sum().backward()
    layer.weight.grad.data[5, 600] = 1.0
    assert not layer._home.recycled.holds(layer.weight.grad, layer.fixed_part)
    optimizer.step()
    assert not torch.equal(layer.weight.detach()[:, 32:], start[:, 32:])


# ---- another part ---------------------------------------------------------------------------------------------------


def two_parts(on_change: str, name: str = "AdamW") -> tuple[nn.Module, torch.optim.Optimizer]:
    """Two steps of columns 0, 3, 7, and one of 3, 4."""
    layer = layer_of("Linear", PLANS["columns"])
    options = dict(momentum=0.9) if name == "SGD" else {}
    optimizer = getattr(wk.optim, name)([layer.weight], lr=0.01, on_change=on_change, **options)
    for seed in range(3):
        if seed == 2:
            layer.columns = wk.Columns([3, 4])
        optimizer.zero_grad()
        backward(layer, "Linear", seed)
        optimizer.step()
    return layer, optimizer


def test_widen_forgets_nothing():
    layer, optimizer = two_parts("widen")
    state = optimizer.state[layer.weight]
    assert state["exp_avg"].shape == layer.weight.shape
    assert state["exp_avg"].any(0).tolist() == [True, False, False, True, True, False, False, True]
    assert "columns" not in state


def test_keep_keeps_what_stays():
    layer, optimizer = two_parts("keep")
    wide, of_all = two_parts("widen")
    state, known = optimizer.state[layer.weight], of_all.state[wide.weight]
    assert state["columns"].tolist() == [3, 4]
    assert torch.equal(state["exp_avg"], known["exp_avg"][:, [3, 4]])
    assert state["step"] == 3
    assert torch.equal(layer.weight, wide.weight)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_drop_begins_anew(name):
    """As if the optimizer were made again for the new part."""
    layer, optimizer = two_parts("drop", name)
    other = layer_of("Linear", PLANS["columns"])
    options = dict(momentum=0.9) if name == "SGD" else {}
    for seed in range(3):
        if seed != 1:
            fresh = getattr(wk.optim, name)([other.weight], lr=0.01, **options)
        if seed == 2:
            other.columns = wk.Columns([3, 4])
        fresh.zero_grad()
        backward(other, "Linear", seed)
        fresh.step()
    assert torch.equal(layer.weight, other.weight)
    assert all(torch.equal(optimizer.state[layer.weight][key], value) for key, value in fresh.state[other.weight].items())


def test_rows_that_change_are_moved_as_before():
    """Of rows by scores a state of all rows is kept from the first step."""
    layer = layer_of("Linear", {"rows": wk.TopK(k=2)})
    optimizer = wk.optim.AdamW([layer.weight], lr=0.01)
    backward(layer, "Linear", 0)
    optimizer.step()
    assert optimizer.state[layer.weight]["exp_avg"].shape == layer.weight.shape


def test_what_is_no_way_to_change_is_refused():
    with pytest.raises(ValueError, match=r"on_change: expected .*widen.* got 'forget'"):
        wk.optim.AdamW([Parameter(torch.ones(2))], on_change="forget")


# ---- saving ---------------------------------------------------------------------------------------------------------


def trained(plan: dict, make, steps: int = 2) -> tuple[nn.Module, torch.optim.Optimizer]:
    layer = layer_of("Linear", plan)
    optimizer = make(wk.optim, layer.parameters())
    go_on(layer, optimizer, range(steps))
    return layer, optimizer


def go_on(layer: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
    for seed in seeds:
        optimizer.zero_grad()
        backward(layer, "Linear", seed)
        optimizer.step()


@each
@plans
def test_a_state_says_which_part_it_is_of_and_goes_on(plan, make):
    layer, optimizer = trained(plan, make)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert {"rows", "columns"} & set(saved["state"][0]) == set(plan)
    other = layer_of("Linear", plan)
    other.load_state_dict(layer.state_dict())
    resumed = make(wk.optim, other.parameters())
    resumed.load_state_dict(saved)
    assert all(resumed.state[other.weight][name].dtype is torch.int64 for name in plan)
    go_on(layer, optimizer, range(2, 4))
    go_on(other, resumed, range(2, 4))
    assert torch.equal(layer.weight, other.weight)
    assert resumed.state[other.weight].keys() == optimizer.state[layer.weight].keys()


@each
@plans
def test_the_full_state_is_torchs(plan, make):
    layer, optimizer = trained(plan, make)
    mask = mask_of(layer)
    full = optimizer.full_state_dict()
    stock = make(torch.optim, layer_of("Linear", {"skip": False}).parameters())
    stock.load_state_dict(full)
    for name, value in optimizer.state[layer.weight].items():
        if name in ("rows", "columns", "step"):
            continue
        assert full["state"][0][name].shape == layer.weight.shape
        assert torch.equal(full["state"][0][name][mask], value.flatten())
        assert not full["state"][0][name][~mask].any()
    again = make(wk.optim, layer.parameters())
    again.load_state_dict(full)
    go_on(layer, again, range(2, 3))


def test_what_does_not_fit_is_refused_and_nothing_is_loaded():
    _, optimizer = trained(PLANS["columns"], MAKES["AdamW"])
    right = optimizer.state_dict()
    wrongs = {
        r"columns of state 0: expected numbers from 0 to 7": {"columns": torch.tensor([0, 3, 8])},
        r"columns of state 0: expected numbers in one dimension": {"columns": torch.tensor([0.0, 3.0, 7.0])},
        r"exp_avg_sq of state 0: expected \[6, 3\], got \[6, 2\]": {"exp_avg_sq": torch.ones(6, 2)},
    }
    for message, wrong in wrongs.items():
        bad = right | {"state": right["state"] | {0: right["state"][0] | wrong}}
        before = copy.deepcopy(optimizer.state_dict())
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(bad)
        assert str(optimizer.state_dict()) == str(before)


@each
def test_copies_go_on_alike(make):
    layer, optimizer = trained(PLANS["rows x columns"], make)
    both = copy.deepcopy((layer, optimizer))
    pickled = pickle.loads(pickle.dumps((layer, optimizer)))
    for net, held in (both, pickled):
        assert held.on_change == "widen"
        go_on(net, held, range(2, 4))
    go_on(layer, optimizer, range(2, 4))
    assert torch.equal(layer.weight, both[0].weight)
    assert torch.equal(layer.weight, pickled[0].weight)


# ---- lines of memory ------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_lines_are_the_part(data):
    groups = data.draw(st.sampled_from([1, 1, 2, 3]))
    out, of_group = groups * data.draw(st.integers(1, 4)), data.draw(st.sampled_from([1, 3, 8, 16, 24, 128]))
    taps = data.draw(st.sampled_from([(), (1, 1), (3, 2)]))
    starts = data.draw(st.sampled_from([1, 4, 8]))
    each_block = starts if of_group % starts == 0 else 1
    blocks = of_group // each_block
    count = data.draw(st.integers(1, blocks))
    chosen = [sorted(data.draw(st.permutations(range(blocks)))[:count]) for _ in range(groups)]
    columns = [g * of_group + b * each_block + i for g in range(groups) for b in chosen[g] for i in range(each_block)]
    rows = sorted(data.draw(st.sets(st.integers(0, out - 1), min_size=1))) if data.draw(st.booleans()) else None
    part = Part(None if rows is None else torch.tensor(rows), torch.tensor(columns), groups)
    weight = torch.arange(float(torch.Size((out, of_group, *taps)).numel())).reshape(out, of_group, *taps)
    if taps and data.draw(st.booleans()):
        weight = weight.contiguous(memory_format=torch.channels_last)
    lines = lines_of(part, weight)
    assert lines.fits(weight)
    assert torch.equal(lines.numbers, lines.numbers.sort().values)
    taken = lines.of(weight)[lines.numbers].flatten()
    assert torch.equal(taken.sort().values, part.take(weight).flatten().sort().values)
    if len(taps) < 2 and groups == 1 and rows is None:
        assert lines.width >= min(each_block, 64)
