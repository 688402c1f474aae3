"""A whole training step of VGG-11 on the digits: what a skipped step saves of what could be saved.

What could be saved is measured by itself: every layer's weight gradient, computed once more from the tensors of a real
step, and the optimizer's work on the weights. Stock freezing stands beside it.
"""

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from bench.conftest import ROUNDS
from wuskern import modules, set_skip
from wuskern.train import data
from wuskern.train.loop import Run, Settings

BATCH = 64


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("name", ["vgg11"])
def test_step(name, layout, device, race):
    settings = Settings(
        model=name, width=1.0, epochs=1, batch=BATCH, optimizer="sgd", lr=0.002, momentum=0.9, weight_decay=5e-4,
        channels_last=layout == "NHWC", device=device, wus={},
    )  # fmt: skip
    digits = data.load("digits").to(device, settings.memory_format)
    run = Run("wus", settings, digits, seed=0)
    layers = modules.skippable_layers(run.model)
    x, y = digits.x_train[:BATCH].contiguous(memory_format=settings.memory_format), digits.y_train[:BATCH]

    def step() -> None:
        run._step(x, y)

    def with_flags(skip: bool, frozen: bool):
        def body() -> None:
            set_skip(run.model, skip)
            for layer in layers.values():
                layer.weight.requires_grad_(not frozen)
            step()

        return body

    variants = {"ours": with_flags(True, False), "dense": with_flags(False, False), "frozen": with_flags(False, True)}
    variants["dense"]()
    assert all(layer.weight.grad is not None for layer in layers.values())
    variants["ours"]()
    assert all(layer.weight.grad is None for layer in layers.values())

    variants["wgrad"] = recorded_weight_gradients(run.model, layers, x, y)
    variants["weight update"] = weight_update(layers)
    medians = race(variants, group="step", case=f"{name} digits {layout}", peer="dense", rehearse=True, rounds=2 * ROUNDS)
    share = (medians["wgrad"] + medians["weight update"]) / medians["dense"]
    saved = 1 - medians["ours"] / medians["dense"]
    frozen = 1 - medians["frozen"] / medians["dense"]
    print(
        f"\n{name} {layout}: wgrad and weight update {share:.1%} of a dense step; skipped {saved:.1%}, frozen {frozen:.1%}",
        end="",
    )


def recorded_weight_gradients(model, layers, x, y):
    """A function that computes every layer's weight gradient, and nothing else, from one real step's tensors."""
    inputs, outputs = {}, {}

    def keep(layer: nn.Module, arguments, output) -> None:
        inputs[layer] = arguments[0].detach()
        output.retain_grad()
        outputs[layer] = output

    set_skip(model, False)
    hooks = [layer.register_forward_hook(keep) for layer in layers.values()]
    F.cross_entropy(model(x), y).backward()
    for hook in hooks:
        hook.remove()
    work = [(layer, inputs[layer], outputs[layer].grad) for layer in layers.values()]
    for layer, layer_x, dy in work:
        expected = layer.weight.grad
        assert (weight_gradient(layer, layer_x, dy) - expected).norm() <= 1e-2 * expected.norm()
    return lambda: [weight_gradient(*item) for item in work]


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
    return torch.optim.SGD(copies, 1e-9, momentum=0.9, weight_decay=5e-4).step
