"""A frozen prefix against stock PyTorch with ``requires_grad=False``, and what it leaves behind."""

import copy
import warnings

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import wuskern as wk
from tests.policies.freezing_models import CASES, Tied, Transformer, Twice, mlp
from wuskern.policies.freezing import Prefix

NAMES = pytest.mark.parametrize("name", CASES)


def stock(name: str) -> tuple[nn.Module, Tensor]:
    """The case's model, with its prefix frozen as PyTorch does it, and norm layers and dropout there in evaluation mode."""
    make, example, _, frozen = CASES[name]
    torch.manual_seed(3)
    net = make().double()
    for parameter_name, p in net.named_parameters():
        p.requires_grad_(not parameter_name.startswith(frozen))
    for module_name, module in net.named_modules():
        if f"{module_name}.".startswith(frozen) or isinstance(module, nn.Dropout):
            module.eval()
    return net, example()


def frozen(name: str) -> tuple[nn.Module, Prefix, Tensor]:
    net, x = stock(name)
    net = wk.convert(net).requires_grad_(True).train()
    prefix = Prefix(net, x)
    prefix.set(CASES[name][2])
    return net, prefix, x


@NAMES
def test_what_trains_has_the_gradients_of_a_stock_model_and_the_rest_has_none(name):
    (expected, x), (net, prefix, _), begin = stock(name), frozen(name), CASES[name][3]
    wanted, found = expected(x), net(x)
    assert torch.equal(found, wanted)
    wanted.square().sum().backward()
    found.square().sum().backward()
    for (parameter_name, p), q in zip(net.named_parameters(), expected.parameters(), strict=True):
        assert (p.grad is None) == parameter_name.startswith(begin), parameter_name
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-12, atol=1e-12)
    assert {id(p) for p in prefix.parameters} == {id(p) for n, p in net.named_parameters() if n.startswith(begin)}


@NAMES
def test_the_backward_has_the_flops_of_the_rest_alone(name):
    """Stock with ``requires_grad=False`` leaves the same out, down to the input gradient of the first layer that trains."""
    flops = []
    for net in (stock(name)[0], frozen(name)[0]):
        loss = net(stock(name)[1]).square().sum()
        with FlopCounterMode(display=False) as counter:
            loss.backward()
        flops.append(counter.get_total_flops())
    assert flops[0] == flops[1] > 0


@NAMES
def test_what_is_kept_for_backward_is_what_a_stock_model_keeps(name):
    """Of the prefix nothing: its outputs need no gradient."""
    kept: list[list[tuple[int, ...]]] = []
    (net, prefix, x), (expected, _) = frozen(name), stock(name)
    for model in (expected, net):
        kept.append([])
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept[-1].append(tuple(t.shape)) or t, lambda t: t):
            model(x)
    assert kept[0] == kept[1] != []
    needed: list[bool] = []
    for module in prefix.modules:
        module.register_forward_hook(lambda _m, _x, y: needed.append(y.requires_grad))
    net(x)
    assert len(needed) >= len(prefix.modules)
    assert not any(needed)


@NAMES
def test_the_flops_that_it_saves_are_those_that_it_says(name):
    """Convolutions and matrix products of layers: attention's own products, in batches, are not counted."""
    net, prefix, x = frozen(name)
    counted = []
    for depth in (0, prefix.depth):
        prefix.set(depth)
        loss = net(x).square().sum()
        with FlopCounterMode(display=False) as counter:
            loss.backward()
        products = counter.get_flop_counts()["Global"]
        counted.append(sum(n for op, n in products.items() if "bmm" not in str(op)))
    assert counted[0] - counted[1] == len(x) * prefix.saved(CASES[name][2])


@NAMES
def test_nothing_of_the_prefix_moves(name):
    """Momentum, weight decay and zero gradients try to; ``train()`` turns batch norm on again."""
    net, prefix, x = frozen(name)
    prefix.set(0)
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, weight_decay=0.1)
    policy = Fixed(net, x)
    policy.attach(optimizer)
    for depth in (0, CASES[name][2]):
        policy.layers_to_freeze = depth
        policy.apply()
        before = {k: v.clone() for k, v in net.state_dict().items()}
        for _ in range(3):
            net.train()
            optimizer.zero_grad(set_to_none=False)
            net(x).square().mean().backward()
            optimizer.step()
        moved = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
        still = {k for k in before if depth and k.startswith(CASES[name][3])}
        assert moved == before.keys() - still
    assert all(p.requires_grad for p in net.parameters())


class Fixed(wk.policies.Freezing):
    layers_to_freeze = 0

    def wanted(self, epoch: int) -> int:
        return self.layers_to_freeze


