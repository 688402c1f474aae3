"""A whole training step of VGG-16 on images of CIFAR's shape: what a skipped step saves of what could be saved.

What could be saved is measured by itself: every layer's weight gradient, computed once more from the tensors of a real
step, and the optimizer's work on the weights. Stock freezing stands beside it.
"""

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from tests.cases import MEMORY_FORMATS
from wuskern import convert, modules, policies, set_skip
from wuskern.train.models import MODELS

BATCH, SMOKE_BATCH = 64, 4
# All of the work, and weights that keep every bit: after a change of one, ReLUs switch and gradients differ by a percent.
SGD = dict(lr=0.0, momentum=0.9, weight_decay=5e-4)


@pytest.mark.parametrize("layout", MEMORY_FORMATS)
@pytest.mark.parametrize("norm", ["BatchNorm", "no norm"])
def test_step(norm, layout, device, race, benchmark):
    batch = SMOKE_BATCH if benchmark.disabled else BATCH
    model = vgg16(batch_norm=norm == "BatchNorm").to(device, memory_format=MEMORY_FORMATS[layout])
    optimizer = torch.optim.SGD(convert(model).parameters(), **SGD)
    policies.WUS(model).attach(optimizer)
    layers = modules.skippable_layers(model)
    x = torch.randn(batch, 3, 32, 32).to(device).contiguous(memory_format=MEMORY_FORMATS[layout])
    y = torch.randint(10, (batch,)).to(device)

    def step(skip: bool, frozen: bool):
        def run(x, y):
            set_skip(model, skip)
            for layer in layers.values():
                layer.weight.requires_grad_(not frozen)
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            gradients = {name: p.grad for name, p in model.named_parameters()}
            optimizer.zero_grad()  # here, so that every variant finds the same memory
            return gradients

        return run

    def verify(results, x, y) -> None:
        """Ours and the frozen step have no weight gradient, and of all the other parameters the one that dense has."""
        weights = {f"{name}.weight" for name in layers}
        dense = flattened(results["dense"], weights)
        assert all(results["dense"][name] is not None for name in weights)
        for name in ("ours", "frozen"):
            assert all(results[name][weight] is None for weight in weights)
            assert (flattened(results[name], weights) - dense).norm() <= 1e-4 * dense.norm()

    race(
        {
            "ours": step(True, False),
            "dense": step(False, False),
            "frozen": step(False, True),
            "wgrad": recorded_weight_gradients(model, layers, x, y),
            "weight update": weight_update(layers),
        },
        group="step",
        case=f"VGG-16, {norm}, {layout}",
        inputs=lambda: (x, y),
        verify=verify,
        peer="dense",
        derived={
            "could_save": lambda t: could_save(t) / t["dense"],
            "saves": lambda t: 1 - t["ours"] / t["dense"],
            "frozen_saves": lambda t: 1 - t["frozen"] / t["dense"],
            "of_possible": lambda t: (t["dense"] - t["ours"]) / could_save(t),
        },
        dtype=torch.float32,
        copies=1,
        rehearse=True,
    )


def vgg16(batch_norm: bool) -> nn.Module:
    """VGG-16 for 3x32x32 and ten classes; without batch norm, its convolutions start as He et al. have it."""
    model = MODELS["vgg16"](3, (32, 32), 10, 1.0)
    if batch_norm:
        return model
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, nn.Identity())
            elif isinstance(child, nn.Conv2d):
                nn.init.kaiming_normal_(child.weight, nonlinearity="relu")
    return model


def flattened(gradients, without) -> torch.Tensor:
    return torch.cat([gradient.flatten() for name, gradient in gradients.items() if name not in without])


def could_save(seconds) -> float:
    return seconds["wgrad"] + seconds["weight update"]


def recorded_weight_gradients(model, layers, x, y):
    """A function that computes every layer's weight gradient, and nothing else, from one real step's tensors."""
    inputs, gradients = {}, {}

    def keep(layer: nn.Module, arguments, output) -> None:
        inputs[layer] = arguments[0].detach()
        output.register_hook(lambda dy: gradients.__setitem__(layer, dy))  # also right before an in-place ReLU

    set_skip(model, False)
    hooks = [layer.register_forward_hook(keep) for layer in layers.values()]
    F.cross_entropy(model(x), y).backward()
    for hook in hooks:
        hook.remove()
    work = [(layer, inputs[layer], gradients[layer]) for layer in layers.values()]
    for layer, layer_x, dy in work:
        expected = layer.weight.grad
        assert (weight_gradient(layer, layer_x, dy) - expected).norm() <= 1e-2 * expected.norm()
    model.zero_grad()
    return lambda *_: [weight_gradient(*item) for item in work]


def weight_gradient(layer: nn.Module, x: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
    weight = layer.weight.detach()
    if isinstance(layer, nn.Linear):
        return dy.t().mm(x)
    geometry = (layer.stride, layer.padding, layer.dilation, False, (0, 0), layer.groups)
    return torch.ops.aten.convolution_backward(dy, x, weight, None, *geometry, (False, True, False))[1]


def weight_update(layers):
    """The optimizer's work on the weights alone, on copies of them."""
    copies = [layer.weight.detach().clone().requires_grad_() for layer in layers.values()]
    for copy in copies:
        copy.grad = torch.randn_like(copy)
    optimizer = torch.optim.SGD(copies, **SGD)
    return lambda *_: optimizer.step()
