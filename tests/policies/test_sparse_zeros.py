"""Zeros stay zero through optimizers, scalers, processes and other policies, and everything else trains as it would."""

import copy
import itertools

import pytest
import torch
import torch.nn as nn

import wuskern as wk
from wuskern.policies import MEST, WUS, ActivationCache, Compose, MeProp, Policy, RigL, SingleShotFreezing, SparseTraining

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, amsgrad=True),
    "rows sgd": lambda p: wk.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "rows adamw": lambda p: wk.optim.AdamW(p, lr=0.05),
}
KINDS = {"mest": (MEST, {}), "rigl": (RigL, {"interval": 2}), "set": (RigL, {"interval": 2, "growth": "random"})}


def network() -> nn.Module:
    torch.manual_seed(0)
    parts = nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(), nn.Linear(32, 12), nn.ReLU()
    return wk.convert(nn.Sequential(*parts, nn.Linear(12, 4)).double())


def example(seed: int) -> torch.Tensor:
    return torch.randn(6, 2, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(kind: str, net: nn.Module, **given) -> SparseTraining:
    cls, arguments = KINDS[kind]
    return cls(net, **{"epochs": 20, "sparsity": 0.5} | arguments | given)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, policy: Policy | None, steps: range, epoch: int = 3) -> None:
    for step in steps:
        if policy is not None:
            policy.before_step()
        for micro in range(2):
            net(example(2 * step + micro)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if policy is not None:
            policy.after_step()
            if step % epoch == epoch - 1:
                policy.after_epoch()
                policy.step(0.5)


def state_of(optimizer: torch.optim.Optimizer, weight: torch.Tensor) -> list[torch.Tensor]:
    state = optimizer.state.get(weight, {}).values()
    return [value for value in state if isinstance(value, torch.Tensor) and value.shape == weight.shape]


def check_zeros(policy: SparseTraining, optimizer: torch.optim.Optimizer | None = None) -> None:
    for name, mask in policy.masks.items():
        weight = policy.weights[name]
        assert not weight[~mask].any()
        for value in state_of(optimizer, weight) if optimizer is not None else ():
            assert not value[~mask].any()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_moments_of_zeros_are_zero_after_each_step(kind, optimizer):
    net = network()
    update = OPTIMIZERS[optimizer](net.parameters())
    policy = make(kind, net, **({"interval": 1} if kind == "mest" else {}))
    policy.attach(update)
    seen = {name: [mask] for name, mask in policy.masks.items()}
    for step in range(12):
        train(net, update, policy, range(step, step + 1))
        check_zeros(policy, update)
        for name, mask in policy.masks.items():
            seen[name].append(mask)
    for name, masks in seen.items():
        assert {int(mask.sum()) for mask in masks} == {policy.weights[name].numel() // 2}
        assert any(not torch.equal(a, b) for a, b in itertools.pairwise(masks))
        assert state_of(update, policy.weights[name])


class Masked(nn.Module):
    """Of a weight, as a stock parametrization: it is multiplied with a mask in each forward."""

    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * self.mask


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_between_changes_it_trains_as_a_stock_model_whose_weights_are_multiplied_with_masks(optimizer):
    net = network()
    stock = nn.Sequential(*(copy.deepcopy(part) for part in wk.revert(copy.deepcopy(net))))
    policy = make("rigl", net, interval=1000)
    for name, mask in policy.masks.items():
        nn.utils.parametrize.register_parametrization(stock[int(name)], "weight", Masked(mask))
    update, plain = OPTIMIZERS[optimizer](net.parameters()), OPTIMIZERS[optimizer](stock.parameters())
    policy.attach(update)
    train(net, update, policy, range(8))
    train(stock, plain, None, range(8))
    for layer, other in zip(net, stock, strict=True):
        if hasattr(layer, "weight"):
            torch.testing.assert_close(layer.weight, other.weight)
            torch.testing.assert_close(layer.bias, other.bias)


def test_moments_that_were_there_before_are_forgotten():
    net = network()
    update = OPTIMIZERS["adamw"](net.parameters())
    train(net, update, None, range(2))
    policy = make("mest", net)
    assert state_of(update, net[0].weight)[0][~policy.masks["0"]].any()
    policy.attach(update)
    train(net, update, policy, range(1))
    check_zeros(policy, update)
    assert state_of(update, net[0].weight)[0].any()


@pytest.mark.parametrize("kind", KINDS)
def test_without_attach_zeros_are_put_back(kind):
    net = network()
    update = OPTIMIZERS["sgd"](net.parameters())
    policy = make(kind, net)
    for step in range(8):
        train(net, update, policy, range(step, step + 1))
        check_zeros(policy)


def test_rows_in_compact_form_are_masked_too():
    net = network()
    update = OPTIMIZERS["rows sgd"](net.parameters())
    policy = make("mest", net)
    both = Compose([policy, MeProp(net, ratio=0.5, scope="weight")])
    both.attach(update)
    before = net[4].weight.detach().clone()
    both.before_step()
    net(example(0)).square().mean().backward()
    assert net[4].weight.grad.is_sparse
    update.step()
    moved = net[4].weight != before
    assert moved.any()
    assert not moved[~policy.masks["4"]].any()
    check_zeros(policy, update)


def test_rigl_does_not_share_its_layers_with_a_choice_of_rows():
    net = network()
    with pytest.raises(ValueError, match="expected one to decide of layer 0 which rows have gradients, got RigL and MeProp"):
        Compose([make("rigl", net), MeProp(net, ratio=0.5)])
    with pytest.raises(ValueError, match="expected one to decide of layer 0 which weights are zero, got RigL and MEST"):
        Compose([make("rigl", net), make("mest", net)])


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_where_weights_skip_nothing_moves_and_masks_change_after_it(kind, first):
    net = network()
    update = OPTIMIZERS["adamw"](net.parameters())
    policy, wus = make(kind, net, interval=1), WUS(net)
    both = Compose([policy, wus] if first else [wus, policy])
    both.attach(update)
    train(net, update, both, range(3))
    wus.skipping, wus.left = True, 10
    both.apply()
    masks = dict(policy.masks)
    weights = {name: weight.detach().clone() for name, weight in policy.weights.items()}
    wus.step = lambda metric=None: wus.skipping  # type: ignore[method-assign]  # whatever the metric
    train(net, update, both, range(3, 9))
    for name, mask in masks.items():
        assert torch.equal(policy.masks[name], mask)
        assert torch.equal(policy.weights[name], weights[name])
    wus.skipping = False
    both.apply()
    train(net, update, both, range(9, 12))
    assert all(not torch.equal(policy.masks[name], mask) for name, mask in masks.items())
    check_zeros(policy, update)


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_layer_keeps_its_mask_and_its_values(kind):
    net = network()
    update = OPTIMIZERS["sgd"](net.parameters())
    policy = make(kind, net, interval=1)
    both = Compose([policy, SingleShotFreezing(net, example(0), at=1, share=0.5)])
    both.attach(update)
    train(net, update, both, range(3))
    masks, frozen = dict(policy.masks), net[0].weight.detach().clone()
    train(net, update, both, range(3, 9))
    assert torch.equal(net[0].weight, frozen)
    assert [torch.equal(policy.masks[name], masks[name]) for name in ("0", "2", "4")] == [True, True, False]


@pytest.mark.parametrize("kind", KINDS)
def test_activations_of_a_frozen_layer_with_a_mask_stay_in_their_cache(kind):
    net, samples = network(), example(0)
    update = OPTIMIZERS["sgd"](net.parameters())
    policy, freezing = make(kind, net, interval=1), SingleShotFreezing(net, samples, at=0, share=0.5)
    both = Compose([policy, freezing])
    both.attach(update)
    cache, ran = ActivationCache(freezing, samples), []
    frozen = net[0].__dict__["forward"]
    compute = frozen.run
    frozen.run = lambda *args, **kwargs: ran.append(1) or compute(*args, **kwargs)
    for _ in range(3):
        for _ in range(2):
            both.before_step()
            cache(torch.arange(6)).square().mean().backward()
            update.step()
            update.zero_grad()
            both.after_step()
        both.step()
    assert len(ran) == 5  # four in the trial of what can be kept, one for all samples


@pytest.mark.parametrize("kind", ["mest", "rigl"])
def test_a_step_that_a_scaler_leaves_out_changes_nothing(kind):
    """An infinite gradient: the optimizer does not step, and masks wait."""
    net = network().float()
    update = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    policy = make(kind, net, interval=1)
    policy.attach(update)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for infinite in (False, True, False):
        before = {name: (mask, policy.weights[name].detach().clone()) for name, mask in policy.masks.items()}
        policy.before_step()
        update.zero_grad()
        scaler.scale(net(example(0).float()).square().mean() * (torch.inf if infinite else 1)).backward()
        scaler.step(update)
        scaler.update()
        policy.after_step()
        check_zeros(policy, update)
        for name, (mask, weight) in before.items():
            assert torch.equal(policy.weights[name], weight) == infinite
            assert torch.equal(policy.masks[name], mask) == (infinite or kind == "mest")


def test_what_is_released_is_a_stock_model_and_apply_takes_it_back():
    net = network()
    policy = make("rigl", net)
    update = OPTIMIZERS["sgd"](net.parameters())
    policy.attach(update)
    assert policy.wants("0") == {"density": 0.5}
    policy.release()
    assert policy.wants("0") == {}
    weights = net[0].weight.detach().clone()
    policy.before_step(), policy.after_step()
    assert torch.equal(net[0].weight, weights)
    train(net, update, policy, range(4))
    assert (net[0].weight != 0).all()
    assert not net[0]._forward_hooks
    assert not net[0]._forward_pre_hooks
    policy.apply()
    check_zeros(policy)


def test_the_start_is_at_random_by_the_seed_alone():
    masks = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed + 5)
        torch.rand(seed + 1)
        state = torch.get_rng_state()
        net = network()
        torch.set_rng_state(state)
        masks.append(make("mest", net, seed=seed).masks["4"])
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_channels_last_weights_have_masks_of_their_strides():
    net = network().to(memory_format=torch.channels_last)
    policy = make("mest", net)
    assert policy.masks["0"].stride() == net[0].weight.stride()
    check_zeros(policy)


def test_weights_that_are_not_the_layers_own_are_refused():
    net = wk.convert(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)))
    net[1].weight = net[0].weight
    with pytest.raises(ValueError, match="dense: expected 0 in it, whose weight is shared or no plain parameter of its own"):
        MEST(net, epochs=1)
    MEST(net, epochs=1, dense=["0", "1"])


def test_a_state_of_other_layers_is_refused():
    state = make("mest", network(), dense=["0"]).state_dict()
    with pytest.raises(ValueError, match="state: expected masks of"):
        make("mest", network()).load_state_dict(state)
    with pytest.raises(ValueError, match="state: expected that of RigL, got that of 'MEST'"):
        make("rigl", network()).load_state_dict(state)