def test_a_thawed_model_is_a_stock_model():
    net, prefix, x = frozen("resnet inside a block")
    net(x)
    assert [net[1].training, net[3].norm1.training, net[3].norm2.training] == [False, False, True]
    prefix.set(0)
    assert all(module.training for module in net.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    net(x).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_modes_are_given_back_whatever_the_depths_in_between():
    net, prefix, x = frozen("vgg to the last layer")
    for depth in (1, 3, 2, 0):
        prefix.set(depth)
        net.train()(x)
        assert [net[1].training, net[4].training, net[8].training] == [depth < 1, depth < 2, depth < 3]
    assert all(module.training for module in net.modules())
    assert not any("forward" in vars(module) for module in net.modules())


def test_a_norm_layer_that_its_user_fixed_stays_fixed():
    net, prefix, x = frozen("vgg")
    prefix.set(0)
    net[1].eval()
    prefix.set(2)
    net(x)
    prefix.set(0)
    assert [net[1].training, net[4].training] == [False, True]


def test_the_recording_leaves_the_model_and_the_random_state_alone():
    class Noisy(Transformer):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(F.dropout(x, training=True))

    net = wk.convert(Noisy().double())
    net.drop.eval()
    net.head.rows = wk.TopK(k=1)
    before, modes = torch.get_rng_state(), [m.training for m in net.modules()]
    Prefix(net, torch.ones(2, 4, 6, dtype=torch.float64))
    assert torch.equal(torch.get_rng_state(), before)
    assert [m.training for m in net.modules()] == modes
    assert (net.embed.skip, net.head.rows) == (False, wk.TopK(k=1))
    assert all(p.grad is None for p in net.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_weights_that_skip_while_it_records_freeze_like_others():
    net = wk.convert(mlp())
    wk.set_skip(net, True)
    prefix = Prefix(net, torch.randn(1, 6))
    prefix.set(1)
    assert set(prefix.parameters) == {net[0].weight, net[0].bias}
    assert net[0].skip


def test_gradients_are_on_again_after_a_forward_that_raises():
    net, _, x = frozen("vgg")
    with pytest.raises(RuntimeError):
        net(x[:, :1])
    assert torch.is_grad_enabled()
    with torch.no_grad():
        assert not net(x).requires_grad
        assert not torch.is_grad_enabled()


def test_the_last_layer_always_trains():
    net = wk.convert(mlp().double())
    prefix = Prefix(net, torch.randn(1, 6, dtype=torch.float64))
    prefix.set(99)
    assert (prefix.depth, prefix.order) == (2, ("0", "3", "5"))


def test_a_layer_that_runs_again_behind_the_next_one_waits_for_it():
    """Order a, b, c, then b again, d: b cannot be frozen without c."""
    net = wk.convert(Twice())
    prefix = Prefix(net, torch.randn(2, 4))
    assert [prefix.reachable(depth) for depth in range(5)] == [0, 1, 1, 3, 3]
    prefix.set(2)
    net(torch.randn(2, 4)).sum().backward()
    assert [layer.weight.grad is None for layer in (net.a, net.b, net.c, net.d)] == [True, False, False, False]


def test_a_tied_embedding_goes_on_training_by_the_output_layer():
    torch.manual_seed(0)
    net, x = wk.convert(Tied().double()), torch.randint(7, (5, 2))
    prefix = Prefix(net, x)
    prefix.set(1)
    assert set(prefix.parameters) == {net.first.weight, net.first.bias}
    net(x).square().sum().backward()
    hidden = torch.tanh(net.second(torch.tanh(net.first(net.embedding(x))))).detach()
    wanted = torch.autograd.grad((hidden @ net.head.weight.t()).square().sum(), net.head.weight)[0]
    torch.testing.assert_close(net.embedding.weight.grad, wanted)
    assert net.first.weight.grad is None


def test_a_weight_that_a_hook_computes_trains_behind_the_prefix():
    net = wk.convert(mlp())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old weight_norm
        nn.utils.weight_norm(net[3])
    x = torch.randn(4, 6)
    Prefix(net, x).set(1)
    net(x).sum().backward()
    assert net[3].weight_g.grad is not None
    assert net[0].weight.grad is None


def test_a_copy_is_frozen_by_itself():
    """As AveragedModel makes one."""
    net, prefix, x = frozen("resnet inside a block")
    copied = copy.deepcopy(net)
    prefix.set(0)
    net(x).sum().backward()
    copied(x).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    begin = CASES["resnet inside a block"][3]
    assert all((p.grad is None) == name.startswith(begin) for name, p in copied.named_parameters())


def test_layers_that_run_without_gradients_are_refused():
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.a(x)
            return self.b(x)

    with pytest.raises(ValueError, match="model: expected layers to run with gradients, got 'a' that runs without"):
        Prefix(wk.convert(Half()), torch.randn(2, 3))


def test_a_model_that_another_policy_freezes_is_refused():
    net, _, x = frozen("mlp")
    with pytest.raises(ValueError, match="model: expected one without frozen layers, got one that another policy freezes"):
        Prefix(net, x)


def test_what_wraps_a_model_is_refused():
    net = wk.convert(mlp())
    with pytest.raises(ValueError, match="model: expected the one inside, got OptimizedModule around it"):
        Prefix(torch.compile(net, backend="eager"), torch.randn(1, 6))
