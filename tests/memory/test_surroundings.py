"""Lean layers inside of what people put around them: derivatives of higher order, torch.func, autocast, checkpointing, copies,
hooks, torch.compile, scripting and export."""

import copy
import pickle

import pytest
import torch
import torch.nn as nn
from torch.utils.checkpoint import checkpoint

import wuskern as wk
from tests.memory.test_batch_norm import norm
from tests.memory.twins import ACTIVATIONS, assert_same_bits, lean
from wuskern.memory.layers import Lean

pytestmark = [  # PyTorch's own
    pytest.mark.filterwarnings("ignore:.*torch.jit.(script|trace):DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]
each_activation = pytest.mark.parametrize("make", ACTIVATIONS.values(), ids=ACTIVATIONS)


def network(inplace: bool = False) -> nn.Sequential:
    """One with each kind of lean layer, BatchNorm in evaluation mode."""
    torch.manual_seed(0)
    middle = norm(nn.BatchNorm2d)
    layers = (
        nn.Conv2d(3, 6, 3), middle, nn.ReLU(inplace), nn.Conv2d(6, 6, 3), nn.LeakyReLU(0.1, inplace), nn.Dropout(0.2),
        nn.Flatten(), nn.Linear(6 * 16, 5), nn.ReLU6(inplace), nn.Linear(5, 3),
    )  # fmt: skip
    return nn.Sequential(*layers)


def twins(inplace: bool = False) -> tuple[nn.Sequential, nn.Sequential]:
    stock = network(inplace)
    ours = wk.convert(copy.deepcopy(stock), memory=True)
    assert sum(isinstance(m, Lean) for m in ours.modules()) == 5
    return stock, ours


def grads(model: nn.Module, x: torch.Tensor, call=lambda model, x: model(x)) -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    model.zero_grad()
    call(model, x).square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(ours: dict[str, torch.Tensor], stock: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == stock.keys()
    for name, grad in stock.items():
        torch.testing.assert_close(ours[name], grad, msg=lambda words, name=name: f"{name}: {words}")


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_a_network(inplace, skip):
    stock, ours = twins(inplace)
    if skip:
        wk.set_skip(ours, True)
        for layer in (stock[0], stock[3], stock[7], stock[9]):
            layer.weight.requires_grad_(False)
    x = torch.randn(4, 3, 8, 8)
    assert_same(grads(ours, x), grads(stock, x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    stock, ours = twins()

    def call(model, x):
        with torch.autocast("cpu", dtype):
            return model(x).float()

    x = torch.randn(4, 3, 8, 8)
    expected = grads(stock, x, call)
    for name, grad in grads(ours, x, call).items():
        assert grad.dtype is expected[name].dtype
        torch.testing.assert_close(grad, expected[name], rtol=0.02, atol=0.02 * expected[name].abs().max().item())


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("inplace", [False, True])
def test_checkpointing(reentrant, inplace):
    stock, ours = twins(inplace)
    x = torch.randn(4, 3, 8, 8, requires_grad=True)

    def call(model, x):
        return checkpoint(model, x, use_reentrant=reentrant)

    assert_same(grads(ours, x, call), grads(stock, x))


@pytest.mark.parametrize("skip", [False, True])
def test_channels_last(skip):
    stock, ours = (m.to(memory_format=torch.channels_last) for m in twins())
    wk.set_skip(ours, skip)
    for layer in (stock[0], stock[3], stock[7], stock[9]):
        layer.weight.requires_grad_(not skip)
    x = torch.randn(4, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    assert_same(grads(ours, x), grads(stock, x))


@each_activation
def test_second_derivatives(make):
    results = []
    for layer in (make(), lean(make())):
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
        torch.manual_seed(2)
        (first,) = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
        results.append((first.detach(), second))
    for stock, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, stock)


@pytest.mark.parametrize(
    "make",
    [nn.ReLU, lambda: nn.LeakyReLU(0.3), lambda: norm(nn.BatchNorm1d, torch.float64)],
    ids=["ReLU", "LeakyReLU", "BatchNorm1d"],
)
def test_gradgradcheck(make):
    layer = lean(make())
    x = torch.randn(5, 6, dtype=torch.float64)
    x = (x + x.sign() * 0.1).requires_grad_()  # away from the bend
    assert torch.autograd.gradcheck(layer, x)
    assert torch.autograd.gradgradcheck(layer, x)


@each_activation
def test_batched_gradients(make):
    """``is_grads_batched``, which PyTorch's Jacobians take."""
    results = []
    for layer in (make(), lean(make())):
        x = torch.randn(6, generator=torch.Generator().manual_seed(1)).requires_grad_()
        torch.manual_seed(2)
        results.append(torch.autograd.grad(layer(x), x, torch.eye(6), is_grads_batched=True)[0])
    assert torch.equal(*results)


@pytest.mark.parametrize("make", [nn.ReLU, nn.ReLU6, lambda: norm(nn.BatchNorm1d)], ids=["ReLU", "ReLU6", "BatchNorm1d"])
def test_torch_func(make):
    layer, x = make(), torch.randn(4, 6)
    twin = lean(layer)
    for transform in (
        lambda f: torch.func.grad(lambda x: f(x).square().sum())(x),
        lambda f: torch.func.vmap(torch.func.grad(lambda x: f(x[None]).square().sum()))(x),
        lambda f: torch.func.jvp(f, (x,), (x,))[1],
        lambda f: torch.func.jacrev(f)(x),
    ):
        torch.testing.assert_close(transform(twin), transform(layer))


def test_copies_and_pickles():
    _, ours = twins()
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert [type(m) for m in other.modules()] == [type(m) for m in ours.modules()]
        assert_same(grads(other, torch.ones(2, 3, 8, 8)), grads(ours, torch.ones(2, 3, 8, 8)))


def test_state_dicts_are_pytorchs():
    stock, ours = twins()
    assert list(ours.state_dict()) == list(stock.state_dict())
    stock.load_state_dict(ours.state_dict())
    ours.load_state_dict(stock.state_dict())


def test_hooks_are_called_in_their_order():
    seen = []
    stock, ours = twins()
    for model in (stock, ours):
        model[2].register_forward_hook(lambda m, i, y: seen.append("forward"))
        model[2].register_full_backward_hook(lambda m, dx, dy: seen.append(("backward", len(dx), len(dy))))
        grads(model, torch.ones(2, 3, 8, 8))
    assert seen == ["forward", ("backward", 1, 1)] * 2


def test_saved_tensors_on_the_cpu():
    """Hooks that move what is saved elsewhere get the bits."""
    stock, ours = twins()
    with torch.autograd.graph.save_on_cpu():
        moved = grads(ours, torch.ones(2, 3, 8, 8))
    assert_same(moved, grads(stock, torch.ones(2, 3, 8, 8)))


@pytest.mark.parametrize("inplace", [False, True])
def test_compiled(inplace):
    """Activations and BatchNorm: compiled code draws other random numbers than PyTorch's eager dropout, ours or not."""
    stock, ours = twins(inplace)
    stock[5].p = ours[5].p = 0.0
    wk.set_skip(ours, True)
    for layer in (stock[0], stock[3], stock[7], stock[9]):
        layer.weight.requires_grad_(False)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for batch in (4, 6):
        x = torch.randn(batch, 3, 8, 8)
        assert_same(grads(ours, x, lambda _, x: compiled(x)), grads(stock, x))


def test_compiled_dropout_trains():
    compiled = torch.compile(lean(nn.Dropout(0.5)), fullgraph=True, backend="aot_eager")
    x = torch.ones(1000, requires_grad=True)
    y = compiled(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    assert 300 < (y == 0).sum() < 700


@pytest.mark.parametrize("make", [*ACTIVATIONS.values(), lambda: norm(nn.BatchNorm1d)], ids=[*ACTIVATIONS, "BatchNorm1d"])
def test_scripting_tracing_and_export(make):
    layer = lean(make()).eval()
    x = torch.randn(4, 6)
    expected = make().eval()(x) if not isinstance(layer, nn.BatchNorm1d) else layer(x)
    assert_same_bits(torch.jit.trace(layer, x)(x), expected)
    assert_same_bits(torch.export.export(layer, (x,)).module()(x), expected)
    scripted = torch.jit.script(layer)
    assert_same_bits(scripted(x), expected)
    if isinstance(layer, nn.BatchNorm1d):
        with pytest.raises(torch.jit.Error, match="cannot train in TorchScript"):
            scripted.train()(x)
